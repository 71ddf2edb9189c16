"""The command `paper`: reproduce a published table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lm_eval_cna.cli.options import JudgeArgsOption, JudgeModelOption, arguments_of, judge_values
from lm_eval_cna.cli.output import errors, say, typed_command
from lm_eval_cna.cli.output import output as console
from lm_eval_cna.cli.terminal import progress, show_table


class TableChoice(StrEnum):
    """Published tables."""

    jbb_refusal = "jbb-refusal"
    cna_vs_caa = "cna-vs-caa"
    base_vs_instruct = "base-vs-instruct"
    overlap = "overlap"
    layers = "layers"
    strongreject = "strongreject"
    mmlu = "mmlu"


class ProtocolChoice(StrEnum):
    """Which one to follow where the paper's text and its scripts differ."""

    corrected = "corrected"
    as_published = "as-published"


def paper(
    table: Annotated[TableChoice, typer.Argument(help="Which table.")],
    models: Annotated[
        str | None, typer.Option(help="Models instead of the table's, separated by commas; organism is our own.")
    ] = None,
    protocol: Annotated[
        ProtocolChoice, typer.Option(help="Follow the paper's text (corrected) or its scripts.")
    ] = ProtocolChoice.corrected,
    prompts: Annotated[Path | None, typer.Option(help="Evaluation prompts: one a line, or JSON Lines.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Contrast set: a packaged name or a file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Directory for runs and table; a rerun continues there.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most documents of each task, for trying things out.")
    ] = None,
    model_args: Annotated[str | None, typer.Option(help="Arguments of cna-hf, such as dtype=bfloat16.")] = None,
    judge_model: JudgeModelOption = None,
    judge_model_args: JudgeArgsOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only print the plan: sizes, memory, tasks, tokens.")] = False,
) -> None:
    """Reproduce a published table: published against measured, inside or outside our interval."""
    from lm_eval_cna.judging.config import parse_judge
    from lm_eval_cna.paper.plan import PaperRequest, check
    from lm_eval_cna.paper.presets import PRESETS
    from lm_eval_cna.paper.targets import resolve

    values = judge_values(judge_model, judge_model_args)
    # The published script asks one question of its own; StrongREJECT is what it is named after.
    rubric = "strongreject" if protocol is ProtocolChoice.corrected else "rating-10"
    judge = None if values is None else parse_judge({**values, "rubric": rubric})
    preset = PRESETS[table.value]
    request = PaperRequest(
        preset=preset,
        protocol=protocol.value,
        targets=resolve(preset, models),
        output=output or Path("results/runs/paper") / f"{table.value}-{protocol.value}",
        prompts=prompts,
        contrast=contrast,
        limit=limit,
        model_args={} if model_args is None else arguments_of("--model-args", model_args),
        judge=judge,
    )
    from lm_eval_cna.paper import memory, page, run

    check(request)
    machine = memory.this_machine(request.model_args)
    for line in page.notes(preset, request.protocol):
        say(line)
    if dry_run:
        rows = [page.shown_plan(request, target, machine) for target in dict.fromkeys(request.targets)]
        show_table(console, f"{table.value}, plan", page.PLAN_HEAD, rows)
        say(page.machine_note(machine))
        say(f"Estimates: {memory.FORMULA}. The progress line of a run shows the time left.")
        say(f"Output would be in {request.output}; sizes of the models: results/published/models.jsonl.")
        return
    with progress(errors) as tell:
        result = run.run(request, machine=machine, progress=tell, command=typed_command())
    show_table(console, f"{table.value}, {protocol.value}", page.HEAD, [page.shown(row) for row in result.rows])
    if page.kinds(result.rows):
        say(page.kinds(result.rows))
    for one in result.skipped:
        say(f"skipped {one.model}: {one.why}")
    say(f"table: {request.output / 'paper.md'}, {request.output / 'paper.json'}")
