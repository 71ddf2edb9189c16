"""The versions that pyproject.toml claims, run: `make test-versions` writes what passed to results/versions.

    python -m tests.helpers.versions pins oldest [TORCH] > FILE  constraints: every direct dependency's lower bound
    python -m tests.helpers.versions pins newest [TORCH] > FILE  constraints that leave the versions to the registry
    python -m tests.helpers.versions record oldest [ARGS]        run the tests here, and record versions and counts

The test tools are those of constraints.txt in both. So is torch in `newest` unless another is given: on a machine
without a GPU the registry's newest build brings gigabytes of CUDA along.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "results" / "versions"
#: Tests that lean on every direct dependency, and most of all on lm_eval and transformers.
TESTS = (
    "tests/models/test_hf.py",
    "tests/steering/test_experts.py",
    "tests/models/shared_batches/test_generation.py",
    "tests/models/decoding/test_likelihood.py",
    "tests/integration/test_entry.py",
    "tests/discovery/test_discover.py",
    "tests/transformer/test_decoder.py",
    "tests/interventions/test_circuit.py",
    "tests/contrast/test_loading.py",
    "tests/interventions/test_reading.py",
    "tests/interventions/test_vectors.py",
    "tests/transformer/test_prompts.py",
    "tests/report/test_report.py",
    "tests/steering/test_apply.py",
    "tests/sweep/test_config.py",
    "tests/cli/test_terminal.py",
)
#: Starts processes on a fixed port, where two of these runs at the same time would meet.
_LEFT_OUT = "tests/models/test_hf.py::test_two_cpu_processes_share_the_requests"
#: What the tests themselves need.
_TOOLS = ("pytest", "pytest-cov", "coverage", "pytest-xdist", "hypothesis", "statsmodels", "hatchling", "tenacity")
#: Indirect dependencies whose version a reader wants to know.
_INDIRECT = ("peft",)
_CLAIM = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)")


def claimed() -> dict[str, str]:
    """Direct dependency -> the oldest version that pyproject.toml claims."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [_CLAIM.fullmatch(line) for line in project["dependencies"]]
    assert all(found), "a dependency without a lower bound"
    return {match[1]: match[2] for match in found if match is not None}


def tested_with() -> dict[str, str]:
    """Package -> the version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def pins(which: str, torch: str | None = None) -> dict[str, str]:
    """Package -> the version to install it in."""
    usual = tested_with()
    chosen = {"torch": usual["torch"]} if which == "newest" else claimed()
    return {name: usual[name] for name in _TOOLS} | chosen | ({} if torch is None else {"torch": torch})


def record(which: str, arguments: list[str]) -> int:
    """Run the tests with this interpreter; what passed is written only where nothing failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, f"--deselect={_LEFT_OUT}"]
        command += [f"--junitxml={report}", *arguments]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        suite = xml.etree.ElementTree.parse(report).getroot()[0].attrib
    if status == 0:
        counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
        about: dict[str, Any] = {
            "which": which,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "versions": {name: found for name in (*claimed(), *_INDIRECT) if (found := _version(name))},
            "passed": counts["tests"] - counts["skipped"],
            "skipped": counts["skipped"],
            "failed": counts["failures"] + counts["errors"],
            "tests": list(TESTS),
            "left_out": _LEFT_OUT,
            "seconds": round(float(suite["time"])),
            "date": datetime.now(UTC).date().isoformat(),
        }
        RECORDS.mkdir(parents=True, exist_ok=True)
        (RECORDS / f"{which}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (RECORDS / "README.md").write_text(page(records()), encoding="utf-8")
    return status


def records() -> dict[str, dict[str, Any]]:
    """What was recorded, by name, the oldest versions first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: item[0] != "oldest"))


def page(found: dict[str, dict[str, Any]]) -> str:
    """The records as a page."""
    packages = dict.fromkeys(name for one in found.values() for name in one["versions"])
    rows = [
        ("", *found),
        ("---", *("---" for _ in found)),
        ("Python", *(one["python"] for one in found.values())),
        *((name, *(one["versions"].get(name, "") for one in found.values())) for name in packages),
        ("tests passed", *(str(one["passed"]) for one in found.values())),
        ("skipped", *(str(one["skipped"]) for one in found.values())),
        ("failed", *(str(one["failed"]) for one in found.values())),
        ("seconds", *(str(one["seconds"]) for one in found.values())),
        ("on", *(one["date"] for one in found.values())),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    added = "".join(
        f"\n{name} was added after `{which}` was recorded: {said}.\n"
        for which, one in found.items()
        for name, said in one.get("added_since", {}).items()
    )
    platforms = " and ".join(dict.fromkeys(one["platform"] for one in found.values()))
    return f"""# Versions that were run

Written by `make test-versions`, on {platforms}, CPU only. `oldest` has the lower bound of every direct dependency in
pyproject.toml. The newest that the registry had on 2026-11-21 for Python 3.11 are those of constraints.txt, with which
the whole suite runs; `make test-newest` records later ones. torch stays at 2.13, of which there is a CPU build: newer
and older ones bring gigabytes of CUDA along, so they were not run, nor were Python 3.12 to 3.14. The JSON files beside
this page name the test files.

{table}
{added}"""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    what, which, *rest = sys.argv[1:]
    if what == "pins":
        print(*(f"{name}=={number}" for name, number in pins(which, *rest).items()), sep="\n")
    else:
        sys.exit(record(which, rest))
