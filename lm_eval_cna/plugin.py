"""Registers our models and tasks with lm-eval, and runs lm-eval's own command with them.

Called by ``autoload`` when lm-eval 0.4.13 is imported, by Python users (:func:`register`) and by
``python -m lm_eval_cna run`` (:func:`run_lm_eval`). A newer lm-eval finds the models by the entry points in
pyproject.toml, but not the tasks, so these are added in every version.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from lm_eval_cna.errors import CNAError
from lm_eval_cna.resources import tasks_dir

#: Name for ``--model`` -> "module:class"; the entry points ``lm_eval.models`` in pyproject.toml have the same.
MODELS = {"cna-hf": "lm_eval_cna.models.hf:CNAHFLM", "cna-vllm": "lm_eval_cna.models.vllm:CNAVLLM"}

_lock = threading.Lock()


def register() -> None:
    """Register our models and tasks with lm-eval in this process; further calls do nothing.

    Only needed if the ``.pth`` file does not work: with ``LM_EVAL_CNA_AUTOLOAD=0``, in a ``pip install --target``
    folder, or in a checkout that is not installed.

    Example:
        >>> import lm_eval_cna
        >>> lm_eval_cna.register()
        >>> from lm_eval.api.registry import model_registry
        >>> "cna-hf" in model_registry
        True
    """
    import lm_eval.models
    import lm_eval.tasks  # before its submodule, as its users import it; otherwise two threads can deadlock
    import lm_eval.tasks.manager

    add_models(lm_eval.models)
    add_tasks(lm_eval.tasks.manager)


def add_models(_module: ModuleType) -> None:
    """Register our models by name, after lm-eval's own, unless this lm-eval reads the entry points itself."""
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):  # upstream #4013, merged after 0.4.13
        return
    with _lock:
        for name, target in MODELS.items():
            if name not in registry.model_registry:
                registry.model_registry.register(name, target=target)


def add_tasks(module: ModuleType) -> None:
    """Make every ``TaskManager`` index our tasks, unless it was created with ``include_defaults=False``.

    The order is lm-eval's tasks, ours, the user's ``include_path``; later tasks override earlier ones of the same name.
    """
    with _lock:
        original = module.TaskManager.__init__
        if getattr(original, "adds_cna_tasks", False):
            return
        signature = inspect.signature(original)

        @functools.wraps(original)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            call = signature.bind(self, *args, **kwargs)
            call.apply_defaults()
            given = call.arguments["include_path"]
            if call.arguments["include_defaults"]:
                call.arguments["include_path"] = _with_our_tasks(given)
            original(*call.args, **call.kwargs)
            self.include_path = given  # the attribute must show what the user gave

        init.adds_cna_tasks = True  # type: ignore[attr-defined]
        module.TaskManager.__init__ = init


def _with_our_tasks(given: Any) -> list[Any]:
    """Our folder, then the user's; ours is not repeated, since lm-eval would warn of tasks that override themselves."""
    paths = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    ours = tasks_dir()
    return paths if any(Path(path).resolve() == ours for path in paths) else [ours, *paths]


def run_lm_eval(argv: list[str]) -> int:
    """Run lm-eval's own command and its arguments with our models and tasks, even with ``LM_EVAL_CNA_AUTOLOAD=0``.

    Returns:
        The exit status: lm-eval's own, or 2 after one line on standard error when a :class:`CNAError` was raised.
    """
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *argv]  # lm-eval's parser reads it and rewrites it
    try:
        register()
        cli_evaluate()
    except CNAError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1
    finally:
        sys.argv = before
    return 0
