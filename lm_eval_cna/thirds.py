"""The bottom, middle and top third of a model's layers. Floor 1; pure Python."""

from __future__ import annotations

from lm_eval_cna.errors import ConfigError

THIRDS = ("bottom", "middle", "top")


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
