"""The configuration of a sweep, from flags or a YAML file: every field described and checked.

Importable without torch.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.atomic import is_file, read_whole, usable_path
from lm_eval_cna.files.records import first_error
from lm_eval_cna.files.yaml_reader import load_yaml
from lm_eval_cna.interventions.methods import OF_VECTORS, SweepMethod
from lm_eval_cna.judging.config import JudgeConfig

DEFAULT_MULTIPLIERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DEFAULT_TASKS = ("jbb_harmful_refusal", "jbb_benign_refusal")
_MAX_BYTES = 2**18
_MOST_CELLS = 100_000


#: Arguments of cna-hf that a sweep sets itself.
_OURS = {"pretrained", "circuit", "multiplier", "scale", "mode"}
#: Fields that say where else results are logged: no part of a sweep's plan.
LOG_FIELDS = {"wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskSpec(_Model):
    """One task, with its few-shot examples, chat template and controls."""

    task: Annotated[str, Field(min_length=1, description="name of an lm-eval task or group")]
    num_fewshot: Annotated[int | None, Field(ge=0, description="few-shot examples; None leaves it to the task")] = None
    chat_template: Annotated[
        bool | None, Field(description="apply the chat template; None: when the model has one")
    ] = None
    controls: Annotated[
        bool | None, Field(description="ask random controls too; None: on tasks whose answers are generated")
    ] = None


class SweepConfig(_Model):
    """A sweep: methods x multipliers on tasks, against one baseline."""

    model: Annotated[str, Field(min_length=1, description="model name on the hub, or path")]
    output: Annotated[Path, AfterValidator(usable_path), Field(description="run directory; a rerun continues there")]
    model_args: dict[str, Any] = Field(default_factory=dict, description="arguments of cna-hf or cna-vllm: dtype, ...")
    contrast: str = Field(default="refusal", description="contrast set to discover from: a name or a file")
    circuit: str | None = Field(default=None, description="circuit file, instead of discovery")
    vectors: str | None = Field(default=None, description="vectors file for caa, instead of discovery")
    methods: tuple[SweepMethod, ...] | None = Field(
        default=None, description="what is compared; by default cna and random, and caa where its vectors can be had"
    )
    fraction: Annotated[float, Field(gt=0, le=1, description="size of a discovered circuit, share of all neurons")] = (
        0.001
    )
    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="circuit sizes to compare: prefixes of one circuit; empty: the whole circuit"
    )
    random: Annotated[
        int, Field(ge=0, le=10_000, description="number of control seeds; 19 is the least for p = 0.05")
    ] = 19
    first_seed: Annotated[int, Field(ge=0, le=2**31, description="seed of the first control; the others follow")] = 0
    match: Literal["layer", "activation"] = Field(
        default="layer", description="what the neurons of method random are matched by"
    )
    folds: Annotated[
        int | None,
        Field(ge=2, le=100, description="folds of the contrast set that a found circuit is tried over"),
    ] = None
    multipliers: tuple[float, ...] = Field(default=DEFAULT_MULTIPLIERS, min_length=1, description="1 is the baseline")
    control_multipliers: tuple[float, ...] | None = Field(
        default=None, description="multipliers of the random controls; by default 0 (or the least) and the largest"
    )
    scale: float = Field(default=1.0, description="factor of vectors")
    tasks: tuple[TaskSpec, ...] = Field(default=tuple(TaskSpec(task=name) for name in DEFAULT_TASKS), min_length=1)
    limit: Annotated[int | None, Field(ge=1, description="documents a task; for trying things out")] = None
    engine: Annotated[
        Literal["hf", "vllm"], Field(description="what computes: transformers (cna-hf), or vLLM (cna-vllm)")
    ] = "hf"
    mode: Annotated[
        Literal["auto", "rows", "fold", "hook"],
        Field(
            description="how the model is steered; auto is rows (cells share batches), or where a circuit lies in a "
            "mixture of experts, fold for circuits and hook for vectors. One mode throughout a sweep"
        ),
    ] = "auto"
    excluded_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    universal_filter: bool = True
    harmless_kl: bool = Field(default=True, description="first-token KL of every cell on harmless prompts")
    judge: JudgeConfig | None = Field(
        default=None, description="who grades the responses of judged tasks; without, `lm-eval-cna judge` does it later"
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="handed to tasks, as lm_eval's --metadata")
    wandb_args: dict[str, Any] | None = Field(default=None, description="log every cell to W&B: arguments of its init")
    wandb_config_args: dict[str, Any] | None = Field(default=None, description="entries of each W&B run's config")
    trackio_args: dict[str, Any] | None = Field(default=None, description="log every cell to Trackio: as for W&B")
    hf_hub_log_args: dict[str, Any] | None = Field(
        default=None, description="write every cell as lm_eval does, and upload it: as lm_eval's --hf_hub_log_args"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [name for name in value.split(",") if name]
        if isinstance(value, (list, tuple)):
            return [{"task": entry} if isinstance(entry, str) else entry for entry in value]
        return value

    @field_validator(*sorted(LOG_FIELDS), mode="before")
    @classmethod
    def _as_lm_eval_writes_it(cls, value: Any) -> Any:
        if isinstance(value, str):  # of a file; a wrong one is not shown, since it may hold a token
            from lm_eval.utils import simple_parse_args_string

            if any("=" not in part for part in filter(None, value.split(","))):
                raise ValueError("not NAME=VALUE separated by commas, and no mapping")
            return simple_parse_args_string(value)
        return value

    @field_validator("multipliers", "control_multipliers", "top_k")
    @classmethod
    def _each_once(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if value is None else tuple(sorted({number + 0 for number in value}))  # -0.0 + 0 is 0.0

    @field_validator("methods")
    @classmethod
    def _each_method_once(cls, value: tuple[SweepMethod, ...] | None) -> tuple[SweepMethod, ...] | None:
        return None if value is None else tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({task.task for task in self.tasks}) < len(self.tasks):
            raise ValueError("a task is named more than once")
        taken = sorted(_OURS & self.model_args.keys())
        if taken:
            raise ValueError(f"model_args: {taken[0]} is set by the sweep itself")
        asked = max(1, len(self.top_k)) * (len(self.multipliers) + self.random * len(self.controlled_at))
        if asked * len(self.compared) > _MOST_CELLS:
            raise ValueError(f"some {asked * len(self.compared):,} cells; allowed: up to {_MOST_CELLS:,}")
        if not _is_batch_size(self.model_args.get("batch_size", "auto")):
            raise ValueError("model_args: batch_size is a whole number from 1, or auto")
        if self.methods is not None and not self.methods:
            raise ValueError("methods must not be empty")
        if self.engine == "vllm" and self.mode == "rows":
            raise ValueError("mode: vLLM takes no rows of several settings; auto, fold or hook")
        of_vectors = OF_VECTORS & set(self.methods or ())
        if self.circuit is not None and self.vectors is None and of_vectors:
            raise ValueError(f"method {min(of_vectors)} needs vectors where a circuit is given")
        if self.folds is not None and (self.circuit is not None or OF_VECTORS.issuperset(self.compared)):
            raise ValueError("folds are for a circuit that the sweep finds; for one that is given: `discover --folds`")
        return self

    @property
    def compared(self) -> tuple[SweepMethod, ...]:
        """The methods, defaults filled in."""
        if self.methods is not None:
            return self.methods
        with_vectors = self.circuit is None or self.vectors is not None
        return ("cna", "caa", "random") if with_vectors else ("cna", "random")

    @property
    def control_seeds(self) -> range:
        """The seeds of the controls."""
        return range(self.first_seed, self.first_seed + self.random)

    @property
    def measures_kl(self) -> bool:
        """Whether the first-token KL is measured; vLLM does not return distributions."""
        return self.harmless_kl and self.engine == "hf"

    @property
    def controlled_at(self) -> tuple[float, ...]:
        """Multipliers of the controls: the ends of the range, without the baseline."""
        chosen = self.control_multipliers
        if chosen is None:
            least = 0.0 if 0.0 in self.multipliers else min(self.multipliers)
            chosen = (least, max(self.multipliers))
        return tuple(m for m in sorted(set(chosen)) if m != 1.0)


def _is_batch_size(value: Any) -> bool:
    return value == "auto" or (re.fullmatch("[1-9][0-9]{0,8}", str(value), re.ASCII) is not None)


def parse_config(values: dict[str, Any]) -> SweepConfig:
    """Check a configuration.

    Raises:
        ConfigError: a field is wrong; the message names the first one, its value and its meaning.
    """
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        first = first_error(error)
        known = SweepConfig.model_fields.get(first.field.split(".")[0])
        raise ConfigError(
            str(first) if first.field else f"configuration: {first}",
            got=first.got,
            do=None if known is None or known.description is None else f"{first.field} is: {known.description}",
        ) from error


def check_elsewhere(config: SweepConfig) -> None:
    """Refuse a sweep that cannot be computed in another process than its own.

    Raises:
        ConfigError: for vLLM, whose engine runs in the sweep's process.
    """
    if config.engine == "vllm":
        raise ConfigError("engine vllm computes in the sweep's own process", do="leave out --ray, or the engine")


def read_config(path: Path) -> dict[str, Any]:
    """Read a sweep's YAML file as plain values, to which flags are added.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    if not is_file(path):
        raise ConfigError("no such configuration file", got=str(path))
    try:
        values = load_yaml(read_whole(path, limit=_MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} does not hold a mapping of field names to values")
    return values


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Numbers from a comma-separated flag.

    Raises:
        ConfigError: a part is not a finite number.
    """
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"{name}: not a number", got=part, allowed="finite numbers separated by commas, 0,0.5,2")
        numbers.append(number)
    return tuple(numbers)
