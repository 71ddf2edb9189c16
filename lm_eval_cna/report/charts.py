"""Contents of the figures, as numbers and names: matplotlib draws them for papers, the page shows them as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class Point:
    """One value."""

    x: float
    y: float
    """Coordinates."""
    low: float | None = None
    high: float | None = None
    """Ends of the interval, or of a band."""
    text: str = ""
    """Description, for the tooltip."""
    mark: str = ""
    """Text beside the point."""


@dataclass(frozen=True)
class Series:
    """Points that are drawn in one style and colour."""

    name: str
    """Name in the legend."""
    style: Style
    """How the points are drawn; a band also has its mean as a dashed line."""
    colour: int
    """Number of the colour; controls have -1, -2 and so on, which are greys."""
    points: tuple[Point, ...]
    """The points, ascending in x."""


@dataclass(frozen=True)
class Panel:
    """One diagram."""

    title: str
    """Title above the diagram."""
    x_label: str
    y_label: str
    """Labels of the axes."""
    series: tuple[Series, ...]
    """The series, from back to front."""
    x_range: tuple[float, float]
    y_range: tuple[float, float] = (0.0, 1.0)
    """Limits of the axes."""
    percent: bool = False
    """Whether y is a share and shown in percent."""
    categories: tuple[str, ...] = ()
    """Names of x = 0, 1, 2 and so on, if x is not a number."""
    budget: tuple[float, float] | None = None
    """Limits of the damage budget along x, which is shaded."""


@dataclass
class Palette:
    """Gives every method of a report its colour, in the order of first use."""

    methods: dict[tuple[str, int | None], int] = field(default_factory=dict)
    controls: dict[tuple[str, int | None], int] = field(default_factory=dict)

    def of(self, method: str, size: int | None, *, control: bool = False) -> int:
        """Number of a method's colour; negative for a control."""
        if control:
            return self.controls.setdefault((method, size), -1 - len(self.controls) % 3)
        return self.methods.setdefault((method, size), len(self.methods) % COLOURS)


def metric_panels(run: Run, palette: Palette) -> list[Panel]:
    """A panel for every drawn metric of every task over the multipliers, controls as bands."""
    asked = [(t, m) for t, m in run.outcomes.questions() if unfiltered(m) in DRAWN]
    order = {name: number for number, name in enumerate(HEADLINE)}
    asked.sort(key=lambda question: (run.tasks.index(question[0]), order[unfiltered(question[1])]))
    panels = []
    for task, metric in asked:
        found = _over_multipliers(run, task, metric, palette)
        if found:
            ends = [point.x for series in found for point in series.points]
            rate = run.outcomes.kind(task, metric) == "rate"
            span = (min(ends), max(ends))
            panels.append(Panel(f"{task}: {metric}", "multiplier", "", tuple(found), span, percent=rate))
    return panels


def outcome_panels(run: Run) -> list[Panel]:
    """Shares of the kinds of answers at every multiplier, stacked, for every task and method."""
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
            title, span = f"{task}: {label(*method)}", (-0.5, len(shown) - 0.5)
            panels.append(Panel(title, "multiplier", "", tuple(stack), span, percent=True, categories=names))
    return panels


def trade_off_panels(run: Run, found: TradeOff, palette: Palette) -> list[Panel]:
    """Change of refusal over quality, and over the loss of capability if it was measured."""
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
    """Number of the circuit's neurons in each layer; None without a circuit or if the model's depth is unknown."""
    if run.circuit is None or run.circuit.model.num_layers is None:
        return None
    profile = layer_profile(run.circuit)
    points = tuple(
        Point(layer, count, text=f"layer {layer}: {count} of {profile.whole.neurons} neurons")
        for layer, count in enumerate(profile.whole.counts)
    )
    bars, title = Series("neurons", "bars", 0, points), f"{run.name}: neurons by layer"
    span, top = (-0.5, profile.num_layers - 0.5), max(profile.whole.counts)
    return Panel(title, "layer", "neurons", (bars,), span, (0.0, top * 1.08))


def size_panels(run: Run, palette: Palette) -> list[Panel]:
    """Change of refusal over the circuit's size, one panel per task and multiplier; none with a single size.

    If there are controls, only their multipliers have a panel.
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
            control = any(row.method == method and row.seed is not None for row in here)
            by_size: dict[float, list[float]] = {}
            ends: dict[float, Ends] = {}
            for row in here:
                if row.method == method and row.size and row.paired:
                    by_size.setdefault(row.size, []).append(100 * row.paired.effect)
                    ends[row.size] = scaled(row.paired.interval, 100)
            points = _line_points(by_size, None if control else ends)
            points = [replace(one, text=f"{label(method, int(one.x))}: {one.y:+.1f} points") for one in points]
            series += _line_series((method, None), points, palette, control=control)
        if series:
            sizes = [point.x for one in series for point in one.points]
            title = f"{task}: m = {multiplier:g}"
            span = (min(sizes), max(sizes))
            panels.append(
                Panel(title, "neurons", "change of refusal, points", tuple(_back_first(series)), span, (-105, 105))
            )
    return panels


def _over_multipliers(run: Run, task: str, metric: str, palette: Palette) -> list[Series]:
    # Controls of the thirds have a chart of their own: four bands on top of each other show nothing.
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
        ends = {row.multiplier: scaled(row.interval) for row in own}
        if baseline is not None:
            by_multiplier[1.0], ends[1.0] = [baseline.value], scaled(baseline.interval)
        seeds = {m: f", {len(values)} seeds" if control and m != 1 else "" for m, values in by_multiplier.items()}
        points = [
            replace(one, text=f"{label(method, size)}, m = {one.x:g}: {one.y:.3f}{seeds[one.x]}")
            for one in _line_points(by_multiplier, None if control else ends)
        ]
        found += _line_series((method, size), points, palette, control=control)
    return _back_first(found)


def scaled(interval: Interval | None, factor: float = 1) -> Ends:
    """The ends of an interval times a factor; None twice without an interval."""
    return (None, None) if interval is None else (factor * interval.low, factor * interval.high)


def _line_points(values: Mapping[float, Sequence[float]], ends: Mapping[float, Ends] | None) -> list[Point]:
    """The mean at every x with its interval; without intervals, with the range of the values."""
    return [
        Point(x, fmean(found), *((min(found), max(found)) if ends is None else ends[x]))
        for x, found in sorted(values.items())
    ]


def _line_series(
    shown: tuple[str, int | None], points: Sequence[Point], palette: Palette, *, control: bool
) -> list[Series]:
    """A line, or a band for a control; nothing with fewer than two points."""
    if len(points) < 2:
        return []
    return [Series(label(*shown), "band" if control else "line", palette.of(*shown, control=control), tuple(points))]


def _setting(setting: TradeoffPoint) -> str:
    return f"{label(setting.method, setting.size)}, m = {setting.multiplier:g}"


def _is_free(x: float, y: float, taken: list[tuple[float, float]], span: tuple[float, float], reach: float) -> bool:
    """Whether a text at this point overlaps no other; if so, its place is added to `taken`."""
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
