"""report.md: the report without samples, for a terminal, a pull request or a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from lm_eval_cna.report.escape import code, fence, item, markdown, writable
from lm_eval_cna.report.sections import Contents, RunSections
from lm_eval_cna.report.tables import Table


def document(found: Contents, figures: Mapping[str, Sequence[str]]) -> str:
    """The report as Markdown; `figures` maps the slug of a run, or "layers", to paths relative to the report."""
    parts = [f"# {markdown(found.title)}", found.preface, "## Verdicts"]
    for part in found.parts:
        parts += _verdicts(part)
    parts.append("Multiplier 1 is the untouched model for every method; 0 suppresses, 2 amplifies.")
    for part in found.parts:
        parts += _part(part, figures.get(part.run.slug, ()))
    if found.profile is not None:
        parts += ["## Where the circuits sit", *_images(figures.get("layers", ())), markdown_table(found.profile)]
    if found.overlaps is not None:
        parts += ["## What the circuits have in common", markdown_table(found.overlaps)]
    return writable("\n\n".join(part for part in parts if part) + "\n")


def markdown_table(table: Table) -> str:
    """A table as Markdown; numbers to the right."""
    rules = ["---"] * table.words + ["---:"] * (len(table.head) - table.words)
    lines = [_line([markdown(name) for name in table.head]), _line(rules)]
    lines += [_line([markdown(entry.text) for entry in row]) for row in table.rows]
    return "\n".join(lines)


def _verdicts(part: RunSections) -> list[str]:
    run = part.run
    said = [f"- **{found.word}**: {markdown(found.text)}" for found in part.headlines]
    return [
        f"### {markdown(run.name)}",
        f"Model {code(run.manifest.plan.model)}: {markdown(run.facts)}",
        "\n".join(said) or _list(["Nothing was steered, so there is nothing to say."]),
    ]


def _part(part: RunSections, images: Sequence[str]) -> list[str]:
    run = part.run
    parts = [f"## {markdown(run.name)}", *_images(images)]
    for table in (*part.results, *part.judged):
        parts += [f"### {markdown(table.caption)}", markdown_table(table)]
    for balance in part.balances:
        parts += [f"### Refusal on {markdown(balance.task)} against its cost"]
        parts += [_list(balance.sentences), markdown_table(balance.table)]
    if not part.special.is_empty:
        said = (*part.special.rivals, *part.special.sizes, *part.special.folds)
        parts += ["### How special is the circuit?", _list(said)]
        for table in part.special.tables:
            parts += [f"#### {markdown(table.caption)}", markdown_table(table)]
    if part.trends or part.powers:
        parts += ["### Trends and power", _list((*part.trends, *part.powers))]
    parts += [
        "### Provenance",
        _list(part.notes),
        f"Files: {code(str(run.directory.path))} (manifest.json, circuit and control files, one lm-eval results file "
        "per cell under cells/, summary.json, evidence.json). Repeat:",
        fence(run.command),
    ]
    return parts


def _images(paths: Sequence[str]) -> list[str]:
    # A space or a bracket in a name would end the address.
    return [f"![Figure]({quote(path)})" for path in paths]


def _list(texts: Sequence[str]) -> str:
    return "\n".join(map(item, texts))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
