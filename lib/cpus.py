"""CPUs that this process may use: by its affinity and by the quotas of its cgroups.

Containers are usually limited by a quota of time, which neither os.cpu_count() nor the
affinity shows: with more threads than that all of them are stopped for part of each
period. Formats: cgroups(7), proc_pid_mountinfo(5); Linux, admin-guide/cgroup-v2 and
scheduler/sched-bwc.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lib.files import text_or_empty

PROC = Path("/proc/self")
QUOTA_1, PERIOD_1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"  # of version 1
QUOTA_2 = "cpu.max"
CGROUP = re.compile(r"^\d+:([^:\n]*):(.*)$", re.M)  # controllers, path
# Root within the file system, mount point, type, and source with options.
MOUNT = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .* - (\S+) (.*)$", re.M)


def usable_cores(proc: Path = PROC) -> int:
    """Number of CPUs to plan processes and threads for, at least 1; part of a CPU
    counts as one.

    proc: folder with the files cgroup and mountinfo of this process.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = (_quota(folder) for folder in _cgroups(proc))
    return max(1, math.ceil(min([cores, *(q for q in quotas if q is not None)])))


def _cgroups(proc: Path) -> Iterator[Path]:
    """Folders of the cgroups that limit this process: its own and those above it."""
    mounts = [*_mounts(proc)]
    for controllers, path in CGROUP.findall(text_or_empty(proc / "cgroup")):
        kind = "cgroup" if "cpu" in controllers.split(",") else "cgroup2"
        if kind == "cgroup2" and controllers:  # of version 1, for other resources
            continue
        for mounted, root, point in mounts:
            if mounted == kind:
                yield from _up_to(point, PurePosixPath(path), root)


def _up_to(point: Path, path: PurePosixPath, root: PurePosixPath) -> Iterator[Path]:
    # Without a namespace for cgroups, or after the process was moved, the path may lie
    # outside of the mount, whose top is then its own cgroup.
    inside = path.is_relative_to(root) and ".." not in path.parts
    below = path.relative_to(root) if inside else PurePosixPath()
    yield from (point / part for part in (below, *below.parents))


def _mounts(proc: Path) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """Type of each mount ("cgroup" with the cpu controller, "cgroup2"), root, point."""
    found = MOUNT.findall(text_or_empty(proc / "mountinfo"))
    for root, point, kind, options in found:
        if kind == "cgroup2" or "cpu" in re.split("[ ,]", options):
            yield kind, PurePosixPath(_unescaped(root)), Path(_unescaped(point))


def _unescaped(path: str) -> str:
    """A path of mountinfo, where a blank is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _quota(folder: Path) -> float | None:
    """CPUs that the processes of a cgroup may use on average; None without a limit."""
    words = text_or_empty(folder / QUOTA_2).split()
    if not words:
        words = [text_or_empty(folder / name).strip() for name in (QUOTA_1, PERIOD_1)]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max 100000", or there are no such files
        return None
    return quota / period if quota > 0 and period > 0 else None
