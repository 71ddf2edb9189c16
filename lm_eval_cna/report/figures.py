"""The charts as PNG and PDF, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_cna.report.charts import Panel, Series
from lm_eval_cna.report.escape import plain

# Okabe and Ito's colours, which can be told apart with any colour vision; controls are greys.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fb5", "#8c564b")
_GREYS = ("#6b7280", "#a16207", "#94a3b8")
_STACK = ("#0072b2", "#e69f00", "#cc79a7", "#9ca3af")
_ACROSS = 3


def draw(panels: Sequence[Panel], *, title: str, stem: Path) -> list[Path]:
    """Draw panels side by side into `stem`.png and `stem`.pdf; returns these two, or none without panels."""
    from matplotlib.figure import Figure

    if not panels:
        return []
    across = min(len(panels), _ACROSS)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.7 * across, 2.9 * down + 0.7), layout="constrained")
    axes: Any = figure.subplots(down, across, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis in axes[: len(panels)]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if len(handles) > 1:
        legend = figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(len(handles), 2 * across),
            fontsize=8,
            frameon=False,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.suptitle(plain(title), fontsize=11, parse_math=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix, for which qwen-1.5b and qwen-1.7b are one name.
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    # Without a date, so that the same figures twice are the same bytes.
    facts = ({"Software": signature(stem.name)}, {"Creator": signature(stem.name), "CreationDate": None})
    for file, metadata in zip(files, facts, strict=True):
        figure.savefig(file, dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # keep the layout of the first file for the second
    return files


def signature(name: str) -> str:
    """Text in each table and figure of a report, by which later reports tell them from the user's own files."""
    return f"lm-eval-cna report [{name}]"


def _panel(axis: Any, panel: Panel) -> None:
    if panel.budget is not None:
        axis.axvspan(*panel.budget, color="#009e73", alpha=0.10, linewidth=0)
        axis.axhline(0, color="#6b7280", linewidth=0.8)
    for series in panel.series:
        _draw_series(axis, series)
    margin = 0.03 * (panel.y_range[1] - panel.y_range[0])
    axis.set_ylim(panel.y_range[0] - (0 if panel.y_range[0] == 0 and margin > 1 else margin), panel.y_range[1] + margin)
    if panel.categories:
        axis.set_xticks(range(len(panel.categories)), [plain(name) for name in panel.categories], parse_math=False)
    elif panel.x_label == "neurons":
        axis.xaxis.get_major_locator().set_params(integer=True)  # neurons are whole numbers
    if panel.percent:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    # Names come from files: a dollar sign in one begins no formula.
    axis.set_title(plain(panel.title), fontsize=9, parse_math=False)
    axis.set_xlabel(plain(panel.x_label), fontsize=8, parse_math=False)
    if not panel.percent:
        axis.set_ylabel(plain(panel.y_label), fontsize=8, parse_math=False)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2, axis="y")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_series(axis: Any, series: Series) -> None:
    points, style, label = series.points, series.style, plain(series.name)
    x, y = [point.x for point in points], [point.y for point in points]
    low = [point.y if point.low is None else point.low for point in points]
    high = [point.y if point.high is None else point.high for point in points]
    colours = _STACK if style == "stack" else _COLOURS
    colour = _GREYS[-1 - series.colour] if series.colour < 0 else colours[series.colour]
    if style in ("line", "ranges"):
        bars = [
            [max(0.0, value - end) for value, end in zip(y, low, strict=True)],
            [max(0.0, end - value) for value, end in zip(y, high, strict=True)],
        ]
        joined = "-" if style == "line" else "none"
        axis.errorbar(
            x, y, yerr=bars, ms=4, capsize=2, elinewidth=1, label=label, color=colour, marker="o", linestyle=joined
        )
    elif style == "band":
        axis.fill_between(x, low, high, color=colour, alpha=0.25, label=f"{label} (range)")
        # A band of controls that all agree has no height; the line of their mean is still visible.
        axis.plot(x, y, color=colour, linestyle="--", linewidth=1.3)
    elif style == "points":
        # Points of several methods may coincide: larger ones are behind and show around the smaller.
        place = series.colour % 4
        axis.plot(x, y, "o", ms=5 + 2 * place, zorder=3 - place / 10, color=colour, label=label)
        for point in points:
            if point.mark:
                at, text = (point.x, point.y), plain(point.mark)
                axis.annotate(text, at, (4, 4), textcoords="offset points", fontsize=7, parse_math=False)
    elif style == "front":
        axis.plot(x, y, color=colour, linestyle=":", linewidth=1.3)
    else:
        bottoms = [point.low or 0.0 for point in points]
        heights = [value - bottom for value, bottom in zip(y, bottoms, strict=True)]
        axis.bar(x, heights, bottom=bottoms, color=colour, width=0.8, label=label)
