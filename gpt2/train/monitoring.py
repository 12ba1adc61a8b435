"""Monitoring and profiling of a run while it trains, and the energy used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2.settings.schema import Resources
from gpt2.train.record import Recorder
from gpt2.train.run_context import RunContext
from lib.atomic_files import read_jsonl
from lib.gpu.device import pci_addresses
from lib.gpu.monitor import Monitor, energy
from lib.gpu.profiler import FOLDER as PROFILE_FOLDER
from lib.gpu.profiler import StepProfiler
from lib.gpu.sources import open_source
from lib.jobs.run_files import GPU_FILE

Say = Callable[[str], None]


@contextmanager
def watching(context: RunContext, run_dir: Path, say: Say) -> Iterator[None]:
    """Monitor the GPUs of the run inside the block; does nothing without GPUs.

    The first rank of several does it for all ranks of its machine. A monitor that
    fails is reported in the log and does not end the run.
    """
    device, split = context.device, context.split
    if not device.is_gpu or split.rank:
        yield
        return
    try:
        pci = pci_addresses(device, split.world_size)
        source = open_source(device.backend, pci)
    except Exception as error:  # whatever it is, it must not end the training
        say(f"the GPU is not watched: {error}")
        yield
        return
    with Monitor(source, run_dir / GPU_FILE, say):
        yield


def profiling(
    resources: Resources, context: RunContext, recorder: Recorder
) -> StepProfiler:
    """Profiler of the updates that PROFILE_STEPS names, on the first rank alone."""
    wanted = resources.profile_steps
    is_on = resources.profile and context.ranks.is_first
    updates = range(wanted[0], wanted[-1] + 1) if is_on else range(0)
    folder = recorder.run_dir / PROFILE_FOLDER
    return StepProfiler(folder, updates, context.device, recorder.say)


def energy_used(run_dir: Path, tokens: int) -> dict[str, float]:
    """Energy of the run's GPUs over all its attempts, in J, and per million tokens.

    Empty if it is not known. Evaluations and repeated updates are included;
    preparation is not, since another run may train on the GPU at that time.
    """
    try:
        joules = energy(read_jsonl(run_dir / GPU_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if joules is None:
        return {}
    return {"energy_j": joules, "energy_j_per_mtoken": joules / tokens * 1e6}
