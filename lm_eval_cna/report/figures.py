"""The overview figure: refusal, quality and capability over multipliers, the random controls as a band."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval_cna.report.tables import NAMES, Column, Row

PANELS = ("refusal_rate", "quality", "well_formed", "acc")
_COLOURS = {"cna": "#0b6e4f", "caa": "#b5441c", "caa-residual": "#7a4fb5"}
_CONTROLS = {"random": "#6b7280", "random-vectors": "#a16207"}


def overview(rows: list[Row], shown: list[Column], *, title: str, stem: Path) -> list[Path]:
    """Draw a panel for each column of `PANELS`; returns the files written (`stem`.png and .pdf).

    Lines are methods over multipliers through the baseline at m = 1; a control is its range over seeds.
    """
    from matplotlib.figure import Figure

    panels = [n for n, column in enumerate(shown) if column.metric in PANELS]
    if not panels:
        return []
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.6 * across, 2.9 * down + 0.6), layout="constrained")
    axes: Any = figure.subplots(down, across, squeeze=False).flatten()
    for axis, number in zip(axes, panels, strict=False):
        _panel(axis, rows, number)
        # Names come from files: a dollar sign in one begins no formula.
        axis.set_title(f"{shown[number].task}\n{shown[number].metric}", fontsize=9, parse_math=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()  # the first task is asked of every method
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix, for which qwen-1.5b and qwen-1.7b are one name.
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    for file in files:
        temporary = file.with_name(f".{file.stem}.tmp{file.suffix}")
        figure.savefig(temporary, dpi=150)
        temporary.replace(file)
    return files


def _panel(axis: Any, rows: list[Row], number: int) -> None:
    baseline = next((row.cells[number] for row in rows if row.method == "baseline"), None)
    for method in dict.fromkeys((row.method, row.size) for row in rows if row.method != "baseline"):
        points = [
            (row.multiplier, cell)
            for row in rows
            if (row.method, row.size) == method and (cell := row.cells[number]) is not None
        ]
        if baseline is not None:
            points.append((1.0, baseline))
        points.sort(key=lambda point: point[0])
        if len(points) < 2:
            continue
        name, size = method
        label = NAMES.get(name, name) + ("" if size is None else f", {size}")
        at = [multiplier for multiplier, _ in points]
        if name in _CONTROLS:
            low, high = [cell.low for _, cell in points], [cell.high for _, cell in points]
            axis.fill_between(at, low, high, color=_CONTROLS[name], alpha=0.25, label=f"{label} (range)")
            # Controls that all agree are a band without height; their mean is a line that can be seen.
            axis.plot(at, [cell.mean for _, cell in points], color=_CONTROLS[name], linestyle="--", linewidth=1.5)
        else:
            axis.plot(at, [cell.mean for _, cell in points], marker="o", ms=4, color=_COLOURS.get(name), label=label)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("multiplier")
    axis.grid(alpha=0.25)
