"""Commands on a model's neurons: discover, show, compare, try."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lm_eval_cna.cli.options import (
    PUBLISHED,
    BatchOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    MatchChoice,
    MethodOption,
    ModelOption,
    RevisionOption,
    whole_numbers,
)
from lm_eval_cna.cli.output import output as console
from lm_eval_cna.cli.output import print_intervention, print_stability, say
from lm_eval_cna.cli.terminal import show_table
from lm_eval_cna.errors import ConfigError
from lm_eval_cna.interventions.methods import METHODS


def discover(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="File to write: .json for circuits, .safetensors for vectors.")],
    contrast: Annotated[str | None, typer.Option(help="Contrast set: a packaged name or a file.")] = None,
    method: MethodOption = PUBLISHED,
    fraction: Annotated[float | None, typer.Option(help="Circuit size, share of all neurons [0.001].")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Circuit size in neurons.")] = None,
    exclude_layers: Annotated[str, typer.Option(help="Layers without circuit neurons, 0,1.")] = "",
    universal_filter: Annotated[bool, typer.Option(help="Leave out neurons active on everything.")] = True,
    layer: Annotated[int | None, typer.Option(min=0, help="Layer of caa-residual.")] = None,
    like: Annotated[str | None, typer.Option(help="What a control is matched to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a control, or of the split into folds.")] = 0,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Split the prompts into this many folds, and find cna's circuit without each."),
    ] = None,
    match: Annotated[
        MatchChoice,
        typer.Option(help="Random neurons: matched by layer, by activation too, or of a third of the layers."),
    ] = MatchChoice.layer,
    chat_template: Annotated[bool, typer.Option(help="Render prompts with the chat template.")] = True,
    batch_size: BatchOption = 16,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
) -> None:
    """Find a circuit or vectors, or draw a control, and write the file."""
    row = METHODS[method]
    if output.suffix != row.suffix:
        raise ConfigError(f"--output of {method}", got=str(output), allowed=f"a file name ending in {row.suffix}")
    excluded = whole_numbers("--exclude-layers", exclude_layers) if exclude_layers else ()
    from lm_eval_cna.contrast.loading import load_contrast
    from lm_eval_cna.contrast.splits import split_prompts
    from lm_eval_cna.discovery.discover import check_request
    from lm_eval_cna.discovery.discover import discover as find
    from lm_eval_cna.discovery.measurement import Settings
    from lm_eval_cna.interventions.reading import read_intervention
    from lm_eval_cna.interventions.stability import stability_path
    from lm_eval_cna.models.hf import CNAHFLM
    from lm_eval_cna.validation.cross_validation import cross_validate

    # Everything that can be wrong in options and files is found before the model is loaded.
    matched = None if like is None else read_intervention(like)
    check_request(
        method, fraction=fraction, top_k=top_k, excluded_layers=excluded, layer=layer, like=matched, match=match
    )
    if folds is not None and method != "cna":
        raise ConfigError(f"folds has no meaning for method {method}", do="leave it out")
    prompts = (
        None
        if row.is_control and match is not MatchChoice.activation and contrast is None
        else load_contrast(contrast or "refusal")
    )
    split = None if folds is None or prompts is None else split_prompts(prompts, folds, seed=seed)
    lm = CNAHFLM(pretrained=model, dtype=dtype.value, device=device, revision=revision, batch_size=batch_size)
    asked: dict[str, Any] = {
        "fraction": fraction,
        "top_k": top_k,
        "excluded_layers": excluded,
        "universal_filter": universal_filter,
        "settings": Settings(lm.rendering(chat_template), batch_size),
        "model_id": model,
        "revision": lm.revision,
    }
    if split is not None and prompts is not None:
        circuit, stability = cross_validate(lm.model, lm.tokenizer, prompts, split, **asked)
        circuit.write(output)
        stability.write(stability_path(output))
        say(f"wrote {output} and {stability_path(output)}")
        print_intervention(circuit)
        print_stability(stability)
        return
    matching: dict[str, Any] = {"layer": layer, "like": matched, "seed": seed, "match": match.value}
    found = find(lm.model, lm.tokenizer, prompts, method=method, **matching, **asked)
    found.write(output)
    say(f"wrote {output}")
    print_intervention(found)


def show(file: Annotated[str, typer.Argument(help="An intervention file.")]) -> None:
    """What an intervention is, where it came from, and its layer profile."""
    from lm_eval_cna.interventions.reading import read_intervention

    print_intervention(read_intervention(file))


def compare(
    first: Annotated[str, typer.Argument(help="A circuit file.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
) -> None:
    """Overlap, Jaccard index and layer profiles of two circuits (base against instruct, say)."""
    from lm_eval_cna.interventions.circuit import Circuit
    from lm_eval_cna.interventions.reading import read_intervention
    from lm_eval_cna.report.interventions import overlap_rows, profile_rows

    circuits: list[Circuit] = []
    for source in (first, second):
        circuit = read_intervention(source)
        if not isinstance(circuit, Circuit):
            raise ConfigError("compare takes circuits", got=f"{source}: {circuit.method}")
        circuits.append(circuit.model_copy(update={"name": source}))  # tells two circuits of one contrast set apart
    show_table(console, "overlap", ("measure", "value"), overlap_rows(*circuits))
    show_table(console, "layer profile", ("circuit", "share in", "all", "top 200"), profile_rows(circuits))


def try_(
    model: ModelOption,
    circuit: Annotated[str, typer.Option(help="Circuit or vectors file.")],
    prompt: Annotated[str, typer.Option(help="The prompt, or - to read it from standard input.")],
    multipliers: Annotated[str, typer.Option(help="Multipliers, 0,1,2.")] = "0,1,2",
    scale: Annotated[float, typer.Option(help="Factor of vectors.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens.")] = 150,
    chat_template: Annotated[bool, typer.Option(help="Render the prompt with the chat template.")] = True,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
) -> None:
    """Completions side by side, to look and not to score."""
    from lm_eval_cna.sweep.config import parse_numbers

    chosen = parse_numbers("--multipliers", multipliers)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty", do="give --prompt TEXT, or --prompt - and a text on standard input")
    from lm_eval_cna.interventions.reading import read_intervention
    from lm_eval_cna.models.completions import complete
    from lm_eval_cna.models.hf import CNAHFLM
    from lm_eval_cna.steering.setting import Setting

    intervention = read_intervention(circuit)
    settings = [Setting(intervention, number, scale) for number in chosen]
    lm = CNAHFLM(pretrained=model, dtype=dtype.value, device=device, revision=revision, batch_size=1)
    answers = complete(lm, text, settings, max_new_tokens=max_tokens, chat_template=chat_template)
    rows = [(f"{number:g}", answer) for number, answer in zip(chosen, answers, strict=True)]
    show_table(console, text.strip(), ("m", "completion"), rows)
