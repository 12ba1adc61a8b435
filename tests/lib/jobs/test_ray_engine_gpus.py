"""lib/jobs/ray_engine.py on a Ray node that claims two GPUs: which run sees which."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lib import atomic_files
from lib.jobs.phases import place_name
from lib.jobs.process import Task
from tests.lib.jobs.test_ray_engine import needs_ray
from tests.lib.jobs.test_scheduler import status_of
from tests.scratch import ROOT

pytestmark = [needs_ray, pytest.mark.slow, pytest.mark.timeout(300)]

LAUNCHER = ROOT / "lib" / "jobs" / "launcher.py"
NAMES = ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "KABLATE_GPUS")
# A run: says what it sees, and ends once all that it is to wait for have done so.
LOOK = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from lib import atomic_files
from lib.jobs import run_files
place, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
seen = {{name: os.environ.get(name) for name in {NAMES}}}
atomic_files.atomic_write_json(place / f"rank{{rank}}.json", seen)
while not all(map(os.path.exists, sys.argv[2:])):
    time.sleep(0.05)
if rank == "0":
    run_files.write_status(place, status="done")
"""
# A program that starts a cluster of one machine with two GPUs.
ON_CLUSTER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from lib.jobs import ray_engine as engine_ray
from tests.lib.jobs.test_cards import arms
from tests.lib.jobs.test_ray_engine_gpus import tasks
from tests.lib.jobs.test_scheduler import run
node = {{"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}}
nodes = Cluster(initialize_head=True, head_node_args=node)
try:
    cluster = engine_ray.Cluster(nodes.address)
{body}
finally:
    ray.shutdown()
    nodes.shutdown()
"""
BROKEN = """
cluster.require(cpus=1, gpus=1)
wanted = arms(Path({place!r}), 6, sleep=0.05, fail="device", card="1")
code, said, _ = run(wanted, slots=({{}}, {{}}), launch=cluster.launch)
print(code, said)
"""
RUNNER = """
for each in (1, 2):
    cluster.require(cpus=1, gpus=each)
    wanted = tasks(Path({place!r}), each)
    code, said, _ = run(wanted, slots=({{}}, {{}}), launch=cluster.launch)
    assert code == 0, said
try:
    cluster.require(cpus=1, gpus=3)
except ValueError as error:
    print(error)
"""
# What Ray asks whether the GPUs of a machine are AMD's.
AMDSMI = """
from types import SimpleNamespace
AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=1)
AmdSmiMemoryType, AmdSmiLibraryException = None, RuntimeError
def amdsmi_init(flag): pass
def amdsmi_shut_down(): pass
def amdsmi_get_processor_handles(): return ["first", "second"]
"""


def tasks(root: Path, gpus: int) -> list[Task]:
    """Two runs of a GPU each that have to be at work at once, or one of two ranks."""
    if gpus == 1:
        files = [root / name / "rank0.json" for name in ("a", "b")]
        return [task(root, name, files) for name in ("a", "b")]
    files = [root / "both" / f"rank{n}.json" for n in range(2)]
    return [task(root, "both", files, str(LAUNCHER), "2")]


def task(root: Path, name: str, files: list[Path], *launcher: str) -> Task:
    words = map(str, (root / "look.py", root / name, *files))
    command = (sys.executable, *launcher, *words)
    return Task(name=name, command=command, run_dir=root / name)


def environment(folder: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name not in NAMES}
    alone = {"HOME": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return found | alone


def carry_out(body: str, folder: Path, environ: dict[str, str]) -> str:
    """Output of these lines, on a cluster."""
    lines = textwrap.indent(body.format(place=str(folder)), "    ")
    code = ON_CLUSTER.format(root=str(ROOT), body=lines)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("maker", "mine", "other"),
    [
        ("nvidia", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
        ("amd", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_each_run_sees_its_own_gpus(
    tmp_path: Path, maker: str, mine: str, other: str
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    environ = environment(tmp_path)
    if maker == "amd":
        (tmp_path / "amdsmi.py").write_text(AMDSMI)
        paths = [str(tmp_path), environ["PYTHONPATH"]]  # ray itself may be on it
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    said = carry_out(RUNNER, tmp_path, environ)

    def seen(run: str, rank: int = 0) -> Any:
        return atomic_files.read_json(tmp_path / run / f"rank{rank}.json")

    assert {seen("a")[mine], seen("b")[mine]} == {"0", "1"}
    assert [seen("both", rank)[mine] for rank in range(2)] == ["0,1", "0,1"]
    assert [seen("both", rank)["LOCAL_RANK"] for rank in range(2)] == ["0", "1"]
    for one in (seen("a"), seen("b"), seen("both", 0), seen("both", 1)):
        assert one["KABLATE_GPUS"] == one[mine] and one[other] is None
    assert "needs 1 CPU, 3 GPU on one machine, and no machine has them" in said


def test_a_broken_gpu_does_not_eat_the_queue(tmp_path: Path) -> None:
    """As with the runner's own processes (test_cards.py)."""
    said = carry_out(BROKEN, tmp_path, environment(tmp_path))
    place = place_name("1")
    assert said.startswith("8 ") and f"GPU {place} IS OUT OF USE: 3 runs" in said, said
    ends = [status_of(tmp_path, f"arm{n}/seed1") for n in range(6)]
    assert {status for status, _, _ in ends} == {"done"}
    assert sorted(attempt for _, _, attempt in ends) == [1] * 3 + [2] * 3
