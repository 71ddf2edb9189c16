"""Access to weights that are sharded over processes, offloaded, or packed by a quantizer.

- Sharded: with `tp_plan=auto` each process holds some of the neurons (a `DTensor`), and all must run the same calls.
- Offloaded: the module holds an empty tensor on the meta device, and the weight is loaded at every call.
- Packed: no column can be edited or compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Without the 8-bit types, whose scales a quantizer keeps elsewhere.
_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_cut(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`, sharded over processes; found by attributes, to avoid a slow import."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_plain(tensor: Any) -> bool:
    """Whether a tensor is an ordinary floating-point tensor, all of it in this process's memory."""
    plain = type(tensor) in (nn.Parameter, torch.Tensor)
    return plain and tensor.dtype in _PRECISIONS and tensor.device.type != "meta"


def is_packed(weight: Any) -> bool:
    """Whether a quantizer has packed the weight."""
    if not isinstance(weight, torch.Tensor):
        return True
    return weight.dtype not in _PRECISIONS or not (is_cut(weight) or type(weight) in (nn.Parameter, torch.Tensor))


def kind_of(weight: Any, owner: nn.Module) -> str:
    """Name a weight's data type, or how a quantizer packs it."""
    if not isinstance(weight, torch.Tensor):
        return type(owner).__name__
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{type(weight).__name__} of {dtype}" if is_packed(weight) else dtype


def local(weight: Any) -> torch.Tensor:
    """The part of a weight that this process holds, without a copy."""
    with torch.no_grad():  # hooks call this in inference mode, in which a DTensor cannot be detached
        part: torch.Tensor = weight.to_local() if is_cut(weight) else weight.data
    return part


def whole(weight: Any, owner: nn.Module, name: str) -> torch.Tensor | None:
    """A whole weight, gathered or read if necessary; None if it is packed or cannot be read.

    If the weight is sharded, all processes must call this, and each needs memory for the whole weight.
    """
    if is_cut(weight):
        with torch.no_grad():
            found: torch.Tensor = weight.full_tensor()
        return found
    if weight.device.type == "meta":
        return _offloaded(owner, name)
    return weight.detach() if type(weight) in (nn.Parameter, torch.Tensor) else None


def stored(weight: Any, owner: nn.Module, name: str) -> Iterator[torch.Tensor]:
    """The plain tensors in which a weight is stored, packed or not; none if they cannot be read."""
    found = whole(weight, owner, name)
    if found is not None:
        yield found
    elif is_traceable_wrapper_subclass(weight):  # torchao: data and scales
        names, _ = weight.__tensor_flatten__()
        for inner in names:
            yield from stored(getattr(weight, inner), owner, f"{name}.{inner}")
    elif weight.device.type != "meta":  # bitsandbytes: a parameter class with its own storage
        yield weight.detach().as_subclass(torch.Tensor)


def is_offloaded(weight: Any, owner: nn.Module) -> bool:
    """Whether a module's weight is loaded again at every call."""
    on_meta = isinstance(weight, torch.Tensor) and weight.device.type == "meta"
    return on_meta or any(getattr(hook, "offload", False) for hook in _hooks(owner))


def _offloaded(owner: nn.Module, name: str) -> torch.Tensor | None:
    """Read an offloaded weight from accelerate's copy; None if that cannot be found."""
    for hook in _hooks(owner):
        kept = getattr(hook, "weights_map", None)
        with suppress(KeyError, TypeError):  # TypeError: no map
            found = kept[name]  # type: ignore[index]
            return found if isinstance(found, torch.Tensor) and found.device.type != "meta" else None
    return None


def _hooks(owner: nn.Module) -> tuple[Any, ...]:
    """Accelerate's hooks on a module."""
    hook = getattr(owner, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))
