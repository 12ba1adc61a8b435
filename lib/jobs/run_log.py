"""Log and progress of a run, read from its files while it runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.atomic_files import record_in
from lib.files import open_plain
from lib.human import size
from lib.jobs import phases, run_files

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# ---- logs -----------------------------------------------------------------------


def rotate_log(run_dir: Path) -> None:
    """Keep the log of the previous attempt: train.log becomes train.N.log, where
    train.1.log is the first attempt's."""
    current = run_dir / run_files.LOG_FILE
    if not os.path.lexists(current):  # a link is put by as well, not written through
        return
    stem, suffix = current.stem, current.suffix
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+){re.escape(suffix)}")
    numbers = [int(m[1]) for p in run_dir.iterdir() if (m := pattern.fullmatch(p.name))]
    current.rename(run_dir / f"{stem}.{max(numbers, default=0) + 1}{suffix}")


def log_tail(path: Path, lines: int = 15) -> tuple[str, ...]:
    """The last lines of a log as a terminal shows them: only the last state of a
    progress bar, no escape sequences or control characters."""
    text = _last_bytes(path, 65536).decode("utf-8", errors="replace")
    shown = []
    for line in _ANSI.sub("", text).split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        clean = "".join(c if c.isprintable() else " " for c in last).rstrip()
        if clean:
            shown.append(clean[:500])
    return tuple(shown[-lines:])


# ---- progress -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds until an attempt's first record, and seconds per step from then on,
    evaluations and checkpoints included."""

    start_up: float
    per_step: float


class RunProgress:
    """Progress of a run by its own files; read() takes in new records.

    Times are measured from outside and for this attempt only.
    budget: seconds of training after which the run ends, instead of steps.
    """

    def __init__(self, run_dir: Path, max_steps: int, budget: float = 0.0) -> None:
        self.max_steps, self._budget = max_steps, budget
        self._spent: float | None = None
        self.step = 0
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.val_step: int | None = None
        self.tokens_per_s: float | None = None
        self.preparation = 0.0  # seconds that the latest attempt took to get ready
        self.gpu = ""  # latest figures of its GPUs; empty: none is monitored
        self._stage, self._stage_of = phases.PREPARING, 0
        self._started = self._ready = 0.0
        self._alarms: dict[str, bool] = {}  # text -> whether it was taken
        self._path = run_dir / run_files.METRICS_FILE
        self._inode = self._offset = self._from = 0
        self._first: tuple[int, float] | None = None
        self._made = self._last_move = time.monotonic()
        self.read()
        self._first, self._from = None, self.step
        self.take_alarms()

    def take_alarms(self) -> list[str]:
        """New alarms of this attempt since the last call, each once."""
        fresh = [text for text, taken in self._alarms.items() if not taken]
        self._alarms.update(dict.fromkeys(fresh, True))
        return fresh

    def stage(self, attempt: int) -> str:
        """The stage of a running attempt, one of lib/jobs/phases.py's stages."""
        return self._stage if self._stage_of == attempt else phases.PREPARING

    @property
    def own_steps(self) -> int:
        """Steps made since this object was created."""
        return max(0, self.step - self._from)

    @property
    def pace(self) -> Pace | None:
        """None until two different steps were seen."""
        if self._first is None or self.step <= self._first[0]:
            return None
        first_step, first_time = self._first
        per_step = (self._last_move - first_time) / (self.step - first_step)
        return Pace(first_time - self._made, per_step)

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, None while unknown."""
        if self._budget and self._spent is not None and self._first is not None:
            since = time.monotonic() - self._last_move
            return max(0.0, self._budget - self._spent - since)
        pace = self.pace
        if pace is None or not self.max_steps:
            return None
        since = time.monotonic() - self._last_move
        return max(0.0, (self.max_steps - self.step) * pace.per_step - since)

    def read(self) -> None:
        """Read the records appended since the last call."""
        before = self.step
        self.gpu = gpu_line(self._path.with_name(run_files.GPU_FILE))
        for record in self._new_records():
            self._take(record)
        if self.step != before:
            self._from = min(self._from, self.step)  # went back to a checkpoint
            self._last_move = time.monotonic()
            if self._first is None or self.step < self._first[0]:
                self._first = (self.step, self._last_move)

    def _take(self, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("step"), int):
            self.step = record["step"]
        # "seconds" also count evaluations, and are those of one comparison elsewhere
        if isinstance(record.get("train_seconds"), int | float):
            self._spent = record["train_seconds"]
        if record.get("kind") == "train":
            self.loss = record.get("loss")
            self.tokens_per_s = record.get("tokens_per_s")
        elif record.get("kind") == "eval":
            self.val_loss, self.val_step = record.get("val_loss"), self.step
        elif record.get("kind") == "alarm":
            text = f"at update {record.get('step')}: {record.get('message')}"
            self._alarms.setdefault(text, False)
        for name, at, attempt in phases.phases_of([record]):
            self._stage, self._stage_of = phases.next_stage(self._stage, name), attempt
            if name == "started":
                self._started = at
            elif name == "ready":
                self._ready = at
                self.preparation = at - self._started if self._started else 0.0
            elif name == "turn":  # waiting for it does not count as start-up
                self._made += max(0.0, at - self._ready) if self._ready else 0.0

    def _new_records(self) -> list[dict[str, Any]]:
        try:
            with open_plain(self._path) as file:
                info = os.fstat(file.fileno())
                if info.st_ino != self._inode or info.st_size < self._offset:
                    self._inode, self._offset = info.st_ino, 0  # was cut back
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [r for line in whole.splitlines() if (r := record_in(line)) is not None]


def gpu_line(path: Path) -> str:
    """ "97% 31.2 GiB 410 W 61 °C" from the newest record of gpu.jsonl: memory and power
    summed over the GPUs, mean utilisation, highest temperature."""
    for line in reversed(_last_bytes(path, 65536).splitlines()):
        record = record_in(line)
        gpus = record.get("gpus") if record else None
        if isinstance(gpus, list):
            return _gpu_words([gpu for gpu in gpus if isinstance(gpu, dict)])
    return ""


def _gpu_words(gpus: list[dict[str, Any]]) -> str:
    def readings(key: str) -> list[float]:
        found = (gpu.get(key) for gpu in gpus)
        return [x for x in found if isinstance(x, int | float)]

    busy, power = readings("utilisation"), readings("power_w")
    used, heat = readings("memory_used_bytes"), readings("temperature_c")
    words = [f"{sum(busy) / len(busy):.0f}%"] if busy else []
    words += [size(sum(used))] if used else []
    words += [f"{sum(power):.0f} W"] if power else []
    words += [f"{max(heat):.0f} °C"] if heat else []
    return " ".join(words)


def _last_bytes(path: Path, count: int) -> bytes:
    try:
        with open_plain(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read()
    except OSError:
        return b""
