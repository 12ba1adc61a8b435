"""Charts of a matrix as PNG: loss curves, differences, loss against cost, sweeps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from gpt2.report.arms import Arm
from gpt2.report.curves import band
from gpt2.report.lines import lines_of
from gpt2.report.rate_tables import RATE_TITLE, rate_chart
from gpt2.report.sweep_tables import LOSS, SWEEP, sweep_charts
from gpt2.report.verdicts import Comparison, Judgement
from lib import plots
from lib.files import refuse_link

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
    makers: dict[str, Callable[[Judgement, Path], bool]] = {
        "loss.png": _loss,
        "forest.png": _forest,
        "pareto.png": _pareto,
        "rates.png": _rates,
    }
    written = []
    for name, make in makers.items():
        path = directory / name
        if make(judged, path):
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return [*written, *_sweeps(judged, directory)]


def _sweeps(judged: Judgement, directory: Path) -> list[Path]:
    """A chart for each swept setting; stale ones are removed."""
    written = []
    for chart in sweep_charts(judged):
        if chart.panels:
            path = directory / f"{SWEEP}{chart.table.axis}.png"
            plots.against(
                path, chart.panels, f"{chart.table.name}; bars: 95% intervals"
            )
            written.append(path)
    for stale in set(directory.glob(f"{SWEEP}*.png")) - set(written):
        stale.unlink()
    return written


def places(judged: Judgement) -> dict[str, int]:
    """Place of each arm (by label) in the palette; 0 is the first baseline."""
    first = judged.noise[0].arm if judged.noise else None
    compared = {c.arm.label for c in judged.comparisons}
    bases = [arm for arm in judged.arms if arm.label not in compared]
    base = first or next(iter([*bases, *judged.arms]), None)
    ordered = sorted(judged.arms, key=lambda arm: arm is not base)
    return {arm.label: place for place, arm in enumerate(ordered)}


def _loss(judged: Judgement, path: Path) -> bool:
    place = places(judged)
    lines = _curves(judged, place)
    bases = baselines(judged)
    less = _curves(judged, place, bases)
    less = less if len(less) > 1 else []  # only a baseline's own line at 0
    if lines:
        title = "Mean over the seeds, band from minimum to maximum"
        names = {base.label for base in bases.values()}
        versus = f"Minus {names.pop() if len(names) == 1 else 'the baseline of each'}"
        versus += ", seed by seed"
        plots.curves(path, lines, "optimizer updates", LOSS, title, less, versus)
    return bool(lines)


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
    judged: Judgement, place: dict[str, int], bases: Mapping[str, Arm] | None = None
) -> list[plots.Curve]:
    """Losses, or the differences from the baselines: one line at 0 for all of these."""
    lines = []
    for arm in judged.arms:
        base = bases[arm.label] if bases else None
        if base is arm and place[arm.label]:
            continue
        found = band(arm, "step", base=base)
        if found is not None:
            title = (
                f"{arm.label} ({found.seeds} seeds)" if found.seeds > 1 else arm.label
            )
            curve = (found.x, found.mean, found.low, found.high)
            lines.append(plots.Curve(title, place[arm.label], *curve))
    return lines


def _forest(judged: Judgement, path: Path) -> bool:
    compared = [line.comparison for line in lines_of(judged) if line.comparison]
    rows = [row for c in compared if (row := _effect(c)) is not None]
    if rows:
        xlabel = "difference in validation loss (nats per token), negative is better"
        title = "Thick: 95% interval; thin: 95% for all arms together; grey: margin"
        plots.forest(path, rows, judged.rules.margin, xlabel, title)
    return bool(rows)


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


def _pareto(judged: Judgement, path: Path) -> bool:
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
    if panels:
        plots.scatter(path, panels, LOSS, "Loss and cost; bars: sd over the seeds")
    return bool(panels)


def spread(arm: Arm) -> float:
    """Standard deviation of the loss over the seeds; 0 for one seed."""
    losses = arm.values("val_loss")
    found = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return found if math.isfinite(found) else 0.0


def _rates(judged: Judgement, path: Path) -> bool:
    chart = rate_chart(judged)
    if chart is not None:
        plots.against(path, [chart], RATE_TITLE)
    return chart is not None
