"""Access to weights that are sharded over processes, offloaded, or packed by a quantizer.

- Sharded: with `tp_plan=auto` each process holds some of the neurons (a `DTensor`). Steering changes the local part and
  discovery gathers, so all processes must run the same calls in the same order.
- Offloaded: the module holds an empty tensor on the meta device, and the weight is loaded at every call, so edits would
  be lost.
- Packed: no column can be edited or compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lm_eval_cna.errors import ArchitectureError, CNAError

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
    """Name a weight's data type, or how a quantizer packs it.

    Args:
        weight: the weight, or None if its module has no weight of that name.
        owner: the weight's module.
    """
    if not isinstance(weight, torch.Tensor):
        return type(owner).__name__
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{type(weight).__name__} of {dtype}" if is_packed(weight) else dtype


def local(weight: Any) -> torch.Tensor:
    """The part of a weight that this process holds, without a copy."""
    with torch.no_grad():  # hooks call this in inference mode, in which a DTensor cannot be detached
        part: torch.Tensor = weight.to_local() if is_cut(weight) else weight.data
    return part


def held(weight: Any, dim: int, width: int, name: str) -> range:
    """The neurons whose activations this process computes.

    Args:
        weight: the weight of a down-projection, or None if its module has no weight of that name.
        dim: its dimension of neurons.
        width: neurons of the layer, on all processes together.
        name: name of the projection, for the message.

    Raises:
        ArchitectureError: the weight is sharded in an unknown way.
    """
    cut = _cut_along(weight, dim, name)
    if cut is None:
        return range(width)
    # As DTensor shards: equal parts, rounded up, and the last parts are smaller.
    part = -(-width // weight.device_mesh.size(cut))
    start = min(width, part * weight.device_mesh.get_local_rank(cut))
    found = range(start, min(width, start + part))
    if len(found) != local(weight).shape[dim]:
        raise _unknown_cut(weight, name)
    return found


def gathered(x: torch.Tensor, weight: Any, dim: int, width: int, name: str) -> torch.Tensor:
    """Gather the activations of all neurons from all processes, which must all call this.

    Args:
        x: activations [..., neurons of this process].
        weight: as in `held`.
        dim: as in `held`.
        width: as in `held`.
        name: as in `held`.

    Returns:
        [..., width]; `x` itself if this process computes all neurons.

    Raises:
        CNAError: `x` has neither all neurons nor those of this process.
    """
    if len(channels(x.shape[-1], held(weight, dim, width, name), width, name)) == width:
        return x
    from torch.distributed.tensor import DTensor, Replicate, Shard

    shape = torch.Size((*x.shape[:-1], width))
    cut = _cut_along(weight, dim, name)
    placements = [Shard(x.ndim - 1) if at == cut else Replicate() for at in range(weight.device_mesh.ndim)]
    spread = DTensor.from_local(
        x.contiguous(),
        weight.device_mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )
    whole: torch.Tensor = spread.full_tensor()
    return whole


def channels(size: int, here: range, width: int, name: str) -> range:
    """The neurons in a projection's input: all, or this process's (some plans shard after the hooks).

    Args:
        size: channels of the input.
        here: the neurons of this process.
        width: neurons of the layer.
        name: name of the projection, for the message.

    Raises:
        CNAError: the size is neither, so steering would change other neurons than asked.
    """
    if size not in (width, len(here)):
        raise CNAError(
            f"the input of {name} is cut in a way that is not known",
            got=f"{size} channels",
            allowed=" or ".join(map(str, sorted({width, len(here)}))),
            do="load the model without tp_plan",
        )
    return range(width) if size == width else here


def whole(weight: Any, owner: nn.Module, name: str) -> torch.Tensor | None:
    """A whole weight, gathered or read if necessary; None if it is packed or cannot be read.

    If the weight is sharded, all processes must call this, and each needs memory for the whole weight.

    Args:
        weight: a parameter or buffer.
        owner: the weight's module.
        name: the weight's name in the module.
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


def _cut_along(weight: Any, dim: int, name: str) -> int | None:
    """The mesh dimension over which the neurons are sharded; None if each process has all of them."""
    if not is_cut(weight):
        return None
    along = [(at, placement) for at, placement in enumerate(weight.placements) if not placement.is_replicate()]
    if any(type(placement).__name__ != "Shard" for _, placement in along):
        raise _unknown_cut(weight, name)
    cuts = [at for at, placement in along if placement.dim % weight.ndim == dim]
    if len(cuts) > 1:
        raise _unknown_cut(weight, name)
    return cuts[0] if cuts else None


def _unknown_cut(weight: Any, name: str) -> ArchitectureError:
    return ArchitectureError(
        f"{name} is cut over processes in a way that is not known",
        got=str(weight.placements),
        allowed="equal parts along one dimension",
        do="load the model without tp_plan",
    )
