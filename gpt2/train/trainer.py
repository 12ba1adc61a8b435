"""The training loop: updates, evaluations, records, and when to write a checkpoint.

Step n means n optimizer updates done. On a GPU losses are read at log, evaluation
and checkpoint steps only; a sum that is not finite then tells of any update since.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from gpt2.model.autotune import attention, mlp
from gpt2.model.autotune.choice import built_with, names_of
from gpt2.model.gpt import GPT
from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job
from gpt2.plan.run_length import seconds_of
from gpt2.settings.schema import Settings
from gpt2.train import faults, manifest
from gpt2.train.as_trained import LATER, compare
from gpt2.train.batches import Batch, Batches, eval_windows, gather
from gpt2.train.evaluate import Evaluator, Scorer
from gpt2.train.export import write_export
from gpt2.train.failures import Interrupted, NonFinite, NotAsTrained
from gpt2.train.fingerprints import batch_fingerprints, weight_fingerprints
from gpt2.train.head_removal import TIMED_WINDOWS, Removal, remove_heads, told_of
from gpt2.train.lr_schedule import learning_rate
from gpt2.train.outcome import bits_per_byte, held, scored, trained, utilisation
from gpt2.train.progress import Clock, Progress
from gpt2.train.record import Recorder
from gpt2.train.resume import Checkpoints
from gpt2.train.run_context import RunContext
from gpt2.train.stopping import StopRequest
from gpt2.train.update import Updater
from lib.gpu import device as devices
from lib.gpu.compile_cache import graphs_compiled
from lib.gpu.peaks import peak_flops
from lib.gpu.profiler import FOLDER as PROFILE_FOLDER
from lib.gpu.profiler import StepProfiler
from lib.jobs.run_files import EXPORT_FILE
from lib.kernels import choices
from lib.pruning.heads import HeadPruner

ASK_INTERVAL = 10  # updates on GPUs between questions whether any rank is to stop


class Trainer:
    """One attempt of one run: construct, resume(), run()."""

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        context: RunContext,
        recorder: Recorder,
        stop: StopRequest,
    ) -> None:
        """model: initialised, on the device; its parameters are trained.

        Raises ValueError for what optimizer, pruner or evaluation cannot honour.
        """
        self.job, self.settings, self.model = job, job.settings, model
        self._material = context
        self.device, self.split = context.device, context.split
        self.ranks = context.ranks
        self.train_split, self.val_split = context.train, context.val
        self.recorder, self.stop = recorder, stop
        self.optim, self.resources = self.settings.optim, self.settings.resources
        self.precision = self.optim.mixed_precision
        self._flops_per_token = budget(self.settings).flops_training
        self._peak_flops = self._peak()
        self.tokens_per_update = self.settings.tokens_per_update
        self.updater = Updater(model, self.settings, context)
        self.checkpoints = Checkpoints(job, model, self.updater, context, recorder)
        self.evaluator = Evaluator(
            self.val_split, self.settings, self.device, self.split.micro_batch
        )
        self.progress, self._clock = Progress(), Clock()
        # Loss and gradient norm, summed since the last record, on the device.
        self._sums = torch.zeros(2, dtype=torch.float64, device=self._on)
        self._norm = torch.zeros((), device=self._on)
        self._time_budget = seconds_of(self.optim.time_budget)
        self._rate = 0.0
        self._is_over = False
        self.has_trained = False  # an update in this attempt
        self._loader: Batches | None = None
        self._waited = 0.0  # of the loader's waiting, what is booked

    def _peak(self) -> float | None:
        """FLOP/s of all ranks' devices, taken to be alike; None: not known."""
        device = self.device
        one = peak_flops(device.name, device.compute_units, self.precision)
        return None if one is None else one * self.split.world_size

    @property
    def _on(self) -> torch.device:
        return self.device.torch_device

    # ---- the loop ---------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the last update; the result for status.json.

        Raises Interrupted (after a checkpoint), NonFinite, torch's out-of-memory
        errors, lib.jobs.run_files.DiskFull.
        """
        self.model.train()
        if self.device.is_gpu and self.progress.step < self.optim.max_iters:
            self.warm_up(self.resources.gpu_warmup)
        self.recorder.phase("compiled")
        self._clock.lap()  # what came before is in no time budget
        self._is_over = self._has_ended()
        if not self._is_over:
            self._compare_with_formulas()
        self.recorder.phase("ready")
        self.recorder.phase("turn")
        self._clock.lap()
        known = self.recorder.has_evaluation(self.progress.step)
        if self._is_eval_step() and not self.ranks.from_first(known):
            self._evaluate()
        data = self.micro_batches()
        self.recorder.start_bar(self.progress.step)
        with self._profiler() as profiler:
            while not self._is_over:
                self._stop_if_asked()
                with profiler.update(self.progress.step + 1):
                    self.update(data)
                if not self.has_trained:
                    self.recorder.phase("first_update")
                self.has_trained = True
                self._after_update()
        self.recorder.phase("evaluated")
        self.save()
        self._note_batches()
        found = self.result() | self._export()
        self.recorder.phase("written")
        return found

    def _profiler(self) -> StepProfiler:
        """The first rank profiles the updates that PROFILE_STEPS names."""
        wanted = self.resources.profile_steps
        is_on = self.resources.profile and self.ranks.is_first
        updates = range(wanted[0], wanted[-1] + 1) if is_on else range(0)
        folder = self.recorder.run_dir / PROFILE_FOLDER
        return StepProfiler(folder, updates, self.device, self.recorder.say)

    def micro_batches(self) -> Iterator[Batch]:
        """All micro batches from the present step to the last."""
        self._waited = 0.0
        self._loader = self._material.batches(self.job, self.progress.step)
        return iter(self._loader)

    def fingerprints(self) -> dict[str, Any]:
        """Of the validation windows and, before the first update, of the weights."""
        found: dict[str, Any] = {"validation": self.evaluator.fingerprint()}
        if not self.progress.step:
            found["initial_weights"] = weight_fingerprints(self.model)
        return found

    def _note_batches(self) -> None:
        """Record fingerprints of the batches of updates that this attempt made."""
        sums = {} if self._loader is None else self._loader.window_sums
        made = {n: share for n, share in sums.items() if n <= self.progress.step}
        batches = batch_fingerprints(self.ranks.gather(made))
        if self.ranks.is_first:
            manifest.note_batches(self.recorder.run_dir, self.job, batches)

    def warm_up(self, times: int) -> None:
        """Forward and backward so many times, leaving no trace but compiled code,
        tuned kernels and a warm GPU: weights and random numbers stay."""
        windows = eval_windows(
            self.train_split.tokens.size,
            self.settings.model.block_size,
            self.split.micro_batch,
        )
        pair = gather(self.train_split.tokens, windows, self.settings.model.block_size)
        tokens, targets = (one.to(self._on) for one in pair)
        random = devices.random_state(self.device)
        self.updater.warm_up(tokens, targets, times)
        if self.device.is_gpu and self.resources.cuda_graphs:
            state = self.updater.record(tokens, targets)
            if self.ranks.is_first:
                manifest.note(self.recorder.run_dir, self.job, cuda_graph=state)
            self.recorder.say(f"CUDA graph of a micro step: {state}")
        self._note_kernels()
        devices.set_random_state(self.device, random)

    def _note_kernels(self) -> None:
        """Record tiles and algorithms, and which of them were not timed before."""
        batch, built, untimed = self.split.micro_batch, self.built, choices.by_default()
        graphs = graphs_compiled() if self.resources.compile_model else None
        if graphs:
            new, kept = graphs["compiled"], graphs["cached"]
            self.recorder.say(f"compiled graphs: {kept} from the cache, {new} new")
        if untimed:
            self.recorder.say(
                f"warning: {len(untimed)} kernels run with their first choice, which "
                "was not timed; the manifest names them"
            )
        if self.ranks.is_first:
            manifest.note(
                self.recorder.run_dir,
                self.job,
                kernels={
                    attention.key(built, batch): built.resources.attention_backend,
                    mlp.key(built, batch): built.resources.mlp_backend,
                    **choices.found(),
                },
                untimed_kernels=untimed,
                graphs=graphs,
            )

    def _compare_with_formulas(self) -> None:
        """The certificate "as trained". Raises NotAsTrained; RuntimeError if ranks
        have come apart."""
        self.ranks.check_weights(self.model.parameters())
        if not self.resources.as_trained:
            return
        step, model = self.progress.step, cast(GPT, self.model)
        found = compare(self.updater, model, self.settings, self._material, step)
        self.recorder.say(found.describe())
        self.recorder.comparison(found.record())
        if self.ranks.is_first:
            manifest.note_comparison(self.recorder.run_dir, self.job, found)
        worst = max(found.worst[1], self.progress.deviation or 0.0)
        self.progress.deviation = worst
        if self.ranks.any(not found.passed, self._on):
            paths = " and ".join(names_of(self.built))
            raise NotAsTrained(f"{found.describe()}; computed by {paths}")

    @property
    def built(self) -> Settings:
        """The settings with the kernels that the model was built with."""
        return built_with(cast(GPT, self.model), self.settings)

    def _stop_if_asked(self) -> None:
        step, reason = self.progress.step, self.stop.reason()
        # Asking the others makes a GPU wait, so not before each update.
        if self.device.is_gpu and not self.ranks.is_single and step % ASK_INTERVAL:
            return
        if self.ranks.any(reason is not None, self._on):
            self.save()
            raise Interrupted(f"{reason or 'another rank'}: checkpoint at step {step}")

    def update(self, data: Iterator[Batch]) -> None:
        """One optimizer update over the effective batch."""
        update = self.progress.step + 1
        fake_nan = self._planned_faults(update)
        self._rate = learning_rate(update, self.optim, self._time_share())
        loss, self._norm = self.updater(data, update, self._rate)
        if fake_nan:
            loss = loss * math.nan
        self._sums += torch.stack([loss, self._norm])
        self.progress.count(self.tokens_per_update)
        self._is_over = self._has_ended()
        self.recorder.advance()

    def _has_ended(self) -> bool:
        share = self._time_share()
        is_late = share is not None and share >= 1.0
        return is_late or self.progress.step >= self.optim.max_iters

    def _time_share(self) -> float | None:
        """Of a time budget, what is spent on updates; every rank sees the same."""
        if not self._time_budget:
            return None
        spent = self.progress.train_seconds + self._clock.peek()
        share = torch.tensor(spent / self._time_budget, device=self._on)
        return self.ranks.mean(share).item()

    def _planned_faults(self, update: int) -> bool:
        """Let the faults of tests happen; whether the loss is to be NaN."""
        kinds = faults.wanted(update, self.job.name)
        if self.split.micro_batch != self.resources.batch_size:
            kinds -= {"oom"}
        faults.commit(kinds)
        return "nan" in kinds

    def _after_update(self) -> None:
        step = self.progress.step
        if not self.device.is_gpu:  # where reading costs nothing: at once
            self.check_finite()
        if step % self.resources.log_interval == 0 or self._is_over:
            self._log()
        if self._is_over:
            self.recorder.phase("last_update")
        if self._is_eval_step():
            self._evaluate()
        if self.progress.ended_epochs(self.tokens_per_update, self._epoch_tokens):
            self._record_epoch()
        if step in LATER or self._is_over:
            self.check_finite()
            self._book(training=True)
            self._compare_with_formulas()
            self._book(training=False)
        if step % self.resources.checkpoint_interval == 0:
            self.save()

    def check_finite(self) -> float:
        """Sum of the losses since the last record; waits for the device.

        Raises NonFinite if a loss or a gradient norm was not finite.
        """
        loss, norm = self._sums.tolist()
        for what, value in (("training loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                self._fail(f"the {what} became {value}")
        if self.updater.always_overflows():
            self._fail("fp16 overflows at every loss scale (use bf16 or fp32)")
        return float(loss)

    def _fail(self, what: str) -> None:
        step = self.checkpoints.newest_step()
        kept = "there is none" if step is None else f"step {step}"
        raise NonFinite(
            f"{what} by update {self.progress.step}; last good checkpoint: {kept}"
        )

    # ---- records ----------------------------------------------------------------

    def _book(self, *, training: bool) -> None:
        """Book the time since the last call. The device has been waited for."""
        self.progress.book(self._clock.lap(), training=training)
        if training and self._loader is not None:
            waited = self._loader.wait_seconds
            self.progress.wait_seconds += waited - self._waited
            self._waited = waited

    def _log(self) -> None:
        """Record the mean loss of the updates since the last record."""
        loss = self.check_finite()
        self._book(training=True)
        p = self.progress
        p.train_loss = loss / p.updates_summed
        rate = p.timed_tokens / p.timed_seconds
        self.recorder.train(
            {
                "step": p.step,
                "tokens": p.tokens,
                "loss": p.train_loss,
                "loss_sum": loss,
                "updates": p.updates_summed,
                "lr": self._rate,
                "grad_norm": self._norm.item(),
                "tokens_per_s": rate,
                **utilisation(self._flops_per_token, rate, self._peak_flops),
                **p.times(),
            }
        )
        self._sums.zero_()
        p.start_interval()

    def _is_eval_step(self) -> bool:
        step = self.progress.step
        return step % self.settings.data.eval_interval == 0 or self._is_over

    def _evaluate(self) -> None:
        record = self._score()
        self.progress.note_evaluation(record)
        self.recorder.evaluation("eval", record)
        self._book(training=False)  # a disk may take its time

    def _score(self) -> dict[str, Any]:
        """A record of the model's validation at this step."""
        self.check_finite()
        self._book(training=True)
        found = self.evaluator(cast(Scorer, self.model))
        self._book(training=False)
        if not math.isfinite(found.loss):
            self._fail(f"the validation loss became {found.loss}")
        return {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "val_loss": found.loss,
            "val_perplexity": found.perplexity,
            "val_accuracy": found.accuracy,
            "bits_per_byte": bits_per_byte(found.loss, self.val_split.bytes_per_token),
            "eval_seconds": found.seconds,
            **self.progress.times(),
            **found.attention,
        }

    @property
    def _epoch_tokens(self) -> int:
        return int(self.train_split.tokens.size)

    def _record_epoch(self) -> None:
        """Time of the epoch and validation at its end. One that is shorter than
        the evaluation interval gets the last evaluation, not one more."""
        p = self.progress
        assert p.last is not None, "there is an evaluation at step 0"
        interval = self.settings.data.eval_interval * self.tokens_per_update
        found = p.last
        if self._epoch_tokens >= interval and found["step"] != p.step:
            found = self._score()
        self.check_finite()
        self._book(training=True)
        epoch = {
            "step": p.step,
            "tokens": p.tokens,
            "epoch": p.tokens // self._epoch_tokens,
            "epoch_seconds": p.seconds - p.epoch_began,
            "val_step": found["step"],
            **p.times(),
        }
        self.recorder.evaluation("epoch", {**found, **epoch})
        p.epoch_began = p.seconds
        self._book(training=False)

    # ---- checkpoints ------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there.

        Raises NonFinite rather than keep one that is of no use, and DiskFull.
        """
        if self.checkpoints.step == self.progress.step:
            return
        self.check_finite()
        self._check_weights()
        self._book(training=True)
        self.progress.sums = self._sums.tolist()
        self.recorder.flush()
        self.checkpoints.save(self.progress)
        self.recorder.status(step=self.progress.step)
        self._book(training=False)

    def _check_weights(self) -> None:
        finite = [torch.isfinite(p.detach()).all() for p in self.updater.parameters]
        if not bool(torch.stack(finite).all()):
            self._fail("a weight became NaN or infinite")

    def resume(self) -> int | None:
        """Go on from the newest whole checkpoint; its step, or None: a fresh run.

        Raises CheckpointMismatch if the directory holds another run's.
        """
        found = self.checkpoints.resume()
        if found is None:
            return None
        self.progress = found
        self._sums.copy_(torch.tensor(found.sums, dtype=torch.float64))
        return found.step

    # ---- the end ----------------------------------------------------------------

    def _export(self) -> dict[str, Any]:
        """Write the trained model: pruned weights are exact zeros in it, pruned heads
        are not in it. What their removal brought, for the result."""
        if not self.ranks.is_first:
            return {}
        model, found = self.model, {}
        heads: tuple[int, ...] | None = None
        if isinstance(self.updater.pruner, HeadPruner):
            removal = self._removal(self.updater.pruner)
            model, heads, found = removal.model, removal.heads, removal.result
            self.recorder.say(told_of(removal))
        origin = {
            "hash": self.job.hash,
            "step": str(self.progress.step),
            "seed": str(self.job.seed),
        }
        path = self.recorder.run_dir / EXPORT_FILE
        write_export(path, model, self.settings, heads, **origin)
        return found

    def _removal(self, pruner: HeadPruner) -> Removal:
        offsets = self.evaluator.offsets[:TIMED_WINDOWS]
        windows = gather(self.val_split.tokens, offsets, self.settings.model.block_size)
        model = cast(GPT, self.model)
        return remove_heads(model, self.settings, pruner, *windows, self.device)

    def result(self) -> dict[str, Any]:
        """The numbers of a finished run, as status.json and the tables have them."""
        costs = trained(
            self.settings, self.progress, self._epoch_tokens, self._peak_flops
        )
        return {
            **costs,
            **scored(self.progress, self.val_split.bytes_per_token),
            **held(self.updater.optimizer, self.updater.pruner),
            "parameters": sum(p.numel() for p in self.updater.parameters),
            "as_trained": self.progress.deviation,
            "peak_memory_bytes": devices.peak_memory(self.device)[0],
            **devices.reserved_memory(self.device),
        }
