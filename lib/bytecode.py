"""Python's compiled modules, kept where they cannot be kept next to their sources.

In a container or on a read-only disk (PYTHONDONTWRITEBYTECODE, as in most images)
each process would compile the sources of torch and its compiler again: 8 s on the host
of an H200 before anything else happens.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

PREFIX, DONT_WRITE = "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"


def keep_bytecode(
    package: str, folder: Path | None, environ: MutableMapping[str, str]
) -> None:
    """Keep them in ``folder``, of this process from now on and of those it starts, if
    ``package`` has none and gets none; None leaves everything as it is."""
    if folder is None or environ.get(PREFIX) or not _lacks_bytecode(package):
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    environ[PREFIX] = sys.pycache_prefix = str(folder)
    environ.pop(DONT_WRITE, None)
    sys.dont_write_bytecode = False


def _lacks_bytecode(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin or not spec.cached or Path(spec.cached).exists():
        return False
    can_write = os.access(Path(spec.origin).parent, os.W_OK)
    return sys.dont_write_bytecode or not can_write
