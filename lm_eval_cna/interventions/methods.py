"""The methods by name, and what each of them is. Pure Python."""

from __future__ import annotations

from typing import Literal, get_args

from lm_eval_cna.errors import ConfigError

Method = Literal["cna", "caa", "caa-residual", "top-activation", "random", "random-vectors"]
METHODS: tuple[Method, ...] = get_args(Method)
THIRDS = ("bottom", "middle", "top")

#: What a forward pass is read for: the input of every down-projection, its absolute value, what every MLP adds to the
#: residual stream, and the residual stream behind every layer.
Read = Literal["neurons", "magnitudes", "writes", "blocks"]
#: Method that is discovered -> what it is discovered from.
READS: dict[str, Read] = {
    "cna": "neurons",
    "caa": "writes",
    "caa-residual": "blocks",
    "top-activation": "magnitudes",
}
#: Control of a sweep -> the third of the layers that its neurons are drawn from.
LOCAL = {f"random-{third}": third for third in THIRDS}
#: Control -> the method whose circuit or vectors it is matched to.
CONTROLS = {"random": "cna", **dict.fromkeys(LOCAL, "cna"), "random-vectors": "caa"}
#: Methods that add vectors; all others multiply neurons.
OF_VECTORS = frozenset({"caa", "caa-residual", "random-vectors"})


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
