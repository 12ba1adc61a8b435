"""The report of a matrix that was really trained: four arms, three seeds, a CPU.

One arm is trained with the very settings of the baseline, one the same but with other
seeds, which are not those that its runs claim, and one with a much smaller learning
rate: an effect planted to be found.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jsonschema
import pytest

from gpt2.report.grades import HARMFUL, INVALID, NEUTRAL
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from tests.gpt2.tinydata import ROOT, prepare_texts, texts
from tests.gpt2.tinytraining import finish, tiny_job
from tests.results_factory import relabel

SEEDS = (1, 2, 3)
OTHER = 100  # added to the seeds of the arm trained with others


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Directory of the four arms; the first cell is the comparison partner."""
    data_dir = prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))
    root = tmp_path_factory.mktemp("results")
    short = {"max_iters": 40, "eval_interval": 10, "checkpoint_interval": 40}
    short |= {"batch_size": 8, "gradient_accumulation": 1}
    job = tiny_job(data_dir, **short)
    slow = job.settings.optim.learning_rate / 50
    arms = {
        "base": (job, 0),
        "same": (job, 0),
        "again": (job, OTHER),
        "slow": (tiny_job(data_dir, learning_rate=slow, min_lr=0.0, **short), 0),
    }
    for name, (cell, shift) in arms.items():
        parent = None if name == "base" else "base"
        for seed in SEEDS:
            run_dir = root / name / f"seed{seed}"
            run_dir.parent.mkdir(exist_ok=True)
            where = {"run_dir": f"{name}/seed{seed}", "parent_name": parent}
            mine = replace(cell, name=name, title=name, seed=seed + shift, **where)
            finish(mine, run_dir, KABLATE_VERIFIED="passed")
            relabel(run_dir, seed=seed)
    return root


def test_planted_effect_is_found_and_identical_arms_are_not_told_apart(results):
    judged = judge(read_matrix(results))
    found = {c.arm.name: c.at_steps for c in judged.comparisons}
    assert found["slow"].grade == HARMFUL, found["slow"]
    assert found["same"].grade == NEUTRAL and found["same"].differences == (0.0,) * 3
    assert found["again"].grade == INVALID and 0 not in found["again"].differences
    batches, weights = found["again"].reasons
    assert batches == (
        "not paired with base: the batches of update 1 differ (seeds 1, 2, 3)"
    )
    assert "the initial weights wte.weight 257x32, wpe.weight 32x32" in weights
    assert [noise.arm.name for noise in judged.noise] == ["base"]


def test_what_the_trainer_writes_fills_the_report(results):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), str(results)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    left_out = [x for x in done.stdout.splitlines() if "left out" in x]
    assert len(left_out) == 3  # seeds that their runs only claim
    assert all("again/seed" in line and "edited" in line for line in left_out)
    summary = json.loads((results / "summary.json").read_text())
    schema = json.loads((ROOT / "gpt2" / "report" / "summary.schema.json").read_text())
    jsonschema.validate(summary, schema)
    for row in summary["runs"]:
        for name in (
            "val_loss", "val_perplexity", "val_accuracy", "bits_per_byte", "parameters",
            "flops_per_token", "kv_bytes_per_token", "tokens", "tokens_per_s",
            "seconds", "effective_batch",
        ):  # fmt: skip
            assert row[name] > 0, name
        assert row["verified"] == "passed" and row["updates"] == 40
    text = (results / "REPORT.md").read_text()
    numerics = ("precision", "fp32 products")
    for item in ("hardware", "versions", "effective batch", *numerics, "data"):
        assert f"- [x] {item}: " in text
    assert "- [ ] pairing: 3 of 12 runs differ (again/seed1: the batches of" in text
    assert all((results / "plots" / f"{n}.png").is_file() for n in ("loss", "forest"))
