"""Runs of each kind, trained as users train them, pass an audit whole."""

import shutil
import signal

import pytest

from gpt2.audit.finding import LEFT_OUT, OK, PASSED
from gpt2.audit.losses import initial_weights, score
from gpt2.audit.options import AuditOptions
from gpt2.data.token_files import request_of
from gpt2.train.batches import load_split
from tests.gpt2.audit.runs import audit, audited_job, differing, problems
from tests.gpt2.tinytraining import finish, manifest, status, train

MEASURED = {"optimizer_state_bytes", "peak_memory_bytes"}


def test_an_undisturbed_run_passes_and_every_number_is_accounted_for(done, audited):
    assert audited.verdict == PASSED, problems(audited)
    by_figure = {finding.figure: finding for finding in audited.findings}
    assert set(status(done)["result"]) <= set(by_figure)
    left_out = {f.figure for f in audited.findings if f.state == LEFT_OUT}
    assert left_out == MEASURED
    for figure in (
        "validation loss of the export", "validation loss at update 0",
        "first training loss", "first gradient norm", "epochs that ended",
    ):  # fmt: skip
        assert by_figure[figure].state == OK
    result = status(done)["result"]
    assert result["best_val_loss"] < result["val_loss"]  # or they could not be confused
    assert by_figure["epochs that ended"].reported != "0 records"


def test_a_run_that_was_killed_twice_passes(job, tmp_path):
    run_dir = tmp_path / "run"
    for update in (5, 8):
        killed = train(job, run_dir, KABLATE_TEST_FAULTS=f"kill@{update}")
        assert killed.process.exitcode == -signal.SIGKILL
    finish(job, run_dir)
    assert len(manifest(run_dir)["resumed"]) == 2
    found = audit(run_dir)
    assert found.verdict == PASSED, problems(found)


RAMP = {"prune_warmup": 2, "prune_interval": 2, "prune_ramp_end": 0.9}
KINDS = {
    "magnitude": {"prune_method": "magnitude", **RAMP},
    "movement, by layer": {"prune_method": "movement", "prune_scope": "layer", **RAMP},
    "by depth": {
        "prune_method": "state",
        "optimizer": "adamwprune",
        "adamwprune_variant": "bitter4",
        **RAMP,
    },
    "heads": {"prune_method": "heads", **RAMP},
    "bf16": {"mixed_precision": "bf16", "learning_rate": 0.01, "min_lr": 0.0},
    "wsd": {"lr_schedule": "wsd", "lr_decay_share": 0.5, "log_interval": 1},
    "dropout, one record": {"dropout": 0.2, "log_interval": 20},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind_passes(data_dir, tmp_path, kind):
    finish(audited_job(data_dir, **KINDS[kind]), tmp_path / "run")
    found = audit(tmp_path / "run")
    assert found.verdict == PASSED, problems(found)
    states = {finding.figure: finding.state for finding in found.findings}
    if "prune_method" in KINDS[kind]:
        assert states["masks"] == states["zeros"] == OK


@pytest.mark.parametrize("step", [16, 28])
def test_a_step_with_every_mechanism_passes(data_dir, tmp_path, step):
    finish(audited_job(data_dir, step, max_iters=4), tmp_path / "run")
    found = audit(tmp_path / "run")
    assert found.verdict == PASSED, problems(found)


def test_a_sample_too_small_to_tell_anything_is_no_check(done):
    found = audit(done, windows=3)
    assert found.verdict == "incomplete", problems(found)
    (loss,) = (f for f in found.findings if f.figure == "validation loss of the export")
    assert loss.reason.startswith(
        "3 of 4 validation windows give the loss only to within"
    )
    assert loss.reason.endswith(" nats: use more WINDOWS")


def test_a_sample_of_windows_is_as_close_as_it_says(job, data_dir):
    settings = job.settings.replace(eval_samples=64)
    tokens = load_split(data_dir, request_of(settings), "val").tokens
    weights = initial_weights(settings, seed=3)
    whole = score(weights, settings, tokens, AuditOptions())
    part = score(weights, settings, tokens, AuditOptions(windows=24))
    assert (whole.loss_error, whole.windows, part.windows) == (0.0, 64, 24)
    assert abs(part.loss - whole.loss) < part.loss_error < 0.1


def test_what_is_not_at_hand_is_named_and_the_rest_is_audited(done, data_dir, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(done, run_dir)
    (run_dir / "model.safetensors").unlink()
    found = audit(run_dir, own_data=False, data_dirs=(tmp_path / "nowhere",))
    assert found.verdict == "incomplete" and not differing(found.findings)
    reasons = {f.figure: f.reason for f in found.findings if f.state == "not checked"}
    assert "nowhere" in reasons["first training loss"]
    assert reasons["parameters"] == "model.safetensors is missing"
    states = {finding.figure: finding.state for finding in found.findings}
    assert states["val_loss"] == states["tokens_per_s"] == OK
