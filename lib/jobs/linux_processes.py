"""What Linux tells of processes: who belongs to whom, who was killed for memory.

Elsewhere each function says what is safe: nobody, nothing.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def processes() -> list[int]:
    """Ids of all processes that can be seen."""
    with suppress(OSError):
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    return []


def marked(name: str, value: str) -> list[int]:
    """Processes that inherited this environment variable, whatever became of their
    parents and sessions. Our own process is not among them."""
    wanted = f"{name}={value}".encode()
    found = []
    for pid in processes():
        with suppress(OSError):
            environ = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
            if wanted in environ and pid != os.getpid():
                found.append(pid)
    return found


def session(leader: int) -> list[int]:
    """Processes of the session that this process leads."""
    found = []
    for pid in processes():
        with suppress(OSError):
            if os.getsid(pid) == leader:
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
    """Processes that the kernel has killed for want of memory so far.

    Counted in our own control group where it tells (version 2: memory.events,
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
