"""Experiment trackers, which get a copy of the records: trackio, wandb, tensorboard.

Each runs in its own thread behind a bounded queue. So a slow tracker loses records, a
failing one is switched off with one message, and training never waits for either. The
record of a run is metrics.jsonl.

A run that is resumed continues the same tracker run, whole and without repetition:
its id is fixed, and a tracker first gets the records that it lacks. A killed process
may lose records that a tracker had not written yet, so the tracker itself is asked for
its last step. wandb stays offline unless configured otherwise.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lib.files import refuse_link
from lib.suggestions import hint

NONE = "none"
QUEUE_SIZE = 1000
CLOSE_SECONDS = 20.0

Values = Mapping[str, float]
Record = tuple[str, int, Mapping[str, Any]]  # kind, step, values
History = Callable[[], Iterable[Record]]  # all records so far, in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """Identity of a run for a tracker; ``run_id`` is the same after each resumption."""

    project: str
    name: str
    run_id: str
    directory: Path
    group: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    online: bool = False  # whether wandb may use the network


class TrackerBackend(Protocol):
    """One tracker; all calls come from one thread and may raise any exception.

    ``start`` returns the last step of each kind of record that the tracker has, from
    earlier attempts at the run. Values are named kind/name.
    """

    name: str

    def start(self, run: TrackedRun) -> Mapping[str, int]: ...

    def log(self, step: int, values: Values) -> None: ...

    def finish(self, summary: Values) -> None: ...


class Trackio:
    name = "trackio"

    def start(self, run: TrackedRun) -> Mapping[str, int]:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name} {run.run_id[:6]}"
        logs = SQLiteStorage.get_logs(run.project, name)
        self._run = trackio.init(
            project=run.project,
            name=name,
            group=run.group,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return _last_steps((key, log["step"]) for log in logs for key in log)

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Values) -> None:
        if summary:
            self._run.log({f"final/{name}": value for name, value in summary.items()})
        self._run.finish()


class Wandb:
    """Offline, each attempt is a folder with the same id; the last is complete.

    Earlier attempts cannot be queried, so all records are sent again: online, wandb
    ignores steps that are not above its last one.
    """

    name = "wandb"

    def start(self, run: TrackedRun) -> Mapping[str, int]:
        import wandb

        refuse_link(run.directory / "wandb")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.run_id,
            group=run.group,
            config=dict(run.config),
            resume="allow",
            dir=str(run.directory),
            mode="online" if run.online else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        return {}

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Values) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


class TensorBoard:
    name = "tensorboard"

    def start(self, run: TrackedRun) -> Mapping[str, int]:
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )
        from torch.utils.tensorboard import SummaryWriter

        folder = str(refuse_link(run.directory / "tensorboard"))
        self._writer = SummaryWriter(log_dir=folder, flush_secs=10)
        config = json.dumps(dict(run.config), indent=1, default=str)
        self._writer.add_text("config", f"```\n{config}\n```")
        events = EventAccumulator(folder, size_guidance={"scalars": 1})  # the last
        keys = events.Reload().Tags()["scalars"]
        return _last_steps((k, e.step) for k in keys for e in events.Scalars(k))

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: Values) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(f"final/{name}", value, 0)
        self._writer.close()


def _last_steps(found: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The last step by kind, from (kind/name, step) of everything a tracker has."""
    last: dict[str, int] = {}
    for key, step in found:
        kind, slash, _ = key.partition("/")
        if slash:
            last[kind] = max(step, last.get(kind, step))
    return last


BACKENDS: dict[str, Callable[[], TrackerBackend]] = {
    kind.name: kind for kind in (Trackio, Wandb, TensorBoard)
}


def parse_trackers(text: str) -> tuple[str, ...]:
    """ "trackio,wandb" to names; "" and "none" to (). ValueError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [NONE]:
        return ()
    for name in names:
        if name not in BACKENDS:
            known, near = ", ".join(BACKENDS), hint(name, BACKENDS)
            raise ValueError(f"{name!r} is none of {known}, {NONE}{near}")
    return tuple(dict.fromkeys(names))


class Trackers:
    """All trackers of one run. No method raises or waits, but for finish."""

    def __init__(
        self,
        backends: Iterable[TrackerBackend],
        run: TrackedRun,
        history: History = tuple,
        say: Callable[[str], None] | None = None,
    ) -> None:
        warn = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._workers = [_Worker(backend, run, history, warn) for backend in backends]

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log ``kind/name`` for every number among the values."""
        for worker in self._workers:
            worker.put((kind, step, values))

    def finish(self, summary: Values, timeout: float = CLOSE_SECONDS) -> None:
        """Flush the queues; a tracker that takes too long is abandoned."""
        for worker in self._workers:
            worker.close(summary)
        for worker in self._workers:
            worker.join(timeout)


def open_trackers(
    names: Iterable[str],
    run: TrackedRun,
    history: History = tuple,
    say: Callable[[str], None] | None = None,
) -> Trackers:
    """Start the named trackers in the background.

    ``history`` is asked, in threads of theirs, once the first record has come.
    """
    return Trackers([BACKENDS[name]() for name in names], run, history, say)


class _Worker:
    """One backend in its thread."""

    def __init__(
        self,
        backend: TrackerBackend,
        run: TrackedRun,
        history: History,
        say: Callable[[str], None],
    ) -> None:
        self._backend, self._run, self._history, self._say = backend, run, history, say
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._lost = 0
        self._ended = threading.Event()
        self._summary: Values = {}
        self._last_sent: dict[str, int] = {}
        name = f"tracker-{backend.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        if self._ended.is_set():
            return
        if self._queue.qsize() < QUEUE_SIZE:
            self._queue.put(record)
        else:
            self._lost += 1

    def close(self, summary: Values) -> None:
        self._summary = summary
        self._queue.put(None)  # beyond QUEUE_SIZE, or a full queue would never end

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"did not finish within {timeout:g} s and is abandoned")
        elif self._lost:
            self._warn(f"was too slow for {self._lost} records")

    def _work(self) -> None:
        try:
            self._last_sent.update(self._backend.start(self._run))
            record = self._queue.get()
            for earlier in self._history() if record else ():
                self._send(*earlier)
            while record is not None:
                self._send(*record)
                record = self._queue.get()
            self._backend.finish(self._summary)
        except BaseException as error:  # a tracker may even call sys.exit
            self._warn(f"failed and is off: {type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _send(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if step <= self._last_sent.get(kind, -1):
            return
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._backend.log(step, numbers)
        self._last_sent[kind] = step

    def _warn(self, text: str) -> None:
        with suppress(Exception):
            self._say(f"{self._backend.name} {text}; metrics.jsonl has everything")
