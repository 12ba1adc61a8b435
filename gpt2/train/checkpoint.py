"""Checkpoints: folders ckpt/step-000123/, which are written atomically.

    model.safetensors   weights
    state.pt            everything else, loadable with weights_only
    checkpoint.json     what it is a checkpoint of, and the sums of the two

A folder is written under another name, flushed to disk and renamed. Nothing in
it is ever executed when read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2.settings.shown import difference_lines
from gpt2.train.failures import Refused, disk_full_at
from lib.atomic_files import atomic_write_json, fsync_directory, read_json, replacing
from lib.files import hidden_name, own_folder, remove_folder
from lib.hashing import file_sha256, identity

SCHEMA = 1
KEPT = 2
FOLDER = "ckpt"
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"
STILL_THERE = "older checkpoints still stand"
_NAME = re.compile(r"step-(\d{6,})")
_ASIDE = "damaged-"
# Folders of checkpoints that are half written or half deleted, or were damaged.
_HALF = re.compile(r"\.(damaged-)?step-\d{6,}\.[0-9a-f]{12}\.tmp")
_DAMAGED = re.compile(rf"{_ASIDE}step-\d{{6,}}")
# The files of a checkpoint, whole or half written.
_FILES = re.compile(
    r"model\.safetensors|state\.pt|checkpoint\.json"
    r"|\.checkpoint\.json\.[0-9a-f]{12}\.tmp"
    r"|\.tmp[0-9A-Za-z]{6}"  # of safetensors, which renames it to the weights' name
)

Weights = dict[str, Tensor]


class DamagedCheckpoint(ValueError):
    """The checkpoint differs from what was written."""


class CheckpointMismatch(Refused):
    """The checkpoint is complete but belongs to another run; the message has the
    differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Identity of a checkpoint. ``identity``: the plain data behind ``hash``."""

    step: int
    hash: str
    identity: Mapping[str, Any]
    data_fingerprint: str

    @property
    def folder(self) -> str:
        """The name of its folder among a run's checkpoints."""
        return folder_of(self.step)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory, on the CPU."""

    stamp: Stamp
    weights: Weights
    state: dict[str, Any]


# ---- weights of a model ---------------------------------------------------------


def weights_of(model: nn.Module) -> Weights:
    """Parameters and persistent buffers by name, a tied tensor once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model; ValueError unless names and shapes agree."""
    own = weights_of(model)
    if odd := sorted(set(own) ^ set(weights)):
        raise ValueError(f"weights of another model: {', '.join(odd[:8])} differ")
    for name, tensor in own.items():
        theirs = tuple(weights[name].shape)
        if theirs != tensor.shape:
            raise ValueError(
                f"weights of another model: {name} has shape {theirs}, not "
                f"{tuple(tensor.shape)}"
            )
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def export(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the model's weights to one safetensors file, atomically.

    Raises DiskFull.
    """
    with disk_full_at(path, STILL_THERE), replacing(path) as partial:
        write_weights(partial, weights_of(model), metadata)


# ---- writing --------------------------------------------------------------------


def save(
    folder: Path, stamp: Stamp, weights: Weights, state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of stamp.step and drop all of this run but the newest two.

    state: with ["progress"]["step"], which load compares with the stamp.
    Raises DiskFull, lib.files.Linked; older checkpoints then still stand.
    """
    target = folder / stamp.folder
    partial = hidden_name(target)
    with disk_full_at(target, STILL_THERE):
        try:
            own_folder(folder)  # in a run directory, which has to be there
            partial.mkdir()
            _write_files(partial, stamp, weights, state)
            _put_in_place(partial, target)
        except BaseException:
            remove_folder(partial, _FILES)
            raise
    _drop_old(folder, stamp.hash)
    return target


def _write_files(
    partial: Path, stamp: Stamp, weights: Weights, state: Mapping[str, Any]
) -> None:
    write_weights(partial / WEIGHTS_FILE, weights, {"hash": stamp.hash})
    with open(partial / STATE_FILE, "wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    index = {
        "schema": SCHEMA,
        "stamp": asdict(stamp),
        "sha256": {n: file_sha256(partial / n) for n in (WEIGHTS_FILE, STATE_FILE)},
    }
    atomic_write_json(partial / INDEX_FILE, {**index, "sum": identity(index)})


def write_weights(path: Path, weights: Weights, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, flushed to disk, with the permissions of a new file."""
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    path.touch()
    mode = path.stat().st_mode  # as the user's umask has it; safetensors writes 0600
    save_file(whole, path, metadata={"format": "pt", **metadata})
    path.chmod(mode)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename; a damaged or repeated checkpoint of the same step makes way."""
    if remove_folder(target, _FILES) and os.path.lexists(target):
        _put_aside(target)
    os.rename(partial, target)
    fsync_directory(target.parent)


def drop_all(folder: Path, run_hash: str) -> list[str]:
    """Remove the checkpoints of one run, and their folder if nothing else is in it.

    Returns the names of what stays there: files of other people, checkpoints of
    other runs, links, and what cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name] if folder.is_symlink() else []
    for path in _of_run(folder, run_hash, _NAME, _DAMAGED, _HALF):
        remove_folder(path, _FILES)
    with suppress(OSError):
        folder.rmdir()
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def reject_all(folder: Path, run_hash: str) -> None:
    """As drop_all, and what stays of the run's checkpoints is put aside: no run is to
    go on from them."""
    if drop_all(folder, run_hash) and not folder.is_symlink():
        for path in _of_run(folder, run_hash, _NAME):
            _put_aside(path)


def _drop_old(folder: Path, run_hash: str) -> None:
    whole = _of_run(folder, run_hash, _NAME)
    whole.sort(key=lambda path: step_of(path.name))
    for path in whole[:-KEPT] + _of_run(folder, run_hash, _DAMAGED):
        remove_folder(path, _FILES)


def _of_run(folder: Path, run_hash: str, *names: re.Pattern[str]) -> list[Path]:
    """Entries with such names, but for those whose index says another run's hash."""
    return [
        path
        for path in folder.iterdir()
        if any(name.fullmatch(path.name) for name in names)
        and _hash_in(path) in (None, run_hash)
    ]


def _hash_in(path: Path) -> Any:
    """The hash of the run that a checkpoint names; None if it cannot be read."""
    try:
        return read_json(path / INDEX_FILE)["stamp"]["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- reading --------------------------------------------------------------------


def finished(folder: Path) -> list[Path]:
    """The checkpoints that were put in place, oldest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: step_of(path.name))


def folder_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:06d}"


def step_of(name: str) -> int:
    """Update of a checkpoint, from the name of its folder."""
    return int(name.partition("-")[2])


def newest_step(folder: Path) -> int | None:
    """The step of the last checkpoint that was put in place, whole or not."""
    found = finished(folder)
    return step_of(found[-1].name) if found else None


def remove_leftovers(folder: Path) -> None:
    """Delete half-written checkpoints; hold the run's lock for this."""
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if _HALF.fullmatch(path.name):
                remove_folder(path, _FILES)


def load_newest(
    folder: Path, expected: Stamp, report: Callable[[str], object]
) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none.

    Damaged ones are reported, put aside, and make way to the one before.
    ``expected``: this run's stamp, of any step. Raises CheckpointMismatch if the
    checkpoint is of another run or other data.
    """
    for path in reversed(finished(folder)):
        try:
            checkpoint = load(path)
        except DamagedCheckpoint as error:
            report(f"skipped a damaged checkpoint: {error}")
            _put_aside(path)
            continue
        check_stamp(path, checkpoint.stamp, expected)
        return checkpoint
    return None


def _put_aside(path: Path) -> None:
    """Rename to a name that says "damaged"; an earlier one that cannot be removed
    keeps its name, and this one gets a number."""
    aside, number = path.with_name(_ASIDE + path.name), 1
    remove_folder(aside, _FILES)
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{_ASIDE}{path.name}.{number}")
    path.rename(aside)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; DamagedCheckpoint, naming the file, if it is not whole."""
    stamp = _read_index(path)
    try:
        weights = load_file(path / WEIGHTS_FILE, device="cpu")
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpoint(f"{path}: unreadable ({error})") from error
    if (step := _step_within(state)) != stamp.step:
        raise DamagedCheckpoint(
            f"{path / STATE_FILE}: is of update {step}, its stamp of {stamp.step}"
        )
    return Checkpoint(stamp, weights, state)


def _step_within(state: Any) -> Any:
    """The step that a state itself says it is of; None if it says none."""
    progress = state.get("progress") if isinstance(state, dict) else None
    return progress.get("step") if isinstance(progress, dict) else None


def _read_index(path: Path) -> Stamp:
    """The stamp of a checkpoint whose sums are all right."""
    try:
        index = read_json(path / INDEX_FILE)
        wrong = index.pop("sum") != identity(index)
        if wrong or index["schema"] != SCHEMA:
            raise DamagedCheckpoint(f"{path / INDEX_FILE}: its sum is wrong")
        for name in (WEIGHTS_FILE, STATE_FILE):
            if file_sha256(path / name) != index["sha256"][name]:
                raise DamagedCheckpoint(f"{path / name}: its sha256 is wrong")
        stamp = Stamp(**index["stamp"])
        if stamp.folder != path.name:
            raise DamagedCheckpoint(f"{path}: was written as {stamp.folder}")
        return stamp
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error


def check_stamp(path: Path, found: Stamp, expected: Stamp) -> None:
    """CheckpointMismatch, field by field, unless both are of one run and data."""
    if found.hash != expected.hash:
        records = found.identity, expected.identity
        differences = difference_lines(*records, "in the checkpoint", "configured")
        raise CheckpointMismatch(
            f"{path} is of another run (hash {found.hash}, not {expected.hash}):\n"
            f"{differences}\nRestore these settings, or use another run directory"
        )
    if found.data_fingerprint != expected.data_fingerprint:
        raise CheckpointMismatch(
            f"{path} was trained on other data (fingerprint "
            f"{found.data_fingerprint}, now {expected.data_fingerprint}): the data "
            "set was prepared again since. Restore it, or use another run directory"
        )
