"""AUTO_BATCH: which micro batches are tried, and that the effective batch stays."""

import pytest

from gpt2.train.auto_batch import largest
from gpt2.train.batch_split import split_batch
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import Training, finish, losses, manifest, status, tiny_job


def found(effective, micro, limit, world_size=1):
    """(the micro batch chosen, those tried) where up to ``limit`` sequences fit."""
    tried = []

    def fits(split):
        assert split.effective_batch == effective
        tried.append(split.micro_batch)
        return split.micro_batch <= limit

    split = split_batch(effective, micro, world_size, world_size - 1)
    chosen = largest(split, fits)
    assert chosen.effective_batch == effective and chosen.rank == world_size - 1
    return chosen.micro_batch, tried


@pytest.mark.parametrize(
    ("effective", "micro", "limit", "chosen", "tried"),
    [
        (64, 8, 40, 32, [8, 16, 32, 64]),
        (64, 8, 1000, 64, [8, 16, 32, 64]),
        (64, 8, 8, 8, [8, 16]),
        (64, 8, 3, 2, [8, 4, 2]),
        (64, 8, 0, 1, [8, 4, 2, 1]),
        (60, 5, 1000, 60, [5, 10, 20, 60]),  # 40 is not a divisor
        (7, 1, 3, 1, [1, 7]),
        (1, 1, 1, 1, [1]),
    ],
)
def test_by_doubling_and_halving_divisors(effective, micro, limit, chosen, tried):
    assert found(effective, micro, limit) == (chosen, tried)


def test_each_rank_has_its_share():
    assert found(64, 4, 100, world_size=4) == (16, [4, 8, 16])
    assert split_batch(64, 16, 4).larger() is None


def test_on_a_cpu_nothing_is_tried_and_that_is_said(tmp_path):
    data = prepare_texts(tmp_path)
    plain, auto = tmp_path / "plain", tmp_path / "auto"
    finish(tiny_job(data), plain)
    training = Training(tiny_job(data, auto_batch=True), auto)
    assert training.wait() == 0, training.log
    assert "AUTO_BATCH is for GPUs: the micro batch is 4" in training.log
    assert losses(auto) == losses(plain)
    assert manifest(auto)["hash"] == manifest(plain)["hash"]


@pytest.mark.gpu
def test_on_a_gpu_the_largest_is_found_and_kept(tmp_path):
    fields = {"device": "cuda:0", "mixed_precision": "bf16", "auto_batch": True}
    job = tiny_job(prepare_texts(tmp_path), **fields)
    run_dir = tmp_path / "run"
    training = Training(job, run_dir)
    assert training.wait() == 0, training.log
    assert "AUTO_BATCH: micro batch 8 (4 fits, 8 fits)" in training.log
    recorded = manifest(run_dir)
    assert (recorded["micro_batch"], recorded["accumulation"]) == (8, 1)
    assert status(run_dir)["status"] == "done"
