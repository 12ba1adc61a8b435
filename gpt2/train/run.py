"""One call of the trainer: lock, set-up, training, and how it ended.

Whatever happens, status.json and the exit code tell it; the runner acts on
those two alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpt2.data.token_files import MissingData
from gpt2.model.autotune.choice import choose_backends, next_without, suspects
from gpt2.model.autotune.store import file_of
from gpt2.model.init import initial_model
from gpt2.plan.jobs import Job
from gpt2.plan.memory import attention_backend
from gpt2.plan.run_length import last_update
from gpt2.settings.checks import naming
from gpt2.settings.schema import Resources, Settings
from gpt2.train import checkpoint, manifest
from gpt2.train.banner import closing, introduction, serving
from gpt2.train.batch_fitting import fit, free_memory, less_memory, shrink
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import load_data
from gpt2.train.distributed import Ranks
from gpt2.train.failures import (
    FolderGone,
    LessMemory,
    NotAsTrained,
    Refused,
    end_of,
    is_out_of_memory,
)
from gpt2.train.monitoring import energy_used, watching
from gpt2.train.ownership import claim
from gpt2.train.record import Follower, Recorder
from gpt2.train.run_context import RunContext
from gpt2.train.sanity import watch_losses
from gpt2.train.stopping import StopRequest
from gpt2.train.tracking import tracking
from gpt2.train.trainer import Trainer
from gpt2.train.tuning import known
from lib.gpu import backend_probe
from lib.gpu import device as devices
from lib.jobs.phases import process_start
from lib.jobs.process import ATTEMPT, LAST_END
from lib.jobs.run_files import LockHeld, lock, now, read_status, run_lock, write_status
from lib.jobs.slots import GPUS
from lib.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE

RANK_STRIDE = 1_000_003  # between the ranks' seeds of dropout
# status/failure of an attempt that the kernel killed for want of memory.
KILLED_FOR_MEMORY = "failed/oom"


def carry_out(
    job: Job, run_dir: Path, micro_batch: int | None, environ: Mapping[str, str]
) -> int:
    """Train the job in run_dir from wherever it stands; the exit code.

    micro_batch: instead of the configured one, or the one that memory allowed.
    """
    ranks = Ranks.from_environment(environ)
    holding = lock(run_lock(run_dir)) if ranks.is_first else nullcontext()
    try:
        with holding:
            return _with_lock(job, run_dir, micro_batch, environ, ranks)
    except (LockHeld, Refused) as error:  # somebody else's: hands off its status
        return _complain(error, EXIT_USAGE)
    except OSError as error:  # not even the lock can be written
        return _complain(error, end_of(error).exit_code)


def _complain(error: object, code: int) -> int:
    print(f"train_ra_mla: {error}", file=sys.stderr)
    return code


def _with_lock(
    job: Job,
    run_dir: Path,
    micro_batch: int | None,
    environ: Mapping[str, str],
    ranks: Ranks,
) -> int:
    """With the lock, or as a rank that follows the one that holds it."""
    began, max_steps = time.time(), last_update(job.settings)
    recorder: Recorder = Follower(run_dir, max_steps)
    stop = StopRequest.from_environment(environ)
    if ranks.is_first:
        claim(job, run_dir)
    if read_status(run_dir)["status"] == "done":  # its checkpoints may be gone
        return _complain(f"{run_dir} is done already", EXIT_OK)
    if ranks.is_first:
        recorder = Recorder(run_dir, max_steps)
    if not ranks.is_single:
        stop = StopRequest(os.getppid())  # torchrun, which the runner started
    telling: AbstractContextManager[dict[str, Any]] = (
        tracking(job, recorder) if ranks.is_first else nullcontext({})
    )
    with stop.listening(), telling as summary:
        try:
            if ranks.is_first:
                _announce(job, recorder, environ, began)
            result = _train(job, recorder, stop, micro_batch, environ, ranks)
            last = recorder.last_step()  # by the clock, if that was the budget
            recorder.phase("ended")
            recorder.status(status="done", step=last, max_steps=last, result=result)
            summary.update(result)
        except Exception as error:
            recorder.close_bar()
            return _tell_end(recorder, error, ranks)
    ranks.leave()
    if ranks.is_first and not job.settings.resources.keep_checkpoints:
        folder = run_dir / checkpoint.FOLDER
        if left := checkpoint.drop_all(folder, job.hash):
            recorder.say(f"kept in {folder}, as not of this run: {', '.join(left)}")
    recorder.close_bar()
    recorder.say(closing(result))
    return EXIT_OK


def _tell_end(recorder: Recorder, error: Exception, ranks: Ranks) -> int:
    """Report a run that did not come to its end; the exit code. In a run directory
    that is gone nothing is written, whatever error that brought.

    Of several ranks the first tells the end, unless another one knows the cause:
    memory or a disk that ran out are no matter of all ranks.
    """
    run_dir = recorder.run_dir
    try:
        recorder.check_folder()
    except FolderGone as gone:
        return _complain(f"failed: {gone}", end_of(gone).exit_code)
    end = end_of(error)
    if end.exit_code == EXIT_FAILED:
        traceback.print_exception(error)
    told = not ranks.is_single and read_status(run_dir)["status"] != "running"
    knows = ranks.is_first or end.failure in ("oom", "disk")
    if told or not knows:
        return _complain(f"rank {ranks.rank}: {end.message}", end.exit_code)
    with suppress(OSError):  # on a full disk the exit code has to do
        recorder.phase("ended")
    with suppress(OSError):
        write_status(
            run_dir, status=end.status, failure=end.failure, message=end.message
        )
    return _complain(f"{end.status}: {end.message}", end.exit_code)


# ---- the run directory ----------------------------------------------------------


def _announce(
    job: Job, recorder: Recorder, environ: Mapping[str, str], imported: float
) -> None:
    """status.json of an attempt that begins."""
    given, left = environ.get(ATTEMPT, ""), read_status(recorder.run_dir)
    recorder.attempt = int(given) if given.isdecimal() else left["attempt"] + 1
    recorder.phase("started", process_start())
    recorder.phase("imported", imported)
    recorder.status(
        status="running",
        failure=None,
        message="",
        max_steps=last_update(job.settings),
        attempt=recorder.attempt,
        pid=os.getpid(),
        host=socket.gethostname(),
        started=now(),
        result=None,
    )


# ---- training -------------------------------------------------------------------


def _train(
    job: Job,
    recorder: Recorder,
    stop: StopRequest,
    micro_batch: int | None,
    environ: Mapping[str, str],
    ranks: Ranks,
) -> dict[str, Any]:
    """Train; where memory runs out, go on with half the micro batch from the last
    checkpoint. Raises OutOfMemory when there is nothing left to halve, and
    LessMemory where all ranks have to begin anew for that."""
    context = _material(job, recorder.run_dir, micro_batch, environ, ranks)
    recorder.phase("data")
    if job.settings.resources.auto_batch and micro_batch is None:
        context = fit(job, recorder, context, partial(_one_update, job, recorder))
    if environ.get(LAST_END) == KILLED_FOR_MEMORY:
        context = shrink(job, recorder, context, recorder.last_step(), None)
    dropped: frozenset[str] = frozenset()
    while True:
        trainer = None
        try:
            trainer = _build(job, context, recorder, stop, dropped)
            _start(trainer, context, environ)
            with watching(context, recorder.run_dir, recorder.say):
                result = trainer.run()
            return result | energy_used(recorder.run_dir, result["tokens"])
        except NotAsTrained as error:
            assert trainer is not None, "proven before there is a trainer"
            dropped = _other_paths(trainer, context, recorder, dropped, error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            step = trainer.progress.step if trainer else 0
            if not ranks.is_single:
                less_memory(context.split, error)
                raise LessMemory(f"out of memory on rank {ranks.rank}") from error
            context = shrink(job, recorder, context, step, error)
        del trainer
        free_memory(context)


def _one_update(job: Job, recorder: Recorder, context: RunContext) -> None:
    """An update of weights that are thrown away, by this rank alone."""
    alone = replace(job, settings=job.settings.replace(num_workers=0))
    quiet = Follower(recorder.run_dir, recorder.max_steps)
    single = replace(context, ranks=Ranks())
    # The path that `auto` will likely take: to try them at each size would take long.
    resources = alone.settings.resources
    if resources.attention_backend == "auto":
        likely = attention_backend(alone.settings)
        settings = alone.settings.replace(attention_backend=likely, mlp_backend="torch")
        alone = replace(alone, settings=settings)
    trainer = _trainer(alone, alone.settings, single, quiet, StopRequest())
    trainer.update(trainer.micro_batches())


def _material(
    job: Job,
    run_dir: Path,
    micro_batch: int | None,
    environ: Mapping[str, str],
    ranks: Ranks,
) -> RunContext:
    """Device, data and batch split. Raises Refused for what the user must mend."""
    settings = job.settings
    resources = settings.resources
    try:
        device = _device(resources.device, environ, ranks)
        ranks.join(resources.ddp_backend, device.torch_device)
        allowed = manifest.allowed_micro_batch(
            manifest.read(run_dir, job.hash), resources.batch_size
        )
        micro_batch = ranks.from_first(micro_batch or allowed)
        split = split_batch(
            settings.effective_batch, micro_batch, ranks.world_size, ranks.rank
        )
        with devices.autocast(device, settings.optim.mixed_precision):
            pass  # refuses what the device cannot compute in
        train, val = load_data(settings)
    except (ValueError, MissingData) as error:
        raise Refused(str(error)) from error
    _set_up_torch(device, resources)
    return RunContext(device=device, split=split, train=train, val=val, ranks=ranks)


def _device(name: str, environ: Mapping[str, str], ranks: Ranks) -> devices.DeviceInfo:
    """The device of this rank, within what the runner has set aside for us.

    Raises ValueError if that is not what torch sees.
    """
    with naming("DEVICE"):
        device = devices.select_device(name)
    if device.is_gpu and not ranks.is_single:
        device = devices.select_device(f"{device.backend}:{ranks.local}")
    promised = environ.get(GPUS, "")
    if promised:
        expected, seen = len(promised.split(",")), devices.probe_runtime().gpus
        if not device.is_gpu or seen != expected:
            raise ValueError(
                f"the runner has set GPU {promised} aside, but torch sees {seen} "
                f"GPUs and chose {device.device}: check the driver, or DEVICE=cpu"
            )
    return device


def _set_up_torch(device: devices.DeviceInfo, resources: Resources) -> None:
    """Arithmetic for the device: on a CPU runs have to agree bit for bit."""
    if resources.threads:
        torch.set_num_threads(resources.threads)
    devices.set_math(device, tf32=resources.tf32, benchmark=resources.cudnn_benchmark)
    devices.reset_peak_memory(device)
    if not device.is_gpu:
        # As use_deterministic_algorithms, which imports the compiler: 2 s more.
        torch.set_deterministic_debug_mode("error")
        # Its filling of fresh memory finds bugs of kernels and costs time.
        fill = "fill_uninitialized_memory"
        setattr(torch.utils.deterministic, fill, False)


def _build(
    job: Job,
    context: RunContext,
    recorder: Recorder,
    stop: StopRequest,
    dropped: frozenset[str],
) -> Trainer:
    """A trainer over the initial weights, with kernels that are not in ``dropped``.
    Raises Refused as _material."""
    batch, file = context.split.micro_batch, file_of(job, recorder.run_dir)
    for first in (True, False):  # one rank tries kernels, the others read what it found
        if context.ranks.is_first == first:
            tuning = known(
                job.settings, context.device, batch, file, recorder.say, dropped
            )
        context.ranks.from_first(None)
    chosen, lines = choose_backends(
        job.settings, context.device.torch_device, batch, tuning, dropped
    )
    for line in lines:
        recorder.say(line)
    recorder.phase("kernels")
    return _trainer(job, chosen, context, recorder, stop)


def _trainer(
    job: Job,
    chosen: Settings,
    context: RunContext,
    recorder: Recorder,
    stop: StopRequest,
) -> Trainer:
    """chosen: the job's settings with kernels by name. Raises Refused."""
    compiled = chosen.resources.compile_model  # which an A/A control may leave out
    job = replace(job, settings=job.settings.replace(compile_model=compiled))
    try:
        devices.seed_everything(job.seed + context.ranks.rank * RANK_STRIDE)
        model = initial_model(job, chosen)
        model.to(context.device.torch_device)
        return Trainer(job, model, context, recorder, stop)
    except ValueError as error:
        raise Refused(str(error)) from error


def _other_paths(
    trainer: Trainer,
    context: RunContext,
    recorder: Recorder,
    dropped: frozenset[str],
    error: NotAsTrained,
) -> frozenset[str]:
    """The paths to do without after a comparison with the formulas failed; said.

    Raises the error where updates have been made, whose checkpoints are removed: any of
    them may come from wrong gradients. Raises Refused if no other path is left.
    """
    if trainer.has_trained:
        if context.ranks.is_first:
            folder = recorder.run_dir / checkpoint.FOLDER
            checkpoint.reject_all(folder, trainer.job.hash)
        raise error
    recorder.say(f"{error}")
    built, batch = trainer.built, context.split.micro_batch
    wrong = suspects(built, context.device.torch_device, batch)
    found = next_without(
        trainer.settings, built, context.ranks.from_first(wrong), dropped
    )
    if found is None:
        raise Refused(
            f"{error}. Name other kernels (RA_MLA_ATTENTION_BACKEND_REFERENCE=y, "
            "MLP_BACKEND_TORCH=y, CUDA_GRAPHS=n, COMPILE_MODEL=n), or report this with "
            "the manifest"
        ) from error
    recorder.say(f"going on without {', '.join(sorted(found - dropped))}")
    return found


def _start(trainer: Trainer, context: RunContext, environ: Mapping[str, str]) -> None:
    """Resume, write the manifest, introduce the run."""
    resumed_at = trainer.resume()
    settings = trainer.settings
    found = backend_probe.look(
        context.device,
        settings.optim.mixed_precision,
        settings.model.head_dim,
        environ,
    )
    parameters = sum(p.numel() for p in trainer.updater.parameters)
    if context.ranks.is_first:
        manifest.write(
            trainer.recorder.run_dir,
            trainer.job,
            context,
            parameters=parameters,
            serving=serving(trainer),
            resumed_at=resumed_at,
            random_streams=trainer.checkpoints.random_streams,
            environ=environ,
            startup=found,
            start=trainer.fingerprints(),
        )
        watch_losses(trainer.recorder, trainer.settings, context.val.bytes_per_token)
    told = introduction(trainer, context, parameters, resumed_at, found)
    trainer.recorder.say(told)
    if found.warning:
        trainer.recorder.say(f"warning: {found.warning}")
    trainer.recorder.status(step=trainer.progress.step)
    trainer.recorder.phase("model")
