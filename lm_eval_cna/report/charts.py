"""What the figures show, as numbers and names: drawn by matplotlib for papers and as SVG for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from lm_eval_cna.analysis.outcomes import unfiltered
from lm_eval_cna.analysis.tradeoff import TradeOff, TradeoffPoint
from lm_eval_cna.interventions.methods import LOCAL
from lm_eval_cna.interventions.profile import layer_profile
from lm_eval_cna.report.run import Run
from lm_eval_cna.report.tables import HEADLINE, OUTCOMES, label, lines
from lm_eval_cna.statistics.rates import Interval

#: Metrics that are drawn over the multipliers; all lie between 0 and 1.
DRAWN = ("refusal_rate", "strongreject_score", "rating10_score", "quality", "well_formed", "acc", "exact_match")
COLOURS = 8

Style = Literal["line", "band", "points", "ranges", "front", "stack", "bars"]


@dataclass(frozen=True)
class Point:
    """One value."""

    x: float
    y: float
    """Where it is."""
    low: float | None = None
    high: float | None = None
    """Its interval, or the range of a band."""
    text: str = ""
    """What it is, in words."""
    mark: str = ""
    """What is written beside it."""


@dataclass(frozen=True)
class Series:
    """Values that belong together."""

    name: str
    """For the legend."""
    style: Style
    """How they are drawn; a band also has its mean as a dashed line."""
    colour: int
    """Number of its colour; controls have -1, -2 and so on, which are greys."""
    points: tuple[Point, ...]
    """The values, by x."""


@dataclass(frozen=True)
class Panel:
    """One diagram."""

    title: str
    """What it shows."""
    x_label: str
    y_label: str
    """Of the axes."""
    series: tuple[Series, ...]
    """What is drawn, from the back to the front."""
    x_range: tuple[float, float]
    y_range: tuple[float, float] = (0.0, 1.0)
    """Limits of the axes."""
    percent: bool = False
    """Whether y is a share, written in percent."""
    categories: tuple[str, ...] = ()
    """Names along x, where x counts them."""
    budget: tuple[float, float] | None = None
    """Limits of the damage budget along x: the part within is shaded."""


@dataclass
class Palette:
    """Gives every method of a report its colour, in the order in which they come; what has seeds is a control."""

    methods: dict[tuple[str, int | None], int] = field(default_factory=dict)
    controls: dict[tuple[str, int | None], int] = field(default_factory=dict)

    def of(self, method: str, size: int | None, *, control: bool = False) -> int:
        """The number of its colour."""
        if control:
            return self.controls.setdefault((method, size), -1 - len(self.controls) % 3)
        return self.methods.setdefault((method, size), len(self.methods) % COLOURS)


def metric_panels(run: Run, palette: Palette) -> list[Panel]:
    """A panel for every drawn metric of every task, over the multipliers, controls as a band."""
    asked = [(t, m) for t, m in run.outcomes.questions() if unfiltered(m) in DRAWN]
    order = {name: number for number, name in enumerate(HEADLINE)}
    asked.sort(key=lambda question: (run.tasks.index(question[0]), order[unfiltered(question[1])]))
    panels = []
    for task, metric in asked:
        found = list(_over_multipliers(run, task, metric, palette))
        if found:
            ends = [point.x for series in found for point in series.points]
            rate = run.outcomes.kind(task, metric) == "rate"
            span = (min(ends), max(ends))
            panels.append(Panel(f"{task}: {metric}", "multiplier", "", tuple(found), span, percent=rate))
    return panels


def outcome_panels(run: Run) -> list[Panel]:
    """What the answers are at every multiplier, stacked to one whole, for every task and method."""
    panels = []
    for task in run.tasks:
        metrics = [name for name in OUTCOMES if (task, name) in run.outcomes.questions()]
        table = [line for line in lines(run, task) if metrics and line.method not in LOCAL]
        for method in dict.fromkeys((line.method, line.size) for line in table if line.method != "baseline"):
            shown = [line for line in table if (line.method, line.size) == method or line.method == "baseline"]
            shown.sort(key=lambda line: line.multiplier)
            bottoms, stack = [0.0] * len(shown), []
            for metric in metrics:
                heights = [_mean(run, line.cells, task, metric) for line in shown]
                name = metric.removeprefix("outcome_")
                points = tuple(
                    Point(at, bottom + height, bottom, bottom + height, f"{name} {100 * height:.1f} %")
                    for at, (bottom, height) in enumerate(zip(bottoms, heights, strict=True))
                )
                bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
                stack.append(Series(name, "stack", OUTCOMES.index(metric), points))
            names = tuple(f"{line.multiplier:g}" for line in shown)
            panels.append(
                Panel(
                    f"{task}: {label(*method)}",
                    "multiplier",
                    "",
                    tuple(stack),
                    (-0.5, len(shown) - 0.5),
                    percent=True,
                    categories=names,
                )
            )
    return panels


def trade_off_panels(run: Run, found: TradeOff, palette: Palette) -> list[Panel]:
    """Change of refusal over quality, and over capability lost where it was measured."""
    panels = []
    budget = found.budget
    for name, attribute in (("quality", "quality"), ("capability lost, points", "loss")):
        factor = 1 if attribute == "quality" else 100
        costs = {s.cell: factor * getattr(s, attribute) for s in found.settings if getattr(s, attribute) is not None}
        if not costs:
            continue
        low, high = min(costs.values()), max(costs.values())
        if attribute == "quality":
            span = (min(low, budget.quality) - 0.03, 1.02)
            shade = (budget.quality, span[1])
        else:
            margin = max(1.0, 0.08 * (high - low))
            span = (min(low, 0.0) - margin, max(high, 100 * budget.capability) + margin)
            shade = (span[0], 100 * budget.capability)
        effects = [100 * setting.effect for setting in found.settings if setting.cell in costs]
        reach = max(10.0, max(abs(effect) for effect in effects) * 1.12)
        series = []
        for way in found.directions:
            front = sorted(
                (costs[s.cell], 100 * s.effect) for s in found.settings if s.cell in costs and way in s.front
            )
            if len(front) > 1:
                series.append(Series(f"front, to {way}", "front", -1, tuple(Point(x, y) for x, y in front)))
        taken: list[tuple[float, float]] = []
        for method in dict.fromkeys((s.method, s.size) for s in found.settings):
            points = tuple(
                Point(
                    costs[s.cell],
                    100 * s.effect,
                    text=f"{_setting(s)}: {100 * s.effect:+.1f} points, {name} {costs[s.cell]:.3g}"
                    + ("" if s.within else ", outside the budget"),
                    mark=_setting(s) if s.front and _is_free(costs[s.cell], 100 * s.effect, taken, span, reach) else "",
                )
                for s in found.settings
                if (s.method, s.size) == method and s.cell in costs
            )
            if points:
                series.append(Series(label(*method), "points", palette.of(*method), points))
        title = f"{found.task}: refusal against {name.partition(',')[0]}"
        panels.append(
            Panel(title, name, "change of refusal, points", tuple(series), span, (-reach, reach), budget=shade)
        )
    return panels


def layer_panel(run: Run) -> Panel | None:
    """How many of the circuit's neurons lie in each layer; None where there is no circuit or its depth is unknown."""
    if run.circuit is None or run.circuit.model.num_layers is None:
        return None
    profile = layer_profile(run.circuit)
    points = tuple(
        Point(layer, count, text=f"layer {layer}: {count} of {profile.whole.neurons} neurons")
        for layer, count in enumerate(profile.whole.counts)
    )
    bars = Series("neurons", "bars", 0, points)
    top = max(profile.whole.counts)
    return Panel(
        f"{run.name}: neurons by layer",
        "layer",
        "neurons",
        (bars,),
        (-0.5, profile.num_layers - 0.5),
        (0.0, top * 1.08),
    )


def size_panels(run: Run, palette: Palette) -> list[Panel]:
    """Change of refusal over the circuit's size, one panel a task and multiplier; none without several sizes.

    Where there are controls, only the multipliers that they were asked at.
    """
    panels = []
    rows = [
        row
        for row in run.evidence.comparisons
        if row.metric == "refusal_rate" and row.size and row.paired and row.method not in LOCAL
    ]
    controlled = {row.multiplier for row in rows if row.seed is not None}
    rows = [row for row in rows if not controlled or row.multiplier in controlled]
    for task, multiplier in dict.fromkeys((row.task, row.multiplier) for row in rows):
        series = []
        here = [row for row in rows if (row.task, row.multiplier) == (task, multiplier)]
        for method in dict.fromkeys(row.method for row in here):
            by_size: dict[int, list[float]] = {}
            intervals: dict[int, Interval | None] = {}
            control = any(row.method == method and row.seed is not None for row in here)
            for row in here:
                if row.method == method and row.size and row.paired:
                    by_size.setdefault(row.size, []).append(100 * row.paired.effect)
                    intervals[row.size] = row.paired.interval
            points = []
            for size, values in sorted(by_size.items()):
                interval = intervals[size]
                ends: tuple[float | None, float | None] = (min(values), max(values)) if control else (None, None)
                if not control and interval is not None:
                    ends = 100 * interval.low, 100 * interval.high
                text = f"{label(method, size)}: {fmean(values):+.1f} points"
                points.append(Point(size, fmean(values), *ends, text))
            if len(points) > 1:
                style: Style = "band" if control else "line"
                colour = palette.of(method, None, control=control)
                series.append(Series(label(method, None), style, colour, tuple(points)))
        if series:
            sizes = [point.x for one in series for point in one.points]
            title = f"{task}: m = {multiplier:g}"
            span = (min(sizes), max(sizes))
            panels.append(
                Panel(title, "neurons", "change of refusal, points", tuple(_back_first(series)), span, (-105, 105))
            )
    return panels


def _over_multipliers(run: Run, task: str, metric: str, palette: Palette) -> Iterator[Series]:
    # Controls of the thirds have a chart of their own, `special`'s: four bands on top of each other show nothing.
    rows = [
        row for row in run.evidence.comparisons if (row.task, row.metric) == (task, metric) and row.method not in LOCAL
    ]
    baseline = next((row for row in rows if row.method == "baseline"), None)
    found = []
    for method, size in dict.fromkeys((row.method, row.size) for row in rows if row.method != "baseline"):
        own = [row for row in rows if (row.method, row.size) == (method, size)]
        control = any(row.seed is not None for row in own)
        by_multiplier: dict[float, list[float]] = {}
        for row in own:
            by_multiplier.setdefault(row.multiplier, []).append(row.value)
        intervals = {row.multiplier: row.interval for row in own}
        if baseline is not None:
            by_multiplier[1.0], intervals[1.0] = [baseline.value], baseline.interval
        points = []
        for multiplier, values in sorted(by_multiplier.items()):
            interval, mean = intervals[multiplier], fmean(values)
            ends: tuple[float | None, float | None] = (None, None)
            if control:
                ends = min(values), max(values)
            elif interval is not None:
                ends = interval.low, interval.high
            seeds = f", {len(values)} seeds" if control and multiplier != 1 else ""
            points.append(
                Point(multiplier, mean, *ends, f"{label(method, size)}, m = {multiplier:g}: {mean:.3f}{seeds}")
            )
        if len(points) > 1:
            style: Style = "band" if control else "line"
            colour = palette.of(method, size, control=control)
            found.append(Series(label(method, size), style, colour, tuple(points)))
    yield from _back_first(found)


def _setting(setting: TradeoffPoint) -> str:
    return f"{label(setting.method, setting.size)}, m = {setting.multiplier:g}"


def _is_free(x: float, y: float, taken: list[tuple[float, float]], span: tuple[float, float], reach: float) -> bool:
    """Whether a text at a point would lie on no other one; if so, the place is taken."""
    width = max(span[1] - span[0], 1e-9)
    free = all(abs(x - a) > 0.3 * width or abs(y - b) > 0.16 * reach for a, b in taken)
    if free:
        taken.append((x, y))
    return free


def _back_first(series: list[Series]) -> list[Series]:
    return sorted(series, key=lambda one: one.style != "band")


def _mean(run: Run, cells: tuple[str, ...], task: str, metric: str) -> float:
    values = [
        row.value for row in run.evidence.comparisons if row.cell in cells and (row.task, row.metric) == (task, metric)
    ]
    return fmean(values) if values else 0.0
