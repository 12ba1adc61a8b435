"""kernels.json: which kernels the runs of a matrix train with, chosen once for all.

By place (device, versions of torch, Triton, cuDNN and CUDA), since a choice means
nothing elsewhere: the right paths of attention and MLP by rank, tiles and algorithms,
and for which arms these have been timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from gpt2.folder import KERNELS_FILE
from gpt2.plan import Job
from lib.rundir import atomic_write_json, read_json

SCHEMA = 1
PATIENCE = 1800.0  # seconds that another process may take to tune


@dataclass(slots=True)
class Tuning:
    """What is known of one place. ranks: paths by request, the fastest first; lines:
    what their trials took, for the log; choices: of lib/kernels/choices.py; arms:
    those that ``choices`` are complete for."""

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
            raise TypeError("a part of a tuning is no object")
        return found


def file_of(job: Job, run_dir: Path) -> Path:
    """The file of the results folder that a run directory belongs to; beside a run
    that stands alone."""
    parts, whole = Path(job.run_dir).parts, run_dir.absolute()
    inside = whole.parts[-len(parts) :] == parts
    return (whole.parents[len(parts) - 1] if inside else whole) / KERNELS_FILE


def place(device: torch.device) -> str:
    """What a choice of kernels depends on besides what is computed."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, "
        f"triton {triton}, cuDNN {torch.backends.cudnn.version()}"
    )


def read(file: Path, where: str) -> Tuning:
    """What is known of a place; nothing if the file is missing or damaged."""
    try:
        data = read_json(file)
        return Tuning.of(data["places"][where] if data["schema"] == SCHEMA else {})
    except (OSError, ValueError, TypeError, KeyError):
        return Tuning()


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Hold the file while tuning, so that two runs that start together tune once."""
    with FileLock(f"{file}.lock", timeout=PATIENCE):
        yield


def write(file: Path, where: str, tuning: Tuning) -> None:
    """Put what is known of a place beside what is known of others."""
    try:
        data = read_json(file)
        places = dict(data["places"]) if data["schema"] == SCHEMA else {}
    except (OSError, ValueError, TypeError, KeyError):
        places = {}
    places[where] = asdict(tuning)
    atomic_write_json(file, {"schema": SCHEMA, "places": places})
