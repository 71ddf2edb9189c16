"""The configuration of a judge: from `--metadata '{"judge": {...}}'`, a sweep's file, or `lm-eval-cna judge`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.files.atomic import usable_path
from lm_eval_cna.files.hashing import json_sha256
from lm_eval_cna.files.records import first_error

#: Arguments that change how the judge is reached or how fast it is, but no answer: not part of its fingerprint.
_REACHED_BY = {
    "batch_size",
    "ca_cert_path",
    "max_batch_size",
    "max_retries",
    "num_concurrent",
    "timeout",
    "verify_certificate",
}
#: Arguments that hold secrets: neither in the fingerprint nor in any file that is written.
_SECRET = {"api_key", "auth_token", "header", "headers", "token"}
_EXAMPLE = (
    '--metadata \'{"judge": {"model": "local-chat-completions", "model_args": {"model": "NAME", '
    '"base_url": "http://HOST:8000/v1/chat/completions", "num_concurrent": 16}}}\''
)


class JudgeConfig(BaseModel):
    """A judge: any lm-eval model by name and arguments, and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(min_length=1, description="an lm-eval model: local-chat-completions, hf, vllm, ...")]
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="its arguments, as a mapping or as lm-eval's a=1,b=2"
    )
    rubric: Literal["strongreject", "rating-10"] = Field(default="strongreject", description="what is asked")
    judge_template: Path | None = Field(
        default=None, description="file with your own wording, with {prompt} and {response}"
    )
    max_chars: Annotated[int | None, Field(ge=1, le=1_000_000)] = Field(
        default=None, description="characters of a response shown to the judge; default 10000, for rating-10 200"
    )
    chat: bool | None = Field(
        default=None, description="whether questions are chat messages; by default found out from the model"
    )
    batch_size: int | str | None = Field(default=None, description="lm-eval's batch_size of the judge")
    gen_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="generation arguments, added to greedy decoding of 512 tokens"
    )
    max_retries: Annotated[int, Field(ge=0, le=100, description="further attempts at a question after a failure")] = 5
    backoff: Annotated[
        float, Field(ge=0, le=600, description="seconds before the first further attempt; doubles, up to 60")
    ] = 1.0
    ledger: Annotated[Path, AfterValidator(usable_path)] | None = Field(
        default=None, description="SQLite file of what the judge has said; by default judge.sqlite in the user's cache"
    )

    @field_validator("model_args", "gen_kwargs", mode="before")
    @classmethod
    def _one_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            from lm_eval.utils import simple_parse_args_string

            return simple_parse_args_string(value)
        return {} if value is None else value

    @property
    def generation(self) -> dict[str, Any]:
        """Generation arguments in full."""
        return {"until": [], "do_sample": False, "max_gen_toks": 512, "temperature": 0.0, **self.gen_kwargs}

    @property
    def fingerprint(self) -> str:
        """Identity of the judge: model, arguments that can change an answer, and generation.

        The address of a server is part of it, since another server may hold another model under the same name; secrets,
        timeouts and concurrency are not. A checkpoint on disk is identified by its path, not by its weights.
        """
        kept = {k: v for k, v in self.model_args.items() if k not in _REACHED_BY | _SECRET}
        identity = {"model": self.model, "args": kept, "generation": self.generation, "chat": self.chat}
        return json_sha256(identity)

    @property
    def ledger_path(self) -> Path:
        """The ledger's file: as given, else in `$LM_EVAL_CNA_CACHE`, else in the user's cache folder."""
        return _default_ledger() if self.ledger is None else self.ledger.expanduser()

    def public(self) -> dict[str, Any]:
        """The configuration without secrets, for results files."""
        shown = self.model_dump(mode="json", exclude_none=True)
        shown["model_args"] = {k: "(not shown)" if k in _SECRET else v for k, v in self.model_args.items()}
        return shown | {"fingerprint": self.fingerprint}


def parse_judge(value: Any) -> JudgeConfig:
    """Check the configuration of a judge.

    Raises:
        ConfigError: none is given, or a field is wrong; the message names the field, its value and its meaning.
    """
    if value is None:
        raise ConfigError("this task needs a judge and none is given", do=f"add {_EXAMPLE}")
    if not isinstance(value, dict):
        raise ConfigError("the judge is not described by a mapping", got=value, do=f"write {_EXAMPLE}")
    try:
        return JudgeConfig.model_validate(value)
    except ValidationError as error:
        first = first_error(error)
        known = JudgeConfig.model_fields.get(first.field.split(".")[0])
        raise ConfigError(
            f"judge: {first}",
            # Arguments may hold a key, and errors end up in logs.
            got=None if first.field.startswith("model_args") else first.got,
            allowed=", ".join(JudgeConfig.model_fields) if first.kind == "extra_forbidden" else None,
            do=None if known is None or known.description is None else f"{first.field} is: {known.description}",
        ) from error


def _default_ledger() -> Path:
    if own := os.environ.get("LM_EVAL_CNA_CACHE"):
        return Path(own).expanduser() / "judge.sqlite"
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification asks that a relative path be ignored.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "lm-eval-cna" / "judge.sqlite"
