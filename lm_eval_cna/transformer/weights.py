"""Where a weight's numbers are: in this process, cut over several, offloaded, or packed by a quantizer.

Three things take a weight away from where its module seems to hold it:

- Tensor parallelism (`tp_plan=auto`) cuts it over processes, each of which holds some of the neurons (a `DTensor`).
  Steering edits or hooks the part that is here; discovery gathers. All processes then run the same code in one order.
- Offloading (`parallelize=True` with too little memory) keeps it on the host or on the disk and loads it at every call;
  its module holds an empty tensor on the meta device. What is edited there is lost at the next call.
- A quantizer packs it, several numbers in one, so that no column can be edited or compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lm_eval_cna.errors import ArchitectureError, CNAError

#: Eight bits are a quantizer's: its scales are elsewhere.
_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_cut(tensor: Any) -> bool:
    """Whether a tensor is cut over processes: a `DTensor`, told by its attributes, so that nothing heavy is loaded."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_plain(tensor: Any) -> bool:
    """Whether a tensor is an ordinary floating-point one that is in this process's memory as a whole."""
    plain = type(tensor) in (nn.Parameter, torch.Tensor)
    return plain and tensor.dtype in _PRECISIONS and tensor.device.type != "meta"


def is_packed(weight: Any) -> bool:
    """Whether a quantizer holds the weight in another form than one number after another."""
    if not isinstance(weight, torch.Tensor):
        return True
    return weight.dtype not in _PRECISIONS or not (is_cut(weight) or type(weight) in (nn.Parameter, torch.Tensor))


def kind_of(weight: Any, owner: nn.Module) -> str:
    """What a weight's numbers are: a precision, or how a quantizer packs them.

    Args:
        weight: as its module holds it, or None where it holds none of that name.
        owner: the module.
    """
    if not isinstance(weight, torch.Tensor):
        return type(owner).__name__
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{type(weight).__name__} of {dtype}" if is_packed(weight) else dtype


def local(weight: Any) -> torch.Tensor:
    """The part of a weight that this process holds, in the same memory."""
    with torch.no_grad():  # hooks call this in inference mode, where a DTensor cannot be detached
        part: torch.Tensor = weight.to_local() if is_cut(weight) else weight.data
    return part


def held(weight: Any, dim: int, width: int, name: str) -> range:
    """The neurons whose activations this process computes.

    Args:
        weight: a down-projection's, or None where its module holds none of that name.
        dim: the dimension that runs over neurons.
        width: neurons of the layer, those of all processes.
        name: of the projection, for the message.

    Raises:
        ArchitectureError: the weight is cut in a way that we do not know.
    """
    cut = _cut_along(weight, dim, name)
    if cut is None:
        return range(width)
    # As DTensor cuts: equal parts, rounded up, and what is left in the last ones.
    part = -(-width // weight.device_mesh.size(cut))
    start = min(width, part * weight.device_mesh.get_local_rank(cut))
    found = range(start, min(width, start + part))
    if len(found) != local(weight).shape[dim]:
        raise _unknown_cut(weight, name)
    return found


def gathered(x: torch.Tensor, weight: Any, dim: int, width: int, name: str) -> torch.Tensor:
    """Activations of all neurons, from those that every process has computed; all processes must call this.

    Args:
        x: activations [..., neurons held here].
        weight: as in `held`.
        dim: as in `held`.
        width: as in `held`.
        name: as in `held`.

    Returns:
        [..., width]; `x` itself where this process computes all neurons.

    Raises:
        CNAError: `x` holds neither all neurons nor those that this process holds.
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
    """The neurons in a projection's input: all, or those that this process holds (some plans cut behind the hooks).

    Args:
        size: channels of the input.
        here: the neurons that this process holds.
        width: neurons of the layer.
        name: of the projection, for the message.

    Raises:
        CNAError: it is neither; other neurons would be steered for those that are meant.
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
    """All of a weight's numbers, wherever they are; None where they are packed or out of reach.

    A weight that is cut is gathered: all processes must call this, and each has it all in memory for a moment.

    Args:
        weight: a parameter or buffer.
        owner: the module that holds it.
        name: its name there.
    """
    if is_cut(weight):
        with torch.no_grad():
            found: torch.Tensor = weight.full_tensor()
        return found
    if weight.device.type == "meta":
        return _offloaded(owner, name)
    return weight.detach() if type(weight) in (nn.Parameter, torch.Tensor) else None


def stored(weight: Any, owner: nn.Module, name: str) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is stored in, packed ones included; nothing where they are out of reach."""
    found = whole(weight, owner, name)
    if found is not None:
        yield found
    elif is_traceable_wrapper_subclass(weight):  # torchao's: data and scales
        names, _ = weight.__tensor_flatten__()
        for inner in names:
            yield from stored(getattr(weight, inner), owner, f"{name}.{inner}")
    elif weight.device.type != "meta":  # bitsandbytes': a parameter of another class with its own storage
        yield weight.detach().as_subclass(torch.Tensor)


def is_offloaded(weight: Any, owner: nn.Module) -> bool:
    """Whether a module's weight is loaded anew at every call."""
    on_meta = isinstance(weight, torch.Tensor) and weight.device.type == "meta"
    return on_meta or any(getattr(hook, "offload", False) for hook in _hooks(owner))


def _offloaded(owner: nn.Module, name: str) -> torch.Tensor | None:
    """An offloaded weight, read from where accelerate keeps it."""
    for hook in _hooks(owner):
        kept = getattr(hook, "weights_map", None)
        with suppress(KeyError, TypeError):  # TypeError: no map
            found = kept[name]  # type: ignore[index]
            return found if isinstance(found, torch.Tensor) and found.device.type != "meta" else None
    return None


def _hooks(owner: nn.Module) -> tuple[Any, ...]:
    """The hooks that accelerate has put on a module."""
    hook = getattr(owner, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _cut_along(weight: Any, dim: int, name: str) -> int | None:
    """The dimension of the mesh of processes over which the neurons are cut, or None where each has them all."""
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
