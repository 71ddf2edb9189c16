"""The methods by name, and what each of them is. Floor 1; pure Python."""

from __future__ import annotations

from typing import Literal

from lm_eval_cna.thirds import THIRDS

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
