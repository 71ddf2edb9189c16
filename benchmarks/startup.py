"""What our .pth file adds to the start of an interpreter that never imports lm-eval: the budget is 2 ms.

Two bare virtual environments, one with ``autoload.pth`` and one without, start ``python -c pass`` in turn, so that
whatever slows the machine slows both. Both find the package on their path. Run: python benchmarks/startup.py [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET_MS = 2.0


def make_interpreter(folder: Path, *, with_pth: bool) -> Path:
    """A virtual environment with the checkout on its path, and our .pth file if asked for."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "_checkout.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    if with_pth:
        shutil.copy(ROOT / "lm_eval_cna" / "autoload.pth", site / "lm_eval_cna.pth")
    return folder / "bin" / "python"


def start_ms(python: Path, environment: dict[str, str]) -> float:
    """Milliseconds from starting an interpreter to its end."""
    began = time.perf_counter()
    subprocess.run([python, "-c", "pass"], env=environment, check=True)
    return 1000 * (time.perf_counter() - began)


def measure(rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each round without and with the .pth file."""
    dropped = ("LM_EVAL_CNA_AUTOLOAD", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    with tempfile.TemporaryDirectory() as scratch:
        interpreters = [make_interpreter(Path(scratch) / str(on), with_pth=on) for on in (False, True)]
        for python in interpreters * 3:  # byte code and file caches
            start_ms(python, environment)
        pairs = []
        for turn in range(rounds):
            order = interpreters if turn % 2 == 0 else interpreters[::-1]
            taken = {python: start_ms(python, environment) for python in order}
            pairs.append([taken[python] for python in interpreters])
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def main() -> int:
    """Print the medians, their ratio and the median difference; exit status 1 over the budget."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    without, with_pth = measure(rounds)
    added = statistics.median(b - a for a, b in zip(without, with_pth, strict=True))
    quartiles = statistics.quantiles((b - a for a, b in zip(without, with_pth, strict=True)), n=4)
    ratio = statistics.median(with_pth) / statistics.median(without)
    print(f"python -c pass, median of {rounds} rounds: {statistics.median(without):.2f} ms without the .pth file, ")
    print(f"{statistics.median(with_pth):.2f} ms with it (ratio {ratio:.3f})")
    print(f"added: {added:.2f} ms (quartiles {quartiles[0]:.2f} and {quartiles[2]:.2f}); budget {BUDGET_MS} ms")
    return int(added > BUDGET_MS)


if __name__ == "__main__":
    sys.exit(main())
