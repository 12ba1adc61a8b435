"""Experiment trackers beside the truth on disk: trackio, wandb, tensorboard.

Each runs in a thread of its own behind a bounded queue. So a tracker that is slow
loses records, one that fails is switched off with one message, and training never
waits for either. What a tracker has is a copy: metrics.jsonl stays the record.

A run that is resumed continues the same tracker run: its id is fixed, and a file
beside it keeps how far each tracker got, so that steps trained again are not told
twice. wandb stays offline unless told otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from lib.rundir import atomic_write_json
from lib.untrusted import Unusable, as_dict, read_json

NONE = "none"
STATE_FILE = "trackers.json"
QUEUE_SIZE = 1000
CLOSE_SECONDS = 20.0

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run. ``run_id`` is the same after each resumption."""

    project: str
    name: str
    run_id: str
    directory: Path
    group: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    online: bool = False  # whether wandb may use the network


class Backend(Protocol):
    """One tracker; all calls come from one thread and may raise whatever they like."""

    name: str

    def start(self, run: TrackedRun) -> None: ...

    def log(self, step: int, values: Values) -> None: ...

    def finish(self, summary: Values) -> None: ...


class Trackio:
    name = "trackio"

    def start(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=run.project,
            name=f"{run.name} {run.run_id[:6]}",
            group=run.group,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Values) -> None:
        if summary:
            self._run.log({f"final/{name}": value for name, value in summary.items()})
        self._run.finish()


class Wandb:
    name = "wandb"

    def start(self, run: TrackedRun) -> None:
        import wandb

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

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Values) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


class TensorBoard:
    name = "tensorboard"

    def start(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(run.directory / "tensorboard"))
        config = json.dumps(dict(run.config), indent=1, default=str)
        self._writer.add_text("config", f"```\n{config}\n```")

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: Values) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(f"final/{name}", value, 0)
        self._writer.close()


BACKENDS: dict[str, Callable[[], Backend]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def parse_trackers(text: str) -> tuple[str, ...]:
    """ "trackio,wandb" to names; "" and "none" to (). ValueError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [NONE]:
        return ()
    for name in names:
        if name not in BACKENDS:
            near = get_close_matches(name, BACKENDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(BACKENDS)
            raise ValueError(f"TRACKER: {name!r} is none of {known}, {NONE}{hint}")
    return tuple(dict.fromkeys(names))


def check_installed(names: Iterable[str]) -> None:
    """ValueError, naming what to install, if a tracker's package is not there.

    Imports nothing, so planning a matrix may call it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"TRACKER: {', '.join(missing)} is not installed; run "
            "`make setup EXTRAS=trackers` or leave it out"
        )


class Trackers:
    """All trackers of one run. No method raises or waits, but for finish."""

    def __init__(
        self,
        backends: Iterable[Backend],
        run: TrackedRun,
        say: Callable[[str], None] | None = None,
    ) -> None:
        state = _State(run.directory / STATE_FILE)
        tell = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._workers = [_Worker(backend, run, state, tell) for backend in backends]

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Tell ``kind/name`` for every number among the values."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for worker in self._workers:
            worker.put((kind, step, numbers))

    def finish(self, summary: Values, timeout: float = CLOSE_SECONDS) -> None:
        """Hand over what is left; a tracker that takes longer is abandoned."""
        for worker in self._workers:
            worker.close(summary)
        for worker in self._workers:
            worker.join(timeout)


def open_trackers(
    names: Iterable[str], run: TrackedRun, say: Callable[[str], None] | None = None
) -> Trackers:
    """Start the named trackers; nothing has happened yet when this returns."""
    return Trackers([BACKENDS[name]() for name in names], run, say)


class _State:
    """How far each tracker got, by kind of record; survives the process."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._told: dict[str, dict[str, int]] = {}
        with suppress(Unusable):
            found = as_dict(read_json(path))
            self._told = {name: as_dict(told) for name, told in found.items()}

    def is_news(self, backend: str, kind: str, step: int) -> bool:
        told = self._told.get(backend, {}).get(kind)
        return not isinstance(told, int) or step > told

    def told(self, backend: str, kind: str, step: int) -> None:
        with self._lock:
            self._told.setdefault(backend, {})[kind] = step
            atomic_write_json(self._path, self._told)


class _Worker:
    """One backend in its thread."""

    def __init__(
        self,
        backend: Backend,
        run: TrackedRun,
        state: _State,
        say: Callable[[str], None],
    ) -> None:
        self._backend, self._run, self._state, self._say = backend, run, state, say
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE_SIZE)
        self._lost = 0
        self._ended = threading.Event()
        self._summary: Values = {}
        name = f"tracker-{backend.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, record: tuple[str, int, Values]) -> None:
        if self._ended.is_set():
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def close(self, summary: Values) -> None:
        self._summary = summary
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"did not finish within {timeout:g} s and is abandoned")
        elif self._lost:
            self._warn(f"was too slow for {self._lost} records")

    def _work(self) -> None:
        try:
            self._backend.start(self._run)
            while (record := self._queue.get()) is not None:
                self._tell(*record)
            self._backend.finish(self._summary)
        except BaseException as error:  # a tracker may even call sys.exit
            self._warn(f"failed and is off: {type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _tell(self, kind: str, step: int, values: Values) -> None:
        if self._state.is_news(self._backend.name, kind, step):
            self._backend.log(step, values)
            self._state.told(self._backend.name, kind, step)

    def _warn(self, text: str) -> None:
        with suppress(Exception):
            self._say(f"{self._backend.name} {text}; metrics.jsonl has everything")
