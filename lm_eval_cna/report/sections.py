"""The contents of the report in order, whatever its format: sections of verdicts, tables and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lm_eval_cna.analysis.tradeoff import TradeOff, TradeoffPoint
from lm_eval_cna.analysis.verdicts import change_text
from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.profile import TOP
from lm_eval_cna.report import charts
from lm_eval_cna.report.charts import Palette, Panel
from lm_eval_cna.report.interventions import overlap_rows, profile_rows
from lm_eval_cna.report.optional_sections import Special, special
from lm_eval_cna.report.run import Run
from lm_eval_cna.report.tables import (
    Entry,
    Table,
    label,
    outcome_shares,
    results,
    trade_off_table,
    verdicts_of_judge,
    word,
)
from lm_eval_cna.results.summary import RESPONSES

#: Finding of a verdict -> its label.
FINDINGS = {
    "specific": "effect, beyond random neurons",
    "unspecific": "effect, as random neurons have",
    "effect": "effect, not held against enough controls",
    "none": "no effect seen",
}


@dataclass(frozen=True)
class Headline:
    """One verdict with its label."""

    finding: str
    """Kind of finding, which sets the colour; "broken" for broken text."""
    word: str
    """The label."""
    text: str
    """The verdict in sentences."""

    @property
    def is_effect(self) -> bool:
        """Whether the verdict is about an effect."""
        return self.finding != "none" and not self.word.startswith(FINDINGS["none"])


@dataclass(frozen=True)
class Balance:
    """The trade-off of one task: sentences on the best settings, charts, and a table of all settings."""

    task: str
    sentences: tuple[str, ...]
    panels: tuple[Panel, ...]
    table: Table


@dataclass(frozen=True)
class RunSections:
    """Everything about one run, in the order of the report."""

    run: Run
    headlines: tuple[Headline, ...]
    trends: tuple[str, ...]
    metrics: tuple[Panel, ...]
    outcomes: tuple[Panel, ...]
    results: tuple[Table, ...]
    shares: tuple[Table, ...]
    judged: tuple[Table, ...]
    balances: tuple[Balance, ...]
    special: Special
    powers: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]

    @property
    def leading(self) -> tuple[Headline, ...]:
        """The verdicts shown first: effects with unbroken text, else all effects, else the first verdict."""
        effects = tuple(found for found in self.headlines if found.is_effect)
        return tuple(found for found in effects if found.finding != "broken") or effects or self.headlines[:1]

    @property
    def tables(self) -> tuple[Table, ...]:
        """All its tables."""
        balances = tuple(balance.table for balance in self.balances)
        return self.results + self.shares + self.judged + balances + self.special.tables

    @property
    def figures(self) -> dict[str, tuple[Panel, ...]]:
        """Its charts by their part of the file name."""
        trade_off = tuple(panel for balance in self.balances for panel in balance.panels)
        named = {"metrics": self.metrics, "outcomes": self.outcomes, "tradeoff": trade_off}
        named |= {"special": self.special.rival_panels, "sizes": self.special.size_panels}
        return {name: panels for name, panels in named.items() if panels}


@dataclass(frozen=True)
class Contents:
    """The report."""

    title: str
    """Title of the page."""
    preface: str
    """Markdown before the runs; trusted."""
    parts: tuple[RunSections, ...]
    """One part per run."""
    layers: tuple[Panel, ...]
    """Neurons by layer, of each run's circuit."""
    profile: Table | None
    """The same as a table; None without circuits."""
    overlaps: Table | None
    """Overlap of the circuits of every two runs; None without two circuits."""


def contents(runs: Sequence[Run], *, preface: str = "") -> Contents:
    """Collect the contents of a report."""
    palette = Palette()
    layers = tuple(panel for run in runs if (panel := charts.layer_panel(run)) is not None)
    title = f"What steering does: {runs[0].name}" if len(runs) == 1 else "What steering does"
    return Contents(
        title=title,
        preface=preface,
        parts=tuple(_part(run, palette) for run in runs),
        layers=layers,
        profile=_profile(runs),
        overlaps=_overlaps(runs),
    )


def _part(run: Run, palette: Palette) -> RunSections:
    return RunSections(
        run=run,
        headlines=tuple(_headlines(run)),
        trends=tuple(
            trend.text if trend.size is None else f"{trend.text} (Circuit of {trend.size} neurons.)"
            for trend in run.evidence.trends
        ),
        metrics=tuple(charts.metric_panels(run, palette)),
        outcomes=tuple(charts.outcome_panels(run)),
        results=tuple(found for found in (results(run, task) for task in _measured_tasks(run)) if found.rows),
        shares=tuple(table for task in run.tasks if (table := outcome_shares(run, task)) is not None),
        judged=tuple(table for task in run.tasks if (table := verdicts_of_judge(run, task)) is not None),
        balances=tuple(_balance(run, found, palette) for found in run.trade_offs()),
        special=special(run, palette),
        powers=tuple(_powers(run)),
        notes=tuple(_notes(run)),
        provenance=tuple(flat(run.provenance)),
    )


def _measured_tasks(run: Run) -> list[str]:
    """Tasks with values per prompt first, then those that only the summary has."""
    inner = {task for task in dict.fromkeys(row.task for row in run.summary.measured) if task not in run.tasks}
    subtasks = {member for task in run.tasks for member in run.outcomes.members(task)}
    # A group inside a group (mmlu_stem in mmlu) has no documents of its own.
    subtasks |= {member for member in inner if any(member.startswith(f"{task}_") for task in run.tasks)}
    return [*run.tasks, *sorted(inner - subtasks)]


def _headlines(run: Run) -> list[Headline]:
    """Verdicts in the order of `FINDINGS`, broken text last in each, otherwise in the order of the evidence."""
    order = list(FINDINGS)
    ranked = sorted(run.evidence.verdicts, key=lambda found: (order.index(found.finding), found.broken))
    return [
        Headline(
            "broken" if found.broken else found.finding,
            f"{FINDINGS[found.finding]}; broken text" if found.broken else FINDINGS[found.finding],
            found.text,
        )
        for found in ranked
    ]


def _balance(run: Run, found: TradeOff, palette: Palette) -> Balance:
    sentences = [_best(found, found.best(way), way) for way in found.directions]
    if not found.capability:
        sentences.append("No capability task was run, so capability is not in the budget.")
    if not found.directions:
        sentences.insert(0, "No setting changes refusal here.")
    panels = tuple(charts.trade_off_panels(run, found, palette)) if found.directions else ()
    return Balance(found.task, tuple(sentences), panels, trade_off_table(run, found))


def _best(found: TradeOff, best: TradeoffPoint | None, way: str) -> str:
    if best is None:
        return f"No setting that {way}s refusal stays within the damage budget."
    cost = [] if best.quality is None else [f"quality {best.quality:.3f}"]
    if best.loss is not None:
        lost = change_text(best.loss, "rate", unit=True).removeprefix("+")
        cost.append(f"{lost} of capability lost on {best.loss_task}")
    damage = f" ({', '.join(cost)})" if cost else ""
    return (
        f"Within the damage budget, {label(best.method, best.size)} at m = {best.multiplier:g} {way}s refusal most: "
        f"by {100 * abs(best.effect):.1f} points{damage}."
    )


def _powers(run: Run) -> list[str]:
    found = []
    for row in run.evidence.powers:
        said = [
            f"{100 * power.effect:.1f} points if {100 * power.opposite:g} % of them go the other way"
            for power in row.power
            if power.effect is not None
        ]
        if said:
            start = (
                f"{row.metric} on {row.task}: with {row.power[0].n} prompts the least effect seen four times in five"
            )
            found.append(f"{start} is {', '.join(said)}.")
    return found


def _notes(run: Run) -> list[str]:
    notes = [] if run.self_check is None else [run.self_check]
    if ties := [row for row in run.summary.measured if (row.task, row.metric) == (RESPONSES, "near_ties")]:
        tokens = sum(row.value for row in ties if math.isfinite(row.value))
        notes.append(
            f"{tokens:,.0f} near-ties in {sum(row.n for row in ties):,} generated responses: tokens whose two best "
            "candidates were so close that another batch or machine may choose the other one."
        )
    tasks = [task for task, metric in run.outcomes.questions() if metric == "outcome_complied"]
    judged = {task for task, metric in run.outcomes.questions() if metric == "outcome_evaded"}
    if set(tasks) - judged:
        notes.append("No judge was asked on some tasks: an evasive answer counts as complied there.")
    if run.outcomes.judge is not None:
        shown = ", ".join(f"{name} {value}" for name, value in flat(run.outcomes.judge))
        notes.append(f"Judge: {shown}.")
    notes.append(
        "The p against controls counts control seeds, not prompts; with fewer than 19 of them the column says only "
        "whether the effect is outside their range. Holm's correction runs over the cells of the methods under test."
    )
    return notes


def _profile(runs: Sequence[Run]) -> Table | None:
    rows = [
        tuple(map(word, (run.name, *row[1:])))
        for run in runs
        if run.circuit is not None
        for row in profile_rows([run.circuit])
    ]
    if not rows:
        return None
    head = ("run", "share in", "whole circuit", f"its top {TOP}")
    return Table("layers", "Where the circuits sit", head, tuple(rows), words=2)


def _overlaps(runs: Sequence[Run]) -> Table | None:
    """Overlap of every two circuits of models of the same shape."""
    head: tuple[str, ...] = ("runs",)
    rows = []
    for first, second in combinations((run for run in runs if run.circuit is not None), 2):
        assert first.circuit is not None and second.circuit is not None
        try:
            found = overlap_rows(first.circuit, second.circuit)
        except InterventionError:
            continue
        names = ("first", "second", *(name for name, _ in found[2:]))
        head = max(head, ("runs", *names), key=len)
        pair = f"{first.name} and {second.name}"
        rows.append((word(pair), *(Entry(value, _number(value)) for _, value in found)))
    filled = tuple((*row, *(Entry() for _ in range(len(head) - len(row)))) for row in rows)
    return Table("overlap", "What the circuits have in common", head, filled) if rows else None


def _number(text: str) -> float | str:
    try:
        return float(text.removesuffix(" %"))
    except ValueError:
        return text


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A manifest as (dotted name, value) pairs; a list of plain values is one line, and cells are only counted."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, (list, tuple)):
        if name == "plan.cells":
            return [(name, f"{len(value)} cells")]
        if any(isinstance(inner, Mapping) for inner in value):
            return [pair for number, inner in enumerate(value) for pair in flat(inner, f"{name}.{number}")]
        return [(name, ", ".join(map(str, value)))] if value else []
    return [] if value is None else [(name, str(value))]
