"""Every table of the report as plain rows: which entries in which order, without layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lm_eval_cna.analysis.evidence import CLAIMED, Comparison
from lm_eval_cna.analysis.outcomes import unfiltered
from lm_eval_cna.analysis.tradeoff import TradeOff, TradeoffPoint
from lm_eval_cna.analysis.verdicts import change_text, p_value
from lm_eval_cna.interventions.methods import METHODS
from lm_eval_cna.report.run import Run
from lm_eval_cna.results.summary import CellSummary
from lm_eval_cna.statistics.null_distribution import Null
from lm_eval_cna.statistics.paired import Kind
from lm_eval_cna.statistics.rates import Interval, wilson

#: Metrics with a column, the most important first; all others are only in summary.json.
HEADLINE = (
    "refusal_rate",
    "strongreject_score",
    "rating10_score",
    "quality",
    "well_formed",
    "degenerate_rate",
    "acc",
    "exact_match",
    "changed_rate",
    "harmless_kl",
    "harmless_kl_p95",
)
OUTCOMES = ("outcome_refused", "outcome_complied", "outcome_evaded", "outcome_degenerate")
#: Rates that only the summary has, without values per prompt.
_SHARES = ("changed_rate",)
NAMES = {"baseline": "baseline", **{name: method.label for name, method in METHODS.items()}}


@dataclass(frozen=True)
class Entry:
    """One cell of a table."""

    text: str = ""
    """Shown text, unescaped."""
    key: float | str | None = None
    """Sort key: numbers by size, then texts, None last."""


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str
    """Name of its file."""
    caption: str
    """Caption, unescaped."""
    head: tuple[str, ...]
    """Names of the columns, unescaped."""
    rows: tuple[tuple[Entry, ...], ...]
    """Rows with one entry per column."""
    words: int = 1
    """Number of columns from the left that hold words; the others hold numbers."""


@dataclass(frozen=True)
class Line:
    """One row of a method x multiplier table, with all seeds of a control together."""

    method: str
    multiplier: float
    size: int | None
    cells: tuple[str, ...]

    @property
    def start(self) -> tuple[Entry, Entry]:
        """The first two entries of its row: the method, with the circuit's size if the sweep has several, and m."""
        return word(label(self.method, self.size)), _multiplier(self.multiplier)


def word(text: str) -> Entry:
    """An entry that is sorted by its text."""
    return Entry(text, text)


def label(method: str, size: int | None) -> str:
    """A method in words."""
    name = NAMES.get(method, method)
    return name if size is None else f"{name} ({size})"


def results(run: Run, task: str) -> Table:
    """The method x multiplier table of a task: values with intervals, for controls the mean and range over seeds."""
    metrics = [metric for metric in _metrics(run, task) if unfiltered(metric) in HEADLINE]
    claimed = [metric for metric in metrics if unfiltered(metric) in CLAIMED]
    head = ["method", "m"]
    for metric in metrics:
        head.append(metric)
        if metric in claimed:
            named = "" if len(claimed) == 1 else f" of {metric}"
            head += [f"change{named}", f"p{named}, Holm", f"p{named}, controls"]
    rows = []
    for line in lines(run, task):
        entries = []
        for metric in metrics:
            entries.append(_number(run, line, task, metric))
            if metric in claimed:
                entries += _tests(None if len(line.cells) > 1 else run.evidence.find(line.cells[0], task, metric))
        if any(entry.text for entry in entries):
            rows.append((*line.start, *entries))
    level = f"{100 * run.evidence.level:g} %"
    caption = f"{task}: value with {level} interval; change from the baseline, of rates in points"
    if any(len(line.cells) > 1 for line in lines(run, task)):
        caption += "; of controls the mean with the range over seeds"
    if any(line.size is not None for line in lines(run, task)):
        caption += "; in brackets the neurons of the circuit"
    return without_empty(Table(f"{run.slug}-{task}", caption, tuple(head), tuple(rows)))


def outcome_shares(run: Run, task: str) -> Table | None:
    """Shares of the kinds of answers; None for a task without outcomes."""
    metrics = [metric for metric in OUTCOMES if metric in _metrics(run, task)]
    if not metrics:
        return None
    rows = tuple((*line.start, *(_number(run, line, task, metric) for metric in metrics)) for line in lines(run, task))
    note = "" if "outcome_evaded" in metrics else "; without a judge, evasions count as complied"
    names = tuple(metric.removeprefix("outcome_") for metric in metrics)
    return Table(f"{run.slug}-{task}-outcomes", f"{task}: what the answers are{note}", ("method", "m", *names), rows)


def verdicts_of_judge(run: Run, task: str) -> Table | None:
    """Number of answers without a verdict, and the bounds of the score that they leave; None without a judge."""
    metric = next((name for name in ("strongreject_score", "rating10_score") if name in _metrics(run, task)), None)
    if metric is None or "n_unscored" not in _metrics(run, task):
        return None
    rows = []
    for line in lines(run, task):
        found = {
            name: [row.value for row in _measured(run, line, task, name)]
            for name in ("n_unscored", metric, f"{metric}_lower", f"{metric}_upper")
        }
        entries = [_whole(found["n_unscored"]), *(_mean(values) for name, values in found.items() if "_un" not in name)]
        rows.append((*line.start, *entries))
    head = ("method", "m", "unscored", metric, "lower bound", "upper bound")
    caption = f"{task}: answers that the judge did not score; the bounds take every one as 0 and as 1"
    return Table(f"{run.slug}-{task}-judge", caption, head, tuple(rows))


def trade_off_table(run: Run, found: TradeOff) -> Table:
    """Every setting with its effect and its damage."""
    rows = tuple(_setting(setting) for setting in found.settings)
    head = ("method", "m", "change of refusal", "quality", "capability lost", "within budget", "on the front")
    budget = found.budget
    caption = (
        f"{found.task}: change of refusal in points against its damage; budget: quality at least "
        f"{budget.quality:g}, degenerate answers at most {100 * budget.degenerate:g} points up, capability at most "
        f"{100 * budget.capability:g} points down"
    )
    return Table(f"{run.slug}-{found.task}-tradeoff", caption, head, rows)


def lines(run: Run, task: str) -> list[Line]:
    """The rows of a task's tables, in the order of the sweep, multipliers ascending within a method."""
    found: dict[tuple[str, int | None, float], dict[str, None]] = {}
    for row in run.summary.measured:
        if row.task == task:
            found.setdefault((row.method, row.size, row.multiplier), {})[row.cell] = None
    order = list(dict.fromkeys((method, size) for method, size, _ in found))
    keys = sorted(found, key=lambda key: (order.index(key[:2]), key[2]))
    return [Line(method, m, size, tuple(found[method, size, m])) for method, size, m in keys]


def change(effect: float | None, interval: Interval | None, kind: Kind = "rate") -> Entry:
    """A signed difference with its interval: points for a rate, the metric's own unit for a mean."""
    if effect is None:
        return Entry()
    values = (effect,) if interval is None else (effect, interval.low, interval.high)
    shown, *ends = (change_text(value, kind, unit=False) for value in values)
    return Entry(f"{shown} ({ends[0]} to {ends[1]})" if ends else shown, effect)


def p_of_controls(null: Null | None, effect: float) -> Entry:
    """The p against controls; with too few of them for a test, whether the effect is outside their range."""
    if null is None:
        return Entry()
    outside = f"{'outside' if null.outside(effect) else 'inside'} {null.seeds}"
    return Entry(p_value(null.p) if null.testable else outside, null.p)


def _metrics(run: Run, task: str) -> list[str]:
    names = dict.fromkeys(row.metric for row in run.summary.measured if row.task == task)
    order = {name: number for number, name in enumerate(HEADLINE)}
    return sorted(names, key=lambda name: order.get(unfiltered(name), len(order)))


def without_empty(table: Table) -> Table:
    """The table without empty columns; the first two stay."""
    kept = [at for at in range(len(table.head)) if at < 2 or any(row[at].text for row in table.rows)]
    rows = tuple(tuple(row[at] for at in kept) for row in table.rows)
    return replace(table, head=tuple(table.head[at] for at in kept), rows=rows)


def _measured(run: Run, line: Line, task: str, metric: str) -> list[CellSummary]:
    return [row for row in run.summary.measured if row.cell in line.cells and (row.task, row.metric) == (task, metric)]


def _number(run: Run, line: Line, task: str, metric: str) -> Entry:
    measured = [] if (line.method, metric) == ("baseline", "changed_rate") else _measured(run, line, task, metric)
    rate = metric in _SHARES or run.outcomes.kind(task, metric) == "rate"
    if metric not in _SHARES and not any(asked == (task, metric) for asked in run.outcomes.questions()):
        rate = False  # only the summary has it: a percentile or a mean
    if not measured:
        return Entry()
    if len(measured) > 1 or measured[0].seed is not None:
        values = [row.value for row in measured]
        ends = Interval(low=min(values), high=max(values)) if len(values) > 1 else None
        return Entry(_shown(fmean(values), ends, rate), fmean(values))
    found, value = run.evidence.find(line.cells[0], task, metric), measured[0].value
    interval = None if found is None else found.interval
    if metric in _SHARES and measured[0].n:
        interval = wilson(round(value * measured[0].n), measured[0].n, level=run.evidence.level)
    return Entry(_shown(value, interval, rate), value)


def _shown(value: float, interval: Interval | None, rate: bool) -> str:
    def one(number: float) -> str:
        return f"{100 * number:.1f}" if rate else f"{number:.3f}"

    unit = " %" if rate else ""
    return one(value) + unit + ("" if interval is None else f" ({one(interval.low)} to {one(interval.high)})")


def _tests(row: Comparison | None) -> list[Entry]:
    if row is None or row.paired is None:
        return [Entry(), Entry(), Entry()]
    holm = Entry() if row.p_holm is None else Entry(p_value(row.p_holm), row.p_holm)
    effect = change(row.paired.effect, row.paired.interval, row.kind)
    return [effect, holm, p_of_controls(row.null, row.paired.effect)]


def _setting(setting: TradeoffPoint) -> tuple[Entry, ...]:
    quality = Entry() if setting.quality is None else Entry(f"{setting.quality:.3f}", setting.quality)
    within = "yes" if setting.within else "no"
    if setting.broken_task is not None:
        within += f", text broken on {setting.broken_task}"
    front = " and ".join(f"to {way}" for way in setting.front)
    return (
        word(label(setting.method, setting.size)),
        _multiplier(setting.multiplier),
        change(setting.effect, setting.interval),
        quality,
        change(setting.loss, setting.loss_interval),
        Entry(within, float(setting.within)),
        Entry(front, front or None),
    )


def _multiplier(value: float) -> Entry:
    return Entry(f"{value:g}", value)


def _mean(values: Sequence[float]) -> Entry:
    return Entry(f"{fmean(values):.3f}", fmean(values)) if values else Entry()


def _whole(values: Iterable[float]) -> Entry:
    total = sum(values)
    return Entry(f"{total:.0f}", total)
