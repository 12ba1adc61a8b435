"""TRAIN: updates, evaluations, records, and when to write a checkpoint.

Step n means n optimizer updates done. On a GPU losses are read at log, evaluation
and checkpoint steps only; a sum that is not finite then tells of any update since.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpt2.model.autotune.choice import built_with, names_of, serving
from gpt2.model.gpt import GPT
from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job
from gpt2.plan.run_length import seconds_of
from gpt2.settings.schema import Settings
from gpt2.train import stable
from gpt2.train.as_trained import LATER, compare
from gpt2.train.batches import Batch, Batches
from gpt2.train.costs_and_scores import (
    epoch_record,
    evaluation_record,
    peak_of_run,
    training_record,
    utilisation,
)
from gpt2.train.evaluate import Evaluator
from gpt2.train.failures import Interrupted, NonFinite, NotAsTrained
from gpt2.train.fingerprints import batch_fingerprints
from gpt2.train.lr_schedule import learning_rate
from gpt2.train.manifest import Manifest
from gpt2.train.monitoring import profiling
from gpt2.train.progress import Clock, Progress
from gpt2.train.record import Recorder
from gpt2.train.resume import Checkpoints
from gpt2.train.run_context import RunContext
from gpt2.train.sanity import report_skipped
from gpt2.train.stopping import StopRequest
from gpt2.train.update import Updater
from lib.jobs.pulse import PULSE_FILE, Pulse
from lib.jobs.turn import Turn

ASK_INTERVAL = 10  # updates on GPUs between questions whether any rank is to stop


class Trainer:
    """Trains one run: construct, resume(), train(), close()."""

    def __init__(
        self,
        job: Job,
        model: GPT,
        context: RunContext,
        recorder: Recorder,
        stop: StopRequest,
        turn: Turn | None = None,
    ) -> None:
        """model: initialised, on the device; its parameters are trained.

        Raises ValueError for what optimizer, pruner or evaluation cannot honour.
        """
        self.job, self.settings, self.model = job, job.settings, model
        self.context, self.ranks = context, context.ranks
        self.device, self.split = context.device, context.split
        self.recorder, self.stop, self.turn = recorder, stop, turn or Turn()
        self.manifest = Manifest(recorder.run_dir, job.hash, self.ranks.is_first)
        self.optim, self.resources = self.settings.optim, self.settings.resources
        self._flops_per_token = budget(self.settings).flops_training
        world_size = self.split.world_size
        self.peak_flops = peak_of_run(self.settings, self.device, world_size)
        self.epoch_tokens = int(context.train.tokens.size)
        self.tokens_per_update = self.settings.tokens_per_update
        self.updater = Updater(model, self.settings, context)
        self.checkpoints = Checkpoints(job, model, self.updater, context, recorder)
        self.evaluator = Evaluator(
            context.val,
            self.settings,
            self.device,
            self.split.micro_batch,
            self.updater.compiled,
        )
        self.progress, self._clock = Progress(), Clock()
        # Loss and gradient norm, summed since the last record, on the device.
        self._sums = torch.zeros(2, dtype=torch.float64, device=self._on)
        self._norm = torch.zeros((), device=self._on)
        self._time_budget = seconds_of(self.optim.time_budget)
        self._rate = 0.0
        self.is_over = False
        self.has_trained = False  # an update in this attempt
        self.pulse = Pulse()
        self.loader: Batches | None = None
        self._data: Generator[Batch, None, None] | None = None

    @property
    def _on(self) -> torch.device:
        return self.device.torch_device

    # ---- the loop ---------------------------------------------------------------

    def train(self) -> None:
        """Train to the last update and its evaluation.

        Raises Interrupted (after a checkpoint), NonFinite, NotAsTrained, torch's
        out-of-memory errors, lib.atomic_files.DiskFull.
        """
        self.model.train()
        if self.ranks.is_first:
            path = self.recorder.run_dir / PULSE_FILE
            self.pulse = Pulse(path, self.resources.hang_factor)
        self._clock.lap()  # what came before is in no time budget
        known = self.recorder.has_evaluation(self.progress.step)
        if self._is_eval_step() and not self.ranks.from_first(known):
            self._evaluate()
        if self.progress.step == stable.kept_at(self.job):  # killed before it was kept
            self._keep_stable()
        data = self.micro_batches()
        self.recorder.start_bar(self.progress.step)
        with (
            profiling(self.resources, self.context, self.recorder) as profiler,
            self.checkpoints.writer.finished(),
            self.pulse.closing(),
        ):
            while not self.is_over:
                self._stop_if_asked()
                self._lend_device()
                with profiler.update(self.progress.step + 1):
                    self.update(data)
                self.pulse.beat()
                if not self.has_trained:
                    self.recorder.phase("first_update")
                self.has_trained = True
                self._after_update()
        if self.has_trained:
            report_skipped(self.recorder, self.progress)
        self.recorder.phase("evaluated")

    def micro_batches(self) -> Iterator[Batch]:
        """All micro batches from the present step to the last."""
        self.loader = self.context.batches(self.job, self.progress.step)
        self._data = iter(self.loader)
        return self._data

    def close(self) -> None:
        """End the processes that load batches; no update can follow."""
        if self.loader is not None and self._data is not None:
            self._data.close()
            self.loader.close()

    def certify(self) -> None:
        """The certificate "as trained". Raises NotAsTrained; RuntimeError if the ranks
        hold different weights."""
        self.ranks.check_weights(self.model.parameters())
        if not self.resources.as_trained:
            return
        step = self.progress.step
        found = compare(self.updater, self.model, self.settings, self.context, step)
        self.recorder.say(found.describe())
        self.recorder.comparison(found.record())
        self.manifest.note_comparison(found)
        worst = max(found.worst[1], self.progress.deviation or 0.0)
        self.progress.deviation = worst
        if self.ranks.any(not found.passed, self._on):
            paths = " and ".join(names_of(self.built))
            raise NotAsTrained(f"{found.describe()}; computed by {paths}")

    def certify_again(self) -> None:
        """As certify(), after updates; its time is not counted as training."""
        self.check_finite()
        with self._between_updates(training=not self.is_over):
            self.certify()

    @property
    def built(self) -> Settings:
        """The settings with the kernels that the model was built with."""
        return built_with(self.model, self.settings)

    @property
    def kernels(self) -> dict[str, str]:
        """Backends that serve the model in training, as entries of the manifest."""
        return serving(self.built, self.device.torch_device.type)

    def _stop_if_asked(self) -> None:
        step, reason = self.progress.step, self.stop.reason()
        # Asking the others makes a GPU wait, so not before each update.
        if self.device.is_gpu and not self.ranks.is_single and step % ASK_INTERVAL:
            return
        if self.ranks.any(reason is not None, self._on):
            self.save()
            self.checkpoints.writer.wait()
            raise Interrupted(
                f"{reason or 'another rank'}: checkpoint at update {step}"
            )

    def _lend_device(self) -> None:
        """Wait, off the clock, while a run that prepares times its kernels."""
        if self.turn.is_wished():
            self.check_finite()  # waits for the device
            with self._between_updates():
                self.turn.lend(self.recorder.keep_alive)

    def update(self, data: Iterator[Batch]) -> None:
        """One optimizer update over the effective batch."""
        update = self.progress.step + 1
        share = self._time_share()
        if share is not None:
            self.progress.note_share(share)
        self._rate = learning_rate(update, self.optim, share)
        loss, self._norm = self.updater(data, update, self._rate)
        self._sums += torch.stack([loss, self._norm])
        self.progress.count(self.tokens_per_update)
        self.is_over = self._has_ended()
        self.recorder.advance()

    def _has_ended(self) -> bool:
        share = self._time_share()
        is_late = share is not None and share >= 1.0
        return is_late or self.progress.step >= self.optim.max_iters

    def _time_share(self) -> float | None:
        """Share of the time budget spent on updates, the same on every rank."""
        if not self._time_budget:
            return None
        spent = self.progress.train_seconds + self._clock.peek()
        share = torch.tensor(spent / self._time_budget, device=self._on)
        return self.ranks.mean(share).item()

    def _after_update(self) -> None:
        step = self.progress.step
        if not self.device.is_gpu:  # where reading costs nothing: at once
            self.check_finite()
        if step % self.resources.log_interval == 0 or self.is_over:
            self._log()
        if self.is_over:
            self.recorder.phase("last_update")
        if self._is_eval_step():
            self._evaluate()
        if self.progress.ended_epochs(self.tokens_per_update, self.epoch_tokens):
            self._record_epoch()
        if step in LATER and not self.is_over:
            self.certify_again()
        # The last one is written by finish(), when the next run may have the device.
        is_kept = step == stable.kept_at(self.job)
        if not self.is_over and (
            is_kept or step % self.resources.checkpoint_interval == 0
        ):
            self.save()
        if is_kept:
            self._keep_stable()

    def _keep_stable(self) -> None:
        """Keep the checkpoint of this step for runs of other lengths."""
        if self.ranks.is_first:
            with self.pulse.paused():
                self.checkpoints.writer.wait()
            stable.keep(self.recorder.run_dir, self.progress.step)

    def free_activations(self) -> None:
        """Give back what micro steps take, once no update will follow: another run may
        need it while this one writes its results."""
        if self.turn.is_shared and self.device.is_gpu:
            self.updater.micro_step = self.updater.plain_step  # drops its graph
            torch.cuda.empty_cache()

    def check_finite(self) -> float:
        """Sum of the losses since the last record; waits for the device.

        Raises NonFinite if a loss or a gradient norm was not finite.
        """
        loss, norm = self._sums.tolist()
        for what, value in (("training loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                self._fail(f"the {what} became {value}")
        p = self.progress
        p.skipped_updates += self.updater.take_skipped()
        if self.is_over and 0 < p.skipped_updates == p.step:
            self._fail("fp16 has overflowed in all updates (use bf16 or fp32)")
        if self.updater.always_overflows():
            self._fail("fp16 overflows at every loss scale (use bf16 or fp32)")
        return float(loss)

    def _fail(self, what: str) -> None:
        step = self.checkpoints.newest_step()
        kept = "there is none" if step is None else f"update {step}"
        raise NonFinite(
            f"{what} by update {self.progress.step}; last good checkpoint: {kept}"
        )

    # ---- records ----------------------------------------------------------------

    def _book(self, *, training: bool) -> None:
        """Book the time since the last call. The device has been waited for."""
        self.progress.book(self._clock.lap(), training=training)
        if training and self.loader is not None:
            self.progress.wait_seconds += self.loader.take_wait()

    @contextmanager
    def _between_updates(self, training: bool = True) -> Iterator[None]:
        """Something else than updates, off the clock. The device has been waited for.

        training: whether the time before it counts as training.
        """
        self._book(training=training)
        with self.pulse.paused():
            yield
            self._book(training=False)

    def _log(self) -> None:
        """Record the mean loss of the updates since the last record."""
        loss = self.check_finite()
        self.pulse.measure()
        self._book(training=True)
        p = self.progress
        p.train_loss = loss / p.updates_summed
        rate = p.timed_tokens / p.timed_seconds
        used = utilisation(self._flops_per_token, rate, self.peak_flops)
        self.recorder.train(
            training_record(
                p,
                loss_sum=loss,
                learning_rate=self._rate,
                grad_norm=self._norm.item(),
                speed={"tokens_per_s": rate, **used},
            )
        )
        self._sums.zero_()
        p.start_interval()

    def _is_eval_step(self) -> bool:
        step = self.progress.step
        return step % self.settings.data.eval_interval == 0 or self.is_over

    def _evaluate(self) -> None:
        record = self._score()
        with self._between_updates(training=False):  # a disk may take its time
            self.progress.note_evaluation(record)
            self.recorder.evaluation("eval", record)

    def _score(self) -> dict[str, Any]:
        """A record of the model's validation at this step."""
        self.check_finite()
        with self._between_updates():
            found = self.evaluator(self.model)
        if not math.isfinite(found.loss):
            self._fail(f"the validation loss became {found.loss}")
        bytes_per_token = self.context.val.bytes_per_token
        return evaluation_record(self.progress, found, bytes_per_token)

    def _record_epoch(self) -> None:
        """Time of the epoch and validation at its end. One that is shorter than
        the evaluation interval gets the last evaluation, not one more."""
        p = self.progress
        assert p.last is not None, "there is an evaluation at step 0"
        interval = self.settings.data.eval_interval * self.tokens_per_update
        found = p.last
        if self.epoch_tokens >= interval and found["step"] != p.step:
            found = self._score()
        self.check_finite()
        self._book(training=True)
        self.recorder.evaluation("epoch", epoch_record(p, found, self.epoch_tokens))
        p.epoch_began = p.seconds
        self._book(training=False)

    # ---- checkpoints ------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there; on all ranks at the same
        step, since they gather their parts of it.

        Raises NonFinite rather than keep one that is of no use, and DiskFull.
        """
        if self.checkpoints.step == self.progress.step:
            return
        self.check_finite()
        if not self.updater.has_finite_weights():
            self._fail("a weight became NaN or infinite")
        with self._between_updates():
            self.progress.sums = self._sums.tolist()
            self.recorder.flush()
            self._note_batches()
            self.checkpoints.save(self.progress)
            self.recorder.status(step=self.progress.step)

    def _note_batches(self) -> None:
        """Record fingerprints of the batches of the updates that this attempt made; a
        later one would not see those before its checkpoint."""
        sums = {} if self.loader is None else self.loader.window_sums
        made = {n: share for n, share in sums.items() if n <= self.progress.step}
        self.manifest.note_batches(batch_fingerprints(self.ranks.gather(made)))

    def resume(self) -> int | None:
        """Go on from the newest whole checkpoint; its step, or None: a fresh run.

        Raises CheckpointMismatch if the directory holds another run's.
        """
        found = self.checkpoints.resume()
        if found is not None:
            self.progress = found
            self._sums.copy_(torch.tensor(found.sums, dtype=torch.float64))
        self._clock.lap()
        self.is_over = self._has_ended()
        return None if found is None else found.step
