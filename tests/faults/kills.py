"""Kill a demo sweep with signal 9 at random moments, run it again, and compare with a run that nobody disturbed.

    python -m tests.faults.kills --times 20 --seed 1

A round is lost if the second run fails or computes a response that the first had written; it is wrong if a response, a
metric or the summary differs from the undisturbed run's. Prints one line a round and a JSON record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from lm_eval_cna.organism.store import ensure_organism
from lm_eval_cna.results.responses import STORE_NAME

_RUN = """
import json, sys
from lm_eval.tasks import TaskManager
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep import runner
from lm_eval_cna.sweep.config import parse_config

original, put = runner.ResponseStore.put, 0
def counted(self, responses):
    global put
    original(self, responses)
    put += len(responses)
runner.ResponseStore.put = counted
print("ready", flush=True)
manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
runner.run_sweep(parse_config(json.loads(sys.argv[1])), task_manager=manager)
print("computed", put, flush=True)
"""


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    model = str(ensure_organism().instruct)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        took, computed = _finish(model, whole)
        print(f"undisturbed: {took:.1f} s, {computed} responses", flush=True)
        counts = {"survived": 0, "lost": 0, "wrong": 0}
        for number in range(chosen.times):
            folder = Path(scratch) / f"run{number}"
            moment = draw.uniform(0, took)
            _kill_after(model, folder, moment)
            kept = len(_stored(folder))
            try:
                _, again = _finish(model, folder)
            except subprocess.CalledProcessError as error:
                verdict = "lost"
                print(error.stderr[-2000:], file=sys.stderr)
            else:
                lost = kept + again != computed
                verdict = "wrong" if _differs(folder, whole) else "lost" if lost else "survived"
            counts[verdict] += 1
            print(f"{number + 1:3} killed after {moment:5.1f} s, {kept:5} responses kept: {verdict}", flush=True)
    print(json.dumps({"times": chosen.times, "seed": chosen.seed, **counts}))
    sys.exit(int(counts["survived"] < chosen.times))


def _command(model: str, folder: Path) -> list[str]:
    asked = {
        "model": model,
        "model_args": {"device": "cpu", "dtype": "float32", "batch_size": 32},
        "contrast": "organism",
        "fraction": 0.005,
        "methods": ["cna", "caa", "random"],
        "random": 3,
        "tasks": ["organism_refusal", "organism_benign", "organism_knowledge"],
        "limit": 20,
        "output": str(folder),
    }
    return [sys.executable, "-c", _RUN, json.dumps(asked)]


def _finish(model: str, folder: Path) -> tuple[float, int]:
    """Run to the end: seconds from the first sign of life, responses computed."""
    started = time.monotonic()
    done = subprocess.run(_command(model, folder), check=True, capture_output=True, text=True)
    return time.monotonic() - started, int(done.stdout.split("computed ")[1])


def _kill_after(model: str, folder: Path, seconds: float) -> None:
    process = subprocess.Popen(
        _command(model, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _stored(folder: Path) -> dict[tuple[str, str], Any]:
    path = folder / STORE_NAME
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as database:
        try:
            return {row[:2]: row[2:] for row in database.execute("SELECT * FROM responses")}
        except sqlite3.OperationalError:  # killed before the table was there
            return {}


def _differs(ours: Path, whole: Path) -> bool:
    results = [
        {path.relative_to(folder): json.loads(path.read_text())["results"] for path in folder.glob("cells/*/*.json")}
        for folder in (ours, whole)
    ]
    summaries = [(folder / "summary.json").read_bytes() for folder in (ours, whole)]
    return _stored(ours) != _stored(whole) or results[0] != results[1] or summaries[0] != summaries[1]


if __name__ == "__main__":
    main()
