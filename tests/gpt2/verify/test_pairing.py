"""Arms of a plan are found to be paired; planted faults are named."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import cache

import pytest

from gpt2.model import init
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import make_plan, plan_settings
from gpt2.plan.registry import Times
from gpt2.plan.steps import STEPS
from gpt2.train import evaluate, run_context
from gpt2.train.batches import eval_windows
from gpt2.train.run_context import RunContext
from gpt2.verify import pairing
from gpt2.verify.certify_steps import Findings
from gpt2.verify.pairing import check_pairing, with_pairing
from gpt2.verify.subject import Finding
from tests.gpt2.helpers import full_size, make_config
from tests.gpt2.tinydata import prepare_texts


@cache
def plan_of(*steps: int, seeds: tuple[int, ...] = (1, 2)) -> Plan:
    """At the size of a real run, but for a batch that is read in a moment."""
    asked = full_size().replace(
        mode="ablation",
        steps=steps,
        seeds=seeds,
        batch_size=2,
        gradient_accumulation=2,
        eval_samples=8,
    )
    return plan_settings(asked, {})


def problems_of(plan: Plan) -> dict[str, str]:
    return {k: "; ".join(v) for k, v in check_pairing(plan).problems.items()}


def changed(plan: Plan, step: int, **fields: object) -> Plan:
    """The plan with fields of one step's jobs changed, as nothing should."""
    jobs = [
        (
            dataclasses.replace(job, settings=job.settings.replace(**fields))
            if job.step == step
            else job
        )
        for job in plan.jobs
    ]
    return dataclasses.replace(plan, jobs=tuple(jobs))


# ---- what is paired ---------------------------------------------------------------


def test_every_step_of_the_registry_is_paired():
    found = check_pairing(plan_of(*STEPS, seeds=(1,)))
    assert found.problems == {} and found.weights > 40
    assert "34 arms, seeds 1: the batches of updates 1, 2500, 5000" in found.line()
    assert "random tokens" in found.line()
    # The points of a sweep are often alike, which is said once.
    assert pairing.lines([found, found]) == [found.line()]


def test_every_cell_of_a_test_matrix_is_paired():
    config = make_config(
        TEST_MATRIX_MODE="y",
        TEST_MATRIX_ADAMWPRUNE="y",
        TEST_MATRIX_PRUNING_MAGNITUDE="y",
        TEST_MATRIX_MUON="y",
        TEST_MATRIX_MUON_LEARNING_RATE="0.01",
        BATCH_SIZE="1",
    )
    plan = make_plan(config)
    assert len({job.cell for job in plan.jobs}) == 5
    assert check_pairing(plan).problems == {}


def test_the_prepared_text_is_what_is_compared(tmp_path):
    data = prepare_texts(tmp_path)
    fields = {
        "dataset": "text",
        "tokenizer": "bytes",
        "text_path": str(tmp_path / "texts"),
        "data_dir": str(data),
        "block_size": 16,
    }
    plan = plan_of(0, 5)
    plan = plan_settings(plan.base.replace(**fields), {})
    found = check_pairing(plan)
    assert found.problems == {} and "(prepared text)" in found.line()
    record = found.to_json()
    assert set(record["batches"]) == {1, 2}
    assert (
        len({print for prints in record["batches"].values() for print in prints}) == 6
    )


# ---- batches, windows, weights ----------------------------------------------------


def test_batches_by_step_are_found(monkeypatch):
    true = RunContext.batches

    def own(self, job, start):
        return true(
            self, dataclasses.replace(job, seed=job.seed + (job.step or 0)), start
        )

    monkeypatch.setattr(RunContext, "batches", own)
    found = problems_of(plan_of(0, 5))
    assert list(found) == ["step05-ra"]
    assert found["step05-ra"].startswith(
        "the batches of update 1 differ from those of step00-baseline"
    )


def test_batches_that_part_late_are_found(monkeypatch):
    """As if an arm continued with another seed."""
    true = run_context.Batches

    def late(split, plan, start, *rest, **options):
        if start > 4000:
            plan = dataclasses.replace(plan, seed=next(seeds))
        return true(split, plan, start, *rest, **options)

    seeds = iter(range(100, 200))
    monkeypatch.setattr(run_context, "Batches", late)
    found = problems_of(plan_of(0, 5, seeds=(1,)))
    assert found == {
        "step05-ra": "the batches of update 5000 differ from those of step00-baseline"
    }


def test_validation_windows_of_an_arm_are_found(monkeypatch):
    true = evaluate.Evaluator.__init__

    def own(self, split, settings, *rest):
        true(self, split, settings, *rest)
        if settings.mechanisms.ra:
            self.offsets = eval_windows(split.tokens.size - 5, self.block_size, 8)

    monkeypatch.setattr(evaluate.Evaluator, "__init__", own)
    assert problems_of(plan_of(0, 5)) == {
        "step05-ra": "validation windows differ from those of step00-baseline"
    }


def test_weights_by_step_are_found(monkeypatch):
    true = init.initial_model

    def own(job, settings):
        return true(dataclasses.replace(job, seed=job.seed + (job.step or 0)), settings)

    monkeypatch.setattr(init, "initial_model", own)
    found = problems_of(plan_of(0, 5))
    assert list(found) == ["step05-ra"]
    assert "the initial wte.weight is not that of step00-baseline" in found["step05-ra"]


def test_weights_that_the_baseline_has_not_are_compared_too(monkeypatch):
    true = init.initial_model

    def own(job, settings):
        model = true(job, settings)
        if job.step == 9:
            for name, weight in model.named_parameters():
                if "latent" in name or "down" in name or "projection" in name:
                    weight.data.add_(1e-7)
        return model

    monkeypatch.setattr(init, "initial_model", own)
    found = problems_of(plan_of(0, 8, 9, seeds=(1,)))
    assert list(found) == ["step09-mla-r25"]
    assert "is not that of step08-mla" in found["step09-mla-r25"]


def test_an_arm_that_cannot_be_built_fails_alone(monkeypatch):
    true = init.initial_model

    def broken(job, settings):
        if job.step == 5:
            raise RuntimeError("no such kernel")
        return true(job, settings)

    monkeypatch.setattr(init, "initial_model", broken)
    assert problems_of(plan_of(0, 5, 6)) == {
        "step05-ra": "RuntimeError: no such kernel"
    }


# ---- what a row declares ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"learning_rate": 1e-3}, "LEARNING_RATE is 0.001 and 0.0006 in step 0"),
        ({"warmup_steps": 7}, "GPT2_WARMUP_STEPS is 7"),
        ({"max_tokens": 9}, "GPT2_DATASET_MAX_TOKENS is 9"),
        ({"eval_samples": 9}, "GPT2_EVAL_SAMPLES is 9"),
        ({"prune_interval": 9}, "PRUNING_INTERVAL is 9"),
        ({"eval_samples": 9}, "validation windows differ"),
        ({"batch_size": 4}, "sequences per update differ"),
        ({"max_iters": 4900}, "updates differ"),
        ({"ra": False}, "RA_MLA_RA is n, declared y"),
    ],
    ids=str,
)
def test_a_setting_that_no_row_declares_is_found(fields, text):
    found = problems_of(changed(plan_of(0, 5, 6), 5, **fields))
    assert text in found["step05-ra"]
    assert "step00-baseline" not in found


@pytest.mark.parametrize(
    ("step", "fields", "text"),
    [
        (5, {"learning_rate": 1e-3}, "sets LEARNING_RATE to 0.001"),
        (0, {"learning_rate": 1e-3}, "sets LEARNING_RATE to 0.001"),
        (0, {"tokenizer": "bytes"}, "sets GPT2_TOKENIZER to bytes"),
        (5, {"grad_clip": 0.0}, "sets GPT2_GRAD_CLIP to 0"),
        (4, {"mechanism_share": 0.25}, "sets RA_MLA_MECHANISM_SHARE to 25%"),
        (12, {"mechanism_share": 0.02}, "sets RA_MLA_MECHANISM_SHARE to 2%"),
        (6, {"mlp_ratio": 2.0}, "sets RA_MLA_MLP_RATIO to 2"),
        (1, {"prune_sparsity": 0.05}, "sets PRUNING_SPARSITY to 5%"),
        (1, {"optimizer": "adamw"}, "sets OPTIMIZER to adamw"),
        (31, {"n_head": Times(Fraction(7, 6))}, "GPT2_N_HEAD to 7/6"),
        (29, {"ra_window": 32}, "sets RA_MLA_RA_WINDOW to 32"),
    ],
    ids=str,
)
def test_a_value_slipped_into_a_row_is_found(monkeypatch, step, fields, text):
    row = STEPS[step]
    slipped = dataclasses.replace(row, changes={**row.changes, **fields})
    monkeypatch.setitem(STEPS, step, slipped)
    plan_of.cache_clear()
    found = problems_of(plan_of(step, seeds=(1,)))
    plan_of.cache_clear()
    assert all(text in problems for problems in found.values()) and len(found) == 1


def test_what_slipped_into_a_row_counts_for_its_children_too(monkeypatch):
    row = STEPS[5]
    slipped = dataclasses.replace(row, changes={**row.changes, "learning_rate": 1e-3})
    monkeypatch.setitem(STEPS, 5, slipped)
    plan = plan_settings(plan_of(0).base.replace(steps=(0, 6, 8)), {})
    assert problems_of(plan) == {
        "step06-ra-r25": "the row of step 5 sets LEARNING_RATE to 0.001, which its "
        "title does not say"
    }


def test_a_cell_that_differs_in_more_than_it_declares_is_found():
    config = make_config(TEST_MATRIX_MODE="y", TEST_MATRIX_MUON="y", BATCH_SIZE="1")
    plan = make_plan(config)
    jobs = [
        dataclasses.replace(job, settings=job.settings.replace(min_lr=0.0))
        for job in plan.jobs
        if job.name == "muon-none"
    ]
    odd = dataclasses.replace(plan, jobs=(*plan.jobs[:1], *jobs))
    assert problems_of(odd) == {
        "muon-none": "GPT2_MIN_LR is 0.0 and 6e-05 in adamw-none, undeclared"
    }


@pytest.mark.parametrize("mode", ["ablation", "matrix", "single"])
def test_a_control_is_its_baseline_with_other_kernels(mode):
    base = plan_of(0, 5).base.replace(mode=mode, controls=True, dropout=0.0)
    plan = plan_settings(base, {})
    (control,) = {job.cell for job in plan.jobs if job.is_control}
    assert problems_of(plan) == {}
    jobs = [
        (
            dataclasses.replace(job, settings=job.settings.replace(min_lr=0.0))
            if job.is_control
            else job
        )
        for job in plan.jobs
    ]
    found = problems_of(dataclasses.replace(plan, jobs=tuple(jobs)))
    assert list(found) == [control] and found[control].startswith("GPT2_MIN_LR is 0.0")


def test_cells_are_held_to_their_pairing():
    found = check_pairing(changed(plan_of(0, 5), 5, learning_rate=1e-3))
    cells = [Findings(cell, {"causal": Finding(True, "0")}) for cell in CELLS]
    held = with_pairing(cells, [found])
    assert [cell.ok for cell in held] == [True, False]
    assert f"{pairing.NAME}: LEARNING_RATE is" in held[1].message
    assert found.line() == "pairing: FAILED for step05-ra"


CELLS = ("step00-baseline", "step05-ra")
