"""Output of a run while it trains: metrics, status, log lines, a progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt2.train.failures import FolderGone
from lib.atomic_files import append_jsonl, read_jsonl
from lib.jobs import phases
from lib.jobs.run_files import METRICS_FILE, write_status

STATUS_SECONDS = 1.0  # between refreshes of status.json, which flush the disk
ALIVE_SECONDS = 10.0  # between them while a run waits: HANG_TIMEOUT looks at the file
ALARM = "alarm"  # kind of a record that warns of a loss
AS_TRAINED = "as_trained"  # kind of a record that compares gradients with formulas

# Called with kind and record after each record is written; must not raise or block.
Listener = Callable[[str, Mapping[str, Any]], None]


class Recorder:
    """Writes to a run directory and to stdout, with a bar if that is a terminal."""

    def __init__(self, run_dir: Path, max_steps: int) -> None:
        """max_steps: 0 where the clock ends the run."""
        self.run_dir, self.max_steps = run_dir, max_steps
        self.attempt = 0
        self.metrics = run_dir / METRICS_FILE
        self.listeners: dict[str, Listener] = {}
        self._bar: Any = None
        self._last_status = 0.0
        self._folder: int | None = None

    def check_folder(self) -> None:
        """Raise FolderGone if the run directory is not the one of the first call: a new
        one would contain the last records alone."""
        try:
            if self._folder is None:  # kept open, so that its number is not used again
                self._folder = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY)
            there = os.path.samestat(os.fstat(self._folder), os.stat(self.run_dir))
        except FileNotFoundError:
            there = False
        if not there:
            raise FolderGone(
                f"{self.run_dir} was removed or moved while the run trained: this run "
                "cannot continue without it and has to start over"
            )

    def say(self, text: str) -> None:
        """Print one or more lines, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def start_bar(self, step: int) -> None:
        """Show a progress bar from this step on, where stdout is a terminal."""
        if sys.stdout.isatty():
            from tqdm import tqdm

            # Without a size of its own (a bare pseudo-terminal) tqdm draws nothing.
            has_width = os.get_terminal_size(sys.stdout.fileno()).columns > 0
            self._bar = tqdm(
                total=self.max_steps or None,
                initial=step,
                unit="step",
                dynamic_ncols=has_width,
                ncols=None if has_width else 100,
                nrows=None if has_width else 20,
                file=sys.stdout,
            )

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def train(self, record: Mapping[str, Any]) -> None:
        """A record of the training loss; raises DiskFull, FolderGone."""
        self._append({"kind": "train", **record})
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {record['loss']:.4f}, lr {record['lr']:.2e}, "
                f"{record['tokens_per_s']:,.0f} tokens/s"
                + (f", MFU {record['mfu']:.1%}" if "mfu" in record else "")
            )
        if time.monotonic() - self._last_status > STATUS_SECONDS:
            self.status(step=record["step"])
        self._notify("train", record)

    def evaluation(self, kind: str, record: Mapping[str, Any]) -> None:
        """A record of kind "eval" or "epoch"; raises DiskFull, FolderGone."""
        self._append({"kind": kind, **record})
        # A short epoch has the scores of an earlier update.
        scored = record.get("val_step", record["step"])
        line = (
            f"update {scored}: validation loss {record['val_loss']:.4f}, "
            f"accuracy {record['val_accuracy']:.2%}"
        )
        if kind == "epoch":
            line += (
                f"; epoch {record['epoch']} ended at update {record['step']}, "
                f"after {record['epoch_seconds']:.1f} s"
            )
        self.say(line)
        self.status(step=record["step"])
        self._notify(kind, record)

    def comparison(self, record: Mapping[str, Any]) -> None:
        """A record of gpt2/train/as_trained.py; raises DiskFull, FolderGone."""
        self._append({"kind": AS_TRAINED, **record})

    def phase(self, name: str, at: float | None = None, place: str = "") -> None:
        """A record of lib/jobs/phases.py; raises DiskFull, FolderGone."""
        self._append(phases.phase_record(name, self.attempt, at, place))

    def alarm(self, record: Mapping[str, Any]) -> None:
        """A record with a "message" to look at; raises DiskFull, FolderGone."""
        self._append({"kind": ALARM, **record})
        self.say(f"ALARM at update {record['step']}: {record['message']}")
        self.copy_alarms()

    def copy_alarms(self) -> None:
        """Copy the alarms in metrics.jsonl to status.json."""
        found = [r for r in read_jsonl(self.metrics) if r.get("kind") == ALARM]
        self.status(alarms=[{k: v for k, v in r.items() if k != "kind"} for r in found])

    def _append(self, record: Mapping[str, Any]) -> None:
        self.check_folder()
        append_jsonl(self.metrics, record)

    def _notify(self, kind: str, record: Mapping[str, Any]) -> None:
        for listener in self.listeners.values():
            listener(kind, record)

    def has_evaluation(self, step: int) -> bool:
        """Whether metrics.jsonl holds the evaluation of this step."""
        records = read_jsonl(self.metrics)
        return any(r.get("kind") == "eval" and r.get("step") == step for r in records)

    def last_step(self) -> int:
        """The last step on record; 0 before the first."""
        return max((r.get("step", 0) for r in read_jsonl(self.metrics)), default=0)

    def flush(self) -> None:
        """Wait until the metrics are on disk: a checkpoint must not outrun them."""
        self.check_folder()
        if self.metrics.exists():
            with open(self.metrics, "rb+") as file:
                os.fsync(file.fileno())

    def keep_alive(self) -> None:
        """Refresh status.json now and then; call it often while waiting."""
        if time.monotonic() - self._last_status > ALIVE_SECONDS:
            self.status()

    def status(self, **changes: Any) -> None:
        """Change fields of status.json; raises DiskFull, FolderGone."""
        self.check_folder()
        self._last_status = time.monotonic()
        write_status(self.run_dir, **changes)


class Follower(Recorder):
    """The recorder of a rank other than the first: writes and prints nothing."""

    def check_folder(self) -> None: ...

    def say(self, text: str) -> None: ...

    def start_bar(self, step: int) -> None: ...

    def train(self, record: Mapping[str, Any]) -> None: ...

    def evaluation(self, kind: str, record: Mapping[str, Any]) -> None: ...

    def comparison(self, record: Mapping[str, Any]) -> None: ...

    def phase(self, name: str, at: float | None = None, place: str = "") -> None: ...

    def alarm(self, record: Mapping[str, Any]) -> None: ...

    def copy_alarms(self) -> None: ...

    def flush(self) -> None: ...

    def status(self, **changes: Any) -> None: ...
