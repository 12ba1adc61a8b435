"""Charts of a matrix as PNG: loss curves, differences, loss against cost, sweeps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from gpt2.report.arms import Arm
from gpt2.report.curves import band
from gpt2.report.lines import lines_of
from gpt2.report.rate_tables import RATE_TITLE, rate_chart
from gpt2.report.sweep_tables import LOSS, SWEEP, sweep_charts
from gpt2.report.verdicts import Comparison, Judgement
from lib import plots
from lib.files import refuse_link

Draw = Callable[[Path], None]

COSTS: tuple[tuple[str, str, float], ...] = (  # column, label, unit
    ("parameters", "parameters (millions)", 1e6),
    ("seconds", "training time (minutes)", 60.0),
    ("peak_memory_bytes", "peak memory (GiB)", float(1 << 30)),
    ("infer_p50_ms", "generation (ms per token)", 1.0),
)


def write_plots(judged: Judgement, directory: Path) -> list[Path]:
    """Write the charts that have data, remove stale ones, return the paths written.

    Raises lib.files.Linked, and neither writes nor removes, if directory is a link.
    """
    refuse_link(directory)
    charts = {
        "loss.png": _loss(judged),
        "forest.png": _forest(judged),
        "pareto.png": _pareto(judged),
        "rates.png": _against(rate_chart(judged), title=RATE_TITLE),
    }
    for chart in sweep_charts(judged):
        title = f"{chart.table.name}; bars: 95% intervals"
        charts[f"{SWEEP}{chart.table.axis}.png"] = _against(*chart.panels, title=title)
    written = []
    for name, draw in charts.items():
        if draw is not None:
            draw(directory / name)
            written.append(directory / name)
    ours = {*(directory / name for name in charts), *directory.glob(f"{SWEEP}*.png")}
    for stale in ours - set(written):
        stale.unlink(missing_ok=True)
    return written


def _against(*panels: plots.Against | None, title: str) -> Draw | None:
    known = [panel for panel in panels if panel is not None]
    return partial(plots.against, panels=known, title=title) if known else None


def places(judged: Judgement) -> dict[str, int]:
    """Place of each arm (by label) in the palette; 0 is the first baseline."""
    first = judged.noise[0].arm if judged.noise else None
    compared = {c.arm.label for c in judged.comparisons}
    bases = [arm for arm in judged.arms if arm.label not in compared]
    base = first or next(iter([*bases, *judged.arms]), None)
    ordered = sorted(judged.arms, key=lambda arm: arm is not base)
    return {arm.label: place for place, arm in enumerate(ordered)}


def _loss(judged: Judgement) -> Draw | None:
    bases = baselines(judged)
    less = _curves(judged, bases)
    names = {base.label for base in bases.values()}
    base = names.pop() if len(names) == 1 else "the baseline of each"
    lines = _curves(judged)
    draw = partial(
        plots.curves,
        lines=lines,
        xlabel="optimizer updates",
        ylabel=LOSS,
        title="Mean over the seeds, band from minimum to maximum",
        differences=less if len(less) > 1 else (),  # else a baseline's own line at 0
        versus=f"Minus {base}, seed by seed",
    )
    return draw if lines else None


def baselines(judged: Judgement) -> dict[str, Arm]:
    """Baseline of each arm (by label): the last of its comparison partners, which has
    none. Arms of a sweep are compared with the baseline at their own coordinates."""
    partner = {c.arm.label: c.partner for c in judged.comparisons}
    partner |= {c.arm.label: c.baseline for c in judged.controls if c.arm.is_control}
    found = {}
    for arm in judged.arms:
        base, seen = arm, set()
        while base.label in partner and base.label not in seen:
            seen.add(base.label)
            base = partner[base.label]
        found[arm.label] = base
    return found


def _curves(
    judged: Judgement, bases: Mapping[str, Arm] | None = None
) -> list[plots.Curve]:
    """Losses, or the differences from the baselines: one line at 0 for all of these."""
    place, lines = places(judged), []
    for arm in judged.arms:
        base = bases[arm.label] if bases else None
        if base is arm and place[arm.label]:
            continue
        if (found := band(arm, "step", base=base)) is not None:
            seeds = f" ({found.seeds} seeds)" if found.seeds > 1 else ""
            curve = (found.x, found.mean, found.low, found.high)
            lines.append(plots.Curve(f"{arm.label}{seeds}", place[arm.label], *curve))
    return lines


def _forest(judged: Judgement) -> Draw | None:
    compared = [line.comparison for line in lines_of(judged) if line.comparison]
    rows = [row for c in compared if (row := _effect(c)) is not None]
    draw = partial(
        plots.forest,
        rows=rows,
        margin=judged.rules.margin,
        xlabel="difference in validation loss (nats per token), negative is better",
        title="Thick: 95% interval; thin: 95% for all arms together; grey: margin",
    )
    return draw if rows else None


def _effect(comparison: Comparison) -> plots.Effect | None:
    verdict = comparison.at_steps
    if verdict.mean is None:
        return None
    name, _, cell = comparison.arm.label.partition("/")
    partner, _, other = comparison.partner.label.partition("/")
    label = f"{name} vs {partner}\n{cell}".rstrip()
    if cell != other:
        label = f"{comparison.arm.label}\nvs {comparison.partner.label}"
    ends = verdict.interval, verdict.family_interval
    return plots.Effect(label, verdict.mean, *ends, remark=verdict.grade)


def _pareto(judged: Judgement) -> Draw | None:
    place, panels = places(judged), []
    for column, label, unit in COSTS:
        points = [
            plots.Point(arm.label, place[arm.label], x / unit, y, spread(arm))
            for arm in judged.arms
            if (x := arm.mean(column)) is not None
            and (y := arm.mean("val_loss")) is not None
        ]
        if points:
            panels.append(plots.Panel(label, points))
    title = "Loss and cost; bars: sd over the seeds"
    draw = partial(plots.scatter, panels=panels, ylabel=LOSS, title=title)
    return draw if panels else None


def spread(arm: Arm) -> float:
    """Standard deviation of the loss over the seeds; 0 for one seed."""
    losses = arm.values("val_loss")
    found = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return found if math.isfinite(found) else 0.0
