"""Process information on Linux: life, descendants, handlers, out-of-memory kills.

On other systems each function returns the safe answer: none.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

from lib.output import EXIT_INTERRUPTED

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """In a child, before it executes its program: have the kernel send SIGTERM when
    the parent dies, also by SIGKILL."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_INTERRUPTED)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no /proc here
    return state not in "ZX"


def marked(name: str, value: str) -> list[int]:
    """Processes that inherited this environment variable, even if their parent has
    ended or they lead a session of their own. The calling process is left out."""
    wanted = f"{name}={value}".encode()
    found = []
    for path in PROC.glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0") and pid != os.getpid():
                found.append(pid)
    return found


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(OSError, IndexError, ValueError):
        text = (PROC / str(pid) / "status").read_text()
        mask = int(re.findall(r"^SigCgt:\s*(\w+)", text, re.MULTILINE)[0], 16)
        return bool(mask >> (number - 1) & 1)
    return False


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Number of processes that the kernel has killed for lack of memory so far.

    Counted in our own control group where it has a counter (version 2: memory.events,
    version 1: memory.oom_control), else on the whole machine; 0 where unknown.
    """
    places = [cgroups / place / name for place, name in _own_groups(proc)]
    for path in [*places, proc / "vmstat"]:
        with suppress(OSError, IndexError, ValueError):
            return int(re.findall(r"^oom_kill (\d+)", path.read_text(), re.M)[0])
    return 0


def _own_groups(proc: Path) -> list[tuple[str, str]]:
    """(folder below the mount, file) of each control group that counts memory."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found.append((path.lstrip("/"), "memory.events"))
        elif "memory" in controllers.split(","):
            found.append((f"memory/{path.lstrip('/')}", "memory.oom_control"))
    return found
