"""Compiled code on disk: one folder for torch.compile and Triton, used by every run.

Entries are keyed by graph, shapes, options, versions and device, so the folder serves
any number of projects, versions and cards; it may be deleted at any time, and two runs
may write it at once (both libraries write a temporary file and rename it). The files
are pickles, which execute when read: the folder is the user's own and not in /tmp,
where another user could create it first.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lib.files import text_or_empty

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
# torch.compile traces our custom operators by name alone. A change of their gradients
# or shapes is invisible in a graph, and has to be part of the key.
OPERATORS = Path(__file__).resolve().parents[1] / "kernels"
# Calls in our graphs that torch's cache of differentiated graphs does not know. All
# that they depend on are their arguments, which are in the graph (torch 2.11, 2.13).
CACHEABLE = (
    "torch.amp.autocast_mode._enter_autocast",
    "torch.amp.autocast_mode._exit_autocast",
)


# ---- the folder: torch-free ------------------------------------------------------


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Cache folder of this user and kind of CPU; it need not exist. None for a user
    without a home folder.

    C++ code is compiled for the instructions of one CPU, and a home folder may be
    shared by several kinds.
    """
    own = _own_folder(environ)
    return own and own / "compiled" / _cpu()


def bytecode_folder(environ: Mapping[str, str]) -> Path | None:
    """Folder of this user for Python's compiled modules; it need not exist."""
    own = _own_folder(environ)
    return own and own / "python"


def _own_folder(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME")
    root = environ.get("XDG_CACHE_HOME") or (home and f"{home}/.cache")
    return Path(root) / "kablate" if root else None


def _cpu() -> str:
    lines = text_or_empty("/proc/cpuinfo").splitlines()
    names = ("flags", "Features")  # x86-64, Arm
    flags = next((line for line in lines if line.startswith(names)), "")
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"


def cache_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to ``environ`` before torch is imported; creates the folder.

    Variables that are set already are kept. {} if the folder cannot be written: torch
    then uses a temporary one.
    """
    if environ.get(INDUCTOR):  # torch puts Triton's cache next to it
        return {}
    folder = cache_folder(environ)
    if folder is None:
        return {}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return {}
    if not os.access(folder, os.W_OK):
        return {}
    added = {INDUCTOR: str(folder / "inductor")}
    if not environ.get(TRITON):
        added[TRITON] = str(folder / "triton")
    return added


def graphs_folder(environ: Mapping[str, str]) -> Path | None:
    """Folder of compiled graphs, as ``environ`` names it or as it would be named."""
    named, own = environ.get(INDUCTOR), cache_folder(environ)
    return Path(named) if named else own and own / "inductor"


def is_empty(environ: Mapping[str, str]) -> bool:
    """True if the folder in ``environ`` has no compiled graph."""
    folder = graphs_folder(environ)
    return folder is None or not any((folder / "fxgraph").glob("*"))


# ---- torch.compile ---------------------------------------------------------------


def compiled(
    function: Callable[..., Any], mode: str | None = None
) -> Callable[..., Any]:
    """torch.compile for fixed shapes, with every graph of ours kept in the folder."""
    import torch

    _configure()
    return torch.compile(function, mode=mode, dynamic=False)


def import_compiler() -> None:
    """Import what torch.compile would import when it is first used: seconds."""
    importlib.import_module("torch._inductor.compile_fx")

    _configure()


def rest_workers() -> None:
    """Let torch's compile workers end; they start again when there is work for them.

    They hold host memory, and a process that exits waits for them: 1 to 2 s for 16
    workers (torch 2.11, H200). Torch itself lets them end a minute after they compiled,
    and if all code came out of the folder, never.
    """
    module = sys.modules.get("torch._inductor.async_compile")
    for pool in getattr(module, "_pool_set", ()):
        with suppress(RuntimeError, OSError):  # closed, or its process is gone
            getattr(pool, "quiesce", lambda: None)()


@cache
def _configure() -> None:
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    options: tuple[tuple[Any, str, object], ...] = (
        (
            torch._inductor.config,
            "unsafe_marked_cacheable_functions",
            dict.fromkeys(CACHEABLE, operators_version()),
        ),
        # Formulas of autograd.Function are traced: they are in the graph and the key.
        (
            torch._functorch.config,
            "autograd_cache_allow_custom_autograd_functions",
            True,
        ),
        # One function serves layers of any number of kinds. Past torch's limit of 8 the
        # others would run uncompiled and say nothing.
        (torch._dynamo.config, "recompile_limit", 4096),
        (torch._dynamo.config, "accumulated_recompile_limit", 4096),
        (torch._dynamo.config, "fail_on_recompile_limit_hit", True),
    )
    for module, name, value in options:
        if hasattr(module, name):  # else that torch compiles such graphs each time
            setattr(module, name, value)


def operators_version(folder: Path = OPERATORS) -> str:
    """A hash of the sources of the custom operators."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def graphs_compiled() -> dict[str, int]:
    """Numbers of graphs with gradients that this process took whole from the folder
    ("cached") and that it compiled itself ("compiled")."""
    import torch._dynamo.utils

    found = torch._dynamo.utils.counters["aot_autograd"]
    hits = int(found["autograd_cache_hit"])
    made = found["autograd_cache_miss"] + found["autograd_cache_bypass"]
    return {"cached": hits, "compiled": int(made)}
