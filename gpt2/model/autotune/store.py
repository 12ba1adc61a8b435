"""kernels.json: the kernels that the runs of a matrix train with, chosen once for all.

By place (the device and the versions of torch, Triton and cuDNN), since a choice is
valid nowhere else: the right backends of attention and MLP by speed, tiles and
algorithms, and the arms for which all of these are known.

Choices are also kept next to the compiled code, for this version of our kernels, where
the next matrix finds them: to make them again takes as long as to compile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from gpt2.plan.jobs import Job
from gpt2.plan.names import KERNELS_FILE
from lib.atomic_files import atomic_write_json, read_json
from lib.gpu.compile_cache import graphs_folder, operators_version

SCHEMA = 1
PATIENCE = 1800.0  # seconds that another process may take to tune


@dataclass(slots=True)
class Tuning:
    """Choices for one place. ranks: right backends by key, the fastest first; lines:
    results of their trials, for the log; choices: of lib/kernels/choices.py; arms:
    those for which ``choices`` are complete."""

    ranks: dict[str, list[str]] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    arms: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Tuning:
        """From plain data; raises TypeError if a part has another shape."""
        found = cls(**data)
        parts = (found.ranks, found.lines, found.choices)
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("a part of a tuning is not an object")
        return found


def file_of(job: Job, run_dir: Path) -> Path:
    """The file of the results folder that a run directory belongs to; of a run outside
    of a results folder, in its own directory."""
    parts, whole = Path(job.run_dir).parts, run_dir.absolute()
    inside = whole.parts[-len(parts) :] == parts
    return (whole.parents[len(parts) - 1] if inside else whole) / KERNELS_FILE


def place(device: torch.device) -> str:
    """Device and versions, on which a choice of kernels depends besides its key."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, "
        f"triton {triton}, cuDNN {torch.backends.cudnn.version()}"
    )


def kept_file() -> Path | None:
    """The file next to the compiled code of this user; it need not exist."""
    folder = graphs_folder(os.environ)
    return folder and folder / f"choices-{operators_version()}.json"


def keep(where: str, new: Tuning) -> None:
    """Add choices to those next to the compiled code, if that can be written."""
    if file := kept_file():
        with suppress(OSError):
            add(file, where, new)


def kept(where: str) -> Tuning:
    """The choices of earlier matrices."""
    file = kept_file()
    return read(file, where) if file else Tuning()


def read(file: Path, where: str) -> Tuning:
    """Choices for a place; none if the file is missing or damaged."""
    try:
        return Tuning.of(_places(file).get(where, {}))
    except TypeError:
        return Tuning()


@contextmanager
def exclusive(file: Path, name: str = "") -> Iterator[None]:
    """Hold the lock of the file, or the one of that name next to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_name(f".{file.stem}{'-' * bool(name)}{name}.lock")
    with FileLock(lock, timeout=PATIENCE):
        yield


def add(file: Path, where: str, new: Tuning) -> Tuning:
    """Add choices to those of a place, and return all of them. A choice that is there
    already stays: later runs have to train with the kernels of earlier ones."""
    with exclusive(file):
        known = read(file, where)
        whole = Tuning(
            ranks=new.ranks | known.ranks,
            lines=new.lines | known.lines,
            choices=new.choices | known.choices,
            arms=sorted({*new.arms, *known.arms}),
        )
        atomic_write_json(
            file, {"schema": SCHEMA, "places": _places(file) | {where: asdict(whole)}}
        )
    return whole


def _places(file: Path) -> dict[str, Any]:
    try:
        data = read_json(file)
        return dict(data["places"]) if data["schema"] == SCHEMA else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
