"""Faults for tests, put into the processes that tests start.

sitecustomize.py imports this where a variable of KABLATE_TEST_ is set; these change
gpt2.train and others:

KABLATE_TEST_FAULTS="nan@5,oom@3": each is KIND@UPDATE or KIND@UPDATE@NAME (only in the
run of that name); nan (a loss), oom (while the micro batch is the configured one),
crash, kill (SIGKILL to itself), hang, disk, hold (wait for a gate, or until the run is
asked to stop); oom-ahead@0 (when a trainer is built before its turn); hold-begun,
hold-weights, hold-state (wait for a gate within the checkpoint of this update: before
its files, after the first, after the second); hold-data@0 (before each document that is
prepared).
KABLATE_TEST_GATE: the file that a hold waits for, for ever if there is none; GATE.held
appears when it is reached (Gate in tests/scratch.py).
KABLATE_TEST_BROKEN_GPU: the runner's GPUs are only claimed, by an nvidia-smi of the
test; runs use the CPU instead, and on the GPU of this name fail as CUDA does.
KABLATE_TEST_CHECKPOINT_SECONDS: seconds to wait before each file of a checkpoint.
KABLATE_TEST_CERTIFICATES: a file that certificates wait for before they are checked.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.machinery
import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

FAULTS, SECONDS = "KABLATE_TEST_FAULTS", "KABLATE_TEST_CHECKPOINT_SECONDS"
BROKEN = "KABLATE_TEST_BROKEN_GPU"
CERTIFICATES, GATE = "KABLATE_TEST_CERTIFICATES", "KABLATE_TEST_GATE"
HOLDS = ("hold", "hold-begun", "hold-weights", "hold-state", "hold-data")

# ---- faults of an update --------------------------------------------------------


def wanted(update: int, name: str) -> set[str]:
    """The kinds of fault that are to happen in this update of the named run."""
    found = set()
    for text in filter(None, os.environ.get(FAULTS, "").split(",")):
        kind, _, where = text.partition("@")
        number, _, only = where.partition("@")
        known = (*ACTS, *HOLDS)
        if kind not in known or not number.isdecimal():
            raise ValueError(f"{FAULTS}: {text!r} is not KIND@UPDATE, of {known}")
        if int(number) == update and only in ("", name):
            found.add(kind)
    return found


def _nan() -> None:
    """Happens after the update."""


def _oom() -> NoReturn:
    import torch

    raise torch.OutOfMemoryError("out of memory (injected)")


def _crash() -> NoReturn:
    raise RuntimeError("crash (injected)")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> NoReturn:
    while True:
        time.sleep(60.0)


def _disk() -> NoReturn:
    raise OSError(errno.ENOSPC, "no space left (injected)")


ACTS = {
    "nan": _nan,
    "oom": _oom,
    "crash": _crash,
    "kill": _kill,
    "hang": _hang,
    "disk": _disk,
    "oom-ahead": _oom,
}


def hold(goes_on: Callable[[], object] = lambda: False) -> None:
    """Wait for the gate, or for something else."""
    gate = os.environ.get(GATE, "")
    if gate:
        open(f"{gate}.held", "w").close()
    while not os.path.exists(gate) and not goes_on():
        time.sleep(0.01)


def change_trainer(trainer: Any) -> None:
    """Let faults happen at the beginning of an update."""
    true = trainer.Trainer.update

    def update(self: Any, data: Any) -> None:
        kinds = wanted(self.progress.step + 1, self.job.name)
        if self.split.micro_batch != self.resources.batch_size:
            kinds -= {"oom"}
        if "hold" in kinds:
            hold(self.stop.reason)
        for kind, act in ACTS.items():
            if kind in kinds:
                act()
        true(self, data)
        if "nan" in kinds:
            self._sums[0] = math.nan

    trainer.Trainer.update = update
    make = trainer.Trainer.__init__

    def init(self: Any, job: Any, *given: Any) -> None:
        make(self, job, *given)
        if "oom-ahead" in wanted(0, job.name) and not self.turn.is_mine:
            _oom()

    trainer.Trainer.__init__ = init


# ---- claimed GPUs ---------------------------------------------------------------


def change_device(prepare: Any) -> None:
    """A CPU for each GPU that is claimed, and an error for the broken one."""
    true = prepare.select_device

    def select(name: str, environ: Any, ranks: Any) -> Any:
        if BROKEN not in os.environ:
            return true(name, environ, ranks)
        if environ.get("KABLATE_GPUS") == os.environ[BROKEN]:
            raise RuntimeError("CUDA error: unspecified launch failure\n(injected)")
        return true("cpu", environ, ranks)

    prepare.select_device = select


# ---- slow checkpoints -----------------------------------------------------------


def change_checkpoint(checkpoint: Any) -> None:
    """Wait before each file of a checkpoint, for a kill to strike there."""
    write_files, write_weights = checkpoint._write_files, checkpoint.write_weights
    write_json = checkpoint.atomic_write_json
    inside: list[int] = []  # the update, while files of its checkpoint are written

    def linger(place: str) -> None:
        if inside and place in wanted(inside[-1], ""):
            hold()
        if inside and os.environ.get(SECONDS):
            time.sleep(float(os.environ[SECONDS]))

    def slow_files(partial: Any, stamp: Any, *given: Any) -> None:
        inside.append(stamp.step)
        try:
            linger("hold-begun")
            write_files(partial, stamp, *given)
        finally:
            inside.pop()

    def slow_weights(*given: Any) -> None:
        write_weights(*given)
        linger("hold-weights")

    def slow_json(*given: Any) -> None:
        linger("hold-state")
        write_json(*given)

    checkpoint._write_files = slow_files
    checkpoint.write_weights = slow_weights
    checkpoint.atomic_write_json = slow_json


# ---- preparation of data --------------------------------------------------------


def change_partial(partial: Any) -> None:
    add = partial.Partial.add

    def held(self: Any, item: Any) -> None:
        if "hold-data" in wanted(0, ""):
            hold()
        add(self, item)

    partial.Partial.add = held


# ---- certificates that take their time ------------------------------------------


def change_certificates(certify_steps: Any) -> None:
    """Wait for a file before the certificates of the steps."""
    true = certify_steps.certify_plan

    def certify_plan(*given: Any) -> Any:
        while CERTIFICATES in os.environ and not os.path.exists(
            os.environ[CERTIFICATES]
        ):
            time.sleep(0.05)
        return true(*given)

    certify_steps.certify_plan = certify_plan


# ---- putting them in ------------------------------------------------------------

CHANGES = {
    "gpt2.train.trainer": change_trainer,
    "gpt2.train.checkpoint": change_checkpoint,
    "gpt2.train.prepare": change_device,
    "gpt2.verify.certify_steps": change_certificates,
    "gpt2.data.partial": change_partial,
}


class Changing(importlib.abc.MetaPathFinder):
    """Changes modules as they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None, name
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            CHANGES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Change the modules: those that are imported now, the others when they are."""
    for name in CHANGES.keys() & sys.modules.keys():
        CHANGES[name](sys.modules[name])
    sys.meta_path.insert(0, Changing())
