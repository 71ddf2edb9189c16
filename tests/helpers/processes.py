"""Several processes on this machine, as torchrun starts them, talking over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
TIMEOUT = 300


def torchrun(
    module: str, *arguments: object, processes: int = 2, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in several processes, each with one thread; a free port is chosen for each call."""
    launcher = ["torch.distributed.run", "--standalone", "--no-python", f"--nproc-per-node={processes}"]
    return launched(*launcher, sys.executable, "-m", module, *arguments, check=check)


def launched(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m command` in the checkout; its output is in the error, should it fail."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert not check or done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done
