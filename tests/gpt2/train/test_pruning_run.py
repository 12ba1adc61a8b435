"""Whole trainings that prune: what they reach, kills on the ramp, the export."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import (
    assert_same_run,
    exported,
    finish,
    manifest,
    status,
    tiny_job,
    train,
)

# Mask updates after 2, 4, 6, 8; checkpoints after every third update.
RAMP = {"prune_warmup": 2, "prune_interval": 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))


@pytest.fixture(scope="module")
def step_1(data_dir):
    return tiny_job(data_dir, step=1, **RAMP)


@pytest.fixture(scope="module")
def undisturbed(step_1, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("step1") / "run"
    finish(step_1, run_dir)
    return run_dir


def masks_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """The masks in the last checkpoint."""
    last = sorted((run_dir / "ckpt").glob("step-*"))[-1]
    state = torch.load(last / "state.pt", weights_only=True)
    return dict(state["pruner"]["masks"])


def test_step_1_trains_to_half_the_weights(step_1, undisturbed):
    assert step_1.settings.optim.optimizer == "adamwspam"
    result = status(undisturbed)["result"]
    _, weights = exported(undisturbed)
    masks = masks_of(undisturbed)
    total = sum(mask.numel() for mask in masks.values())
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    assert zeros == result["zeros"] == round(0.5 * total)
    assert result["sparsity"] == zeros / total


def test_the_export_has_the_zeros_of_the_masks_and_no_others(undisturbed):
    _, weights = exported(undisturbed)
    masks = masks_of(undisturbed)
    for name, mask in masks.items():
        assert torch.equal(weights[name] != 0, mask), name
    matrices = {name for name, weight in weights.items() if weight.ndim == 2}
    spared = matrices - set(masks)
    assert len(masks) == 8 and len(spared) == 2  # tokens and positions
    assert all(bool((weights[name] != 0).all()) for name in spared)


@pytest.mark.parametrize("update", [3, 5, 6, 7, 10])
def test_a_kill_on_the_ramp_changes_nothing(step_1, undisturbed, tmp_path, update):
    run_dir = tmp_path / "run"
    killed = train(step_1, run_dir, KABLATE_TEST_FAULTS=f"kill@{update}")
    assert killed.process.exitcode == -signal.SIGKILL
    finish(step_1, run_dir)
    assert_same_run(run_dir, undisturbed)
    mine, theirs = masks_of(run_dir), masks_of(undisturbed)
    assert all(torch.equal(mask, theirs[name]) for name, mask in mine.items())
    result, other = (status(place)["result"] for place in (run_dir, undisturbed))
    for column in ("val_loss", "best_val_loss", "sparsity", "zeros"):
        assert result[column] == other[column]


def test_kills_again_and_again_change_nothing(step_1, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    for update in (4, 7, 7, 9):
        train(step_1, run_dir, KABLATE_TEST_FAULTS=f"kill@{update}")
    finish(step_1, run_dir)
    assert [entry["step"] for entry in manifest(run_dir)["resumed"]] == [3, 6, 6, 6]
    assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize("variant", ["bitter0", "bitter4", "bitter8"])
def test_state_pruning_resumes_exactly(data_dir, tmp_path, variant):
    job = tiny_job(
        data_dir,
        optimizer="adamwprune",
        adamwprune_variant=variant,
        prune_method="state",
        **RAMP,
    )
    finish(job, tmp_path / "whole")
    train(job, tmp_path / "killed", KABLATE_TEST_FAULTS="kill@7")
    finish(job, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert status(tmp_path / "whole")["result"]["sparsity"] == pytest.approx(0.5, 0.01)


STATE_OF_A_WEIGHT = {"sgd": 1, "adamw": 2, "adamwadv": 3}  # numbers kept


@pytest.mark.parametrize("optimizer", STATE_OF_A_WEIGHT)
def test_the_optimizers_state_is_reported(data_dir, tmp_path, optimizer):
    job = tiny_job(data_dir, optimizer=optimizer, max_iters=2, warmup_steps=1)
    result = finish(job, tmp_path / "run")
    tensors = result["optimizer_state_bytes"] / 4 / result["parameters"]
    assert tensors == pytest.approx(STATE_OF_A_WEIGHT[optimizer], 0.01)
    assert result["step_seconds"] > 0
    assert "sparsity" not in result and "zeros" not in result
