"""Geometry of the charts as SVG; the template writes the elements, so that every text is escaped.

Colours are classes, which the style of the page sets for light and dark mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_cna.report.charts import Panel, Point, Series

WIDTH, HEIGHT = 320, 214
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42
#: Room between the outermost points and the frame.
INSET = 9


@dataclass(frozen=True)
class Tick:
    """A place on an axis with its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    text: str


@dataclass(frozen=True)
class Dot:
    """A point, with its interval as a line."""

    x: float
    y: float
    low: float | None
    high: float | None
    colour: str
    text: str
    mark: str
    anchor: str
    radius: float


@dataclass(frozen=True)
class Path:
    """A line or an area, as path data made of numbers."""

    data: str
    colour: str
    kind: str


@dataclass(frozen=True)
class Drawing:
    """A panel in the coordinates of its picture."""

    panel: Panel
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    paths: tuple[Path, ...]
    boxes: tuple[Box, ...]
    dots: tuple[Dot, ...]
    zero: float | None

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """The plot's left, top, right and bottom."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole."""
        return WIDTH, HEIGHT

    @property
    def words(self) -> str:
        """The values in words, for screen readers."""
        texts = [point.text for series in self.panel.series for point in series.points if point.text]
        return "; ".join(texts[:60])


def drawing(panel: Panel) -> Drawing:
    """Lay a panel out."""
    scale = _Scale(panel)
    paths: list[Path] = []
    boxes: list[Box] = []
    dots: list[Dot] = []
    if panel.budget is not None:
        left, right = (scale.x(end) for end in panel.budget)
        boxes.append(Box(left, TOP, max(0.0, right - left), HEIGHT - BOTTOM - TOP, "budget", "within the budget"))
    for series in panel.series:
        colour = _colour(series)
        if series.style == "band":
            paths += [Path(scale.area(series), colour, "band"), Path(scale.line(series), colour, "mean")]
        elif series.style in ("line", "front"):
            paths.append(Path(scale.line(series), colour, series.style))
        if series.style in ("line", "points", "ranges"):
            # Points of several methods may coincide: larger ones are behind and show around the smaller.
            radius = 3.4 if series.style != "points" else 3.8 + 1.3 * (series.colour % 4)
            dots += [scale.dot(point, colour, radius) for point in series.points]
        if series.style in ("stack", "bars"):
            boxes += [scale.box(point, colour) for point in series.points if point.y > (point.low or 0.0)]
    dots.sort(key=lambda dot: -dot.radius)
    zero = scale.y(0.0) if panel.y_range[0] < 0 < panel.y_range[1] else None
    return Drawing(panel, _x_ticks(panel, scale), _y_ticks(panel, scale), tuple(paths), tuple(boxes), tuple(dots), zero)


class _Scale:
    def __init__(self, panel: Panel) -> None:
        self._x, self._y = panel.x_range, panel.y_range
        self._inset = 0 if panel.categories or any(series.style == "bars" for series in panel.series) else INSET
        self._bar = 0.8 * (WIDTH - LEFT - RIGHT) / max(1e-9, panel.x_range[1] - panel.x_range[0])

    def x(self, value: float) -> float:
        low, high = self._x
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(LEFT + self._inset + share * (WIDTH - LEFT - RIGHT - 2 * self._inset), 1)

    def y(self, value: float) -> float:
        low, high = self._y
        share = 0.5 if high == low else (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - self._inset - share * (HEIGHT - TOP - BOTTOM - 2 * self._inset), 1)

    def line(self, series: Series) -> str:
        return "M" + " L".join(f"{self.x(point.x)},{self.y(point.y)}" for point in series.points)

    def area(self, series: Series) -> str:
        upper = [f"{self.x(p.x)},{self.y(p.y if p.high is None else p.high)}" for p in series.points]
        lower = [f"{self.x(p.x)},{self.y(p.y if p.low is None else p.low)}" for p in reversed(series.points)]
        return "M" + " L".join(upper + lower) + " Z"

    def dot(self, point: Point, colour: str, radius: float) -> Dot:
        low, high = (None if end is None else self.y(end) for end in (point.low, point.high))
        anchor = "end" if self.x(point.x) > (LEFT + WIDTH) / 2 else "start"
        return Dot(self.x(point.x), self.y(point.y), low, high, colour, point.text, point.mark, anchor, radius)

    def box(self, point: Point, colour: str) -> Box:
        top, bottom = self.y(point.y), self.y(point.low or 0.0)
        left, height = round(self.x(point.x) - self._bar / 2, 1), round(bottom - top, 1)
        return Box(left, top, round(self._bar, 1), height, colour, point.text)


def _colour(series: Series) -> str:
    if series.style == "stack":
        return f"o{series.colour}"
    return f"g{-1 - series.colour}" if series.colour < 0 else f"c{series.colour}"


def _x_ticks(panel: Panel, scale: _Scale) -> tuple[Tick, ...]:
    if panel.categories:
        return tuple(Tick(scale.x(at), name) for at, name in enumerate(panel.categories))
    if panel.series and all(series.style == "bars" for series in panel.series):
        layers = [point.x for point in panel.series[0].points]
        step = -(-len(layers) // 12)
        return tuple(Tick(scale.x(x), f"{x:g}") for x in layers[::step])
    return tuple(Tick(scale.x(value), f"{value:g}") for value in _round_values(*panel.x_range))


def _y_ticks(panel: Panel, scale: _Scale) -> tuple[Tick, ...]:
    values = _round_values(*panel.y_range, most=5)
    if any(series.style == "bars" for series in panel.series):
        values = [value for value in values if value == int(value)]  # neurons are whole numbers
    return tuple(Tick(scale.y(value), f"{100 * value:.0f} %" if panel.percent else f"{value:g}") for value in values)


def _round_values(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers between two ends."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round((first + n) * step, 10) for n in range(int((high - first * step) / step + 1e-9) + 1)]
