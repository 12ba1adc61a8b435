"""Sanity alarms of real trainings: in the log, the metrics and the report."""

import math

import pytest

from gpt2.report.notes import remarks
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from gpt2.run.progress import run_states, status_table
from gpt2.train.record import Recorder
from gpt2.train.sanity import watch_losses
from lib.atomic_files import truncate_metrics
from tests.gpt2.helpers import tiny
from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import finish, records, status, tiny_job, train

UPDATES = 40
ABSURD = {
    "max_iters": UPDATES,
    "warmup_steps": UPDATES // 2,
    "learning_rate": 10.0,
    "log_interval": 1,
    "grad_clip": 0.0,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))


def alarms(run_dir):
    return [(record["alarm"], record["step"]) for record in records(run_dir, "alarm")]


def test_a_training_that_falls_apart_raises_one_alarm(data_dir, tmp_path):
    run_dir = tmp_path / "results" / "single" / "seed1337"
    run_dir.parent.mkdir(parents=True)
    done = train(tiny_job(data_dir, **ABSURD), run_dir)
    (alarm,) = records(run_dir, "alarm")
    assert alarm["alarm"] == "diverging" and 1 < alarm["step"] <= UPDATES
    assert f"ALARM at update {alarm['step']}: {alarm['message']}" in done.log
    (shown,) = status(run_dir)["alarms"]
    assert shown == {k: v for k, v in alarm.items() if k != "kind"}
    table = status_table(run_states(tmp_path / "results", ["single/seed1337"]))
    line = f"ALARM single/seed1337 at update {alarm['step']}: {alarm['message']}"
    assert table.splitlines()[-1] == line
    said = [text for _, text in remarks(judge(read_matrix(tmp_path / "results")))]
    expected = f"alarm of seed 1337 at update {alarm['step']}: {alarm['message']}"
    assert said[-1] == expected and said[0].startswith("seed 1337 ended at ")


def test_a_normal_training_raises_none(data_dir, tmp_path):
    job = tiny_job(data_dir, max_iters=UPDATES, log_interval=1, learning_rate=3e-3)
    finish(job, tmp_path / "run")
    assert alarms(tmp_path / "run") == []


def test_a_training_that_does_not_learn_is_flat(data_dir, tmp_path):
    job = tiny_job(
        data_dir,
        max_iters=210,
        log_interval=10,
        eval_interval=210,
        learning_rate=1e-9,
        min_lr=0.0,
        checkpoint_interval=1000,
        gradient_accumulation=1,
    )
    finish(job, tmp_path / "run")
    assert [kind for kind, _ in alarms(tmp_path / "run")] == ["flat"]


def watched(run_dir):
    """A recorder that is listened to, as the trainer makes one."""
    recorder = Recorder(run_dir, max_steps=100)
    watch_losses(recorder, tiny(), bytes_per_token=1.0)
    return recorder


def test_a_run_that_begins_nowhere_near_a_guess_is_told_at_once(tmp_path, capsys):
    record = {"step": 0, "val_loss": 9.5, "val_accuracy": 0.0}
    watched(tmp_path).evaluation("eval", record)
    assert alarms(tmp_path) == [("first", 0)]
    assert "ALARM at update 0: the first loss is 9.500" in capsys.readouterr().out


def test_a_resumed_run_goes_on_where_its_watch_was(tmp_path):
    """Neither an alarm twice, nor a low point forgotten."""
    low = {"lr": 0.1, "tokens_per_s": 1.0, "loss": 2.0}
    before = watched(tmp_path)
    for step in range(1, 11):
        before.train({**low, "step": step})
    after = watched(tmp_path)
    for step in range(11, 31):
        after.train({**low, "loss": 4.0, "step": step})
    found = alarms(tmp_path)
    assert [kind for kind, _ in found] == ["first", "diverging"]
    again = watched(tmp_path)
    again.train({**low, "loss": 9.0, "step": 31})
    assert alarms(tmp_path) == found
    truncate_metrics(tmp_path / "metrics.jsonl", 9)  # back to an early checkpoint
    watched(tmp_path)
    assert [alarm["alarm"] for alarm in status(tmp_path)["alarms"]] == ["first"]


def test_evaluations_tell_bits_per_byte(data_dir, tmp_path):
    result = finish(tiny_job(data_dir), tmp_path / "run")
    evals = records(tmp_path / "run", "eval")
    for record in evals:  # bytes and an end of text a document
        bits = record["val_loss"] / math.log(2)
        assert record["bits_per_byte"] == pytest.approx(bits, rel=0.01)
    assert result["bits_per_byte"] == evals[-1]["bits_per_byte"]
