"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.methods import IN_FILES


class Dtype(StrEnum):
    """Precisions of a model; auto is the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = StrEnum("MethodName", {name.replace("-", "_"): name for name in IN_FILES})

PUBLISHED = MethodName("cna")


class MatchChoice(StrEnum):
    """Where random neurons are drawn: in the circuit's layers, there by activation too, or in a third of all layers."""

    layer = "layer"
    activation = "activation"
    bottom = "bottom"
    middle = "middle"
    top = "top"


ModelOption = Annotated[str, typer.Option("--model", help="Model name on the hub, or path.")]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision of the model; auto is the checkpoint's own.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, mps; by default the best there is.")]
MethodOption = Annotated[MethodName, typer.Option(help="What to find.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")]
SamplesOption = Annotated[bool, typer.Option("--samples/--no-samples", help="Prompts and completions in the page.")]
JudgeModelOption = Annotated[str | None, typer.Option(help="Judge: an lm-eval model, local-chat-completions.")]
JudgeArgsOption = Annotated[str | None, typer.Option(help="Its arguments, model=NAME,base_url=URL,num_concurrent=16.")]

RunsArgument = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories, or folders of such.")]
QualityOption = Annotated[float, typer.Option(min=0, max=1, help="Damage budget: lowest mean quality.")]
CapabilityOption = Annotated[float, typer.Option(min=0, max=100, help="Damage budget: most points of accuracy lost.")]


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers from 0 separated by commas.

    Raises:
        ConfigError: a part is not one.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            raise ConfigError(f"{name}: not a whole number", got=part, allowed="whole numbers separated by commas, 0,1")
    return tuple(int(part) for part in parts)


def arguments_of(name: str, text: str) -> dict[str, Any]:
    """Read lm-eval's `a=1,b=2`.

    Raises:
        ConfigError: a part is no argument with a value, or has no name.
    """
    from lm_eval.utils import simple_parse_args_string

    for part in filter(None, text.strip().split(",")):
        before, equals, _ = part.partition("=")
        if not (before.strip() and equals):
            # Not the value: arguments may hold a key, and errors end up in logs.
            raise ConfigError(f"{name}: not arguments with values", allowed="NAME=VALUE separated by commas")
    arguments: dict[str, Any] = simple_parse_args_string(text)
    return arguments


def completed(values: dict[str, Any], field: str, more: dict[str, Any]) -> dict[str, Any]:
    """A mapping of a configuration file with what the flags add to it.

    Raises:
        ConfigError: the file holds something else there.
    """
    given = values.get(field)
    if given is None:
        return more
    if not isinstance(given, dict):
        raise ConfigError(
            f"{field} of the configuration file is not a mapping", got=type(given).__name__, allowed="names and values"
        )
    return {**given, **more}


def judge_values(model: str | None, arguments: str | None) -> dict[str, Any] | None:
    """A judge's configuration from its two options; None without a judge.

    Raises:
        ConfigError: arguments without a judge, or malformed ones.
    """
    if model is None and arguments is not None:
        raise ConfigError("--judge-model-args without a judge", do="give --judge-model NAME too")
    if model is None:
        return None
    return {"model": model, "model_args": {} if arguments is None else arguments_of("--judge-model-args", arguments)}
