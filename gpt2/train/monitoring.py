"""The GPU monitor around a training: who watches what, and the energy used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2.train.run_context import RunContext
from lib.gpu.device import pci_addresses
from lib.gpu.monitor import Monitor, energy
from lib.gpu.sources import open_source
from lib.jobs.run_files import GPU_FILE, read_jsonl

Say = Callable[[str], None]


@contextmanager
def watching(context: RunContext, run_dir: Path, say: Say) -> Iterator[None]:
    """Watch the GPUs of the run in the meantime; without any, nothing happens.

    The first rank of several watches for all ranks of its machine. What cannot be
    watched is said once and fails nothing.
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


def energy_used(run_dir: Path, tokens: int) -> dict[str, float]:
    """Energy of the run's GPUs over all its attempts, in J, and per million tokens.

    Empty where it is not known. Evaluation, compilation and repeated updates are
    in it: it is what the run took.
    """
    try:
        joules = energy(read_jsonl(run_dir / GPU_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if joules is None:
        return {}
    return {"energy_j": joules, "energy_j_per_mtoken": joules / tokens * 1e6}
