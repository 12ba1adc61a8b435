"""Sanity alarms of a run while it trains: into log, metrics, status and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2.settings.schema import Settings
from gpt2.train.progress import Progress
from gpt2.train.record import Recorder
from lib.alarms import Alarm, LossWatch
from lib.atomic_files import read_jsonl

NAME = "alarms"
# Share of updates that fp16 may skip without an alarm: some at the start, until the
# loss scale fits, and one each time it is raised, every 2,000 updates.
MOST_SKIPPED = 0.01


def watch_losses(
    recorder: Recorder, settings: Settings, bytes_per_token: float
) -> None:
    """Raise alarms at what is recorded from now on, each kind once a run.

    A resumed run is watched as if it had not stopped: the records that remain are
    read again without raising alarms. bytes_per_token: of the validation
    text.
    """
    recorder.copy_alarms()  # without those after the checkpoint
    trained = bool(settings.data.init_sha256)
    watch = LossWatch(settings.vocab_size, bytes_per_token, trained)
    for record in read_jsonl(recorder.metrics):
        _look(watch, str(record.get("kind")), record)

    def listen(kind: str, record: Mapping[str, Any]) -> None:
        for alarm in _look(watch, kind, record):
            recorder.alarm(
                {"step": alarm.step, "alarm": alarm.kind, "message": alarm.message}
            )

    recorder.listeners[NAME] = listen


def report_skipped(recorder: Recorder, progress: Progress) -> None:
    """Say how many updates fp16 skipped, with an alarm if they are many."""
    step, skipped = progress.step, progress.skipped_updates
    message = f"{skipped} of {step} updates overflowed in fp16 and were skipped"
    if skipped > MOST_SKIPPED * step:
        recorder.alarm({"step": step, "alarm": "skipped", "message": message})
    elif skipped:
        recorder.say(message)


def _look(watch: LossWatch, kind: str, record: Mapping[str, Any]) -> list[Alarm]:
    """Alarms raised by one record; none by a record without a loss."""
    step, name = record.get("step"), "loss" if kind == "train" else "val_loss"
    loss = record.get(name)
    if not isinstance(step, int) or not isinstance(loss, float):
        return []
    if kind != "train":
        return watch.evaluation(step, loss)
    norm = record.get("grad_norm")
    return watch.train(step, loss, norm if isinstance(norm, float) else None)
