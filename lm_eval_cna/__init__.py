"""Contrastive Neuron Attribution inside lm-evaluation-harness: find a circuit, steer it, measure what it does.

Every name of the public API is imported when it is first used: ``autoload`` imports this package whenever an
interpreter starts, and reading results needs no torch. That is also why nothing is imported here, not even
``__future__``, which is a module that has to be found and read.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own constant would import typing
if TYPE_CHECKING:
    from lm_eval_cna.contrast.loading import load_contrast
    from lm_eval_cna.discovery.discover import discover
    from lm_eval_cna.discovery.measurement import measure
    from lm_eval_cna.errors import CNAError
    from lm_eval_cna.interventions.circuit import Circuit
    from lm_eval_cna.interventions.reading import read_intervention
    from lm_eval_cna.interventions.vectors import Vectors
    from lm_eval_cna.plugin import register
    from lm_eval_cna.steering.apply import steer
    from lm_eval_cna.steering.setting import Setting
    from lm_eval_cna.sweep.runner import run_sweep
    from lm_eval_cna.transformer.decoder import find_architecture

__all__ = [
    "CNAError",
    "Circuit",
    "Setting",
    "Vectors",
    "__version__",
    "discover",
    "find_architecture",
    "load_contrast",
    "measure",
    "read_intervention",
    "register",
    "run_sweep",
    "steer",
]

_MODULES = {
    "CNAError": "errors",
    "Circuit": "interventions.circuit",
    "Setting": "steering.setting",
    "Vectors": "interventions.vectors",
    "discover": "discovery.discover",
    "find_architecture": "transformer.decoder",
    "load_contrast": "contrast.loading",
    "measure": "discovery.measurement",
    "read_intervention": "interventions.reading",
    "register": "plugin",
    "run_sweep": "sweep.runner",
    "steer": "steering.apply",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
