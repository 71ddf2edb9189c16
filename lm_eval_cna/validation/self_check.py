"""The check before a long run that steering does what it says and nothing else, on two prompts.

For every intervention, in the mode of the run: m = 1 gives the untouched model's logits and m = 0 gives others. Each of
its layers was reached once a forward pass, and exactly the named values changed. Afterwards logits and weight columns
are what they were. "The same logits" means as equal as two passes of the untouched model are: on an accelerator they
can differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from math import gcd
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from lm_eval_cna.errors import SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import columns_sha256, named_columns
from lm_eval_cna.interventions.methods import METHODS
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.resources import harmless_prompts
from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.modes import Mode, resolve_mode
from lm_eval_cna.steering.rows import RowSteering
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture, find_architecture
from lm_eval_cna.transformer.out_of_memory import least_of, with_less_memory
from lm_eval_cna.transformer.prompts import Rendering, pad_left, pad_token_id
from lm_eval_cna.validation.first_token_kl import last_logits
from lm_eval_cna.validation.self_check_hooks import ModuleCheck, module_checks

PROMPTS = 2
#: Tried where all neurons of a circuit are silent on two prompts (in a ReLU model, say).
MORE_PROMPTS = 16


class CheckedIntervention(BaseModel):
    """What the self-check found out about one intervention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int
    """How many prompts it was checked on."""
    identity: float
    """Largest change of a logit at m = 1."""
    change: float
    """Largest change of a logit at m = 0."""
    layers: tuple[int, ...]
    """The layers that were steered at m = 0, each once a forward pass."""
    columns_sha256: str | None
    """Hash of the named weight columns, the same before and after; None if the weights are packed."""


class SelfCheck(BaseModel):
    """The result of a self-check, as it is kept in a run's directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str
    """How the model was steered."""
    noise: float
    """Largest difference of a logit between two passes of the untouched model."""
    interventions: dict[str, CheckedIntervention]
    """By name."""


def self_check(
    model: nn.Module,
    tokenizer: Any,
    interventions: Mapping[str, Circuit | Vectors],
    *,
    mode: Mode | Literal["rows"],
    scale: float = 1.0,
    rendering: Rendering | None = None,
    architecture: Architecture | None = None,
) -> SelfCheck:
    """Check every intervention, controls included, on the model, which is left as it was.

    Mode, scale and rendering are those of the run; by default prompts are in the tokenizer's chat template.

    Raises:
        SteeringError: a check failed; the message names the intervention and what was seen.
        InterventionError, ArchitectureError: see `lm_eval_cna.steering.apply`.
    """
    architecture = architecture or find_architecture(model)
    rows = (rendering or Rendering()).encode(harmless_prompts()[:MORE_PROMPTS], tokenizer)

    def attempt(batch_size: int) -> SelfCheck:
        few, many = (
            _CheckOnPrompts(model, architecture, mode, scale, part, pad_token_id(tokenizer), batch_size)
            for part in (rows[:PROMPTS], rows)
        )
        found = {}
        for name, intervention in interventions.items():
            found[name] = few.check(name, intervention)
            if not found[name].change > few.noise:
                found[name] = many.check(name, intervention)
                if not found[name].change > many.noise and not METHODS[intervention.method].is_control:
                    raise SteeringError(
                        f"self-check: {name} at m = 0 changes no logit on {len(rows)} prompts",
                        do="look at it with `lm-eval-cna show`: are its neurons ever active in this model?",
                    )
        return SelfCheck(mode=mode, noise=few.noise, interventions=found)

    return with_less_memory(attempt, len(rows), least=least_of(architecture, len(rows)))


class _CheckOnPrompts:
    """Checks interventions on some prompts, against the untouched model's logits.

    In rows mode each prompt is in its batch three times: under the baseline, at m = 1 and at m = 0.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        mode: Mode | Literal["rows"],
        scale: float,
        prompts: list[list[int]],
        pad: int,
        batch_size: int,
    ) -> None:
        self._model, self._architecture, self._mode, self._scale = model, architecture, mode, scale
        self._prompts, self._copies = len(prompts), 3 if mode == "rows" else 1
        self._at_once = gcd(batch_size, len(prompts))  # all batches have one size
        parts = (prompts[start : start + self._at_once] for start in range(0, len(prompts), self._at_once))
        self._batches = [pad_left(part * self._copies, pad) for part in parts]

    @cached_property
    def untouched(self) -> torch.Tensor:
        """The untouched model's logits [copies, prompts, vocabulary].

        Raises:
            SteeringError: they are not finite.
        """
        logits = self._logits()
        if not bool(logits.isfinite().all()):
            raise SteeringError(
                "self-check: the untouched model's logits are not finite", do="load it in bfloat16 or float32"
            )
        return logits

    @cached_property
    def noise(self) -> float:
        """Largest difference of a logit between two passes of the untouched model."""
        return _distance(self._logits(), self.untouched)

    def check(self, name: str, intervention: Circuit | Vectors) -> CheckedIntervention:
        """Check one intervention; whether m = 0 has an effect is left to the caller.

        Raises:
            SteeringError: m = 1, or the model afterwards, is not the untouched model, or a layer was not steered.
        """
        untouched, noise = self.untouched, self.noise
        columns = self._columns(intervention)
        setting = Setting(intervention, 0.0, self._scale)
        if self._mode == "rows":
            logits, checks = self._steered(setting)
            one, zero = _distance(logits[:2], untouched[:2]), _distance(logits[2:], untouched[2:])
        else:
            one = _distance(self._steered(replace(setting, multiplier=1.0))[0], untouched)
            logits, checks = self._steered(setting)
            zero = _distance(logits, untouched)
        if not one <= noise:
            raise SteeringError(
                f"self-check: {name} at m = 1 is not the untouched model", got=f"a logit off by {one:g}"
            )
        for check in checks:
            if check.correct != len(self._batches) or check.wrong:
                raise SteeringError(
                    f"self-check: {name} does not steer layer {check.layer} once a forward pass, as it should",
                    got=f"{check.correct} correct calls and {check.wrong} wrong ones in {len(self._batches)} passes",
                    do="report the model's family: its layers run in a way that steering does not know",
                )
        left = _distance(self._logits(), untouched)
        if not left <= noise or self._columns(intervention) != columns:
            raise SteeringError(f"self-check: {name} leaves a changed model behind", got=f"a logit off by {left:g}")
        return CheckedIntervention(
            prompts=self._prompts, identity=one, change=zero, layers=intervention.layers, columns_sha256=columns
        )

    def _columns(self, intervention: Circuit | Vectors) -> str | None:
        return columns_sha256(self._architecture, named_columns(intervention, self._architecture))

    def _steered(self, setting: Setting) -> tuple[torch.Tensor, list[ModuleCheck]]:
        """Logits under a setting, in rows mode also under the baseline and at m = 1; and the checks of its modules."""
        rows = slice(2 * self._at_once if self._mode == "rows" else 0, None)
        checks = (
            [] if setting.is_baseline else module_checks(self._architecture, setting, self._resolved(setting), rows)
        )
        with ExitStack() as stack:
            for check in checks:
                stack.enter_context(check.before_steering())
            if self._mode == "rows":
                choices = (Setting(), replace(setting, multiplier=1.0), setting)
                steering = stack.enter_context(RowSteering(self._model, choices, self._architecture))
                steering.assign([choice for choice in range(3) for _ in range(self._at_once)])
            else:
                stack.enter_context(steer(self._model, setting, mode=self._mode, architecture=self._architecture))
            for check in checks:
                stack.enter_context(check.after_steering())
            return self._logits(), checks

    def _resolved(self, setting: Setting) -> str:
        """The mode that the setting is steered with, "auto" resolved."""
        if self._mode == "rows" or setting.intervention is None:
            return "rows"
        return resolve_mode(setting.intervention, self._architecture, self._model, self._mode)

    def _logits(self) -> torch.Tensor:
        """Logits of the next token [copies, prompts, vocabulary], float64 on the host."""
        found = last_logits(self._model, self._architecture, self._batches)
        return torch.cat([logits.view(self._copies, self._at_once, -1) for logits in found], dim=1)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; infinite if any value is NaN."""
    return float((a - b).abs().nan_to_num(nan=torch.inf).max())
