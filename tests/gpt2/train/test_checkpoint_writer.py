"""Checkpoints written by a thread, as on a GPU, of trainings on the CPU."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time

import pytest
import torch

from gpt2.train.checkpoint_writer import HostCopies, Writer
from tests.gpt2.tinytraining import (
    assert_same_run,
    checkpoints,
    finish,
    losses,
    records,
    running,
    status,
    train,
)
from tests.scratch import PATIENT, Gate


def behind() -> None:
    """Writes of this process are done by a thread."""
    from gpt2.train import resume

    resume.writes_behind = lambda device: True


def behind_on_a_full_disk() -> None:
    behind()
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))


def test_training_goes_on_during_a_write_and_ends_after_it(job, done, tmp_path):
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    environ = gate.holds("hold-begun@3", "hold-begun@12")
    with running(job, run_dir, setup=behind, **environ) as training:
        training.wait_until(
            lambda: (
                gate.is_reached()
                and any(r["step"] > 3 for r in records(run_dir, "train"))
            )
        )
        assert checkpoints(run_dir) == []
        gate.open()
        assert training.wait() == 0, training.log
    assert_same_run(run_dir, done)
    assert checkpoints(run_dir) == checkpoints(done)
    for name in checkpoints(run_dir):
        mine, theirs = (
            torch.load(folder / "ckpt" / name / "state.pt", weights_only=True)
            for folder in (run_dir, done)
        )
        for key in ("optimizer", "rng"):
            assert str(mine[key]) == str(theirs[key]), "of the update it is named for"


def test_a_kill_during_a_write_changes_nothing(job, done, tmp_path):
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    with running(job, run_dir, setup=behind, **gate.holds("hold-state@6")) as training:
        training.wait_until(gate.is_reached)
        os.kill(training.pid, signal.SIGKILL)
        training.wait()
    assert any((run_dir / "ckpt").glob(".step-000006.*/state.pt"))
    assert checkpoints(run_dir) == ["step-000003"]
    finish(job, run_dir, setup=behind)
    assert_same_run(run_dir, done)


def test_a_signal_waits_for_its_checkpoint(job, done, tmp_path):
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    environ = gate.holds("hold@5") | {"KABLATE_TEST_CHECKPOINT_SECONDS": "0.1"}
    with running(job, run_dir, setup=behind, **environ) as training:
        training.wait_until(gate.is_reached)
        os.kill(training.pid, signal.SIGTERM)
        assert training.wait() == 3
    found = status(run_dir)
    assert (found["status"], found["step"]) == ("interrupted", 5)
    assert checkpoints(run_dir)[-1] == "step-000005"
    finish(job, run_dir, setup=behind)
    assert_same_run(run_dir, done)


def test_a_full_disk_fails_the_run_and_loses_nothing(job, done, tmp_path):
    run_dir = tmp_path / "run"
    train(job, run_dir, setup=behind, KABLATE_TEST_FAULTS="kill@5")
    training = train(job, run_dir, setup=behind_on_a_full_disk)
    assert training.process.exitcode == 6, training.log
    found = status(run_dir)
    assert (found["status"], found["failure"]) == ("failed", "disk")
    assert "no space left" in found["message"]
    assert set(checkpoints(run_dir)) <= {"step-000003"}
    finish(job, run_dir)
    assert losses(run_dir) == losses(done)


# ---- its parts -------------------------------------------------------------------


def test_writes_are_done_in_order_and_errors_come_back() -> None:
    writer, done, go = Writer(behind=True), [], threading.Event()

    def slow() -> None:
        go.wait(PATIENT)
        done.append("slow")

    def fails() -> None:
        raise OSError("disk")

    writer.write(slow)
    assert done == []
    go.set()
    writer.write(fails)
    assert done == ["slow"], "a write begins after the one before it"
    with pytest.raises(OSError, match="disk"):
        writer.write(slow)
    writer.wait()
    writer.write(fails)
    with pytest.raises(ValueError, match="of the block"), writer.finished():
        raise ValueError("of the block")
    writer.write(fails)
    with pytest.raises(OSError, match="disk"), writer.finished():
        pass


def test_without_a_thread_a_write_is_done_at_once() -> None:
    here = []
    Writer(behind=False).write(lambda: here.append(threading.current_thread()))
    assert here == [threading.main_thread()]


def test_copies_are_apart_and_their_memory_is_used_again() -> None:
    x = torch.arange(4.0)
    value = {"a": [x, 1], "b": ({"c": x.view(2, 2)},), "text": "t"}
    copies = HostCopies()
    first = copies.take(value)
    x.zero_()
    assert torch.equal(first["a"][0], torch.arange(4.0)) and first["a"][1] == 1
    assert torch.equal(first["b"][0]["c"], torch.arange(4.0).view(2, 2))
    second = copies.take(value)
    assert second["a"][0] is first["a"][0] and not second["a"][0].any()
    assert second["text"] == "t" and second is not first


@pytest.mark.gpu
def test_copies_of_a_gpu_are_pinned_and_complete() -> None:
    x = torch.randn(1 << 22, device="cuda")
    expected = x.cpu()
    copy = HostCopies().take([x])[0]
    x.zero_()
    time.sleep(0.01)
    assert copy.is_pinned() and torch.equal(copy, expected)
