"""Choose kernels for the runs that begin first, while the steps are still verified.

Verification uses a CPU, and the GPUs are idle until it ends. Kernels are chosen and
graphs compiled there during that time, as the runs would do it; the runs then find them
in kernels.json and in the cache of compiled code. Nothing is trained. Torch-free.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from gpt2.plan.names import KERNELS_ONLY
from lib.atomic_files import atomic_write_text
from lib.jobs.linux_processes import end_with
from lib.jobs.options import Options
from lib.jobs.process import Task
from lib.jobs.slots import have_own_gpus


@contextmanager
def kernels_chosen_meanwhile(
    tasks: Iterable[Task], options: Options
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run one process for each GPU during the block; those that have not ended by then
    are killed. The run itself tries again what fails here, and reports it."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # A CPU has no choice, and is busy with the certificates.
        if have_own_gpus(options.slots):
            pairs = zip(first_of(tasks, options), options.slots, strict=False)
            processes += [_start(task, slot) for task, slot in pairs]
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):  # its group: it has started others
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # stuck in its driver
                process.wait(timeout=10.0)


def first_of(tasks: Iterable[Task], options: Options) -> list[Task]:
    """The tasks that the scheduler begins with, at most one for each slot, each of
    which compiles other code."""
    order = list(tasks)
    if options.longest_first:
        order.sort(key=lambda task: -task.cost)
    by_code: dict[str, Task] = {}
    for task in order:
        by_code.setdefault(task.code, task)
    by_code.pop("", None)
    return list(by_code.values())[: len(options.slots)]


def _start(task: Task, slot: Mapping[str, str]) -> subprocess.Popen[bytes]:
    for name, text in task.files.items():
        atomic_write_text(task.run_dir / name, text)
    runner = os.getpid()
    return subprocess.Popen(
        [*task.command, KERNELS_ONLY],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **slot},
        start_new_session=True,
        preexec_fn=lambda: end_with(runner),  # the runner has one thread
    )
