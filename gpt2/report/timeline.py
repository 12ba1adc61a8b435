"""GPU time of a matrix: what each GPU (without one: each slot) did when. Torch-free.

Computed from the phase records of the runs (lib/jobs/phases.py) and, for the time in
which nothing ran, from the sessions of the runner (gpt2/plan/names.py, RUNNER_FILE).
Where runs overlap on a GPU, as one that prepares does with one that trains, the GPU
counts as what comes first in STATES. All times are Unix seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lib.safe_json import clean, number

TRAINING, EVALUATING, COMPILING = "training", "evaluating", "compiling"
PREPARING, WRITING, IDLE = "preparing", "writing", "idle"
STATES = (TRAINING, EVALUATING, COMPILING, PREPARING, WRITING, IDLE)
# The state from a phase to the next one. Checkpoints within the loop count as training.
AFTER = {
    "started": PREPARING,
    "imported": PREPARING,
    "data": COMPILING,  # kernels are chosen, if no run of the arm did
    "kernels": PREPARING,
    "model": COMPILING,
    "compiled": PREPARING,  # the comparison with the formulas
    "ready": IDLE,  # until it is its turn
    "turn": EVALUATING,
    "first_update": TRAINING,
    "last_update": EVALUATING,
    "evaluated": WRITING,
    "released": WRITING,
    "written": WRITING,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A time in which a GPU, or one attempt of a run, was in one state."""

    start: float
    end: float
    state: str
    run: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Session:
    """A call of the runner; places: one for each of its slots, as in RunSpan."""

    start: float
    end: float
    places: tuple[str, ...]


@dataclass(slots=True)
class RunSpan:
    """Time of one attempt at a run. place: "host:0,1" by its GPUs; "host:" for none.
    turn: when it had its GPU or slot to itself, until ``released``; its start, if it is
    not known."""

    run: str
    place: str
    segments: list[Segment]
    first_update: float | None
    turn: float
    released: float

    @property
    def start(self) -> float:
        return self.segments[0].start

    @property
    def end(self) -> float:
        return self.segments[-1].end


@dataclass(slots=True)
class Lane:
    """One GPU or slot; segments without gaps within its sessions."""

    name: str
    is_gpu: bool
    segments: list[Segment] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)


@dataclass(slots=True)
class Timeline:
    """lanes: by host and GPU; first_updates: seconds from the begin of a session to
    the first update of any of its runs; notes: lines on GPUs that failed and clocks."""

    lanes: list[Lane]
    first_updates: list[float]
    sessions: Sequence[Session] = ()
    notes: list[str] = field(default_factory=list)

    def shares(self, lanes: Sequence[Lane] | None = None) -> dict[str, float]:
        """Share of each state in the time of these lanes, by default of all."""
        segments = [s for lane in lanes or self.lanes for s in lane.segments]
        total = sum(s.seconds for s in segments)
        return {
            state: sum(s.seconds for s in segments if s.state == state) / total
            for state in STATES
            if total
        }

    @property
    def gaps(self) -> list[float]:
        """Seconds from the end of a run to the first update of the next on its lane."""
        return [gap for lane in self.lanes for gap in lane.gaps]

    @property
    def gpu_hours(self) -> float:
        return sum(lane.seconds for lane in self.lanes if lane.is_gpu) / 3600


# ---- attempts of a run -----------------------------------------------------------


def attempts_of(
    run: str, records: Iterable[Mapping[str, Any]], end: float | None = None
) -> list[RunSpan]:
    """The attempts in the records of a metrics.jsonl; other kinds are looked at for
    evaluations.

    end: of the last attempt if it left no record of that: now, where it is running, or
    when it was found dead. An earlier attempt that was killed ends with its last
    record: hours may have passed until the next one.
    """
    groups: list[list[Mapping[str, Any]]] = []
    for record in records:
        if _phase(record) == "started":
            groups.append([])
        if groups:
            groups[-1].append(record)
    found = [_attempt(run, group, _last_seen(group)) for group in groups[:-1]]
    found += [_attempt(run, group, end or _last_seen(group)) for group in groups[-1:]]
    return [attempt for attempt in found if attempt is not None]


def clock_was_set_back(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a phase of an attempt begins more than a second before the last one."""
    marks = [(_phase(r), _time(r)) for r in records if _phase(r)]
    return any(
        name != "started" and time < before - 1
        for (_, before), (name, time) in pairwise(marks)
    )


def _last_seen(records: Sequence[Mapping[str, Any]]) -> float | None:
    """When an attempt still trained, by its records; None without two of them."""
    first = next((_time(r) for r in records if _phase(r) == "first_update"), None)
    seconds = [x for r in records if (x := number(r.get("seconds"))) is not None]
    return None if first is None or not seconds else first + seconds[-1] - seconds[0]


def _attempt(
    run: str, records: Sequence[Mapping[str, Any]], end: float | None
) -> RunSpan | None:
    marks = [(_phase(r), _time(r)) for r in records if _phase(r)]
    if marks[-1][0] != "ended" and end is not None and end > marks[-1][1]:
        marks.append(("ended", end))
    segments = [
        Segment(start, stop, AFTER[name], run)
        for (name, start), (_, stop) in pairwise(marks)
        if name in AFTER and stop > start
    ]
    if not segments:
        return None
    times = dict(marks)
    place = records[0].get("place")
    return RunSpan(
        run,
        clean(place) if isinstance(place, str) else ":",
        _with_evaluations(segments, _evaluations(records, times)),
        times.get("first_update"),
        times.get("turn", segments[0].start),
        times.get("released", segments[-1].end),
    )


def _phase(record: Mapping[str, Any]) -> str:
    """Its name, if it is the record of a phase with a time; else empty."""
    name = record.get("name")
    known = record.get("kind") == "phase" and (name in AFTER or name == "ended")
    return str(name) if known and number(record.get("time")) is not None else ""


def _time(record: Mapping[str, Any]) -> float:
    return float(record["time"])


def _evaluations(
    records: Sequence[Mapping[str, Any]], times: Mapping[str, float]
) -> list[tuple[float, float]]:
    """Start and end of the evaluations within the loop, in Unix seconds.

    Records have seconds of the loop's clock. Its zero follows from the last update,
    which has both times, or from the evaluation that a run begins with.
    """
    begin, last = times.get("first_update"), times.get("last_update")
    zero, evaluations, seconds = None, [], None
    for record in records:
        kind, name = record.get("kind"), _phase(record)
        if kind in ("train", "eval") and number(record.get("seconds")) is not None:
            seconds = float(record["seconds"])
        took = number(record.get("eval_seconds"))
        if kind == "eval" and took is not None and seconds is not None:
            evaluations.append((seconds - took, seconds))
            if record.get("step") == 0 and "turn" in times:
                zero = times["turn"]
        if name == "last_update" and seconds is not None:
            zero = times["last_update"] - seconds
    if zero is None or begin is None:
        return []
    found = [(zero + start, zero + end) for start, end in evaluations]
    return [(a, b) for a, b in found if a >= begin and (last is None or b <= last)]


def _with_evaluations(
    segments: list[Segment], evaluations: Sequence[tuple[float, float]]
) -> list[Segment]:
    """Training, with evaluations cut out of it."""
    found = []
    for segment in segments:
        at = segment.start
        for start, end in evaluations if segment.state == TRAINING else ():
            if at <= start < end <= segment.end:
                found.append(Segment(at, start, TRAINING, segment.run))
                found.append(Segment(start, end, EVALUATING, segment.run))
                at = end
        found.append(Segment(at, segment.end, segment.state, segment.run))
    return [segment for segment in found if segment.seconds > 0]


# ---- sessions of the runner ------------------------------------------------------


def sessions_of(records: Iterable[Mapping[str, Any]], end: float) -> list[Session]:
    """Sessions in RUNNER_FILE; a killed one ends at ``end`` or the next one's begin."""
    found: list[Session] = []
    is_open = False
    for record in records:
        time, places = number(record.get("time")), record.get("places")
        if record.get("kind") != "session" or time is None:
            continue
        if is_open:  # it has ended now, or was killed before this one began
            last = found[-1]
            found[-1] = Session(last.start, max(last.start, time), last.places)
        is_open = record.get("event") == "began" and isinstance(places, list)
        if is_open:
            names = tuple(clean(p) for p in places or () if isinstance(p, str))
            found.append(Session(time, max(end, time), names))
    return found


# ---- lanes -----------------------------------------------------------------------


def timeline_of(
    attempts: Sequence[RunSpan], sessions: Sequence[Session] = ()
) -> Timeline:
    """The time line of all attempts of a matrix."""
    lanes = []
    for (place, is_gpu), group in _by_place(attempts, sessions).items():
        spans = [(s.start, s.end) for s in sessions if place in _parts(s.places)]
        spans += [(attempt.start, attempt.end) for attempt in group]
        segments = [segment for attempt in group for segment in attempt.segments]
        segments += [Segment(start, end, IDLE) for start, end in spans]
        gaps = _gaps(group, [session.start for session in sessions])
        lanes.append(Lane(place, is_gpu, _overlaid(segments), gaps))
    return Timeline(_named(lanes), _first_updates(attempts, sessions), sessions)


def _by_place(
    attempts: Sequence[RunSpan], sessions: Sequence[Session]
) -> dict[tuple[str, bool], list[RunSpan]]:
    """Attempts by "host:gpu" or "host:slot 1"."""
    found: dict[tuple[str, bool], list[RunSpan]] = {}
    for session in sessions:
        for part in _parts(session.places):
            found.setdefault((part, " " not in part), [])
    known = Counter[str]()
    for session in sessions:
        known |= Counter(session.places)
    busy: dict[str, list[float]] = {}  # of each host, when its slots are free again
    for attempt in sorted(attempts, key=lambda attempt: attempt.turn):
        parts = _gpus(attempt.place)
        if not parts:
            ends = busy.setdefault(attempt.place, [])
            free = (i for i, end in enumerate(ends) if end <= attempt.turn)
            slot = next(free, len(ends))
            if 0 < known[attempt.place] <= slot:  # one that ended before its turn
                slot = ends.index(min(ends))
            ends[slot : slot + 1] = [max([attempt.released, *ends[slot : slot + 1]])]
            parts = [f"{attempt.place}slot {slot + 1}"]
        for part in parts:
            found.setdefault((part, " " not in part), []).append(attempt)
    return dict(sorted(found.items()))


def _gpus(place: str) -> list[str]:
    """ "host:0,1" -> ["host:0", "host:1"]; [] without GPUs."""
    host, _, names = place.rpartition(":")
    return [f"{host}:{name}" for name in names.split(",") if name]


def _parts(places: Sequence[str]) -> list[str]:
    """Keys of the lanes of a session's slots."""
    found, slots = [], 0
    for place in places:
        slots += not _gpus(place)
        found += _gpus(place) or [f"{place}slot {slots}"]
    return list(dict.fromkeys(found))


def _overlaid(segments: Sequence[Segment]) -> list[Segment]:
    """One state at a time: the first in STATES, of equal ones the earlier run's."""
    changes = sorted(
        change
        for number, segment in enumerate(segments)
        for change in ((segment.start, 1, number), (segment.end, 0, number))
    )
    active: set[int] = set()
    found: list[Segment] = []
    for (time, starts, which), (until, _, _) in pairwise(changes):
        (active.add if starts else active.discard)(which)
        if until == time or not active:
            continue
        best = min(active, key=lambda i: (STATES.index(segments[i].state), i))
        state, run = segments[best].state, segments[best].run
        run = "" if state == IDLE else run
        before = found[-1] if found else None
        if before and (before.end, before.state, before.run) == (time, state, run):
            found[-1] = Segment(before.start, until, state, run)
        else:
            found.append(Segment(time, until, state, run))
    return found


def _gaps(attempts: Sequence[RunSpan], starts: Sequence[float]) -> list[float]:
    """Seconds from each run's end to the first update of the next one that trained, in
    the same session; starts: of the sessions."""
    updates = {a.first_update: a for a in attempts if a.first_update is not None}
    return [
        after - updates[before].released
        for before, after in pairwise(sorted(updates))
        if after >= updates[before].released
        and not any(updates[before].released < start < after for start in starts)
    ]


def _first_updates(
    attempts: Sequence[RunSpan], sessions: Sequence[Session]
) -> list[float]:
    times = [a.first_update for a in attempts if a.first_update is not None]
    return [
        min(inside) - session.start
        for session in sessions
        if (inside := [t for t in times if session.start <= t <= session.end])
    ]


def _named(lanes: list[Lane]) -> list[Lane]:
    """Lanes named "GPU 0" or "slot 1", with the host if there are several."""
    hosts = {lane.name.rpartition(":")[0] for lane in lanes}
    for lane in lanes:
        host, _, what = lane.name.rpartition(":")
        short = f"GPU {what}" if lane.is_gpu else what
        lane.name = f"{host} {short}" if len(hosts) > 1 else short
    return lanes
