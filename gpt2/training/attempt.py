"""One call of the trainer: lock, set-up, training, and how it ended.

Whatever happens, status.json and the exit code tell it; the runner acts on
those two alone.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from gpt2.attend.choice import choose
from gpt2.attend.request import place_of, served_by
from gpt2.corpora.tokenfiles import MissingData
from gpt2.init import init_parameters
from gpt2.memory import memory
from gpt2.model import GPT
from gpt2.plan import Job
from gpt2.schema import IDENTITY_PARTS, Resources, Settings
from gpt2.training import checkpoint, manifest
from gpt2.training.alignment import unaligned
from gpt2.training.auto_batch import largest, within_margin
from gpt2.training.batch_split import BatchSplit, split_batch
from gpt2.training.data import load_data
from gpt2.training.failures import (
    EXIT_CRASH,
    EXIT_USAGE,
    LessMemory,
    OutOfMemory,
    Refused,
    end_of,
    is_out_of_memory,
)
from gpt2.training.material import Material
from gpt2.training.ranks import Ranks
from gpt2.training.record import Follower, Recorder
from gpt2.training.sanity import watch_losses
from gpt2.training.stopping import StopRequest
from gpt2.training.tracking import tracking
from gpt2.training.trainer import EXPORT_FILE, Trainer
from gpt2.training.watch import energy_used, watching
from lib import device as devices
from lib import startup
from lib.human import size
from lib.process import EXIT_DONE
from lib.rundir import (
    JOB_FILE,
    LockHeld,
    atomic_write_json,
    diff_fields,
    lock,
    now,
    read_json,
    read_status,
    remove_leftovers,
    run_lock,
    write_status,
)

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
    max_steps = job.settings.optim.max_iters
    recorder: Recorder = Follower(run_dir, max_steps)
    stop = StopRequest.from_environment(environ)
    if ranks.is_first:
        claim(job, run_dir)
    if read_status(run_dir)["status"] == "done":  # its checkpoints may be gone
        return _complain(f"{run_dir} is done already", EXIT_DONE)
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
                _announce(job, run_dir, environ)
            result = _train(job, recorder, stop, micro_batch, environ, ranks)
            last = recorder.last_step()  # by the clock, if that was the budget
            recorder.status(status="done", step=last, max_steps=last, result=result)
            summary.update(result)
        except Exception as error:
            recorder.close_bar()
            return _tell_end(run_dir, error, ranks)
    ranks.leave()
    if ranks.is_first and not job.settings.resources.keep_checkpoints:
        checkpoint.drop_all(run_dir / checkpoint.FOLDER)
    recorder.close_bar()
    recorder.say(_closing(result))
    return EXIT_DONE


def _tell_end(run_dir: Path, error: Exception, ranks: Ranks) -> int:
    """Report a run that did not come to its end; the exit code.

    Of several ranks the first tells the end, unless another one knows the cause:
    memory or a disk that ran out are no matter of all ranks.
    """
    end = end_of(error)
    if end.exit_code == EXIT_CRASH:
        traceback.print_exception(error)
    told = not ranks.is_single and read_status(run_dir)["status"] != "running"
    knows = ranks.is_first or end.failure in ("oom", "disk")
    if told or not knows:
        return _complain(f"rank {ranks.rank}: {end.message}", end.exit_code)
    with suppress(OSError):  # on a full disk the exit code has to do
        write_status(
            run_dir, status=end.status, failure=end.failure, message=end.message
        )
    return _complain(f"{end.status}: {end.message}", end.exit_code)


# ---- the run directory ----------------------------------------------------------


def claim(job: Job, run_dir: Path) -> None:
    """Write job.json and clear half-written files away; hold the lock for this.

    Raises Refused, field by field, if the directory is another run's.
    """
    path, mine = run_dir / JOB_FILE, job.to_json()
    theirs = _read_job(path)
    if theirs and theirs.get("hash") != job.hash:
        differences = "\n".join(
            f"  {name}: {old!r} there, {new!r} asked for"
            for name, old, new in diff_fields(_comparable(theirs), _comparable(mine))
        )
        raise Refused(
            f"{run_dir} holds another run (hash {theirs.get('hash')}, not "
            f"{job.hash}):\n{differences}\nSet these back, or use another run directory"
        )
    remove_leftovers(run_dir)
    if theirs != mine:
        atomic_write_json(path, mine)


def _read_job(path: Path) -> dict[str, Any]:
    """job.json as it stands; {} if there is none or it is damaged (the stamps of
    the checkpoints still tell whose they are)."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the hash is of, from the JSON of a job."""
    settings = job.get("settings", {})
    resources = settings.get("resources", {})
    names = ("batch_size", "gradient_accumulation")
    return {
        **{part: settings.get(part) for part in IDENTITY_PARTS},
        "seed": job.get("seed"),
        "effective batch": " x ".join(str(resources.get(name)) for name in names),
    }


def _announce(job: Job, run_dir: Path, environ: Mapping[str, str]) -> None:
    """status.json of an attempt that begins."""
    given = environ.get("KABLATE_ATTEMPT", "")
    attempt = int(given) if given.isdecimal() else read_status(run_dir)["attempt"] + 1
    write_status(
        run_dir,
        status="running",
        failure=None,
        message="",
        max_steps=job.settings.optim.max_iters,
        attempt=attempt,
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
    material = _material(job, recorder.run_dir, micro_batch, environ, ranks)
    if job.settings.resources.auto_batch and micro_batch is None:
        material = _fit(job, recorder, material)
    if environ.get("KABLATE_LAST_END") == KILLED_FOR_MEMORY:
        material = _shrink(job, recorder, material, recorder.last_step(), None)
    while True:
        trainer = None
        try:
            trainer = _build(job, material, recorder, stop)
            _start(trainer, material, environ)
            with watching(material, recorder.run_dir, recorder.say):
                result = trainer.run()
            return result | energy_used(recorder.run_dir, result["tokens"])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            step = trainer.progress.step if trainer else 0
            if not ranks.is_single:
                _less_memory(material.split, error)
                raise LessMemory(f"out of memory on rank {ranks.rank}") from error
            material = _shrink(job, recorder, material, step, error)
        del trainer
        _free_memory(material)


def _fit(job: Job, recorder: Recorder, material: Material) -> Material:
    """The material with the micro batch that fits: an earlier attempt's, or the
    largest that one update on throwaway weights does not run out of memory with."""
    split, ranks = material.split, material.ranks
    known = manifest.settled_micro_batch(manifest.read(recorder.run_dir, job.hash))
    known = ranks.from_first(known)
    if known and split.effective_batch % (known * split.world_size) == 0:
        return _with_micro_batch(material, known)
    if not material.device.is_gpu:
        recorder.say(f"AUTO_BATCH is for GPUs: the micro batch is {split.micro_batch}")
        return material
    tried: list[str] = []

    def fits(split: BatchSplit) -> bool:
        good = _fits(job, recorder, replace(material, split=split))
        tried.append(f"{split.micro_batch} {'fits' if good else 'does not'}")
        return good

    found = min(ranks.gather(largest(split, fits).micro_batch))
    recorder.say(f"AUTO_BATCH: micro batch {found} ({', '.join(tried)})")
    return _with_micro_batch(material, found)


def _with_micro_batch(material: Material, micro_batch: int) -> Material:
    old = material.split
    split = split_batch(old.effective_batch, micro_batch, old.world_size, old.rank)
    return replace(material, split=split)


def _fits(job: Job, recorder: Recorder, material: Material) -> bool:
    """Whether one update fits, with room to spare; nothing of it is left."""
    alone = replace(job, settings=job.settings.replace(num_workers=0))
    quiet = Follower(recorder.run_dir, recorder.max_steps)

    def one_update() -> None:
        single = replace(material, ranks=Ranks())
        trainer = _build(alone, single, quiet, StopRequest())
        trainer.update(trainer.micro_batches())

    try:
        return within_margin(material.device, one_update)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        _free_memory(material)
        devices.reset_peak_memory(material.device)


def _shrink(
    job: Job,
    recorder: Recorder,
    material: Material,
    step: int,
    error: Exception | None,
) -> Material:
    """The material with half the micro batch, said and recorded."""
    split = _less_memory(material.split, error)
    recorder.close_bar()
    recorder.say(
        f"out of memory after step {step} with micro batch "
        f"{material.split.micro_batch}: going on from the last checkpoint with "
        f"{split.micro_batch} and {split.accumulation} micro steps"
    )
    if material.ranks.is_first:
        manifest.note_out_of_memory(
            recorder.run_dir, job, material, step=step, micro_batch=split.micro_batch
        )
    return replace(material, split=split)


def _less_memory(split: BatchSplit, error: Exception | None) -> BatchSplit:
    smaller = split.smaller()
    if smaller is None:
        raise OutOfMemory(
            "out of memory with a micro batch of one sequence: lower "
            "GPT2_BLOCK_SIZE or the model's size, use bf16, another attention "
            "kernel, or a device with more memory"
        ) from error
    return smaller


def _free_memory(material: Material) -> None:
    """Give back what the failed attempt held, compiled code included."""
    gc.collect()
    torch.compiler.reset()
    if material.device.is_gpu:
        torch.cuda.empty_cache()


def _material(
    job: Job,
    run_dir: Path,
    micro_batch: int | None,
    environ: Mapping[str, str],
    ranks: Ranks,
) -> Material:
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
    return Material(device=device, split=split, train=train, val=val, ranks=ranks)


def _device(name: str, environ: Mapping[str, str], ranks: Ranks) -> devices.DeviceInfo:
    """The device of this rank, within what the runner has set aside for us.

    Raises ValueError if that is not what torch sees.
    """
    device = devices.select_device(name)
    if device.is_gpu and not ranks.is_single:
        device = devices.select_device(f"{device.backend}:{ranks.local}")
    promised = environ.get("KABLATE_GPUS", "")
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
    job: Job, material: Material, recorder: Recorder, stop: StopRequest
) -> Trainer:
    """A trainer over the initial weights. Raises Refused as _material."""
    try:
        chosen = _choose_attention(job, material, recorder)
        devices.seed_everything(job.seed + material.ranks.rank * RANK_STRIDE)
        model = GPT(chosen)
        init_parameters(model, job.seed)
        model.to(material.device.torch_device)
        return Trainer(job, model, material, recorder, stop)
    except ValueError as error:
        raise Refused(str(error)) from error


def _choose_attention(job: Job, material: Material, recorder: Recorder) -> Settings:
    """The settings to build the model with: `auto` on a GPU becomes a path."""
    name, told = choose(
        job.settings, material.device.torch_device, material.split.micro_batch
    )
    if told:
        recorder.say(told)
    return job.settings.replace(attention_backend=name)


def _built_with(trainer: Trainer) -> Settings:
    """The settings with the path of attention that was chosen."""
    backend = cast(GPT, trainer.model).layers()[0].attn.backend
    return trainer.settings.replace(attention_backend=backend)


def _attention_of(trainer: Trainer) -> str:
    """The paths that serve this model in training."""
    compiled = trainer.settings.resources.compile_model
    place = place_of(trainer.device.torch_device.type, compiled)
    return served_by(_built_with(trainer), place)


def _start(trainer: Trainer, material: Material, environ: Mapping[str, str]) -> None:
    """Resume, write the manifest, introduce the run."""
    resumed_at = trainer.resume()
    settings = trainer.settings
    found = startup.look(
        material.device,
        settings.optim.mixed_precision,
        settings.model.head_dim,
        environ,
    )
    parameters = sum(p.numel() for p in trainer.parameters)
    if material.ranks.is_first:
        manifest.write(
            trainer.recorder.run_dir,
            trainer.job,
            material,
            parameters=parameters,
            attention=_attention_of(trainer),
            resumed_at=resumed_at,
            environ=environ,
            startup=found,
        )
        watch_losses(trainer.recorder, trainer.settings, material.val.bytes_per_token)
    told = _introduction(trainer, material, parameters, resumed_at, found)
    trainer.recorder.say(told)
    if found.warning:
        trainer.recorder.say(f"warning: {found.warning}")
    trainer.recorder.status(step=trainer.progress.step)


# ---- what a reader is told ------------------------------------------------------


def _introduction(
    trainer: Trainer,
    material: Material,
    parameters: int,
    resumed_at: int | None,
    found: startup.Startup,
) -> str:
    job, split, settings = trainer.job, material.split, trainer.settings
    step = "" if job.step is None else f"step {job.step} "
    rows = {
        "attention": _attention_of(trainer),
        **found.rows(),
        "precision": settings.optim.mixed_precision
        + (", compiled" if settings.resources.compile_model else ""),
        "data": f"{material.train.path.parent}, {material.train.tokens.size:,} "
        f"training and {material.val.tokens.size:,} validation tokens",
        "parameters": f"{parameters:,}",
        "batch": f"{settings.effective_batch} sequences of "
        f"{settings.model.block_size} tokens: micro batch {split.micro_batch} x "
        f"accumulation {split.accumulation}"
        + (f" x {split.world_size} ranks" if split.world_size > 1 else ""),
        "threads": f"{torch.get_num_threads()}",
        "start": ("fresh" if resumed_at is None else f"resumed at step {resumed_at}"),
    }
    if material.device.is_gpu:
        expected = memory(_built_with(trainer), split.micro_batch).total
        rows["peak memory"] = f"about {size(expected)} by estimate"
    odd = unaligned(settings)
    if material.device.is_gpu and odd:
        rows["unaligned"] = f"no multiple of 64, which is slower: {', '.join(odd)}"
    title = f"{step}{job.name}, seed {job.seed}, run {job.hash}: {job.title}"
    table = "\n".join(f"  {name:<14}{value}" for name, value in rows.items())
    return f"{title}\n{devices.describe(material.device)}\n{table}"


def _closing(result: Mapping[str, Any]) -> str:
    return (
        f"done: validation loss {result['val_loss']:.4f} (best "
        f"{result['best_val_loss']:.4f}), training loss {result['train_loss']:.4f}, "
        f"{result['seconds']:.1f} s in all, "
        f"{result['mean_epoch_seconds']:.1f} s an epoch; the model is in {EXPORT_FILE}"
    )
