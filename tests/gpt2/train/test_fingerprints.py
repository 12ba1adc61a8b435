"""Fingerprints of batches and weights, and what a run records of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from gpt2.model.init import initial_model
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import Batches, BatchPlan, load_split
from gpt2.train.fingerprints import batch_fingerprints, is_recorded, weight_fingerprints
from tests.gpt2.helpers import tiny_step
from tests.gpt2.tinydata import text_request
from tests.gpt2.tinytraining import STEPS, finish, manifest, tiny_job, train

PLAN = BatchPlan(n_tokens=100, block_size=16, split=split_batch(8, 4), seed=3)


def test_powers_of_two_and_the_last_update_are_recorded():
    assert [n for n in range(1, 21) if is_recorded(n, 20)] == [1, 2, 4, 8, 16, 20]


def sums(split, plan: BatchPlan, start: int = 0, **options: int) -> dict[int, int]:
    drawn = Batches(split, plan, start, 6, **options)
    assert len(list(drawn)) == (6 - start) * plan.split.accumulation
    return drawn.window_sums


def test_a_batch_has_one_fingerprint_however_it_is_cut_and_read(data_dir):
    split = load_split(data_dir, text_request(data_dir), "train")
    plan = replace(PLAN, n_tokens=split.tokens.size)
    whole = batch_fingerprints([sums(split, plan)])
    assert list(whole) == ["1", "2", "4", "6"] and len(set(whole.values())) == 4
    finer = replace(plan, split=split_batch(8, 1))
    assert batch_fingerprints([sums(split, finer)]) == whole
    assert batch_fingerprints([sums(split, plan, num_workers=1)]) == whole
    two = [replace(plan, split=split_batch(8, 4, 2, rank)) for rank in (0, 1)]
    assert batch_fingerprints([sums(split, one) for one in two]) == whole
    later = batch_fingerprints([sums(split, plan, start=3)])
    assert later == {n: whole[n] for n in ("4", "6")}
    other = batch_fingerprints([sums(split, replace(plan, seed=4))])
    assert not set(other.values()) & set(whole.values())


def test_weights_of_one_name_and_seed_have_one_fingerprint(tmp_path):
    job = tiny_job(tmp_path)
    plain, ra, mla = (
        weight_fingerprints(initial_model(job, tiny_step(step))) for step in (0, 5, 8)
    )
    assert plain == ra and "wte.weight 257x10" in plain
    shared = plain.keys() & mla.keys()
    assert {plain[key] == mla[key] for key in shared} == {True} and plain != mla
    other = weight_fingerprints(initial_model(replace(job, seed=9), tiny_step(0)))
    drawn = [key for key in plain if "x" in key.split()[1]]
    assert drawn and not [key for key in drawn if plain[key] == other[key]]


def test_length_and_direction_tell_scale_and_draw():
    layer = torch.nn.Linear(300, 200)
    weight, _ = weight_fingerprints(layer).values()
    with torch.no_grad():
        layer.weight.mul_(2.0)
    doubled, _ = weight_fingerprints(layer).values()
    assert abs(doubled[0] / weight[0] - 2.0) < 1e-6
    assert abs(doubled[1] - weight[1]) < 1e-6 and abs(weight[1]) < 0.2


def test_a_run_records_what_it_shares_with_others(data_dir, tmp_path):
    finish(tiny_job(data_dir, 0), tmp_path / "plain")
    finish(tiny_job(data_dir, 5, attention_backend="reference"), tmp_path / "ra")
    plain, ra = (manifest(tmp_path / name)["pairing"] for name in ("plain", "ra"))
    assert list(plain["batches"]) == ["1", "2", "4", "8", str(STEPS)]
    assert plain == ra and plain["initial_weights"] and len(plain["validation"]) == 16


def test_a_resumed_run_records_what_one_without_a_break_does(data_dir, tmp_path):
    job, run_dir = tiny_job(data_dir, 0), tmp_path / "run"
    finish(job, tmp_path / "whole")
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@7")
    whole = manifest(tmp_path / "whole")["pairing"]
    begun = {n: whole["batches"][n] for n in ("1", "2", "4")}
    assert manifest(run_dir)["pairing"]["batches"] == begun
    finish(job, run_dir)
    assert manifest(run_dir)["pairing"] == whole
