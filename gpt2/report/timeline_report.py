"""Read the time line of a results folder; its text, chart and cost. Torch-free."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2.plan.names import OUT_OF_USE, RUNNER_FILE
from gpt2.report.grades import HARMFUL, NEUTRAL, SUPPORTED
from gpt2.report.read_results import read_matrix, records_of
from gpt2.report.results import MatrixResults
from gpt2.report.timeline import (
    STATES,
    RunSpan,
    Timeline,
    attempts_of,
    clock_was_set_back,
    sessions_of,
    timeline_of,
)
from gpt2.report.verdict_rules import configured
from gpt2.report.verdicts import Judgement
from lib import human
from lib.jobs.run_files import METRICS_FILE, STATUS_FILE
from lib.safe_json import Unusable, as_dict, clean, number, read_foreign_json

MOST_SEGMENTS = 20_000  # of a chart


def read_timeline(matrix: MatrixResults) -> Timeline:
    """The time line of a matrix, up to the present."""
    now, running = time.time(), 0
    attempts: list[RunSpan] = []
    set_back: list[str] = []
    for run in matrix.runs:
        folder = matrix.root / run.run_dir
        metrics = records_of(matrix, folder / METRICS_FILE) if run.on_disk else []
        is_running = run.row["status"] == "running"
        end = now if is_running else _updated(folder / STATUS_FILE)
        attempts += attempts_of(run.run_dir, metrics, end)
        if clock_was_set_back(metrics):
            set_back.append(run.run_dir)
        running += is_running
    last = max((attempt.end for attempt in attempts), default=now)
    records = records_of(matrix, matrix.root / RUNNER_FILE)
    sessions = sessions_of(records, now if running else last)
    notes = [*_out_of_use(records), *_clock_notes(set_back)]
    return replace(timeline_of(attempts, sessions), notes=notes)


def runner_records(matrix: MatrixResults) -> list[dict[str, Any]]:
    """Records of RUNNER_FILE for a merged folder: sessions, each ended, so that the
    next folder's do not end it, and GPUs taken out of use."""
    records = records_of(matrix, matrix.root / RUNNER_FILE)
    return [
        {"kind": "session", "event": event, "time": time, "places": session.places}
        for session in read_timeline(matrix).sessions
        for event, time in (("began", session.start), ("ended", session.end))
    ] + [record for record in records if record.get("kind") == OUT_OF_USE]


def _clock_notes(set_back: list[str]) -> list[str]:
    if not set_back:
        return []
    more = f" and {len(set_back) - 1} more" if len(set_back) > 1 else ""
    return [
        f"the clock was set back during {set_back[0]}{more}: the shares of time below "
        "lack what it did then"
    ]


def _out_of_use(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each GPU that the runner has taken out of use."""
    lines = []
    for record in records:
        at = number(record.get("time"))
        if record.get("kind") == OUT_OF_USE and at is not None and 0 <= at < 2**33:
            host, _, gpus = clean(record.get("place")).rpartition(":")
            when = datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
            why = clean(record.get("why"))
            lines.append(f"GPU {gpus} of {host} OUT OF USE since {when}: {why}")
    return lines


def _updated(path: Path) -> float | None:
    """When a status was last written, as it says; None: unknown."""
    try:
        return datetime.fromisoformat(
            str(as_dict(read_foreign_json(path))["updated"])
        ).timestamp()
    except (Unusable, KeyError, ValueError, OverflowError):
        return None


def price_of(config: Path | None, matrix: MatrixResults) -> float | None:
    """PRICE_PER_GPU_HOUR of config.py if it exists, else of all runs; None: not set."""
    return configured("price_per_gpu_hour", config, matrix.runs)


def time_lines(
    timeline: Timeline, judged: Judgement | None = None, price: float | None = None
) -> list[str]:
    """Shares of time of each GPU or slot, waits, and cost, in words."""
    verdicts = None if judged is None else verdicts_in(judged)
    more = wait_line(timeline), cost_line(timeline, verdicts, price)
    shares = share_lines(timeline)
    return [*timeline.notes, *shares, *(line for line in more if line)]


def verdicts_in(judged: Judgement) -> int:
    """How many comparisons were decided."""
    decided = (SUPPORTED, NEUTRAL, HARMFUL)
    return sum(c.at_steps.grade in decided for c in judged.comparisons)


def folder_lines(output_dir: Path, price: float | None = None) -> list[str]:
    """Lines of a results folder while its runs are in progress; [] without one."""
    if not output_dir.is_dir():
        return []
    matrix = read_matrix(output_dir, curves=False)
    return time_lines(read_timeline(matrix), price=price)


def chart(timeline: Timeline) -> dict[str, Any]:
    """Bars for the page: minutes since the first of them, by state."""
    lanes = [lane for lane in timeline.lanes if lane.segments]
    zero = min((lane.segments[0].start for lane in lanes), default=0.0)
    room = MOST_SEGMENTS // max(1, len(lanes))
    return {
        "states": list(STATES),
        "lanes": [lane.name for lane in lanes],
        "bars": [
            [
                place,
                STATES.index(segment.state),
                round((segment.start - zero) / 60, 4),
                round(segment.seconds / 60, 4),
                segment.run,
            ]
            for place, lane in enumerate(lanes)
            for segment in lane.segments[:room]
        ],
    }


# ---- in words --------------------------------------------------------------------

MOST_LINES = 16  # lanes that get a line of their own


def share_lines(timeline: Timeline) -> list[str]:
    """A line of shares for each GPU or slot, and what all of them took."""
    lanes = [lane for lane in timeline.lanes if lane.seconds > 0]
    if not lanes:
        return []
    rows = [(lane.name, [lane]) for lane in lanes[:MOST_LINES]]
    if len(lanes) > 1:
        rows.append((f"all {len(lanes)}", lanes))
    found = []
    for name, some in rows:
        seconds = sum(lane.seconds for lane in some)
        shown = ", ".join(
            f"{state} {human.percent(share)}"
            for state, share in timeline.shares(some).items()
            if share >= 0.0005
        )
        found.append(f"{name}, {human.duration(seconds)}: {shown}")
    return found


def wait_line(timeline: Timeline) -> str:
    """Times that GPUs waited for a first update; empty if nothing was trained."""
    parts = []
    if timeline.first_updates:
        first = human.duration(timeline.first_updates[-1])
        parts.append(f"first update {first} after the start")
    if timeline.gaps:
        middle, most = statistics.median(timeline.gaps), max(timeline.gaps)
        parts.append(
            f"from a run's end to the next one's first update {human.duration(middle)}"
            f" (median; at most {human.duration(most)})"
        )
    return "; ".join(parts)


def cost_line(timeline: Timeline, verdicts: int | None, price: float | None) -> str:
    """GPU hours and cost, also per verdict if known; "" without GPUs."""
    hours = timeline.gpu_hours
    if not hours:
        return ""
    text = human.gpu_hours(hours, price)
    if verdicts:
        each = f", {hours * price / verdicts:.2f}" if price else ""
        text += f"; per verdict {hours / verdicts:.2f} GPU hours{each}"
    return text
