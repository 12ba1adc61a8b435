"""Monitor GPUs once per second, writing to a run's gpu.jsonl.

Monitoring never blocks, slows down or fails the run; values that a GPU does not report
are null.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.atomic_files import append_jsonl, read_jsonl
from lib.gpu.sources import Source, short

TRIES = 3  # consecutive failed reads after which a source counts as lost
LONGEST_GAP = 10.0  # maximum seconds between records for energy sums


class Monitor:
    """Reads a source every `interval` seconds in a separate thread, writing to a file.

    Records are {"seconds", "gpus": [...]}; seconds continue where the file ended, so
    that the attempts of a run follow each other without a gap. say is called once if
    monitoring ends early.
    """

    def __init__(
        self,
        source: Source,
        path: Path,
        say: Callable[[str], None],
        interval: float = 1.0,
    ) -> None:
        self._source, self._path, self._say = source, path, say
        self._interval = interval
        self._before = _last_second(path)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="gpu-monitor", daemon=True
        )

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, patience: float = 3.0) -> None:
        """Take a last record and stop; does not wait for a hanging driver."""
        self._stop.set()
        self._thread.join(patience)

    def _watch(self) -> None:
        start = time.monotonic()
        failures, more = 0, True
        while more:
            more = not self._stop.is_set()
            try:
                seconds = self._before + time.monotonic() - start
                gpus = self._source.read()
                record = {"seconds": round(seconds, 3), "gpus": gpus}
                append_jsonl(self._path, record)
                failures = 0
            except Exception as error:  # monitoring must not end the run
                failures += 1
                if failures == TRIES:
                    self._say(f"the GPU is watched no more: {short(error)}")
                    break
            if more:
                self._stop.wait(self._interval)
        with contextlib.suppress(Exception):
            self._source.close()


def _last_second(path: Path) -> float:
    try:
        records = read_jsonl(path)
        return float(records[-1]["seconds"]) if records else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def energy(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Joules of all GPUs over the records of a run: power by the trapezoidal rule.

    None if no GPU reported its power twice. Gaps of more than LONGEST_GAP seconds are
    left out.
    """
    joules, is_known = 0.0, False
    for before, after in zip(records, records[1:], strict=False):
        seconds = after["seconds"] - before["seconds"]
        powers = [_powers(before), _powers(after)]
        both = powers[0].keys() & powers[1].keys()
        if both and 0 <= seconds <= LONGEST_GAP:
            is_known = True
            joules += seconds * sum(powers[0][i] + powers[1][i] for i in both) / 2
    return joules if is_known else None


def _powers(record: Mapping[str, Any]) -> dict[int, float]:
    return {
        gpu["index"]: gpu["power_w"]
        for gpu in record["gpus"]
        if gpu.get("power_w") is not None
    }
