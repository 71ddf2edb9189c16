"""What cna-hf and cna-vllm share: their arguments, the current setting, and its description in results files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import nn

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.compatibility import check_fit, fit_warnings
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.models.arguments import finite_number
from lm_eval_cna.models.cache_guard import guard_cache
from lm_eval_cna.steering.modes import MODES, Mode
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import Architecture
from lm_eval_cna.transformer.prompts import Rendering, chat_template_sha256

logger = logging.getLogger(__name__)


class SteeringArguments(NamedTuple):
    """The checked arguments of both models."""

    pretrained: Any
    """The model, named or loaded."""
    revision: str | None
    """Revision of the model; None for the default."""
    setting: Setting
    """What to steer with; the baseline if no circuit is given."""
    mode: Mode
    """"auto", "fold" or "hook"."""


def read_arguments(
    pretrained: Any, revision: str | None, circuit: str | None, multiplier: float | str, scale: float | str, mode: str
) -> SteeringArguments:
    """Check the arguments and read the intervention file; model and revision default to what the file names.

    Raises:
        ConfigError: a number is not finite, the mode is unknown, or no model is named.
        InterventionError: the file cannot be read.
    """
    number, factor = finite_number("multiplier", multiplier), finite_number("scale", scale)
    if mode not in MODES:
        raise ConfigError("mode", got=mode, allowed=", ".join(MODES))
    intervention = None if circuit is None else read_intervention(circuit)
    if pretrained is None and intervention is not None:
        pretrained = intervention.model.id
        revision = revision or intervention.model.revision
    if pretrained is None:
        raise ConfigError("no model is named", do="give pretrained=NAME, or a circuit whose file names its model")
    setting = Setting() if intervention is None else Setting(intervention, number, factor)
    return SteeringArguments(pretrained, revision, setting, mode)


class Steered:
    """An lm-eval model that steers: the type that a sweep works with. A mixin that stands before lm-eval's class."""

    shares_batches: ClassVar[bool]
    """Whether one batch may hold rows of several settings."""
    computes_here: ClassVar[bool]
    """Whether `module` runs forward passes in this process, as the self-check and the first-token KL need; a model
    elsewhere must check by itself that it is steered."""
    setting: Setting = Setting()
    """What the model is steered with now."""
    mode: Mode = "auto"
    """How it may be steered: "auto", "fold" or "hook"."""
    weights_sha256: str
    """Identity of the untouched weights."""
    quiet: bool = False
    """Draw no progress bars; a sweep shows one of its own."""
    lockstep: bool = False
    """Whether the weights are sharded over processes, which then must run the same requests in the same order."""
    tokenizer: Any
    chat_template_args: Any
    add_bos_token: bool | None
    """lm-eval's argument of that name."""
    revision: str
    """Revision of the model; "main" if none was given."""

    # lm-eval's class has these, but carries no type information.
    config: Any
    max_length: int
    max_gen_toks: int
    batch_size: Any
    batch_sizes: Any
    tokenizer_name: str
    chat_template: Callable[[bool | str], str | None]
    apply_chat_template: Callable[[list[dict[str, str]], bool], str]

    @property
    def module(self) -> nn.Module:
        """The transformers model; a skeleton to look at where another process holds the weights."""
        raise NotImplementedError

    @property
    def architecture(self) -> Architecture:
        """Layers and down-projections of the model."""
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """The model's name or path, for people."""
        raise NotImplementedError

    @property
    def mode_in_use(self) -> str:
        """How the model is steered now: "fold", "hook" or "none"."""
        raise NotImplementedError

    def steer(self, setting: Setting) -> None:
        """Put the model back and steer it anew; the baseline setting leaves it untouched."""
        raise NotImplementedError

    def unsteer(self) -> None:
        """Put the model back, bit for bit."""
        raise NotImplementedError

    def resolve_mode(self, intervention: Circuit | Vectors, mode: Mode) -> str:
        """How the model would be steered with an intervention: "fold" or "hook".

        Raises:
            SteeringError: not at all in this mode.
        """
        raise NotImplementedError

    def accept(self, intervention: Circuit | Vectors) -> None:
        """Check that an intervention fits the model, and warn of other differences from the model it was made on.

        Raises:
            InterventionError: it does not fit.
        """
        check_fit(intervention, self.architecture)
        for warning in self.warnings_about(intervention):
            logger.warning("%s: %s", intervention.name, warning)

    def seed_sampling(self, seed: int) -> None:
        """Seed sampling, so that the answers that follow depend only on the seed and the requests."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the engine; the model cannot be used afterwards."""

    def fingerprint_of(self, setting: Setting, mode: str) -> str:
        """Identity of everything that decides a response, except the request."""
        raise NotImplementedError

    def rendering(self, chat_template: bool) -> Rendering:
        """How prompts outside tasks are rendered: in the same way as a task's prompts."""
        return Rendering(chat_template, self.chat_template_args, self.add_bos_token)

    @property
    def fingerprint(self) -> str:
        """Identity of everything that decides a response, except the request, as the model is steered now."""
        return self.fingerprint_of(self.setting, self.mode_in_use)

    # lm-eval draws a bar per request type.
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in lm-eval."""
        texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm or self.quiet)  # type: ignore[misc]
        return texts

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in lm-eval."""
        scores: list[tuple[float, bool]] = super().loglikelihood(  # type: ignore[misc]
            requests, disable_tqdm=disable_tqdm or self.quiet
        )
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As in lm-eval."""
        scores: list[float] = super().loglikelihood_rolling(  # type: ignore[misc]
            requests, disable_tqdm=disable_tqdm or self.quiet
        )
        return scores

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's response cache, unless it holds responses of another setting.

        Raises:
            CacheError: it holds such responses.
        """
        if cache_hook.dbdict is not None:
            setting = described(self.setting, self.mode_in_use)
            words = f"{self.model_name}, {setting['method']} at multiplier {setting['multiplier']:g}"
            guard_cache(cache_hook.dbdict.filename, self.fingerprint, words)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def engine_info(self) -> dict[str, Any]:
        """The model's entry in a results file, without the steering."""
        raise NotImplementedError

    def get_model_info(self) -> dict[str, Any]:
        """The model, the intervention, multiplier and fingerprint; goes into the results file."""
        return self.engine_info() | {"cna": self.steering_info(self.setting, self.mode_in_use)}

    def steering_info(self, setting: Setting, mode: str) -> dict[str, Any]:
        """A setting's entry in a results file: intervention, multiplier, mode, warnings, fingerprint."""
        intervention = setting.intervention
        provenance = None
        if intervention is not None:
            provenance = intervention.model_dump(mode="json", by_alias=True, exclude={"neurons"})
            if isinstance(intervention, Circuit):
                provenance["size"] = len(intervention.neurons)
        return {
            **described(setting, mode),
            "intervention": provenance,
            "warnings": [] if intervention is None else list(self.warnings_about(intervention)),
            "weights_sha256": self.weights_sha256,
            "fingerprint": self.fingerprint_of(setting, mode),
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the model and the current intervention."""
        return () if self.setting.intervention is None else self.warnings_about(self.setting.intervention)

    def warnings_about(self, intervention: Circuit | Vectors) -> tuple[str, ...]:
        """Warnings about the model and an intervention, computed once: columns are hashed before they are steered."""
        found: dict[tuple[Any, ...], tuple[str, ...]] = self.__dict__.setdefault("_found_warnings", {})
        key = (intervention.sha256, intervention.model, intervention.discovery.chat_template_sha256)
        if key not in found:
            found[key] = fit_warnings(
                intervention,
                self.architecture,
                revision=self.revision if self.revision != "main" else None,
                chat_template_sha256=chat_template_sha256(self.tokenizer),
            )
        return found[key]


def described(setting: Setting, mode: str) -> dict[str, Any]:
    """A setting as plain data."""
    if setting.intervention is None:
        return {"method": "baseline", "multiplier": 1.0, "mode": "none"}
    return {
        "method": setting.intervention.method,
        "name": setting.intervention.name,
        "intervention_sha256": setting.intervention.sha256,
        "multiplier": setting.multiplier,
        "scale": setting.scale,
        "mode": "none" if setting.is_baseline else mode,
    }
