"""The methods, one row each. Every list of methods in the project is derived from these rows.

A row names the function that finds or draws the method's intervention, in text, so that reading results needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lm_eval_cna.errors import ConfigError

#: What a forward pass is read for: the input of every down-projection, its absolute value, what every MLP adds to the
#: residual stream, and the residual stream behind every layer.
Read = Literal["neurons", "magnitudes", "writes", "blocks"]
THIRDS = ("bottom", "middle", "top")


@dataclass(frozen=True)
class Method:
    """What the project knows of a method by its name."""

    name: str
    """As the command line and the files have it."""
    label: str
    """What tables and charts call it."""
    acts: Literal["neurons", "write", "block"]
    """Multiplies neurons, or adds vectors: to what MLPs write, or to the residual stream behind layers."""
    finder: str
    """`module:function` that makes its intervention; what the function takes by keyword is what the method takes."""
    reads: Read | None = None
    """What the finder needs of the forward passes; None for a control, which is drawn and not found."""
    null: str | None = None
    """The control that its effects are held against."""
    kept_as: str | None = None
    """Its file in a run directory; a control has one file a seed."""
    third: str | None = None
    """The third of the layers that a sweep draws this control's neurons from; its files are of method `random`."""

    @property
    def is_control(self) -> bool:
        """Whether it is drawn, once a seed, to be a null for what is found."""
        return self.reads is None

    @property
    def suffix(self) -> str:
        """The ending of its files' names."""
        return ".json" if self.acts == "neurons" else ".safetensors"


_FOUND = "lm_eval_cna.discovery.methods"
_DRAWN = "lm_eval_cna.discovery.controls"
METHODS = {
    row.name: row
    for row in (
        Method("cna", "CNA", "neurons", f"{_FOUND}.cna:find", "neurons", "random", "circuit.json"),
        Method("caa", "CAA", "write", f"{_FOUND}.caa:find", "writes", "random-vectors", "vectors.safetensors"),
        Method(
            "caa-residual", "CAA, one layer", "block", f"{_FOUND}.caa_residual:find", "blocks", "random-vectors",
            "residual.safetensors",
        ),
        Method(
            "top-activation", "largest activation", "neurons", f"{_FOUND}.top_activation:find", "magnitudes",
            kept_as="top-activation.json",
        ),
        Method("random", "random neurons", "neurons", f"{_DRAWN}:draw_neurons"),
        *(
            Method(f"random-{part}", f"random neurons, {part} third", "neurons", f"{_DRAWN}:draw_neurons", third=part)
            for part in THIRDS
        ),
        Method("random-vectors", "random vectors", "write", f"{_DRAWN}:draw_vectors"),
    )
}  # fmt: skip

#: Method -> the control that is its null.
NULLS = {row.name: row.null for row in METHODS.values() if row.null is not None}
#: Control -> the method that it is matched to: the first one that acts as it does.
CONTROLS = {
    control.name: next(row.name for row in METHODS.values() if row.acts == control.acts)
    for control in METHODS.values()
    if control.is_control
}
#: Control of a sweep -> the third of the layers that its neurons are drawn from.
LOCAL = {row.name: row.third for row in METHODS.values() if row.third is not None}
#: Methods that add vectors; all others multiply neurons.
OF_VECTORS = frozenset(row.name for row in METHODS.values() if row.acts != "neurons")
#: Methods that `discover` makes a file of.
IN_FILES = tuple(name for name in METHODS if name not in LOCAL)

if TYPE_CHECKING:
    SweepMethod = str
    CircuitMethod = str
    VectorsMethod = str
else:  # what pydantic checks a field against, and puts into a schema
    SweepMethod = Literal[tuple(METHODS)]
    CircuitMethod = Literal[tuple(name for name in IN_FILES if name not in OF_VECTORS)]
    VectorsMethod = Literal[tuple(name for name in IN_FILES if name in OF_VECTORS)]


def third_of_layers(layers: int, third: str) -> range:
    """The layers of the bottom, middle or top third: as even a split as whole layers allow, the same from both ends.

    Of 16 layers the thirds have 5, 6 and 5, of 28 they have 9, 10 and 9.

    Raises:
        ConfigError: no such third, or the model is too shallow to have one.
    """
    if third not in THIRDS:
        raise ConfigError("third of the layers", got=third, allowed=", ".join(THIRDS))
    ends = [round(part * layers / 3) for part in range(4)]
    found = range(*ends[(at := THIRDS.index(third)) : at + 2])
    if not found:
        raise ConfigError(f"a model of {layers} layers has no {third} third", do="match controls by layer")
    return found
