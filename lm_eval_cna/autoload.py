"""Makes the stock ``lm_eval`` command of 0.4.13, which has no plugin discovery, know our models and tasks.

``autoload.pth`` imports this module whenever an interpreter starts, unless ``LM_EVAL_CNA_AUTOLOAD=0``,
so it imports nothing but builtins, not even ``__future__``; ``benchmarks/startup.py`` measures what it costs. It
puts a finder in front of ``sys.meta_path`` that finds nothing itself: it waits for two modules of lm-eval, lets the
other finders find them and calls ``lm_eval_cna.plugin`` once such a module has been executed. The finder stays, so
that a reloaded module is treated like a new one. A finder that somebody else puts in front of it and that finds
lm-eval without asking further hides lm-eval from it; ``python -m lm_eval_cna run`` and ``lm_eval_cna.register()``
need none of this.
"""

import sys
from _thread import get_ident

TYPE_CHECKING = False  # typing's own constant would import typing, several times our budget
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

#: Module of lm-eval -> function of ``lm_eval_cna.plugin`` that is called with it.
WATCHED = {"lm_eval.models": "add_models", "lm_eval.tasks.manager": "add_tasks"}


class _AnnouncingLoader:
    """The loader of a watched module, which leaves no trace of itself and announces the executed module."""

    def __init__(self, spec: "ModuleSpec", loader: "Any") -> None:
        self._spec = spec
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Create the module as its own loader does."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: "ModuleType") -> None:
        """Execute the module as its own loader does, then register; only the module's own errors get out."""
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _announce(module)


class _Finder:
    """A meta path finder that only watches: every module is found by the others."""

    def __init__(self) -> None:
        self._searching: set[tuple[int, str]] = set()

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        """Return the other finders' spec for a watched module, with our loader around its own."""
        if name not in WATCHED:
            return None
        # Another hook that works as this one does asks every finder too, us included: answer it with nothing.
        search = (get_ident(), name)
        if search in self._searching:
            return None
        self._searching.add(search)
        try:
            spec = _find(name, path, target, without=self)
        finally:
            self._searching.discard(search)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _AnnouncingLoader(spec, spec.loader)  # type: ignore[assignment]  # duck-typed: importlib.abc is not cheap
        return spec


def _find(name: str, path: "Sequence[str] | None", target: "Any", *, without: _Finder) -> "ModuleSpec | None":
    for finder in list(sys.meta_path):
        if finder is not without and hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


def _announce(module: "ModuleType") -> None:
    try:
        from lm_eval_cna import plugin

        getattr(plugin, WATCHED[module.__name__])(module)
    except Exception as error:
        # Whoever imports lm-eval may have no use for us: say it, and let the import succeed.
        import logging

        logging.getLogger(__name__).warning(
            "lm_eval_cna could not add itself to %s (%s: %s); `python -m lm_eval_cna run` shows the whole error",
            module.__name__,
            type(error).__name__,
            error,
        )


def install() -> None:
    """Put the finder in front of ``sys.meta_path``; does nothing when it is there already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
