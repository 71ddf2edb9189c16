"""Registers our models and tasks with the stock ``lm_eval`` command of 0.4.13, which has no plugin discovery.

``autoload.pth`` imports this module in every new interpreter unless ``LM_EVAL_CNA_AUTOLOAD=0``, so it imports only
builtins, not even ``__future__``. It puts a finder in front of ``sys.meta_path`` that waits for two modules of lm-eval
and calls ``lm_eval_cna.plugin`` after each was executed, also after a reload.
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
    """Wraps the loader of a watched module: calls the plugin after the module, then removes itself from it."""

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
        """Execute the module as its own loader does, then call the plugin, whose errors are only logged."""
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _announce(module)


class _Finder:
    """A finder that leaves finding to the other finders and wraps the loaders of watched modules."""

    def __init__(self) -> None:
        self._searching: set[tuple[int, str]] = set()

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        """Return the other finders' spec for a watched module, with our loader around its own."""
        if name not in WATCHED:
            return None
        # A hook like this one asks every finder, this one too: return nothing, or the two call each other forever.
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
        # The user of lm-eval may not need this plugin, so log the error and let the import succeed.
        import logging

        logging.getLogger(__name__).warning(
            "lm_eval_cna could not add itself to %s (%s: %s); `python -m lm_eval_cna run` shows the whole error",
            module.__name__,
            type(error).__name__,
            error,
        )


def install() -> None:
    """Put the finder in front of ``sys.meta_path``, unless it is there already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
