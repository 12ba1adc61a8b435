"""Two ranks under torchrun on a CPU: the same run as one process, and its ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from gpt2.audit.finding import PASSED
from gpt2.audit.options import AuditOptions
from gpt2.audit.run import audit_run
from gpt2.plan.jobs import Job
from gpt2.run.tasks import task_of
from gpt2.train import checkpoint
from gpt2.train.distributed import buckets
from lib.jobs.outcomes import Outcome
from lib.jobs.process import Attempt, Patience
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import (
    assert_same_run,
    exported,
    finish,
    losses,
    manifest,
    server,
    status,
    tiny_job,
    train,
    train_here,
)
from tests.gpt2.train.rank_faults import plant
from tests.scratch import PATIENT, Gate

Losses = list[tuple[int, float]]
PATIENCE = Patience(hang=0, dump=0.5, hung_end=1.0, stop=120)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def job(data_dir: Path) -> Job:
    """Two micro steps an update, so one for each of two ranks; with dropout."""
    return tiny_job(data_dir, ddp_gpus_per_job=2, gradient_accumulation=4, batch_size=2)


class Ranked:
    """An attempt as the runner makes it, of two ranks."""

    def __init__(self, job: Job, root: Path, **environ: str) -> None:
        task = task_of(job, root, "skipped")
        slot = {"OMP_NUM_THREADS": "1", **environ}
        self.run_dir = task.run_dir
        self.attempt = Attempt(task, slot, PATIENCE)

    @property
    def log(self) -> str:
        return (self.run_dir / "train.log").read_text()

    def wait(self) -> Outcome:
        while (outcome := self.attempt.poll()) is None:
            time.sleep(0.05)
        return outcome

    def wait_for(self, gate: Gate) -> None:
        while not gate.is_reached():
            assert self.attempt.poll() is None, self.log
            time.sleep(0.02)

    def ranks(self) -> dict[int, int]:
        """Process by rank."""
        found = {}
        for child in psutil.Process(self.attempt.pid).children(recursive=True):
            with_rank = child.environ().get("RANK")
            if with_rank is not None:
                found[int(with_rank)] = child.pid
        return found


def is_gone(pids: Iterable[int]) -> bool:
    def gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(map(gone, pids))


def test_two_ranks_out_of_memory_go_on_with_half_as_one_process_trains(
    job: Job, tmp_path: Path, forker: Forker
) -> None:
    job = replace(job, settings=job.settings.replace(dropout=0.0))
    finish(job, tmp_path / "alone")
    ranked = Ranked(job, tmp_path / "both", KABLATE_TEST_FAULTS="oom@5")
    outcome = ranked.wait()
    assert (outcome.status, outcome.failure) == ("failed", "oom"), ranked.log
    assert split(ranked.run_dir) == (2, 2, 2)
    assert_losses(losses(ranked.run_dir), losses(tmp_path / "alone")[:2])

    again = {"KABLATE_ATTEMPT": "2", "KABLATE_LAST_END": "failed/oom"}
    faults = {"KABLATE_TEST_FAULTS": "oom@6"}  # of whole ones
    log = forker.train(job, ranked.run_dir, **again, **faults)
    assert "going on from the last checkpoint with 1 and 4 micro steps" in log
    assert split(ranked.run_dir) == (2, 1, 4)
    assert_about_equal(ranked.run_dir, tmp_path / "alone")


def split(run_dir: Path) -> tuple[int, int, int]:
    """Ranks, micro batch and micro steps as the run recorded them."""
    found = manifest(run_dir)
    return found["world_size"], found["micro_batch"], found["accumulation"]


def assert_losses(found: Losses, expected: Losses) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert dict(found) == pytest.approx(dict(expected), rel=1e-5)


def assert_about_equal(run_dir: Path, other: Path) -> None:
    """The same run but for the order in which numbers were added."""
    assert len(losses(run_dir)) == 6
    assert_losses(losses(run_dir), losses(other))
    mine, theirs = (status(d)["result"] for d in (run_dir, other))
    assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    assert mine["tokens"] == theirs["tokens"]
    batches, all_of_them = (manifest(d)["pairing"]["batches"] for d in (run_dir, other))
    assert "12" in batches and batches.items() <= all_of_them.items()
    weights, expected = exported(run_dir)[1], exported(other)[1]
    for name, tensor in weights.items():
        assert (tensor - expected[name]).abs().max() < 1e-5, name


class Forker:
    """A process that forks both ranks of a job, with the environment that torchrun and
    the runner give them."""

    def __init__(self) -> None:
        self.pipe, theirs = server().Pipe()
        self.process = server().Process(target=_fork_on_demand, args=(theirs,))
        self.process.start()
        theirs.close()

    def train(self, job: Job, run_dir: Path, **environ: str) -> str:
        """The log of a training that is done."""
        codes, log = self.end_of(job, run_dir, None, **environ)
        assert codes == [0, 0], log
        return log

    def end_of(
        self,
        job: Job,
        run_dir: Path,
        setup: Callable[[], object] | None,
        **environ: str,
    ) -> tuple[list[int], str]:
        """The exit statuses of both ranks, each of which calls ``setup`` first, and
        the log."""
        with socket.socket() as mine:
            # Bound until they end, so that nothing else is given this port; rank 0 can
            # listen there, as both allow it and this one does not listen.
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mine.bind(("127.0.0.1", 0))
            port = str(mine.getsockname()[1])
            rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            theirs = {"WORLD_SIZE": "2", **rendezvous, **environ}
            self.pipe.send((job.to_json(), str(run_dir), theirs, setup))
            assert self.pipe.poll(PATIENT), "it hangs"
            codes = self.pipe.recv()
        return codes, Path(f"{run_dir}.log").read_text()

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with closing(Forker()) as made:
        yield made


def _fork_on_demand(pipe: Connection) -> None:
    with suppress(EOFError):
        while True:
            pipe.send(_fork_both(*pipe.recv()))


def _fork_both(
    job: Mapping[str, Any],
    run_dir: str,
    environ: Mapping[str, str],
    setup: Callable[[], object] | None,
) -> list[int]:
    """The exit statuses of both ranks."""
    ranks = []
    for rank in "01":
        ranks.append(os.fork())
        if not ranks[-1]:
            theirs = {**environ, "RANK": rank, "LOCAL_RANK": rank}
            train_here(job, run_dir, None, theirs, setup)
    return [os.waitpid(rank, 0)[1] for rank in ranks]


def test_a_killed_rank_ends_the_job_and_the_next_resumes_exactly(
    job: Job, tmp_path: Path, forker: Forker
) -> None:
    forker.train(job, tmp_path / "whole")
    last = checkpoint.finished(tmp_path / "whole" / checkpoint.FOLDER)[-1]
    one, other = checkpoint.load(last).state["rng"]
    assert not torch.equal(one["cpu"], other["cpu"])  # each its own dropout
    gate = Gate(tmp_path / "gate")
    first = Ranked(job, tmp_path / "torn", **gate.holds("hold@5"))
    first.wait_for(gate)
    pids = first.ranks()
    os.kill(pids[1], signal.SIGKILL)
    gate.open()
    outcome = first.wait()
    assert (outcome.status, outcome.failure) == ("failed", "killed"), first.log
    assert "SIGKILL" in str(status(first.run_dir)["message"])
    assert is_gone(list(pids.values()))

    gate.close()  # then stopped, as by `make stop`
    second = Ranked(job, tmp_path / "torn", **gate.holds("hold@9"))
    second.wait_for(gate)
    pids = second.ranks()
    second.attempt.stop()
    assert second.wait().status == "interrupted", second.log
    assert is_gone(list(pids.values()))

    alone = Path(shutil.copytree(second.run_dir, tmp_path / "alone"))
    forker.train(job, second.run_dir, KABLATE_ATTEMPT="3")
    resumed = manifest(second.run_dir)["resumed"]
    assert {entry["random_streams"] for entry in resumed} == {"continued"}
    assert_same_run(second.run_dir, tmp_path / "whole")
    audited = audit_run(second.run_dir, AuditOptions())
    assert audited.verdict == PASSED, audited.findings

    said = train(job, alone).log
    assert "from 2 CPU processes, this run is on 1 CPU process: the random" in said
    last_resumed = manifest(alone)["resumed"][-1]
    assert (last_resumed["world_size"], last_resumed["random_streams"]) == (1, "fresh")
    # Each attempt says what it was made with, also the first.
    assert manifest(alone)["began"]["world_size"] == 2
    assert last_resumed["packages"]["torch"] == torch.__version__
    assert last_resumed["attention_backend"] == manifest(alone)["attention_backend"]


def test_gradients_are_compared_after_the_all_reduce(
    job: Job, tmp_path: Path, forker: Forker
) -> None:
    forker.train(job, tmp_path / "right")
    checks = manifest(tmp_path / "right")["as_trained"]["checks"]
    assert [check["step"] for check in checks] == [0, 12]
    assert all(check["passed"] and check["worst"] < 1e-4 for check in checks)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "as trained at update 0: NOT AS THE FORMULAS"),
        ("seed", "ranks [1] hold other weights than rank 0"),
    ],
)
def test_a_planted_fault_between_ranks_is_refused(
    fault: str, said: str, job: Job, tmp_path: Path, forker: Forker
) -> None:
    codes, log = forker.end_of(job, tmp_path / "wrong", partial(plant, fault))
    assert 0 not in codes and said in log, log
    assert status(tmp_path / "wrong")["step"] == 0


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [5, 3, 4]), (8, [8, 4]), (11, [8, 4]), (12, [12])]
)
def test_buckets_keep_the_order_and_their_size(most: int, sizes: list[int]) -> None:
    parameters = [nn.Parameter(torch.zeros(n)) for n in (5, 3, 4)]
    found = list(buckets(parameters, most))
    assert [sum(p.numel() for p in group) for group in found] == sizes
    assert [p for group in found for p in group] == parameters


def test_ranks_that_cannot_share_the_accumulation_are_refused(job: Job) -> None:
    from gpt2.settings.checks import check

    with pytest.raises(ValueError, match="DDP_GPUS_PER_JOB=2"):
        check(job.settings.replace(gradient_accumulation=3))
