"""Parts of report.html on swept settings and learning rates: charts and tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpt2.report import rate_tables
from gpt2.report.sweep_tables import SWEEP, SweepChart, SweepTable, sweep_charts
from gpt2.report.verdicts import Judgement
from lib.plots import Against, is_number


def sweeps_part(judged: Judgement) -> list[tuple[SweepTable, str]]:
    """Table and name of the picture of each sweep."""
    return [(c.table, f"{SWEEP}{c.table.axis}") for c in _drawn(judged)]


def charts_of(judged: Judgement) -> dict[str, Any]:
    """Data of the charts, for drawAgainst in script.js."""
    return {
        "sweeps": [
            {"difference": _against(c.difference), "loss": _against(c.loss)}
            for c in _drawn(judged)
        ],
        "rates": _against(rate_tables.rate_chart(judged)),
    }


def _drawn(judged: Judgement) -> list[SweepChart]:
    return [chart for chart in sweep_charts(judged) if chart.panels]


def rates_part(judged: Judgement) -> dict[str, Any]:
    """Tables and sentences of LR_SWEEP; {} without it."""
    if not judged.own_best:
        return {}
    if not judged.own_best.arms:
        text = " ".join(rate_tables.rate_lines(judged))
        return {"tables": [], "remarks": [], "text": text}
    losses, best = rate_tables.rate_table(judged), rate_tables.best_table(judged)
    tables = [("Mean validation loss", losses, range(2, len(losses[0])))]
    if best[1]:
        tables.append(("Each arm at its own best rate", best, range(2, 5)))
    pending = [judged.own_best.pending] if judged.own_best.pending else []
    text = rate_tables.own_best_text(judged).replace("\\", "")
    return {
        "tables": tables,
        "remarks": rate_tables.rate_remarks(judged),
        "text": " ".join([f"{rate_tables.RATE_TITLE}.", *pending, text]),
    }


def _against(chart: Against | None) -> dict[str, Any] | None:
    """Chart of values against a coordinate, for drawAgainst in script.js."""
    if chart is None:
        return None
    texts = {x: chart.tick_text(x) for x in chart.ticks}
    series = [
        {**asdict(one), "x": [x if is_number(x) else texts[x] for x in one.x]}
        for one in chart.series
    ]
    ticks = [[x if is_number(x) else text, text] for x, text in texts.items()]
    return {
        "xlabel": chart.xlabel,
        "ylabel": chart.ylabel,
        "margin": chart.margin,
        "scale": chart.scale,
        "series": series,
        "ticks": ticks,
    }
