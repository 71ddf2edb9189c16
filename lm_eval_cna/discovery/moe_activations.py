"""Read all neurons of a mixture-of-experts layer at the last token.

Such a layer flattens its tokens before the experts, so the number of prompts is noted on entry to the MLP. Routed
experts' activations are computed again for the last tokens alone (`transformer.experts`), since no hook sees them; the
shared expert's down-projection is hooked like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lm_eval_cna.errors import CNAError
from lm_eval_cna.transformer.decoder import Layer
from lm_eval_cna.transformer.experts import routed_activations, visits

Observer = Callable[[int, torch.Tensor], None]


class ExpertsReader:
    """Calls observers with (layer, activations at the last token [batch, neurons]) in every forward pass.

    Neurons are in the order of `Architecture.layout`: routed experts, then the shared one.

    Raises:
        CNAError: in a forward pass, if the MLP does not call its experts.
    """

    def __init__(self, layer: Layer, observers: Sequence[Observer]) -> None:
        self._layer = layer
        self._observers = observers
        self._batch = 0
        self._routed: torch.Tensor | None = None
        self._shared: torch.Tensor | None = None

    def register(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Register the hooks; returns their handles."""
        first, last = self._layer.projections[0], self._layer.projections[-1]
        handles = [
            self._layer.mlp.register_forward_pre_hook(self._enter),
            first.base.register_forward_pre_hook(self._route, with_kwargs=True),
            self._layer.mlp.register_forward_hook(self._leave),
        ]
        if not last.is_routed:
            handles.append(last.down.register_forward_pre_hook(self._share))
        return handles

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._batch = len(inputs[0])
        self._routed = self._shared = None

    def _route(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, chosen = visits(args, kwargs)
        self._routed = routed_activations(module, self._last(hidden), self._last(chosen))

    def _share(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._shared = self._layer.projections[-1].gathered(self._last(inputs[0]))

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        parts = [self._routed] if self._layer.projections[-1].is_routed else [self._routed, self._shared]
        seen = [part for part in parts if part is not None]
        if len(seen) < len(parts):
            raise CNAError(f"the experts of layer {self._layer.index} were not called by their MLP")
        for observer in self._observers:
            observer(self._layer.index, seen[0] if len(seen) == 1 else torch.cat(seen, dim=1))

    def _last(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.reshape(self._batch, -1, flat.shape[-1])[:, -1]
