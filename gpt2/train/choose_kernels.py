"""Choose kernels in a separate process, so that trials leave no state behind.

Training would reuse a cuDNN plan, a tile or a compiled function from a trial, although
it was made for other strides or next to other work. The choices go into kernels.json
(gpt2/model/autotune/store.py); compiled code stays in the caches of torch and Triton on
disk, where training finds it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gpt2.model.autotune import attention, mlp, store
from gpt2.model.autotune.choice import (
    arm_of,
    choose_backends,
    likely,
    wants_tuning,
)
from gpt2.model.autotune.store import Tuning, file_of
from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.plan.jobs import Job
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.schema import Settings
from gpt2.train.failures import is_out_of_memory
from gpt2.train.micro_step import MicroStep
from lib.gpu import device as devices
from lib.gpu.device import DeviceInfo
from lib.jobs.fast_exit import leave
from lib.jobs.turn import Turn
from lib.kernels import ahead, choices
from lib.output import EXIT_OK, EXIT_OOM

ROOT = Path(__file__).resolve().parents[2]
PARTS = "--parts"  # instead of a file for the answer: compile and choose nothing
PASSES = 2  # of a micro step: the first meets every kernel, the second any that is left


def known(
    settings: Settings,
    device: DeviceInfo,
    batch: int,
    file: Path,
    say: Callable[[str], None],
    dropped: Collection[str] = (),
    *,
    here: bool = False,
) -> Tuning | None:
    """Choices in kernels.json for these settings, after missing ones were tried in a
    separate process; None if there is nothing to choose. The choices are loaded.

    here: try them in this process, which must not train. Raises torch.OutOfMemoryError
    if the trials ran out of memory. Other failures of the trials in another process are
    reported, and training uses the first choices.
    """
    on = device.torch_device
    if not wants_tuning(settings, on):
        return None
    where = store.place(on)
    # Runs of one arm that start together tune once; other arms need not wait.
    with store.exclusive(file, arm_of(settings, batch)):
        found = store.read(file, where)
        if not is_complete(found, settings, on, batch, dropped):
            # Its own choices stay; of another matrix's it takes what is missing.
            found = store.add(file, where, store.kept(where))
        if not is_complete(found, settings, on, batch, dropped):
            request = _request(settings, device, batch, found, dropped)
            if not here:
                say("choosing kernels for this arm, in a process of its own")
            new = _tuned(request) if here else _in_a_process(request, say)
            if new is not None:
                found = store.add(file, where, new)
                store.keep(where, new)
    choices.load(found.choices)
    return found


def choose_for(job: Job, run_dir: Path) -> int:
    """Kernels of a run that will begin soon, at the configured micro batch, into the
    kernels.json that it will read; the exit code."""
    resources = job.settings.resources
    device = devices.select_device(resources.device)
    file = file_of(job, run_dir)
    known(job.settings, device, resources.batch_size, file, print, here=True)
    return EXIT_OK


def is_complete(
    tuning: Tuning,
    settings: Settings,
    device: torch.device,
    batch: int,
    dropped: Collection[str],
) -> bool:
    """Whether paths, tiles and algorithms are known for these settings."""
    if unranked(settings, batch, tuning):
        return False
    built, _ = choose_backends(settings, device, batch, tuning, dropped)
    return arm_of(built, batch) in tuning.arms


def tune(
    settings: Settings,
    device: DeviceInfo,
    batch: int,
    tuning: Tuning,
    dropped: Collection[str] = (),
    passed: Callable[[str], None] = lambda stage: None,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    compiled_elsewhere: Callable[[], object] = lambda: None,
) -> Tuning:
    """``tuning`` with what these settings need, found in this process: ranks of the
    paths that `auto` chooses from, then tiles and algorithms of a real micro step.

    passed: called with the name of each stage when it is done. alone: makes a context
    in which no other run uses the device, for what is timed; nothing is compiled there
    that can be compiled before, as a run that trains waits meanwhile.
    compiled_elsewhere: waits for another process that compiles the parts to the caches
    on disk, while this one compiles the micro step of the paths that likely win.
    """
    on = device.torch_device
    found = dataclasses.replace(tuning, ranks=dict(tuning.ranks))
    choices.load(tuning.choices)
    guess, once = _guessed_micro_step(settings, device, batch, found, dropped)
    passed("micro step compiled")
    compiled_elsewhere()
    compile_parts(settings, on, batch, found)
    choices.reconsider()
    passed("kernels compiled")
    with alone(), choices.timing():
        for part in unranked(settings, batch, found):
            key = part.key(settings, batch)
            found.ranks[key], line = part.rank(settings, on, batch)
            found.lines = {**found.lines, key: line}
            passed(line.partition(":")[0])
    built, _ = choose_backends(settings, on, batch, found, dropped)
    if built != guess:
        once = _micro_step(built, device, batch)
        once()
        passed("another micro step compiled")
    assert once is not None, "compiled for what is built"
    choices.reconsider()
    with alone(), choices.timing():
        for _ in range(PASSES):
            once()
    passed("micro step")
    found.choices = {**found.choices, **choices.found()}
    found.arms = [*found.arms, arm_of(built, batch)]
    return found


def unranked(settings: Settings, batch: int, tuning: Tuning) -> list[ModuleType]:
    """attention or mlp, where the settings leave a choice that is not made yet."""
    resources = settings.resources
    parts = ((attention, resources.attention_backend), (mlp, resources.mlp_backend))
    return [
        part
        for part, backend in parts
        if backend == "auto" or resources.other_kernels
        if part.key(settings, batch) not in tuning.ranks
    ]


def compile_parts(
    settings: Settings, on: torch.device, batch: int, tuning: Tuning
) -> None:
    """Compile what will be timed, into the caches on disk and this process."""
    attention.compile_ahead(settings, on, batch)
    for part in unranked(settings, batch, tuning):
        part.warm_up(settings, on, batch)
    ahead.wait()


def _guessed_micro_step(
    settings: Settings,
    device: DeviceInfo,
    batch: int,
    tuning: Tuning,
    dropped: Collection[str],
) -> tuple[Settings | None, Callable[[], None] | None]:
    """Settings with the paths that likely win and their micro step, compiled; None and
    None if these do not run, which a trial will find out and report."""
    on = device.torch_device
    guess = likely(settings, on, batch, tuning)
    built, _ = choose_backends(settings, on, batch, guess, dropped)
    once = _micro_step(built, device, batch)
    try:
        once()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None, None
    return built, once


def _micro_step(built: Settings, device: DeviceInfo, batch: int) -> Callable[[], None]:
    """The micro step that will train, on weights and tokens that are thrown away."""
    on = device.torch_device
    model = GPT(built)
    init_parameters(model, 0)
    model.to(on)
    forward: Callable[..., torch.Tensor] = model
    if built.resources.compile_model:
        forward = CompiledGPT(model, built.resources.compile_mode)
    step = MicroStep(forward, device, built.optim.mixed_precision)
    shape = (batch, built.model.block_size)
    tokens = torch.randint(built.vocab_size, shape, device=on)
    # Two tensors, as in training: for one given twice torch.compile makes another
    # graph, which no run would find in the cache.
    targets = tokens.clone()

    def once() -> None:
        step(tokens, targets)
        model.zero_grad(set_to_none=True)
        devices.synchronize(device)

    return once


# ---- the process ----------------------------------------------------------------


def _request(
    settings: Settings,
    device: DeviceInfo,
    batch: int,
    tuning: Tuning,
    dropped: Collection[str],
) -> dict[str, Any]:
    """Arguments of ``tune`` as plain data, and when the work began."""
    return {
        "settings": settings.to_dict(),
        "device": f"{device.backend}:{device.torch_device.index}",
        "batch": batch,
        "tuning": dataclasses.asdict(tuning),
        "dropped": sorted(dropped),
        "began": time.time(),
    }


def _in_a_process(
    request: Mapping[str, Any], say: Callable[[str], None]
) -> Tuning | None:
    """Result of ``tune`` in a separate process; None if that fails."""
    with tempfile.TemporaryDirectory(prefix="kablate-tuning-") as folder:
        answer = Path(folder, "answer.json")
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(answer)],
            input=json.dumps(request),
            stdout=sys.stderr,
            text=True,
            cwd=ROOT,
        )
        if done.returncode == EXIT_OOM:
            raise torch.OutOfMemoryError("out of memory while choosing kernels")
        if done.returncode:
            say(
                "warning: no kernels could be chosen (see above): attention is left to "
                "torch or the plain formulas, the MLP to torch"
            )
            return None
        return Tuning.of(json.loads(answer.read_text()))


def main(answer: Path) -> int:
    """Read a request from stdin, tune, write the answer; the exit code."""
    try:
        found = _tuned(json.load(sys.stdin))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(error, file=sys.stderr)
        return EXIT_OOM
    answer.write_text(json.dumps(dataclasses.asdict(found)))
    return EXIT_OK


def _tuned(request: Mapping[str, Any]) -> Tuning:
    """Result of ``tune``, the parts being compiled by another process meanwhile."""
    watch = Stopwatch(request["began"])
    alone = partial(Turn.from_environment(os.environ).alone, lambda: None)
    with _compiling_parts(request) as compiled_elsewhere:
        settings, device, batch, tuning = _start(request)
        watch("start")
        found = tune(
            settings,
            device,
            batch,
            tuning,
            request["dropped"],
            watch,
            alone,
            compiled_elsewhere,
        )
    print(f"kernels chosen in {watch}", file=sys.stderr)
    return found


def _start(request: Mapping[str, Any]) -> tuple[Settings, DeviceInfo, int, Tuning]:
    """Device and arithmetic as in training; settings, device, micro batch, tuning."""
    settings = settings_from_dict(request["settings"])
    resources = settings.resources
    device = devices.select_device(request["device"])
    devices.set_math(device, tf32=resources.tf32, benchmark=resources.cudnn_benchmark)
    return settings, device, request["batch"], Tuning.of(request["tuning"])


@contextmanager
def _compiling_parts(request: Mapping[str, Any]) -> Iterator[Callable[[], int]]:
    """A process that compiles the parts, as Python lets one thread compile at a time;
    a function that waits for it. What fails there is compiled again here."""
    words = [sys.executable, "-m", __spec__.name, PARTS]
    with tempfile.TemporaryFile("w+") as file:  # a pipe would fill until torch is there
        json.dump(request, file)
        file.seek(0)
        with subprocess.Popen(words, stdin=file, stdout=sys.stderr) as process:
            try:
                yield process.wait
            finally:
                process.kill()


def compile_only() -> int:
    """Read a request from stdin and compile its parts; the exit code."""
    settings, device, batch, tuning = _start(json.load(sys.stdin))
    compile_parts(settings, device.torch_device, batch, tuning)
    return EXIT_OK


class Stopwatch:
    """Seconds that stages took, one after the other."""

    def __init__(self, began: float) -> None:
        """began: Unix seconds."""
        self._marks = [("", began)]

    def __call__(self, stage: str) -> None:
        """This stage is done."""
        self._marks.append((stage, time.time()))

    def __str__(self) -> str:
        pairs = list(pairwise(self._marks))
        stages = [f"{name} {end - start:.1f}" for (_, start), (name, end) in pairs]
        total = self._marks[-1][1] - self._marks[0][1]
        return f"{total:.1f} s: {', '.join(stages)}"


if __name__ == "__main__":
    argument = sys.argv[1]
    # A run waits for this process, which would wait for one compile worker per core:
    # 3 s on an H200. All that it found is written, and the workers end by themselves.
    leave(compile_only() if argument == PARTS else main(Path(argument)))
