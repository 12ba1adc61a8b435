"""A run's checkpoints: what is kept of it, and going on from there, on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from gpt2.plan.jobs import Job, identity_of
from gpt2.train import checkpoint
from gpt2.train.checkpoint_writer import HostCopies, Writer, writes_behind
from gpt2.train.progress import Progress
from gpt2.train.record import Recorder
from gpt2.train.run_context import RunContext
from gpt2.train.update import Updater
from lib.atomic_files import truncate_metrics
from lib.gpu import device as devices


class Checkpoints:
    """The checkpoints of one attempt.

    step: of the newest that it wrote or resumed from. random_streams: whether
    dropout's generators were "continued" there or are "fresh".
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        updater: Updater,
        context: RunContext,
        recorder: Recorder,
    ) -> None:
        self.job, self.model, self.updater = job, model, updater
        self.device, self.ranks = context.device, context.ranks
        self.data_fingerprint = context.train.fingerprint
        self.recorder = recorder
        self.folder = recorder.run_dir / checkpoint.FOLDER
        self.step: int | None = None
        self.random_streams = "fresh"
        self.writer = Writer(writes_behind(self.device))
        self._copies = HostCopies()

    def newest_step(self) -> int | None:
        """The step of the newest one on disk, once all are written."""
        self.writer.wait()
        return checkpoint.newest_step(self.folder)

    def _stamp(self, step: int) -> checkpoint.Stamp:
        return checkpoint.Stamp(
            step=step,
            hash=self.job.hash,
            identity=identity_of(self.job.settings, self.job.seed),
            data_fingerprint=self.data_fingerprint,
        )

    def save(self, progress: Progress) -> None:
        """Write one of this step; on a GPU its writing is only begun. Raises DiskFull,
        also where that of the one before failed."""
        self.writer.wait()
        state = {
            **self.updater.state_dict(),
            "rng": self.ranks.gather(devices.random_state(self.device)),
            "progress": asdict(progress),
        }
        if self.ranks.is_first:
            parts = checkpoint.weights_of(self.model), state
            if self.writer.behind:
                parts = self._copies.take(parts)
            stamp = self._stamp(progress.step)
            self.writer.write(partial(checkpoint.save, self.folder, stamp, *parts))
        self.step = progress.step

    def resume(self) -> Progress | None:
        """Go on from the newest whole one; how far it is, or None: a fresh run.

        Records of later steps are dropped, since they will be written again.
        Raises CheckpointMismatch if the directory holds another run's.
        """
        if self.ranks.is_first:
            checkpoint.remove_leftovers(self.folder)
        self.ranks.from_first(None)  # what is half written is gone now
        found = checkpoint.load_newest(self.folder, self._stamp(0), self.recorder.say)
        steps = self.ranks.gather(found.stamp.step if found else -1)
        if len(set(steps)) > 1:
            raise RuntimeError(f"the ranks found different checkpoints: steps {steps}")
        progress = None if found is None else self._restore(found)
        if self.ranks.is_first:
            truncate_metrics(self.recorder.metrics, steps[0])
            if found is not None and not self.recorder.has_evaluation(0):
                self.recorder.say(
                    f"warning: {self.recorder.metrics.name} has lost the records from "
                    "the beginning of this run: its curve will not be whole"
                )
        self.ranks.from_first(None)
        return progress

    def _restore(self, found: checkpoint.Checkpoint) -> Progress:
        checkpoint.load_weights(self.model, found.weights)
        state: Mapping[str, Any] = found.state
        self.updater.load_state_dict(state)
        generators = state["rng"]
        before = _ranks_on(len(generators), generators[0]["gpu"] is not None)
        now = _ranks_on(self.ranks.world_size, self.device.is_gpu)
        if before == now:
            devices.set_random_state(self.device, generators[self.ranks.rank])
            self.random_streams = "continued"
        elif self.job.settings.model.dropout:
            self.recorder.say(
                f"the checkpoint is from {before}, this run is on {now}: the random "
                "streams of dropout start afresh, so the result differs from that of "
                "an uninterrupted run"
            )
        progress = Progress(**state["progress"])
        self.step = progress.step
        return progress


def _ranks_on(ranks: int, is_gpu: bool) -> str:
    kind = "GPU" if is_gpu else "CPU"
    return f"1 {kind} process" if ranks == 1 else f"{ranks} {kind} processes"
