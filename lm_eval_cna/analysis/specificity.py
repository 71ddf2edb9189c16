"""How special the circuit is, compared with random neurons and with the neurons of largest activation.

Random neurons come from the circuit's own layers or from the bottom, middle or top third of all layers; each kind has
its own rank test. The claim is to beat every kind, so the tests need no correction for each other. The neurons of
largest activation are one set without seeds and are compared with the circuit prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_cna.analysis.evidence import CLAIMED, Comparison, Evidence, broken_text, by_cell_task_metric, null_among
from lm_eval_cna.analysis.outcomes import Outcomes, unfiltered
from lm_eval_cna.analysis.verdicts import action, change_text, count, interval_text, metric_name, p_text
from lm_eval_cna.files.records import AnalysisRecord
from lm_eval_cna.interventions.methods import LOCAL
from lm_eval_cna.results.cells import Cell
from lm_eval_cna.statistics.null_distribution import ALPHA, Null
from lm_eval_cna.statistics.paired import Kind, Paired, compare

METHOD, TOP = "cna", "top-activation"
#: Kinds of random neurons -> where they are drawn.
RIVALS = {"random": "of its own layers", **{method: f"of the {third} third" for method, third in LOCAL.items()}}


class Rival(AnalysisRecord):
    """The circuit among the controls of one kind."""

    method: str
    """Kind of control."""
    null: Null
    """Rank of the circuit's effect among theirs."""


class Strongest(AnalysisRecord):
    """The neurons of largest activation, compared with the circuit."""

    cell: str
    """Key of their cell."""
    effect: Paired
    """Their effect: change from the baseline."""
    difference: Paired
    """Value of the circuit minus their value, prompt by prompt."""
    broken: str | None
    """How their text is broken, in words; None if it is not."""


class Standing(AnalysisRecord):
    """One effect of the circuit and all that it is compared with."""

    cell: str
    multiplier: float
    size: int | None
    task: str
    metric: str
    kind: Kind
    """The circuit's cell, and what was measured."""
    effect: Paired
    """Change from the baseline."""
    rivals: tuple[Rival, ...]
    """The kinds of random neurons that were run."""
    strongest: Strongest | None
    """The neurons of largest activation, if they were run."""
    texts: tuple[str, ...]
    """The result in sentences."""


def standings(evidence: Evidence, outcomes: Outcomes) -> tuple[Standing, ...]:
    """The circuit's effects on claimed metrics at the multipliers where a control other than `random` was run."""
    cells = outcomes.cells
    found = []
    for row in evidence.comparisons:
        if row.method != METHOD or row.paired is None or unfiltered(row.metric) not in CLAIMED:
            continue
        cell = cells[row.cell]
        rivals = _rivals(outcomes, cell, row)
        strongest = _strongest(evidence, outcomes, cell, row)
        local = any(rival.method in LOCAL for rival in rivals)
        if not local and (strongest is None or (_controlled(evidence, row) and not rivals)):
            continue
        found.append(
            Standing(
                **row.model_dump(include={"cell", "multiplier", "size", "task", "metric", "kind"}),
                effect=row.paired,
                rivals=tuple(rivals),
                strongest=strongest,
                texts=_texts(row, rivals if local else [], strongest, evidence.level),
            )
        )
    return tuple(found)


def _controlled(evidence: Evidence, row: Comparison) -> bool:
    """Whether any cell of the circuit was compared with random neurons on this metric."""
    asked = (row.method, row.task, row.metric)
    return any(
        other.null is not None for other in evidence.comparisons if (other.method, other.task, other.metric) == asked
    )


def _rivals(outcomes: Outcomes, cell: Cell, row: Comparison) -> list[Rival]:
    effect = None if row.paired is None else row.paired.effect
    nulls = {kind: null_among(outcomes, cell, kind, row.task, row.metric, effect) for kind in RIVALS}
    return [Rival(method=kind, null=null) for kind, null in nulls.items() if null is not None]


def _strongest(evidence: Evidence, outcomes: Outcomes, cell: Cell, row: Comparison) -> Strongest | None:
    key = cell._replace(method=TOP).key
    theirs = evidence.find(key, row.task, row.metric)
    if theirs is None or theirs.paired is None:
        return None
    ours = outcomes.of(row.cell, row.task, row.metric)
    difference = compare(ours, outcomes.of(key, row.task, row.metric), row.kind, level=evidence.level)
    if difference is None:
        return None
    broken = broken_text(by_cell_task_metric(evidence.comparisons), key, row.task, evidence.budget)
    return Strongest(cell=key, effect=theirs.paired, difference=difference, broken=broken)


def _texts(row: Comparison, rivals: Sequence[Rival], strongest: Strongest | None, level: float) -> tuple[str, ...]:
    assert row.paired is not None
    size = "" if row.size is None else f"{count(row.size, 'neuron')}, "
    done = f"{action(row.method, row.multiplier)} of the circuit ({size}m = {row.multiplier:g})"
    shown = change_text(row.paired.effect, row.kind, unit=True)
    head = f"{done} changes {metric_name(row.metric)} on {row.task} by {shown}"
    texts = []
    moved = row.p_holm is not None and row.p_holm <= ALPHA
    alike = strongest is None or strongest.difference.p > ALPHA
    if alike and not moved and not any(rival.null.beyond for rival in rivals):
        return (f"{head}, an effect that cannot be told from chance, and so not from that of other neurons.",)
    if rivals:
        bands = "; ".join(f"{RIVALS[rival.method]} {_band(rival.null, row)}" for rival in rivals)
        texts.append(f"{head}, random neurons {bands}. {_conclusion(rivals)}")
    if strongest is not None:
        theirs = change_text(strongest.effect.effect, row.kind, unit=True)
        start = "As many neurons of largest activation" if rivals else f"{head}, as many neurons of largest activation"
        texts.append(f"{start} {'change it ' if rivals else ''}by {theirs}: {_compared(strongest, row.kind, level)}.")
        if strongest.broken is not None:
            texts[-1] += f" {strongest.broken}, with the neurons of largest activation."
    return tuple(texts)


def _band(null: Null, row: Comparison) -> str:
    low, high = (change_text(end, row.kind, unit=False) for end in (null.low, null.high))
    seeds = count(null.seeds, "seed")
    return f"{low} to {high} ({seeds}, {p_text(null.p)})" if null.testable else f"{low} to {high} ({seeds})"


def _conclusion(rivals: Sequence[Rival]) -> str:
    if not all(rival.null.testable for rival in rivals):
        return "With fewer than 19 seeds of each kind there is no test."
    lost = [RIVALS[rival.method] for rival in rivals if not rival.null.beyond]
    if not lost:
        return "It is beyond the random neurons of every kind."
    if len(lost) == len(rivals):
        return "It is not beyond random neurons of any kind."
    return f"It is not beyond random neurons {' nor '.join(lost)}."


def _compared(strongest: Strongest, kind: Kind, level: float) -> str:
    difference = strongest.difference
    test = "exact McNemar" if kind == "rate" else "sign-flip permutation"
    ends = "" if difference.interval is None else f"{interval_text(difference.interval, kind, level)}; "
    shown = change_text(difference.effect, kind, unit=True)
    tested = f"{ends}{test} {p_text(difference.p)}"
    if difference.p > ALPHA:
        return f"no difference between the two can be told from chance ({shown}; {tested})"
    return f"the two differ by {shown} ({tested})"
