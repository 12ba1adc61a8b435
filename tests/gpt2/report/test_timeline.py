"""Time lines of constructed records: what a GPU did when, and what it cost."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2.report.timeline import (
    RunSpan,
    Segment,
    Session,
    attempts_of,
    sessions_of,
    timeline_of,
)
from gpt2.report.timeline_report import cost_line, share_lines, wait_line

Records = list[dict[str, Any]]
ALL = (
    *("started", "imported", "data", "kernels", "model", "compiled", "ready", "turn"),
    *("first_update", "last_update", "evaluated", "written", "ended"),
)


def phases(times: dict[str, float], place: str = "a:0", attempt: int = 1) -> Records:
    return [
        {"kind": "phase", "name": name, "time": time, "attempt": attempt}
        | ({"place": place} if name == "started" else {})
        for name, time in times.items()
    ]


def whole(start: float, training: float = 60.0, place: str = "a:0") -> Records:
    """4 s of imports, 2 of data, kernels for 10, 1 of a model, 8 of compilation, 3 of
    formulas; the first update 2 s later; then 5 of evaluation and 4 of writing."""
    steps = [0, 4, 6, 16, 17, 25, 28, 28, 30, 30 + training, 35 + training]
    steps += [39 + training, 39 + training]
    times = {name: start + step for name, step in zip(ALL, steps, strict=True)}
    return phases(times, place)


def attempts(records: Records, run: str = "run", end: float | None = None) -> Any:
    return attempts_of(run, records, end)


def seconds(segments: list[Segment]) -> dict[str, float]:
    found: dict[str, float] = {}
    for segment in segments:
        found[segment.state] = found.get(segment.state, 0.0) + segment.seconds
    return found


def test_a_whole_run() -> None:
    (attempt,) = attempts(whole(100.0))
    assert seconds(attempt.segments) == {
        "training": 60,
        "evaluating": 7,
        "compiling": 18,
        "preparing": 10,
        "writing": 4,
    }
    assert (attempt.place, attempt.first_update) == ("a:0", 130.0)
    assert (attempt.start, attempt.end, attempt.released) == (100.0, 199.0, 199.0)


def test_evaluations_within_the_loop_are_not_training() -> None:
    records = whole(0.0)
    place = next(i for i, r in enumerate(records) if r["name"] == "last_update")
    records[place:place] = [
        {"kind": "eval", "step": 0, "seconds": 1.0, "eval_seconds": 1.0},
        {"kind": "eval", "step": 50, "seconds": 32.0, "eval_seconds": 4.0},
        {"kind": "train", "step": 100, "seconds": 62.0},
    ]
    (attempt,) = attempts(records)
    inside = [s for s in attempt.segments if 30 <= s.start < 90]
    assert [(s.start, s.end, s.state) for s in inside] == [
        (30, 56, "training"),
        (56, 60, "evaluating"),
        (60, 90, "training"),
    ]


def test_attempts_that_were_killed_and_resumed() -> None:
    first = phases({"started": 0.0, "turn": 10.0, "first_update": 12.0})
    lines: Records = [{"kind": "train", "seconds": x} for x in (2.5, 40.5)]
    second = whole(9000.0)
    found = attempts(first + lines + second)
    assert [(a.start, a.end) for a in found] == [(0.0, 50.0), (9000.0, 9099.0)]
    (alone,) = attempts(first, end=40.0)
    assert seconds(alone.segments)["training"] == 28
    (unknown,) = attempts(first)
    assert unknown.end == 12.0, "its last record"


def test_records_of_strangers_are_left_out() -> None:
    odd: Records = [
        {"kind": "phase", "name": "started", "time": "now"},
        {"kind": "phase", "name": "lunch", "time": 1.0},
        {"kind": "phase", "time": float("nan"), "name": "data"},
        {"kind": "eval", "step": 0, "seconds": "x", "eval_seconds": 1},
    ]
    assert attempts(odd) == []
    (attempt,) = attempts(odd + whole(0.0) + odd)
    assert seconds(attempt.segments)["training"] == 60


def test_what_is_recorded_after_the_end_changes_nothing() -> None:
    late = phases({"written": 99.5, "ended": 99.5})
    (attempt,) = attempts(whole(0.0) + late)
    (usual,) = attempts(whole(0.0))
    assert attempt == usual


def test_one_gpu_shows_what_counts_most_and_gaps() -> None:
    one, two = attempts(whole(0.0), "one"), attempts(whole(62.0), "two")
    line = timeline_of([*one, *two], [Session(-10.0, 171.0, ("a:0",))])
    (lane,) = line.lanes
    assert lane.name == "GPU 0" and lane.is_gpu
    found = seconds(lane.segments)
    assert sum(found.values()) == lane.seconds == 181
    assert found["training"] == 60 + 60, "the second prepared meanwhile"
    assert found["idle"] == 20
    assert lane.gaps == [] and line.gaps == [], "it trained before the first had ended"
    assert line.first_updates == [40.0]
    assert line.gpu_hours == pytest.approx(181 / 3600)


def test_gap_from_a_runs_release_to_the_next_first_update() -> None:
    records = whole(0.0)
    records.insert(-2, {"kind": "phase", "name": "released", "time": 95.0})
    two = attempts(whole(80.0), "two")
    line = timeline_of([*attempts(records, "one"), *two])
    assert line.gaps == [15.0]
    assert "15" in wait_line(line)


def test_a_gpu_that_was_never_used_is_idle() -> None:
    session = Session(0.0, 100.0, ("a:0", "a:1"))
    line = timeline_of(attempts(whole(0.0)), [session])
    assert [lane.name for lane in line.lanes] == ["GPU 0", "GPU 1"]
    assert line.shares([line.lanes[1]]) == {
        **dict.fromkeys(line.shares(), 0.0),
        "idle": 1.0,
    }
    assert line.shares()["training"] == pytest.approx(0.3)
    assert line.gpu_hours == pytest.approx(200 / 3600)


def test_a_run_on_two_gpus_and_two_hosts() -> None:
    both = attempts(whole(0.0, place="a:0,1"), "both")
    other = attempts(whole(0.0, place="b:0"), "other")
    line = timeline_of([*both, *other])
    assert [lane.name for lane in line.lanes] == ["a GPU 0", "a GPU 1", "b GPU 0"]
    assert all(seconds(lane.segments)["training"] == 60 for lane in line.lanes)


def test_cpu_slots_are_told_apart_by_overlap() -> None:
    runs: list[RunSpan] = []
    for number, start in enumerate((0.0, 0.0, 99.0)):
        runs += attempts(whole(start, place="a:"), f"run{number}")
    line = timeline_of(runs, [Session(0.0, 198.0, ("a:", "a:"))])
    assert [lane.name for lane in line.lanes] == ["slot 1", "slot 2"]
    assert [lane.seconds for lane in line.lanes] == [198, 198]
    assert seconds(line.lanes[1].segments)["idle"] == 99
    assert line.gpu_hours == 0 and cost_line(line, 3, 2.0) == ""


def test_a_run_that_prepares_ahead_has_the_slot_that_it_trains_in() -> None:
    """Two slots; the third run prepares while both train, and follows the second."""
    runs = [
        *attempts(whole(0.0, 90.0, place="a:"), "long"),
        *attempts(whole(1.0, place="a:"), "short"),
    ]
    times = dict(
        zip(ALL, (50.0, 54, 56, 57, 58, 59, 60, 100, 101, 120, 124), strict=False)
    )
    runs += attempts(phases(times, place="a:"), "ahead", 128.0)
    killed = attempts(
        phases({"started": 51.0, "imported": 55.0}, place="a:"), "lost", 60.0
    )
    line = timeline_of([*runs, *killed], [Session(0.0, 130.0, ("a:", "a:"))])
    assert [lane.name for lane in line.lanes] == ["slot 1", "slot 2"]
    assert [lane.seconds for lane in line.lanes] == [130, 130]
    trained = [
        {part.run for part in lane.segments if part.state == "training"}
        for lane in line.lanes
    ]
    assert trained == [{"long"}, {"short", "ahead"}]
    assert line.lanes[1].gaps == [101.0 - 100.0]


def test_time_between_two_calls_of_make_is_nobodys() -> None:
    runs = [*attempts(whole(10.0), "one"), *attempts(whole(1000.0), "two")]
    sessions = [Session(0.0, 110.0, ("a:0",)), Session(990.0, 1100.0, ("a:0",))]
    line = timeline_of(runs, sessions)
    (lane,) = line.lanes
    assert line.gaps == [] and line.first_updates == [40.0, 40.0]
    assert lane.seconds == 220
    assert seconds(lane.segments)["idle"] == 22


def test_sessions_that_ended_were_killed_and_still_run() -> None:
    def record(event: str, time: float) -> dict[str, Any]:
        return {"kind": "session", "event": event, "time": time, "places": ["a:0"]}

    began = [record("began", 0.0), record("ended", 5.0), record("began", 10.0)]
    spans = [(s.start, s.end) for s in sessions_of(began, end=20.0)]
    assert spans == [(0, 5), (10, 20)]
    killed = [*began, record("began", 15.0), record("ended", 30.0)]
    spans = [(s.start, s.end) for s in sessions_of(killed, end=20.0)]
    assert spans == [(0, 5), (10, 15), (15, 30)]
    for time in (None, "now", float("nan")):
        assert sessions_of([{**record("began", 0.0), "time": time}], 1.0) == []


def test_words_and_money() -> None:
    line = timeline_of(
        attempts(whole(0.0, training=3561.0), "one"),
        [Session(0.0, 3600.0, ("a:0", "a:1"))],
    )
    first, second, both = share_lines(line)
    assert first.startswith("GPU 0, 1:00:00: training 98.9%")
    assert second == "GPU 1, 1:00:00: idle 100.0%"
    assert both.startswith("all 2, 2:00:00: training 49.5%")
    assert cost_line(line, None, None) == "2.00 GPU hours"
    assert cost_line(line, 4, 2.5) == (
        "2.00 GPU hours, 5.00 at 2.5 per hour; per verdict 0.50 GPU hours, 1.25"
    )
    assert cost_line(line, 0, None) == "2.00 GPU hours"
    assert share_lines(timeline_of([])) == [] and wait_line(timeline_of([])) == ""
