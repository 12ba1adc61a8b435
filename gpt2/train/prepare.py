"""PREPARE: all that comes before the first update of a run.

Device, data, batch split, kernels, model, optimizer, checkpoint; then warmed up
(compiled, tuned, recorded as a graph) and certified "as trained". Where memory runs out
or that certificate fails, the same is done again with a smaller micro batch or other
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from gpt2.data.token_files import MissingData
from gpt2.model.autotune.choice import choose_backends, next_without, suspects
from gpt2.model.autotune.store import file_of
from gpt2.model.gpt import GPT
from gpt2.model.init import start_parameters
from gpt2.plan.jobs import Job
from gpt2.plan.memory import attention_backend
from gpt2.plan.names import STABLE_FOLDER
from gpt2.settings.schema import Settings
from gpt2.train import auto_batch, checkpoint
from gpt2.train.banner import introduction
from gpt2.train.batch_split import BatchSplit, split_batch
from gpt2.train.batches import load_data
from gpt2.train.choose_kernels import known
from gpt2.train.distributed import Ranks
from gpt2.train.failures import (
    Interrupted,
    LessMemory,
    NotAsTrained,
    OutOfMemory,
    Refused,
    is_out_of_memory,
)
from gpt2.train.fingerprints import weight_fingerprints
from gpt2.train.manifest import Manifest
from gpt2.train.record import Follower, Recorder
from gpt2.train.run_context import RunContext
from gpt2.train.run_device import select_device, set_up_torch
from gpt2.train.sanity import watch_losses
from gpt2.train.stopping import StopRequest
from gpt2.train.trainer import Trainer
from gpt2.train.warm_up import warm_up
from lib.gpu import backend_probe
from lib.gpu import device as devices
from lib.gpu.compile_cache import import_compiler, rest_workers
from lib.jobs.process import LAST_END
from lib.jobs.run_files import EARLY_FILE
from lib.jobs.turn import Turn

RANK_STRIDE = 1_000_003  # between the ranks' seeds of dropout
# status/failure of an attempt that the kernel killed for want of memory.
KILLED_FOR_MEMORY = "failed/oom"


@dataclass(kw_only=True)
class Preparation:
    """Builds the trainer of a run, and keeps what earlier tries have settled.

    micro_batch: instead of the configured one, or the one that memory allowed.
    dropped: kernels to do without, since the comparison failed with them.
    """

    job: Job
    turn: Turn
    recorder: Recorder
    stop: StopRequest
    ranks: Ranks
    environ: Mapping[str, str]
    micro_batch: int | None
    dropped: frozenset[str] = frozenset()
    _has_turn: bool = False
    _ran_out_of_memory: bool = False  # before its turn
    _context: RunContext | None = None
    _startup: backend_probe.Startup | None = None
    _trainer: Trainer | None = field(default=None, repr=False)

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest(self.recorder.run_dir, self.job.hash, self.ranks.is_first)

    def trainer(self) -> Trainer:
        """A trainer at the newest checkpoint that is ready for its next update.

        Raises Refused for what the user must change, Interrupted if asked to stop,
        NotAsTrained, and torch's out-of-memory errors; for the last two see adapt().
        """
        if self._must_be_alone():
            self.take_turn()
        if self._context is None:
            self._context = self._first_context()
        # Another process may be choosing kernels for this arm already. All that does
        # not depend on them is done before they are waited for.
        self._before_kernels(self._context)
        model = drawn_model(self.job, self._context, self.recorder)
        random = devices.random_state(self._context.device)
        self._reached("data")
        chosen = self._choose_kernels(self._context)
        self._reached("kernels")
        devices.set_random_state(self._context.device, random)
        trainer = trainer_of(
            model, self.job, chosen, self._context, self.recorder, self.stop, self.turn
        )
        self._trainer = trainer
        self._start(trainer)
        self._reached("model")
        trainer.model.train()
        if not trainer.is_over:
            if trainer.device.is_gpu:
                warm_up(trainer, trainer.resources.gpu_warmup)
            self._reached("compiled")
            trainer.certify()
        rest_workers()
        self._reached("ready")
        return trainer

    def _reached(self, phase: str) -> None:
        self.recorder.phase(phase)
        # Several ranks agree on it between two updates.
        if self.ranks.is_single and (reason := self.stop.reason()):
            raise Interrupted(f"{reason}: it was still preparing")

    # ---- the turn ---------------------------------------------------------------

    def take_turn(self) -> None:
        """Wait until the device is this run's. Raises Interrupted if asked to stop."""
        if not self._has_turn:
            self.turn.take(self._keep_waiting)
            self._has_turn = True
            (self.recorder.run_dir / EARLY_FILE).unlink(missing_ok=True)
            if self.turn.is_shared and torch.cuda.is_initialized():
                torch.cuda.set_per_process_memory_fraction(1.0)
            self.recorder.phase("turn")

    def _keep_waiting(self) -> None:
        self.recorder.keep_alive()
        if reason := self.stop.reason():
            raise Interrupted(f"{reason}: it was waiting for its turn")

    def _must_be_alone(self) -> bool:
        """Whether not even its preparation may share the device: it ran out of memory,
        or is about to try how much memory there is."""
        tries = self.job.settings.resources.auto_batch and self.micro_batch is None
        settled = self.manifest.settled_micro_batch()
        return self._ran_out_of_memory or (tries and settled is None)

    def _limit_memory(self, device: devices.DeviceInfo) -> None:
        """Keep to the share of memory that the runner has planned, until its turn."""
        if device.is_gpu and self.turn.memory and not self.turn.is_mine:
            total = torch.cuda.get_device_properties(device.torch_device).total_memory
            share = min(1.0, self.turn.memory / total)
            torch.cuda.set_per_process_memory_fraction(share, device.torch_device)

    # ---- device, data, batch split ----------------------------------------------

    def _first_context(self) -> RunContext:
        context = self._context_as_configured()
        if self.job.settings.resources.auto_batch and self.micro_batch is None:
            found = auto_batch.fit(context, self.manifest, self.recorder, self._try)
            context = replace(context, split=found)
        if self.environ.get(LAST_END) == KILLED_FOR_MEMORY:
            context = self._shrink(context, self.recorder.last_step(), None)
        return context

    def _context_as_configured(self) -> RunContext:
        """Raises Refused for what the user must change."""
        settings, ranks = self.job.settings, self.ranks
        resources = settings.resources
        try:
            device = select_device(resources.device, self.environ, ranks)
            self._limit_memory(device)
            ranks.join(resources.ddp_backend, device.torch_device)
            allowed = self.manifest.allowed_micro_batch(resources.batch_size)
            micro_batch = ranks.from_first(self.micro_batch or allowed)
            split = split_batch(
                settings.effective_batch, micro_batch, ranks.world_size, ranks.rank
            )
            with devices.autocast(device, settings.optim.mixed_precision):
                pass  # refuses what the device cannot compute in
            train, val = load_data(settings)
        except (ValueError, MissingData) as error:
            raise Refused(str(error)) from error
        set_up_torch(device, resources)
        return RunContext(device=device, split=split, train=train, val=val, ranks=ranks)

    def _try(self, context: RunContext) -> None:
        """One update of weights that are thrown away, by this rank alone."""
        settings = self.job.settings.replace(num_workers=0)
        # The backend that `auto` will likely take: trials at each size would take long.
        if settings.resources.attention_backend == "auto":
            likely = attention_backend(settings)
            settings = settings.replace(attention_backend=likely, mlp_backend="torch")
        job = replace(self.job, settings=settings)
        quiet = Follower(self.recorder.run_dir, self.recorder.max_steps)
        alone = replace(context, ranks=Ranks())
        model = drawn_model(job, alone, quiet)
        trainer = trainer_of(model, job, settings, alone, quiet, StopRequest())
        trainer.update(trainer.micro_batches())

    # ---- kernels and model ------------------------------------------------------

    def _before_kernels(self, context: RunContext) -> None:
        settings = self.job.settings
        if context.device.is_gpu and settings.resources.compile_model:
            import_compiler()
        if self._startup is None:
            precision = settings.optim.mixed_precision
            self._startup = backend_probe.probe(
                context.device, precision, settings.model.head_dim, self.environ
            )

    def _choose_kernels(self, context: RunContext) -> Settings:
        """The settings with kernels by name, none of them in ``dropped``."""
        settings, batch = self.job.settings, context.split.micro_batch
        file = file_of(self.job, self.recorder.run_dir)
        for first in (True, False):  # one rank tries kernels, the others read the file
            if context.ranks.is_first == first:
                say, dropped = self.recorder.say, self.dropped
                # Another run may hold the file while it waits for the device.
                with self.turn.lent(self.recorder.keep_alive):
                    tuning = known(settings, context.device, batch, file, say, dropped)
            context.ranks.from_first(None)
        chosen, lines = choose_backends(
            settings, context.device.torch_device, batch, tuning, self.dropped
        )
        for line in lines:
            self.recorder.say(line)
        return chosen

    def _start(self, trainer: Trainer) -> None:
        """Resume; write manifest, banner and status."""
        context = trainer.context
        resumed_at = trainer.resume()
        found = self._startup
        assert found is not None, "looked at before kernels were chosen"
        parameters = sum(p.numel() for p in trainer.updater.parameters)
        if context.ranks.is_first:
            start: dict[str, Any] = {"validation": trainer.evaluator.fingerprint()}
            if not trainer.progress.step:
                start["initial_weights"] = weight_fingerprints(trainer.model)
            self.manifest.write(
                trainer.job,
                context,
                parameters=parameters,
                serving=trainer.kernels,
                resumed_at=resumed_at,
                random_streams=trainer.checkpoints.random_streams,
                environ=self.environ,
                startup=found,
                start=start,
            )
            bytes_per_token = context.val.bytes_per_token
            watch_losses(self.recorder, trainer.settings, bytes_per_token)
        self.recorder.say(introduction(trainer, context, parameters, resumed_at, found))
        if found.warning:
            self.recorder.say(f"warning: {found.warning}")
        self.recorder.status(step=trainer.progress.step)

    # ---- another try ------------------------------------------------------------

    def adapt(self, error: Exception) -> None:
        """Change what may keep the error from coming again, or raise it.

        Raises Refused or OutOfMemory where nothing is left to change, and LessMemory
        where all ranks have to start again.
        """
        trainer, context = self._trainer, self._context
        if isinstance(error, NotAsTrained):
            assert trainer is not None, "certified before there is a trainer"
            self.dropped = self._other_kernels(trainer, error)
        elif is_out_of_memory(error) and not self.turn.is_mine:
            self._ran_out_of_memory = True
            self._has_turn = False
            self.recorder.say(
                f"out of memory while another run trains ({error}): preparing again "
                "once the device is free"
            )
        elif context is None or not is_out_of_memory(error):
            raise error
        elif not self.ranks.is_single:
            less_memory(context.split, error)
            raise LessMemory(f"out of memory on rank {self.ranks.rank}") from error
        else:
            step = trainer.progress.step if trainer else 0
            self._context = self._shrink(context, step, error)

    def _shrink(
        self, context: RunContext, step: int, error: Exception | None
    ) -> RunContext:
        """The context with half the micro batch; log and manifest say so."""
        split = less_memory(context.split, error)
        self.recorder.close_bar()
        self.recorder.say(
            f"out of memory after update {step} with micro batch "
            f"{context.split.micro_batch}: going on from the last checkpoint with "
            f"{split.micro_batch} and {split.accumulation} micro steps"
        )
        before = context.split.micro_batch
        self.manifest.note_out_of_memory(step, before, split.micro_batch)
        return replace(context, split=split)

    def _other_kernels(self, trainer: Trainer, error: NotAsTrained) -> frozenset[str]:
        """Kernels to do without after a failed comparison.

        Raises the error where updates have been made, and removes their checkpoints:
        any of them may come from wrong gradients. Raises Refused if no other kernel is
        left.
        """
        context = trainer.context
        if trainer.has_trained:
            if context.ranks.is_first:
                for name in (checkpoint.FOLDER, STABLE_FOLDER):
                    folder = self.recorder.run_dir / name
                    checkpoint.reject_all(folder, trainer.job.hash)
            raise error
        self.recorder.say(f"{error}")
        built, batch = trainer.built, context.split.micro_batch
        wrong = suspects(built, context.device.torch_device, batch)
        wrong = context.ranks.from_first(wrong)
        found = next_without(trainer.settings, built, wrong, self.dropped)
        if found is None:
            raise Refused(
                f"{error}. Name other kernels (RA_MLA_ATTENTION_BACKEND_REFERENCE=y, "
                "MLP_BACKEND_TORCH=y, CUDA_GRAPHS=n, COMPILE_MODEL=n), or report this "
                "with the manifest"
            ) from error
        without = ", ".join(sorted(found - self.dropped))
        self.recorder.say(f"going on without {without}")
        return found

    def free_memory(self) -> None:
        """Give back what a failed try held, compiled code included; the caller must
        hold no reference to its trainer."""
        self._trainer = None
        auto_batch.free_memory()


def less_memory(split: BatchSplit, error: Exception | None) -> BatchSplit:
    """Half the micro batch; OutOfMemory if there is nothing left to halve."""
    smaller = split.smaller()
    if smaller is None:
        raise OutOfMemory(
            "out of memory with a micro batch of one sequence: lower "
            "GPT2_BLOCK_SIZE or the model's size, use bf16, another attention "
            "kernel, or a device with more memory"
        ) from error
    return smaller


# ---- parts ----------------------------------------------------------------------


def drawn_model(job: Job, context: RunContext, recorder: Recorder) -> GPT:
    """The model with its initial weights, on the device; torch's generators then stand
    as training takes them over. Raises Refused."""
    try:
        devices.seed_everything(job.seed + context.ranks.rank * RANK_STRIDE)
        model = GPT(job.settings)
        start = start_parameters(model, job.settings, job.seed)
    except ValueError as error:
        raise Refused(str(error)) from error
    if start is not None:
        recorder.say(start.line)
    return model.to(context.device.torch_device)


def trainer_of(
    model: GPT,
    job: Job,
    chosen: Settings,
    context: RunContext,
    recorder: Recorder,
    stop: StopRequest,
    turn: Turn | None = None,
) -> Trainer:
    """A trainer of a model with its initial weights.

    chosen: the job's settings with kernels by name. Raises Refused.
    """
    model.use_kernels(chosen.resources)
    compiled = chosen.resources.compile_model  # which an A/A control may leave out
    job = replace(job, settings=job.settings.replace(compile_model=compiled))
    try:
        return Trainer(job, model, context, recorder, stop, turn)
    except ValueError as error:
        raise Refused(str(error)) from error
