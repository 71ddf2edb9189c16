"""The section on how special the circuit is: compared with other neurons, over its size, and over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_cna.analysis.sparsity import size_curves
from lm_eval_cna.analysis.specificity import RIVALS, TOP, Standing, standings
from lm_eval_cna.analysis.stability import Stable, judge
from lm_eval_cna.analysis.verdicts import change_text, count, metric_name
from lm_eval_cna.interventions.methods import THIRDS, third_of_layers
from lm_eval_cna.interventions.profile import overlap
from lm_eval_cna.report import charts
from lm_eval_cna.report.charts import Palette, Panel, Point, Series
from lm_eval_cna.report.run import Run
from lm_eval_cna.report.stability import FOLD_HEAD, fold_rows, pair_rows, stability_rows
from lm_eval_cna.report.tables import Entry, Table, change, label, p_of_controls, without_empty, word
from lm_eval_cna.statistics.paired import Kind, Paired

#: Short names of the kinds of random neurons, for an axis.
_SHORT = {"random": "own", "random-bottom": "bottom", "random-middle": "mid", "random-top": "top"}


@dataclass(frozen=True)
class Special:
    """The section of one run; each part may be empty."""

    rivals: tuple[str, ...] = ()
    """Sentences that compare the circuit with other neurons."""
    rival_panels: tuple[Panel, ...] = ()
    rival_tables: tuple[Table, ...] = ()
    """The same as charts and tables."""
    sizes: tuple[str, ...] = ()
    """Sentences on the effect over the circuit's size."""
    size_panels: tuple[Panel, ...] = ()
    """The same as charts."""
    folds: tuple[str, ...] = ()
    """Sentences on cross-validation over prompts."""
    fold_tables: tuple[Table, ...] = ()
    """The same as tables."""

    @property
    def is_empty(self) -> bool:
        """Whether the run has no data for this section."""
        return self == Special()

    @property
    def tables(self) -> tuple[Table, ...]:
        """All its tables."""
        return self.rival_tables + self.fold_tables


def special(run: Run, palette: Palette) -> Special:
    """The section of one run."""
    found = standings(run.evidence, run.outcomes)
    # Sentences and charts are about the largest circuit; the table has all sizes.
    largest = max((one.size or 0 for one in found), default=0)
    shown = [one for one in found if (one.size or 0) == largest]
    size_panels = tuple(charts.size_panels(run, palette))
    validated = None if run.stability is None else judge(run.stability, level=run.evidence.level)
    return Special(
        rivals=(*_overlap(run), *_layers(run, shown), *(text for one in shown for text in one.texts)),
        rival_panels=tuple(_panel(one, palette) for one in shown),
        rival_tables=(_standings(run, found),) if found else (),
        sizes=tuple(curve.text for curve in size_curves(run.evidence)) if size_panels else (),
        size_panels=size_panels,
        folds=() if validated is None else validated.texts,
        fold_tables=tuple(_folds(run, validated)),
    )


def _overlap(run: Run) -> list[str]:
    """Number of the circuit's neurons that are among the most active ones."""
    if run.circuit is None or run.strongest is None:
        return []
    shared = overlap(run.circuit, run.strongest)
    chance = "" if shared.by_chance is None else f"; of random neurons {100 * shared.by_chance:.2g} % would be"
    return [
        f"Of the circuit's {count(shared.size_a, 'neuron')}, {shared.common:,} ({100 * shared.of_a:.1f} %) are among "
        f"the {shared.size_b:,} of largest mean |activation| on the same prompts (Jaccard index "
        f"{shared.jaccard:.3f}{chance})."
    ]


def _layers(run: Run, shown: Sequence[Standing]) -> list[str]:
    """Shares of the circuit in each third of the layers, if random neurons of the thirds were run."""
    circuit = run.circuit
    if circuit is None or circuit.model.num_layers is None or circuit.model.num_layers < len(THIRDS):
        return []
    if not any(rival.method != "random" for one in shown for rival in one.rivals):
        return []
    depth = circuit.model.num_layers
    shares = []
    for third in THIRDS:
        layers = third_of_layers(depth, third)
        inside = sum(neuron.layer in layers for neuron in circuit.neurons)
        shares.append(f"{100 * inside / len(circuit.neurons):.0f} % lie in the {third} third ({_span(layers)})")
    return [f"Of the circuit's neurons, {', '.join(shares[:-1])} and {shares[-1]} of the layers."]


def _span(layers: range) -> str:
    first, last = layers[0], layers[-1]
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _panel(found: Standing, palette: Palette) -> Panel:
    factor = 100 if found.kind == "rate" else 1
    circuit = _point(0, "circuit", found.effect, factor)
    names, bands = ["circuit"], []
    for rival in found.rivals:
        mean, low, high = (factor * value for value in (rival.null.mean, rival.null.low, rival.null.high))
        text = f"random neurons {RIVALS[rival.method]}: {low:+.3g} to {high:+.3g}"
        bands.append(Point(len(names), mean, low, high, text))
        names.append(_SHORT[rival.method])
    series = [Series("circuit", "ranges", palette.of("cna", None), (circuit,))]
    if bands:
        series.append(Series("random neurons, range over seeds", "ranges", -1, tuple(bands)))
    if found.strongest is not None:
        point = _point(len(names), label(TOP, None), found.strongest.effect, factor)
        series.append(Series(label(TOP, None), "ranges", palette.of(TOP, None), (point,)))
        names.append("active")
    values = [v for one in series for p in one.points for v in (p.y, p.low, p.high) if v is not None]
    reach = 105.0 if found.kind == "rate" else 1.1 * max(1e-9, *(abs(value) for value in values))
    unit = ", points" if found.kind == "rate" else ""
    return Panel(
        f"{found.task}: m = {found.multiplier:g}",
        "random neurons: own layers, each third",
        f"change of {metric_name(found.metric)}{unit}",
        tuple(series),
        (-0.5, len(names) - 0.5),
        (-reach, reach),
        categories=tuple(names),
    )


def _point(at: int, name: str, paired: Paired, factor: float) -> Point:
    effect = factor * paired.effect
    return Point(at, effect, *charts.scaled(paired.interval, factor), f"{name}: {effect:+.3g}")


def _standings(run: Run, found: Sequence[Standing]) -> Table:
    kinds = [kind for kind in RIVALS if any(rival.method == kind for one in found for rival in one.rivals)]
    head = ["task", "metric", "m", "neurons", "circuit"]
    for kind in kinds:
        head += [f"random neurons {RIVALS[kind]}", "p"]
    head += [label(TOP, None), "circuit less these"]
    rows = []
    for one in found:
        size = one.size or (len(run.circuit.neurons) if run.circuit is not None else None)
        entries = [
            word(one.task),
            word(one.metric),
            Entry(f"{one.multiplier:g}", one.multiplier),
            Entry("" if size is None else f"{size}", size),
            _change(one.effect, one.kind),
        ]
        nulls = {rival.method: rival.null for rival in one.rivals}
        for kind in kinds:
            null = nulls.get(kind)
            if null is None:
                entries += [Entry(), Entry()]
                continue
            low, high = (change_text(end, one.kind, unit=False) for end in (null.low, null.high))
            entries += [Entry(f"{low} to {high}", null.mean), p_of_controls(null, one.effect.effect)]
        for paired in (None, None) if one.strongest is None else (one.strongest.effect, one.strongest.difference):
            entries.append(_change(paired, one.kind))
        rows.append(tuple(entries))
    caption = "The circuit against other neurons: change from the baseline, of rates in points; of random neurons the"
    return without_empty(Table(f"{run.slug}-special", f"{caption} range", tuple(head), tuple(rows), words=2))


def _change(paired: Paired | None, kind: Kind) -> Entry:
    return Entry() if paired is None else change(paired.effect, paired.interval, kind)


def _folds(run: Run, found: Stable | None) -> list[Table]:
    record = run.stability
    if record is None or found is None:
        return []
    head, pairs = pair_rows(record)
    whole = f"The circuit over {found.folds} folds of {record.contrast}: mean and range"
    each = "Each fold's circuit on the prompts that it was found without"
    tables = (
        ("stability", whole, ("measure", "value"), stability_rows(found)),
        ("folds", each, FOLD_HEAD, fold_rows(record)),
        ("fold-pairs", "Overlap of the folds' circuits", head, pairs),
    )
    return [
        Table(f"{run.slug}-{name}", caption, columns, tuple(tuple(map(word, row)) for row in rows))
        for name, caption, columns, rows in tables
    ]
