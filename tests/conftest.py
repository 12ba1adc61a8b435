"""Setup of every test: a clean environment, and GPU tests only on a GPU."""

import fcntl
import gc
import math
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest

from lib.gpu.compile_cache import INDUCTOR, TRITON, cache_environment
from tests import card

# Settings of a `make` that started the tests must not reach those that they start.
FROM_MAKE = (
    *("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS"),
    *(
        "KABLATE_SETTINGS",
        "KABLATE_JOBS",
        "KABLATE_PART",
        "KABLATE_NOTED",
        "KABLATE_VARIABLES",
    ),
)

# The size of the terminal that the tests were started from. readline, which pytest
# imports, sets it for child processes, and with it how their tables are broken.
SIZE = ("COLUMNS", "LINES")

CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "home"

# Workers share cores. Before torch is imported, as by the conftest of a folder that was
# named on the command line, which comes before pytest_configure.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    gc.disable()  # until all is imported: what that creates lives as long as we do
    # How long an example takes says how busy the machine is, and nothing else. The
    # same examples each time, as no change may fail by chance.
    hypothesis.settings.register_profile(
        "repeatable",
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        derandomize=True,
        database=None,
    )
    hypothesis.settings.load_profile("repeatable")
    for name in (*FROM_MAKE, *SIZE):
        os.environ[name] = ""  # os.environ does not know what readline has set
        del os.environ[name]
    # Compiled code and chosen kernels, kept from one session to the next, are not those
    # of the developer's own runs; `make clean` removes them. torch and Triton take the
    # same folders where a test compiles in its own process.
    for name in (INDUCTOR, TRITON):
        os.environ.pop(name, None)
    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    os.environ.update(cache_environment(os.environ))
    own = os.environ.get("PYTHONPATH")  # packages of processes, too
    paths = [str(Path(__file__).with_name("faults")), *([own] if own else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    card.choose(os.environ.get("PYTEST_XDIST_WORKER", ""), card.visible())
    # Hundreds of processes would compile our modules, each worker rewrite all tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Started in the background of a script, we ignore Ctrl-C and so would our children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Workers, who all collect the same, wait for the first to compile a module."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    if alone or not isinstance(collector, pytest.Module):
        return (yield)
    with collector.path.open() as file:
        with suppress(OSError):  # on some network disks, where each compiles for itself
            fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, for all that are begun after one that wants the whole card wait behind it.
    items.sort(key=lambda item: gib_of(item) == math.inf)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not gpu_is_there():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time limit begins
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    gib = gib_of(item)
    if not gib or not gpu_is_there():
        return (yield)
    with card.held(card.shares_for(gib, card.size())):
        return (yield)


def gib_of(item: pytest.Item) -> float:
    """GPU memory that a test needs; 0 without a GPU."""
    marks = item.iter_markers("gpu")
    return max((mark.kwargs.get("gib", card.USUAL) for mark in marks), default=0.0)


@pytest.hookimpl(trylast=True)  # after fixtures have let go of their tensors
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and gpu_is_there():
        import torch

        torch.cuda.empty_cache()  # what is kept there no other process can have


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()  # what is imported stays: the collector need not look through it again


def gpu_is_there() -> bool:
    import torch  # a second: only where a test asks for a GPU

    return torch.cuda.is_available()
