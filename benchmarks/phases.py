"""Where a sweep's time goes: the main thread's stack, looked at from a second thread every few milliseconds.

Phases are told by the files and functions on the stack, outermost first, so that this needs to know little of how the
sweep is written and costs it nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from types import FrameType

# (phase, part of the file's path, function or None); the first that is anywhere on the stack decides.
_RULES: tuple[tuple[str, str, str | None], ...] = (
    ("load", "lm_eval_cna/models/hf.py", "__init__"),
    ("discovery", "lm_eval_cna/measur", None),
    ("discovery", "lm_eval_cna/sweep/interventions.py", "prepare"),
    ("writing", "lm_eval_cna/results/directory.py", None),
    ("writing", "lm_eval_cna/results/responses.py", None),
    ("writing", "/sqlite3/", None),
    ("generation: model", "transformers/models/", "forward"),
    ("generation: model", "lm_eval_cna/steering", None),
    ("generation: loop", "lm_eval_cna/models/packed", None),
    ("generation: loop", "transformers/generation/", None),
    ("generation: loop", "lm_eval/models/huggingface.py", None),
    ("generation: loop", "lm_eval_cna/sweep/answers.py", None),
    ("scoring", "lm_eval_cna/scoring/", None),
    ("scoring", "lm_eval_cna/organism/tasks.py", "process_results"),
    ("lm-eval", "lm_eval/", None),
    ("summary", "lm_eval_cna/results/summary.py", None),
)


class Phases:
    """A context manager that watches the thread it is entered in.

    Attributes:
        total: seconds between entering and leaving.
    """

    def __init__(self, interval: float = 0.002) -> None:
        self.total = 0.0
        self._interval = interval
        self._seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Phases:
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.total = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()

    def shares(self) -> dict[str, float]:
        """Share of the time by phase."""
        whole = sum(self._seen.values())
        return {phase: seconds / whole for phase, seconds in self._seen.items()}

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(self._interval):
            frame = sys._current_frames().get(self._watched)
            now = time.perf_counter()
            # A sample stands for the time since the last one: what holds the interpreter's lock is not undercounted.
            self._seen[_phase(frame)] += now - last  # type: ignore[assignment]
            last = now


def _phase(frame: FrameType | None) -> str:
    stack = set()
    while frame is not None:
        stack.add((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    for phase, part, function in _RULES:
        if any(part in file and function in (None, name) for file, name in stack):
            return phase
    return "other"
