"""A run that was killed, however and whenever, ends as one that never was."""

import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from gpt2.report.read_results import read_matrix
from lib.atomic_files import atomic_write_json
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS
from tests.gpt2.tinytraining import (
    STEPS,
    assert_same_run,
    checkpoints,
    exported,
    finish,
    manifest,
    records,
    running,
    status,
    tiny_job,
    train,
)
from tests.scratch import Gate


@pytest.mark.parametrize("update", [1, 3, 4, 6, 8, STEPS])
def test_a_kill_before_any_update_changes_nothing(job, done, tmp_path, update):
    run_dir = tmp_path / "run"
    killed = train(job, run_dir, KABLATE_TEST_FAULTS=f"kill@{update}")
    assert killed.process.exitcode == -signal.SIGKILL
    assert status(run_dir)["status"] == "running"
    finish(job, run_dir)
    assert_same_run(run_dir, done)
    resumed = manifest(run_dir)["resumed"]
    last = (update - 1) // 3 * 3
    assert [entry["step"] for entry in resumed] == ([last] if last else [])


def test_a_run_that_is_done_drops_its_checkpoints_and_is_left_alone(
    job, done, tmp_path
):
    run_dir = tmp_path / "run"
    tidy = replace(job, settings=job.settings.replace(keep_checkpoints=False))
    train(tidy, run_dir, KABLATE_TEST_FAULTS=f"kill@{STEPS}")
    assert checkpoints(run_dir)  # not done, so it may be resumed
    (run_dir / "ckpt" / "keep").mkdir()
    ended = train(tidy, run_dir)
    assert ended.process.exitcode == 0 and "not of this run: keep" in ended.log
    (run_dir / "ckpt" / "keep").rmdir()
    (run_dir / "ckpt").rmdir()  # which proves that nothing else was in it
    assert records(run_dir) == records(done)
    weights, expected = exported(run_dir)[1], exported(done)[1]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    before = {p: p.stat().st_mtime_ns for p in run_dir.iterdir() if p.name[0] != "."}
    again = train(tidy, run_dir)
    assert again.process.exitcode == 0 and "is done already" in again.log
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize("name", ["ckpt", "metrics.jsonl"])
def test_a_link_in_a_run_directory_leads_nothing_elsewhere(job, tmp_path, name):
    run_dir, theirs = tmp_path / "run", tmp_path / "theirs"
    (theirs / "sub").mkdir(parents=True)
    run_dir.mkdir()
    atomic_write_json(run_dir / "job.json", job.to_json())
    (run_dir / name).symlink_to(theirs)
    refused = train(job, run_dir)
    assert refused.process.exitcode == 2 and f"{name} is a link to" in refused.log
    assert [p.name for p in theirs.rglob("*")] == ["sub"]


@pytest.mark.parametrize("where", ["covered", "later"])
def test_a_damaged_line_of_the_metrics_costs_that_line_alone(
    job, done, tmp_path, where
):
    """After the checkpoint of update 6 it costs nothing: what follows is made again."""
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@9")
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    step = 4 if where == "covered" else 8
    place = next(n for n, t in enumerate(lines) if f'"train", "step": {step},' in t)
    lines[place] = "not JSON\n"
    path.write_text("".join([*lines, '{"kind": "train", "step": 8}\n']))
    resumed = train(job, run_dir)
    assert resumed.process.exitcode == 0, resumed.log
    assert f"not a record: line {place + 1}, b'not JSON'" in resumed.log
    expected = records(done)
    if where == "covered":
        expected = [r for r in expected if (r["kind"], r["step"]) != ("train", step)]
    assert records(run_dir) == expected


def test_metrics_that_were_emptied_are_missed(job, tmp_path):
    run_dir = tmp_path / "step00-baseline" / "seed1"
    run_dir.parent.mkdir()
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@9")
    (run_dir / "metrics.jsonl").write_text("")
    resumed = train(job, run_dir)
    assert "has lost the records from the beginning" in resumed.log
    assert status(run_dir)["status"] == "done"
    (left_out,) = read_matrix(tmp_path).left_out
    assert left_out.reason.startswith("2 of 4 evaluations of a finished run")
    assert "the first at update 0" in left_out.reason


def kill_when_written(job, run_dir, place, names):
    """Kill it when these files of a half-written checkpoint are there."""
    gate = Gate(run_dir.with_name(place))
    with running(job, run_dir, **gate.holds(place)) as training:
        training.wait_until(gate.is_reached)
        os.kill(training.pid, signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL
    (half,) = (run_dir / "ckpt").glob(".step-*.tmp")
    assert {path.name for path in half.iterdir()} == names


def test_a_kill_while_a_checkpoint_is_written_changes_nothing(job, done, tmp_path):
    run_dir, names = tmp_path / "run", {"model.safetensors"}
    kill_when_written(job, run_dir, "hold-weights@3", names)
    kill_when_written(job, run_dir, "hold-state@3", names | {"state.pt"})
    finish(job, run_dir)
    assert not list((run_dir / "ckpt").glob(".*"))
    assert_same_run(run_dir, done)


def test_kills_at_random_moments_change_nothing(job, done, tmp_path):
    chance = random.Random(7)
    for trial in range(3):
        run_dir = tmp_path / f"run{trial}"
        for _ in range(3):
            with running(job, run_dir, KABLATE_TEST_CHECKPOINT_SECONDS="0.01"):
                time.sleep(chance.uniform(0.05, 0.5))
        finish(job, run_dir)
        assert_same_run(run_dir, done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(job, done, tmp_path, number):
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    with running(job, run_dir, **gate.holds("hold@5")) as training:
        training.wait_until(gate.is_reached)
        os.kill(training.pid, number)
        assert training.wait() == 3
    found = status(run_dir)
    assert (found["status"], found["failure"]) == ("interrupted", None)
    assert number.name in found["message"]
    assert found["step"] == 5
    assert checkpoints(run_dir)[-1] == "step-000005"
    assert found["result"] is None
    finish(job, run_dir)
    assert_same_run(run_dir, done)


def test_a_run_whose_parent_is_gone_ends_with_a_checkpoint(job, done, tmp_path):
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    with subprocess.Popen(["sleep", "1000"]) as parent:
        environ = {"KABLATE_PARENT_PID": str(parent.pid), **gate.holds("hold@5")}
        with running(job, run_dir, **environ) as training:
            training.wait_until(gate.is_reached)
            parent.kill()  # and not waited for: it stays a zombie
            assert training.wait() == 3
    assert f"pid {parent.pid}" in status(run_dir)["message"]
    finish(job, run_dir)
    assert_same_run(run_dir, done)


def test_records_of_lost_updates_are_written_once(job, tmp_path):
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@6")
    assert records(run_dir)[-1]["step"] > 3
    finish(job, run_dir)
    steps = [record["step"] for record in records(run_dir, "train")]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_started_again_stays_as_it_is(job, done, tmp_path):
    run_dir = tmp_path / "run"
    first = finish(job, run_dir)
    again = finish(job, run_dir)
    same = ("val_loss", "tokens", "train_loss", "best_val_loss")
    assert {k: first[k] for k in same} == {k: again[k] for k in same}
    assert_same_run(run_dir, done)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_exactly(data_dir, tmp_path, optimizer):
    """SPAM is stopped after its reset at 30, in the middle of its warm-up."""
    steps = 33 if optimizer == "adamwspam" else 8
    fields = {"optimizer": optimizer, "max_iters": steps, "learning_rate": 1e-3}
    fields |= {"spam_interval": 30, "spam_warmup": 6, "eval_samples": 2}
    fields |= {"checkpoint_interval": steps - 2, "eval_interval": steps}
    if optimizer == "adamwprune":
        fields |= {"prune_method": "state", "prune_warmup": 2, "prune_interval": 2}
    assert_resumes_exactly(tiny_job(data_dir, **fields), tmp_path, kill_at=steps)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("none", "state")])
def test_every_pruning_method_resumes_exactly(data_dir, tmp_path, method):
    fields = {"prune_method": method, "prune_warmup": 2, "prune_interval": 2}
    job = tiny_job(data_dir, prune_ramp_end=0.9, **fields)
    assert_resumes_exactly(job, tmp_path, kill_at=8)
    result = status(tmp_path / "killed")["result"]
    if method == "heads":
        assert (result["heads_left"], result["heads"]) == (2, 4)
    else:
        assert result["sparsity"] == pytest.approx(0.5, 1e-3)


def assert_resumes_exactly(job, folder, kill_at):
    finish(job, folder / "whole")
    killed = train(job, folder / "killed", KABLATE_TEST_FAULTS=f"kill@{kill_at}")
    assert killed.process.exitcode == -signal.SIGKILL, killed.log
    finish(job, folder / "killed")
    assert manifest(folder / "killed")["resumed"]
    assert_same_run(folder / "killed", folder / "whole")
