"""Early ends of training, and the files that they leave."""

import os
import resource
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from gpt2.model.gpt import GPT
from gpt2.train.run import TrainingRun
from lib.jobs.run_files import lock, run_lock
from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import (
    checkpoints,
    finish,
    losses,
    manifest,
    records,
    running,
    status,
    tiny_job,
    train,
)
from tests.gpt2.train.test_trainer import make_trainer

# ---- how it ends ----------------------------------------------------------------


def test_a_finished_run_without_samples_is_done_all_the_same(job, tmp_path, capsys):
    def on_export(run_dir):
        assert (run_dir / "model.safetensors").exists()
        raise FileNotFoundError("val.bin is gone")

    run = TrainingRun(job, tmp_path / "run", None, {}, on_export)
    assert run.carry_out() == 0
    assert (
        "no samples of text: FileNotFoundError: val.bin is gone"
        in capsys.readouterr().out
    )
    assert status(tmp_path / "run")["status"] == "done"


def test_loader_processes_end_with_training(data_dir, tmp_path, monkeypatch, capsys):
    """Before the samples of text, which take seconds, and whatever else holds them."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    job, left = tiny_job(data_dir, num_workers=2, persistent_workers=True), []
    run = TrainingRun(
        job, tmp_path / "run", None, {}, lambda _: left.extend(active_children())
    )
    assert (run.carry_out(), left) == (0, [])
    assert "data loading  2 workers, more than the 1 core\n" in capsys.readouterr().out


def test_loader_processes_end_when_training_fails(data_dir):
    """Although the traceback still holds what they work for."""

    def fail(*_):
        raise KeyError(len(active_children()))

    job = tiny_job(data_dir, num_workers=2, persistent_workers=True)
    model = GPT(job.settings)
    model.register_forward_hook(fail)
    trainer = make_trainer(job, model)
    with pytest.raises(KeyError, match="2"), closing(trainer):
        trainer.train()
    assert active_children() == []


def test_nan_stops_at_once_and_keeps_the_last_good_checkpoint(job, tmp_path):
    run_dir = tmp_path / "run"
    training = train(job, run_dir, KABLATE_TEST_FAULTS="nan@8")
    assert training.process.exitcode == 5
    found = status(run_dir)
    assert (found["status"], found["failure"]) == ("failed", "nan")
    assert "by update 8" in found["message"] and "update 6" in found["message"]
    assert checkpoints(run_dir) == ["step-000003", "step-000006"]
    assert records(run_dir)[-1]["step"] < 8
    assert not (run_dir / "model.safetensors").exists()


def test_an_absurd_learning_rate_is_found_out(data_dir, tmp_path):
    """For real: SGD without a clip. No checkpoint may hold what has burst."""
    job = tiny_job(
        data_dir,
        optimizer="sgd",
        learning_rate=10.0,
        warmup_steps=0,
        grad_clip=0.0,
        max_iters=200,
        checkpoint_interval=1,
        eval_samples=1,
    )
    training = train(job, tmp_path / "run")
    assert training.process.exitcode == 5, training.log
    assert status(tmp_path / "run")["failure"] == "nan"
    from gpt2.train.checkpoint import load

    for name in checkpoints(tmp_path / "run"):
        weights = load(tmp_path / "run" / "ckpt" / name).weights
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_out_of_memory_halves_the_micro_batch_and_goes_on(data_dir, tmp_path):
    job = tiny_job(data_dir, dropout=0.0)
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    finish(job, whole)
    training = train(job, run_dir, KABLATE_TEST_FAULTS="oom@5,kill@8")
    assert training.process.exitcode == -signal.SIGKILL
    assert "out of memory after update 4 with micro batch 4" in training.log
    finish(job, run_dir, KABLATE_TEST_FAULTS="oom@9")  # acts at micro batch 4 only
    found = manifest(run_dir)
    assert (found["micro_batch"], found["accumulation"]) == (2, 4)
    [entry] = found["out_of_memory"]
    assert (entry["micro_batch"], entry["step"]) == (4, 4)
    assert [step for step, _ in losses(run_dir)] == [2, 4, 6, 8, 10, 12]
    for (_, mine), (_, theirs) in zip(losses(run_dir), losses(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_after_a_kill_for_memory_it_goes_on_with_half(data_dir, tmp_path):
    """The kernel's kill reaches the trainer through the runner alone."""
    job = tiny_job(data_dir, dropout=0.0)
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@5")
    variables = {"KABLATE_LAST_END": "failed/oom"}
    killed = train(job, run_dir, KABLATE_TEST_FAULTS="kill@8", **variables)
    assert "out of memory after update 4 with micro batch 4" in killed.log
    finish(job, run_dir, KABLATE_LAST_END="failed/killed")
    assert manifest(run_dir)["micro_batch"] == 2
    assert [e["micro_batch"] for e in manifest(run_dir)["out_of_memory"]] == [4]


def test_out_of_memory_with_one_sequence_gives_up_with_advice(data_dir, tmp_path):
    job = tiny_job(data_dir, batch_size=1, gradient_accumulation=8)
    training = train(job, tmp_path / "run", KABLATE_TEST_FAULTS="oom@5")
    assert training.process.exitcode == 4
    found = status(tmp_path / "run")
    assert (found["status"], found["failure"]) == ("oom", "oom")
    assert "GPT2_BLOCK_SIZE" in found["message"]
    assert checkpoints(tmp_path / "run") == ["step-000003"]


def limit_files():
    """Above the manifest, which may hold 200 kB of differences, below state.pt."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))


def test_a_full_disk_ends_it_and_loses_nothing(job, done, tmp_path):
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@5")
    before = records(run_dir, "eval")
    training = train(job, run_dir, setup=limit_files)
    assert training.process.exitcode == 6, training.log
    found = status(run_dir)
    assert (found["status"], found["failure"]) == ("failed", "disk")
    assert "no space left" in found["message"]
    assert checkpoints(run_dir) == ["step-000003"]
    assert records(run_dir, "eval")[: len(before)] == before
    finish(job, run_dir)
    assert losses(run_dir) == losses(done)


def test_a_crash_is_told_with_its_traceback(job, tmp_path):
    training = train(job, tmp_path / "run", KABLATE_TEST_FAULTS="crash@5")
    assert training.process.exitcode == 1
    found = status(tmp_path / "run")
    assert (found["status"], found["failure"]) == ("failed", "crash")
    assert found["message"] == "RuntimeError: crash (injected)"
    assert "Traceback" in training.log


@pytest.mark.parametrize("again", [False, True], ids=["moved", "another-in-its-place"])
def test_a_folder_that_goes_while_it_trains_is_told_and_stays_away(
    data_dir, tmp_path, again
):
    """A rename is a removal that comes between any two writes."""
    run_dir, aside = tmp_path / "run", tmp_path / "aside"
    with running(tiny_job(data_dir, max_iters=1_000_000), run_dir) as training:
        training.wait_until(lambda: checkpoints(run_dir))
        run_dir.rename(aside)
        if again:
            run_dir.mkdir()
        assert training.wait() == 1
    assert f"failed: {run_dir} was removed or moved" in training.log
    assert "Traceback" not in training.log
    assert again or not run_dir.exists()
    assert status(aside)["status"] == "running"


def test_missing_data_name_the_command_to_run(job, tmp_path):
    nowhere = replace(job, settings=job.settings.replace(data_dir=str(tmp_path / "x")))
    training = train(nowhere, tmp_path / "run")
    assert training.process.exitcode == 2
    assert "make data" in training.log and "Traceback" not in training.log


def test_a_directory_of_another_run_is_refused_and_left_alone(data_dir, done, tmp_path):
    run_dir = shutil.copytree(done, tmp_path / "run")
    before = status(run_dir)
    other = tiny_job(data_dir, learning_rate=1e-3, batch_size=8)
    training = train(other, run_dir)
    assert training.process.exitcode == 2
    text = training.log
    assert "LEARNING_RATE: 0.0006 there, 0.001 configured" in text
    assert "effective batch: 4 x 2 there, 8 x 2 configured" in text
    assert status(run_dir) == before


def test_data_that_were_prepared_anew_are_refused(job, data_dir, tmp_path):
    first = prepare_texts(tmp_path, texts(30))
    where = {"data_dir": str(first), "text_path": str(tmp_path / "texts")}
    mine = replace(job, settings=job.settings.replace(**where))
    train(mine, tmp_path / "run", KABLATE_TEST_FAULTS="kill@5")
    prepare_texts(tmp_path, texts(31), force=True)
    training = train(mine, tmp_path / "run")
    assert training.process.exitcode == 2
    assert "trained on other data" in training.log
    assert checkpoints(tmp_path / "run") == ["step-000003"]


def test_a_damaged_checkpoint_is_told_and_made_good(job, done, tmp_path):
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@8")
    (run_dir / ".manifest.json.0a1b2c3d4e5f.tmp").write_text("{")
    with open(run_dir / "ckpt" / "step-000006" / "state.pt", "r+b") as file:
        file.seek(2000)
        file.write(b"\0" * 64)
    training = train(job, run_dir)
    assert "skipped a damaged checkpoint" in training.log
    assert "resumed at update 3" in training.log
    assert losses(run_dir) == losses(done)
    assert checkpoints(run_dir) == ["step-000009", "step-000012"]
    assert not list(run_dir.glob(".*.tmp"))


def test_a_second_trainer_says_who_holds_the_run(job, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with lock(run_lock(run_dir)):
        training = train(job, run_dir)
    assert training.process.exitcode == 2
    assert f"pid {os.getpid()}" in training.log
    assert not (run_dir / "status.json").exists()
