"""A run among others of its slot: it waits for its turn, and lends the device."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lib.atomic_files import read_jsonl
from lib.jobs.phases import phases_of
from lib.jobs.pulse import LEAST, statement
from lib.jobs.turn import TURN, Turn, turn_path
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import (
    assert_same_run,
    finish,
    records,
    running,
    status,
    tiny_job,
)
from tests.scratch import Gate


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("data"))


def phases(run_dir: Path) -> list[str]:
    return [name for name, _, _ in phases_of(read_jsonl(run_dir / "metrics.jsonl"))]


def test_no_update_is_made_while_the_device_is_lent(data_dir, tmp_path) -> None:
    """And the result is the same, bit for bit."""
    job = tiny_job(data_dir, max_iters=40, checkpoint_interval=1000)
    run_dir, path = tmp_path / "lends", turn_path(tmp_path, 0)
    gate = Gate(tmp_path / "gate")
    environ = {TURN: path, **gate.holds("hold@11", "hold@30")}
    with running(job, run_dir, **environ) as training:
        training.wait_until(gate.is_reached)
        assert statement(run_dir)[1] == LEAST
        with Turn(path).alone(gate.open):
            gate.close()
            before = (run_dir / "metrics.jsonl").read_bytes()
            time.sleep(0.5)  # for all updates that are left
            assert (run_dir / "metrics.jsonl").read_bytes() == before
            assert statement(run_dir)[1] == 0.0, "it would count as hung"
        training.wait_until(gate.is_reached)
        assert statement(run_dir)[1] == LEAST
        gate.open()
        assert training.wait() == 0, training.log
    assert statement(run_dir)[0] > 40 and statement(run_dir)[1] == 0.0
    finish(job, tmp_path / "alone")
    assert_same_run(run_dir, tmp_path / "alone")


def test_a_ready_run_waits_and_ends_when_it_is_asked_to(data_dir, tmp_path) -> None:
    run_dir, path = tmp_path / "run", turn_path(tmp_path, 0)
    other = Turn(path)
    other.take(lambda: None)
    with running(tiny_job(data_dir), run_dir, **{TURN: path}) as training:
        training.wait_until(lambda: "ready" in phases(run_dir))
        training.process.terminate()
        assert training.wait() == 3, training.log
    assert "waiting for its turn" in status(run_dir)["message"]
    assert "turn" not in phases(run_dir) and records(run_dir, "eval") == []
    other.let_go()
    finish(tiny_job(data_dir), run_dir)


def test_a_run_that_tries_its_memory_has_its_turn_before(data_dir, tmp_path) -> None:
    path = turn_path(tmp_path, 0)
    finish(tiny_job(data_dir, auto_batch=True), tmp_path / "run", **{TURN: path})
    found = phases(tmp_path / "run")
    assert found.index("turn") < found.index("data")
