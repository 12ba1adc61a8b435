"""Processes that choose kernels while the steps are verified."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2.run.first_kernels import first_of, kernels_chosen_meanwhile
from lib.jobs.options import Options
from lib.jobs.process import Task
from lib.jobs.slots import Gpus, gpu_sets
from tests.scratch import is_alive, until

WAIT = (
    "import pathlib, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '60'])\n"
    "pathlib.Path(sys.argv[1]).write_text(f'{child.pid} {sys.argv[2]}')\n"
    "time.sleep(60)\n"
)


def task(folder: Path, name: str, code: str, cost: float = 1.0) -> Task:
    run_dir = folder / name
    words = (sys.executable, "-c", WAIT, str(folder / f"{name}.pid"))
    files = {"job.json": name}
    return Task(
        name=name, command=words, run_dir=run_dir, files=files, code=code, cost=cost
    )


def test_each_slot_begins_with_other_code(tmp_path: Path) -> None:
    tasks = [
        task(tmp_path, name, name[0], cost)
        for name, cost in (("a1", 1), ("a2", 1), ("b1", 3), ("b2", 3), ("c1", 2))
    ]
    names = [t.name for t in first_of(tasks, Options(slots=({}, {})))]
    assert names == ["a1", "b1"]
    longest = Options(slots=({}, {}), longest_first=True)
    assert [t.name for t in first_of(tasks, longest)] == ["b1", "c1"]
    assert first_of([task(tmp_path, "eager", "")], longest) == []


def test_a_process_for_each_gpu_ends_with_the_block(tmp_path: Path) -> None:
    slots = gpu_sets(Gpus("cuda", ("0", "1")), 1)
    tasks = [task(tmp_path, name, name) for name in ("a", "b", "c")]
    with kernels_chosen_meanwhile(tasks, Options(slots=slots)) as processes:
        files = [tmp_path / f"{name}.pid" for name in "ab"]
        until(lambda: all(file.exists() and file.read_text() for file in files))
        begun = [file.read_text().split() for file in files]
        assert [flag for _, flag in begun] == ["--kernels-only"] * 2
        assert (tmp_path / "a/job.json").read_text() == "a"
    assert all(process.returncode < 0 for process in processes)
    until(lambda: not any(is_alive(child) for child, _ in begun))  # signals take time
    assert not (tmp_path / "c.pid").exists()
    shared = Options(slots=[slots[0], slots[0]])
    with kernels_chosen_meanwhile(tasks, shared) as processes:
        assert processes == [], "two would disturb each other's timing"


def test_a_cpu_starts_none(tmp_path: Path) -> None:
    with kernels_chosen_meanwhile([task(tmp_path, "a", "a")], Options()) as processes:
        assert processes == []
