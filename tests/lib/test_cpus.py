"""lib/cpus.py with /proc files and cgroup folders in the kernel's form."""

import os
from pathlib import Path

import pytest

from lib.cpus import PERIOD_1, QUOTA_1, QUOTA_2, usable_cores

MOUNTS = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:14 - proc proc rw
36 35 0:31 {root} {cpu} rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
37 35 0:32 {root} {top}/cpuset rw,nosuid shared:16 - cgroup cgroup rw,cpuset
38 35 0:33 {root} {top} rw,nosuid shared:17 master:3 - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = "0::{path}\n"
V1 = "9:name=systemd:{path}\n7:cpuset:{path}\n3:cpu,cpuacct:{path}\n0::/\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(8)})


def machine(
    folder: Path, cgroup: str, path: str, quotas: dict[str, str], root: str = "/"
) -> Path:
    """Its proc folder; quotas: by cgroup below the mount, as the files have them."""
    top = folder / "sys fs"
    places = {"root": root, "top": f"{top}/unified", "cpu": f"{top}/cpu"}
    escaped = {name: place.replace(" ", "\\040") for name, place in places.items()}
    (folder / "mountinfo").write_text(MOUNTS.format(**escaped))
    (folder / "cgroup").write_text(cgroup.format(path=path))
    for where, quota in quotas.items():
        if cgroup == V2:
            files = {QUOTA_2: quota}
        else:
            files = dict(zip((QUOTA_1, PERIOD_1), quota.split(), strict=True))
        place = Path(places["top" if cgroup == V2 else "cpu"], where)
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("path", "root", "quotas", "cores"),
    [
        ("/", "/", {".": "200000 100000"}, 2),  # a container with a namespace
        ("/", "/", {".": "150000 100000"}, 2),
        ("/", "/", {".": "5000 100000"}, 1),
        ("/", "/", {".": "6400000 100000"}, 8),
        ("/a.slice/b c", "/", {"a.slice": "300000 100000"}, 3),  # that of the parent
        ("/a/b", "/", {"a": "300000 100000", "a/b": "100000 50000"}, 2),
        ("/a/b", "/", {"a/b/c": "100000 100000", "x": "100000 100000"}, 8),
        ("/docker/1f", "/docker/1f", {".": "400000 100000"}, 4),  # without a namespace
        ("/../other", "/", {".": "400000 100000"}, 4),  # moved out of it
        ("/other", "/docker/1f", {".": "400000 100000"}, 4),
    ],
)
@pytest.mark.parametrize("version", [V1, V2])
def test_quotas_limit_the_cores(tmp_path, version, path, root, quotas, cores):
    proc = machine(tmp_path, version, path, quotas, root)
    assert usable_cores(proc) == cores


@pytest.mark.parametrize(
    ("version", "quota"),
    [(V2, "max 100000"), (V1, "-1 100000"), (V2, "what"), (V1, "200000 0")],
)
def test_without_a_limit_the_affinity_counts(tmp_path, version, quota):
    assert usable_cores(machine(tmp_path, version, "/", {".": quota})) == 8


def test_systems_without_cgroups_have_the_cores_of_the_affinity(tmp_path):
    assert usable_cores(tmp_path) == 8
    machine(tmp_path, V1, "/", {})
    assert usable_cores(tmp_path) == 8
