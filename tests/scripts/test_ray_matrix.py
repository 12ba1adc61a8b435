"""A matrix on a Ray cluster of two nodes, both on this machine: nothing is lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib import atomic_files
from lib.jobs import run_files
from tests.lib.jobs.test_ray_engine import needs_ray
from tests.scratch import until
from tests.scripts.test_run_test_matrix import (
    ONE_SEED,
    TINY_RUNS,
    assert_equal_to,
    attempts,
    losses,
    reached,
    start,
    summary,
    weights,
)
from tests.tinymatrix import run_matrix

pytestmark = [needs_ray, pytest.mark.slow, pytest.mark.timeout(900)]

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all addresses are 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "KABLATE_TEST_CHECKPOINT_SECONDS": "1.0",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node with one CPU; tests add and remove others."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        made = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        yield made
        made.shutdown()


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which a busy machine may need more than once."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture
def words(cluster: Any) -> Callable[..., tuple[str, str]]:
    def options(more: str = "") -> tuple[str, str]:
        place = f"ENGINE=ray RAY_ADDRESS={cluster.address} JOBS=2"
        return "--overrides", f"{ONE_SEED} {place} {more}".strip()

    return options


# What a run took, which differs from one to the next.
COSTS = {
    *("seconds", "mean_epoch_seconds", "step_seconds", "data_wait_share"),
    *("train_seconds", "tokens_per_s", "peak_memory_bytes"),
}
Words = Callable[..., tuple[str, str]]
LAST, FIRST = TINY_RUNS  # the longest is started first


def both_begun(folder: Path) -> bool:
    return all(reached(folder, run, 3)() for run in TINY_RUNS)


def end_of(process: subprocess.Popen[str]) -> str:
    return process.communicate()[0]


def test_a_node_that_goes_takes_nothing_along(
    undisturbed: Path, folder: Path, cluster: Any, words: Words
) -> None:
    node = patiently(lambda: cluster.add_node(num_cpus=1))
    process = start(folder, *words())
    until(lambda: both_begun(folder), 300)
    cluster.remove_node(node, allow_graceful=False)
    said = end_of(process)
    assert process.returncode == 0, said
    assert said.count("its machine or worker was lost") == 1, said
    assert "FAILED (killed)" in said and "will be tried again" in said
    assert sorted(attempts(folder, run) for run in TINY_RUNS) == [1, 2]
    assert_equal_to(undisturbed, folder)


def test_a_killed_driver_leaves_what_the_next_goes_on_with(
    undisturbed: Path, folder: Path, words: Words
) -> None:
    process = start(folder, *words())
    until(run_files.holder_file(folder / "results" / ".lock").exists)
    second = start(folder, *words())
    assert any(FIRST in line for line in second.stdout)
    until(reached(folder, FIRST, 4), 300)
    process.kill()
    end_of(process)
    watched = end_of(second)  # joined as a mere onlooker
    assert second.returncode == 3 and LAST in watched
    done = run_matrix(folder, *words())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (attempts(folder, FIRST), attempts(folder, LAST)) == (2, 1)
    assert_equal_to(undisturbed, folder)


def test_a_stop_reaches_runs_and_what_still_waits(folder: Path, words: Words) -> None:
    process = start(folder, *words())
    until(reached(folder, FIRST, 2), 300)
    process.send_signal(signal.SIGTERM)
    said = end_of(process)
    assert process.returncode == 3, said
    status = run_files.read_status(folder / "results" / FIRST)
    assert status["status"] == "interrupted" and status["step"] >= 2
    assert f"{LAST}: interrupted (it had not begun)" in said
    waiting = run_files.read_status(folder / "results" / LAST)
    assert (waiting["status"], waiting["attempt"]) == ("planned", 0)


def test_ranks_share_a_node_and_train_as_they_do_here(
    folder: Path, cluster: Any, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KABLATE_TEST_CHECKPOINT_SECONDS")
    there = Path(shutil.copytree(folder, folder.parent / "there"))
    asked = "STEPS=5 DDP_GPUS_PER_JOB=2 BATCH_SIZE=1 ACCUMULATION=2"
    nodes = [patiently(lambda: cluster.add_node(num_cpus=1))]
    try:  # two CPUs, but not on one machine
        done = run_matrix(there, *words(asked))
        assert done.returncode == 2 and "needs 2 CPU, 0 GPU on one" in done.stderr
        assert "1 CPU, 0 GPU; 1 CPU, 0 GPU" in done.stderr
        assert not (there / "results").exists()
        nodes.append(patiently(lambda: cluster.add_node(num_cpus=2)))
        done = run_matrix(there, *words(asked))
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for node in nodes:
            cluster.remove_node(node, allow_graceful=False)
    done = run_matrix(folder, "--overrides", f"{ONE_SEED} {asked}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(there, FIRST) == losses(folder, FIRST) != []
    assert weights(there / "results" / FIRST) == weights(folder / "results" / FIRST)
    rows, seen = [], []
    for place in (there, folder):
        rows.append({k: v for k, v in summary(place)[FIRST].items() if k not in COSTS})
        found = atomic_files.read_json(place / "results" / FIRST / "manifest.json")
        assert (found["world_size"], found["accumulation"]) == (2, 1)
        listed = run_matrix(place, "--status", "--overrides", f"{ONE_SEED} {asked}")
        (line,) = (x for x in listed.stdout.splitlines() if FIRST in x)
        seen.append(re.sub(r" +[\d.,]+k?$", " SPEED", line))
    assert rows[0] == rows[1] and seen[0] == seen[1]


def test_what_no_machine_can_give_is_refused_at_once(
    folder: Path, words: Words
) -> None:
    for asked in ("CPU_THREADS=4", "DEVICE=cuda"):
        done = run_matrix(folder, *words(asked))
        assert done.returncode == 2 and "no machine has them" in done.stderr
        assert "The cluster: 1 CPU, 0 GPU" in done.stderr
    assert not (folder / "results").exists()


def test_what_its_devices_cannot_do_is_refused_once(folder: Path, words: Words) -> None:
    asked = "DEVICE=auto MIXED_PRECISION=y MIXED_PRECISION_FP16=y"
    done = run_matrix(folder, *words(asked))
    says = "DEVICE=auto is the CPU on this Ray cluster"
    assert done.returncode == 2 and says in done.stderr
    assert not (folder / "results").exists()
    listed = run_matrix(folder, "--dry-run", *words(asked))
    assert listed.returncode == 0 and f"refuse to start: {says}" in listed.stdout
