"""Tables of responses: rows from a model's finished sweep, beside the published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from lm_eval_cna.analysis.outcomes import Outcomes
from lm_eval_cna.paper.plan import PaperRequest
from lm_eval_cna.paper.presets import NEAR_ZERO, caa_multiplier
from lm_eval_cna.paper.rows import (
    MeasuredFigure,
    PaperRow,
    Published,
    change,
    claims,
    figure,
    mean,
    published,
    rate,
    row,
)
from lm_eval_cna.paper.targets import Target
from lm_eval_cna.statistics.paired import Document

_FILES = {"jbb-refusal": "jbb_refusal", "cna-vs-caa": "cna_vs_caa", "base-vs-instruct": "base_vs_instruct"}
_BASELINE = "baseline, m = 1"
_CNA = "CNA, m = 0 (suppressing)"
_RISE = "rise of the score, points"


def sweep_rows(request: PaperRequest, target: Target, outcomes: Outcomes) -> list[PaperRow]:
    """The rows of one model."""
    table = request.preset.table
    if table == "mmlu":
        return _mmlu_rows(request, target, outcomes)
    if table == "strongreject":
        return [_gain_row(request, target, gains(request, target, outcomes))]
    return _refusal_rows(request, target, outcomes)


def _refusal_rows(request: PaperRequest, target: Target, outcomes: Outcomes) -> list[PaperRow]:
    """Rows of refusal, and of quality in tables that have it."""
    table, differs = request.preset.table, request.differs(target)
    ((_, task, metric),) = request.tasks_of(target)
    file = _FILES[table]
    cells: list[tuple[str, str, str]] = []
    if table != "cna-vs-caa":
        cells.append(("baseline", _BASELINE, "baseline"))
    cells.append((_cell(outcomes, "cna", 0.0), _CNA, "ablated" if table == "jbb-refusal" else "cna"))
    if "caa" in request.preset.methods:
        strength, caa = _caa(request)
        cells.append((_cell(outcomes, "caa", strength), caa, "caa"))
    rows = []
    rates: list[MeasuredFigure | None] = []
    for key, setting, prefix in cells:
        rates.append(rate(outcomes.of(key, task, metric).values()))
        told = published(file, target.name, f"{prefix}_refusal")
        rows.append(row(target.name, "refusal, %", setting, told, rates[-1], differs))
        if prefix in ("cna", "caa"):
            quality = mean(outcomes.of(key, task, "quality").values())
            told = published(file, target.name, f"{prefix}_quality")
            rows.append(row(target.name, "quality", setting, told, quality, differs))
    if table == "jbb-refusal":
        rows.append(_relative(target, rates, differs))
    return rows


def _relative(target: Target, rates: Sequence[MeasuredFigure | None], differs: tuple[str, ...]) -> PaperRow:
    """The relative change, computed from the two rates."""
    before, after = rates
    value = None if before is None or after is None or before.value == 0 else 100 * (after.value / before.value - 1)
    measured = None if value is None or before is None else MeasuredFigure(value, None, "none of its own", before.n)
    told = published("jbb_refusal", target.name, "relative_change")
    found = row(target.name, "relative change, %", f"{_CNA} against baseline", told, measured, differs)
    return found if measured is None else found.model_copy(update={"verdict": "follows from the rates"})


def _mmlu_rows(request: PaperRequest, target: Target, outcomes: Outcomes) -> list[PaperRow]:
    """Rows for the paper's two claims: CNA loses at most so many points, and CAA falls to near zero."""
    bound, differs = float(claims()["mmlu_max_drop_cna_pp"]), request.differs(target)
    strength, caa = _caa(request)
    rows = []
    for asked, task, metric in request.tasks_of(target):
        name = "knowledge" if target.organism else "MMLU"
        name += " generated" if asked.new_tokens else " by likelihood"
        before = outcomes.of("baseline", task, metric)
        after = outcomes.of(_cell(outcomes, "cna", 0.0), task, metric)
        under_caa = outcomes.of(_cell(outcomes, "caa", strength), task, metric)
        claim = None if target.organism else Published(-bound, bound, f"within {bound:g} of the baseline")
        near = None if target.organism else Published(0.0, NEAR_ZERO, "near zero")
        rows += [
            row(target.name, f"{name}, %", _BASELINE, None, rate(before.values()), differs),
            row(target.name, f"{name}, change in points", _CNA, claim, change(after, before, "rate"), differs),
            row(target.name, f"{name}, %", caa, near, rate(under_caa.values()), differs),
        ]
    return rows


def gains(request: PaperRequest, target: Target, outcomes: Outcomes) -> Mapping[Document, tuple[float, float]]:
    """Judge's score of each prompt as (ablated, baseline); empty without a judge."""
    ((_, task, _),) = request.tasks_of(target)
    metric = "strongreject_score" if request.protocol == "corrected" else "rating10_score"
    after, before = (outcomes.of(key, task, metric) for key in (_cell(outcomes, "cna", 0.0), "baseline"))
    return {document: (after[document], before[document]) for document in after if document in before}


def _gain_row(request: PaperRequest, target: Target, scores: Mapping[Document, tuple[float, float]]) -> PaperRow:
    differs = request.differs(target)
    if request.judge is None and not scores:
        differs += ("no judge: give --judge-model NAME and --judge-model-args ARGS",)
    after, before = ({document: pair[side] for document, pair in scores.items()} for side in (0, 1))
    return row(target.name, _RISE, f"{_CNA} against baseline", None, change(after, before, "mean"), differs)


def family_rows(
    request: PaperRequest, every: Mapping[Target, Mapping[Document, tuple[float, float]]]
) -> list[PaperRow]:
    """Averages over a model family, as the paper states them, over the models that were judged."""
    rows = []
    asked_for = [target for target in request.targets if target.family is not None]
    for family in dict.fromkeys(target.family for target in asked_for):
        members = [target for target in asked_for if target.family == family]
        judged = [every[target] for target in members if every.get(target)]
        common = set.intersection(*(set(scores) for scores in judged)) if judged else set()
        order = sorted(common, key=str)
        after, before = (
            {document: fmean(scores[document][side] for scores in judged) for document in order} for side in (0, 1)
        )
        whole = [name for name in request.preset.models if str(family).lower() in name.lower()]
        differs = request.differs(members[0])
        if len(judged) < len(whole):
            differs += (f"average over {len(judged)} of the family's {len(whole)} models",)
        told = figure(claims()[f"strongreject_gain_{str(family).lower()}_pct"])
        measured = change(after, before, "mean")
        rows.append(row(f"{family}, average", _RISE, f"{_CNA} against baseline", told, measured, differs))
    return rows


def _caa(request: PaperRequest) -> tuple[float, str]:
    """CAA's multiplier, and its setting in words."""
    strength = caa_multiplier(request.protocol)
    return strength, f"CAA, m = {strength:g} ({'suppressing' if strength < 1 else 'amplifying'})"


def _cell(outcomes: Outcomes, method: str, multiplier: float) -> str:
    """Key of a cell, or "" (a key without values) if the sweep has no such cell."""
    return next(
        (key for key, cell in outcomes.cells.items() if (cell.method, cell.multiplier) == (method, multiplier)), ""
    )
