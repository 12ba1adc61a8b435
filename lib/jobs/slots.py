"""Slots: where a task may run, given by environment variables.

They are set before the task's process imports torch, so that it sees no other GPU. GPUs
are found without torch, which would reserve memory on them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lib.gpu_architectures import of_capability, of_target_version

ROOT = Path("/")
PATIENCE = 30.0  # seconds, for nvidia-smi
GPUS = "KABLATE_GPUS"  # reserved for a task, which compares them with what torch sees
_NAME = re.compile(r"[0-9]+|(GPU|MIG)-[\w/-]+")
# How CUDA and ROCm restrict the visible GPUs; ROCm reads both.
VISIBLE = {"rocm": "HIP_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one kind ("cuda" or "rocm"), by the names that VISIBLE takes."""

    backend: str
    names: tuple[str, ...]


def find_gpus(environ: Mapping[str, str], root: Path = ROOT) -> Gpus | None:
    """The GPUs that may be used; None if there are none.

    Restrictions in the environment apply. root: of /proc and /sys.
    """
    amd = _amd(root)
    nvidia = _nvidia(root)
    backend = "cuda" if nvidia or not amd else "rocm"
    for name in dict.fromkeys((VISIBLE[backend], VISIBLE["cuda"])):
        if name in environ:
            allowed = tuple(w for w in re.split(r"[,\s]+", environ[name]) if w)
            there = bool(amd or nvidia) and "-1" not in allowed
            return Gpus(backend, allowed) if there and allowed else None
    names = tuple(map(str, range(nvidia or amd)))
    return Gpus(backend, names) if names else None


def _nvidia(root: Path) -> int:
    """Number of GPUs that the driver shows in /proc, else that nvidia-smi lists."""
    found = len(list((root / "proc/driver/nvidia/gpus").glob("*")))
    if found or root != ROOT:
        return found
    return len(re.findall(r"^GPU \d+:", _nvidia_smi("-L"), re.MULTILINE))


def _nvidia_smi(*options: str) -> str:
    """Output of the nvidia-smi in PATH; "" without it, or if it hangs. Each question is
    asked once: none is about what changes, and with a stuck driver it takes PATIENCE
    each time."""
    return _output(os.environ.get("PATH", ""), ("nvidia-smi", *options))


@cache
def _output(path: str, words: tuple[str, ...]) -> str:
    """Output of a command in ``path``, this process's PATH. With a driver that is stuck
    not even SIGKILL ends it, so that it is not waited for after that."""
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return ""
    try:
        return str(process.communicate(timeout=PATIENCE)[0])
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)
        return ""


def _amd(root: Path) -> int:
    """Number of AMD GPUs that the compute driver serves."""
    return sum(int(node.get("simd_count", "0")) > 0 for node in amd_nodes(root))


def amd_nodes(root: Path) -> list[dict[str, str]]:
    """Numbers that AMD's compute driver gives of each processor, CPUs included, and of
    its first memory bank, by name."""
    found = []
    for node in sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*")):
        text = ""
        for name in ("properties", "mem_banks/0/properties"):
            with suppress(OSError):
                text += (node / name).read_text()
        found.append(dict(re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)))
    return found


def gpu_names(wanted: str) -> tuple[str, ...]:
    """The names in a list such as "0,2"; ValueError if it is malformed."""
    if not wanted.strip():
        return ()
    names = tuple(word.strip() for word in wanted.split(","))
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is neither a number nor a UUID of a GPU")
        if names.count(name) > 1:
            raise ValueError(f"it names GPU {name} twice")
    return names


def choose_gpus(gpus: Gpus, wanted: str) -> Gpus:
    """The GPUs of a list such as "0,2" (empty: all); ValueError for a missing one."""
    names = gpu_names(wanted)
    missing = [name for name in names if name not in gpus.names]
    if missing:
        raise ValueError(
            f"there is no GPU {', '.join(missing)}; "
            f"those visible are {','.join(gpus.names)}"
        )
    return Gpus(gpus.backend, names or gpus.names)


def gpu_sets(gpus: Gpus, per_task: int) -> list[dict[str, str]]:
    """Disjoint sets of ``per_task`` GPUs, each as the environment of a slot.

    Raises ValueError if there are fewer GPUs than one task needs.
    """
    starts = range(0, len(gpus.names) - per_task + 1, per_task)
    listed = [",".join(gpus.names[i : i + per_task]) for i in starts]
    if not listed:
        raise ValueError(f"only {len(gpus.names)} GPUs can be used")
    return [{VISIBLE[gpus.backend]: names, GPUS: names} for names in listed]


def place_of(slot: Mapping[str, str]) -> str:
    """The GPUs of a slot; slots with the same ones share them. "" without any."""
    return slot.get(GPUS, "")


def card_memory(slot: Mapping[str, str], root: Path = ROOT) -> int:
    """Bytes of the smallest GPU of this kind; 0 where the driver does not say, as of
    slices of a GPU (MIG)."""
    if "MIG" in place_of(slot):
        return 0
    if VISIBLE["rocm"] in slot:
        gpus = (node for node in amd_nodes(root) if node.get("simd_count", "0") != "0")
        sizes = (int(gpu["size_in_bytes"]) for gpu in gpus if "size_in_bytes" in gpu)
        return min(sizes, default=0)
    query = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    found = [int(mib) for mib in _nvidia_smi(*query).split() if mib.isdecimal()]
    return min(found, default=0) << 20


def architectures(backend: str, root: Path = ROOT) -> list[str]:
    """Architectures of all GPUs of a kind here, as far as the driver says."""
    if backend == "rocm":
        versions = (int(n.get("gfx_target_version", "0")) for n in amd_nodes(root))
        return [of_target_version(version) for version in versions if version]
    query = ("--query-gpu=compute_cap", "--format=csv,noheader")
    return list(filter(None, map(of_capability, _nvidia_smi(*query).splitlines())))


def are_shared(slots: Sequence[Mapping[str, str]]) -> bool:
    """Whether some GPU serves more than one slot."""
    places = [place_of(slot) for slot in slots if place_of(slot)]
    return len(set(places)) < len(places)


def have_own_gpus(slots: Sequence[Mapping[str, str]]) -> bool:
    """Whether each slot has GPUs, and shares them with no other."""
    return all(map(place_of, slots)) and not are_shared(slots)


def promised(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable with the GPUs that the environment leaves a run."""
    listed = [environ[name] for name in VISIBLE.values() if environ.get(name)]
    return {GPUS: listed[0]} if listed else {}


def no_gpu() -> dict[str, str]:
    """A slot that hides every GPU."""
    return dict.fromkeys(VISIBLE.values(), "")


def share_cores(
    slots: Sequence[Mapping[str, str]], cores: int, processes: int
) -> list[dict[str, str]]:
    """The slots, each process with an equal share of the cores."""
    threads = max(1, cores // (len(slots) * processes))
    return [{**slot, "OMP_NUM_THREADS": str(threads)} for slot in slots]
