"""Columns of what make eval and inference-bench have measured, at several times."""

import json

import pytest

from gpt2.report.evaluations import Measure, write_evaluation
from gpt2.report.generation import write_generation
from gpt2.report.html import html_report
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from tests.results_factory import write_matrix

LOSS = "random tokens, loss"


def hash_of(run):
    return json.loads((run / "job.json").read_text())["hash"]


def evaluate(root, run, items, of):
    found = {LOSS: Measure(tuple(items), of)}
    write_evaluation(root / run, hash_of(root / run), found, {})


def generate(root, run, batches, **about):
    rows = [
        {
            "batch": batch,
            "prefill_tokens_per_second": 1000.0,
            "decode_tokens_per_second": 100.0 * batch,
        }
        for batch in batches
    ]
    made_with = {
        **{"device": "CPU", "threads": 2, "torch": "2.11", "prompt_tokens": 8},
        **{"new_tokens": 16, **about},
    }
    write_generation(root / run, hash_of(root / run), rows, made_with)


@pytest.mark.parametrize("fewer", [3, 5])
def test_measures_of_other_items_have_columns_of_their_own(tmp_path, fewer):
    write_matrix(tmp_path, steps=(0, 5), seeds=(1, 2, 3))
    for step in ("step00-baseline", "step05-ra"):
        for seed in (1, 2):
            evaluate(tmp_path, f"{step}/seed{seed}", [1.0, 2.0, 3.0, 4.0, 5.0], "aaaa")
        evaluate(tmp_path, f"{step}/seed3", [9.0] * fewer, "bbbb")
    matrix = read_matrix(tmp_path)
    for run in matrix.runs:
        items, mean = ("bbbb", 9.0) if run.row["seed"] == 3 else ("aaaa", 3.0)
        assert run.row[f"eval: {LOSS}, items {items}"] == mean
        assert f"eval: {LOSS}" not in run.row
    page = html_report(matrix, judge(matrix), "results")
    assert f"{LOSS}, items aaaa" in page and f"{LOSS}, items bbbb" in page


def test_measures_of_the_same_items_keep_their_name(tmp_path):
    write_matrix(tmp_path, steps=(0,), seeds=(1, 2))
    for seed in (1, 2):
        evaluate(tmp_path, f"step00-baseline/seed{seed}", [1.0, 2.0], "aaaa")
    rows = read_matrix(tmp_path).rows
    assert [row[f"eval: {LOSS}"] for row in rows] == [1.5, 1.5]


def test_generation_under_other_conditions_is_left_out(tmp_path):
    write_matrix(tmp_path, steps=(0, 5), seeds=(1, 2))
    generate(tmp_path, "step00-baseline/seed1", [1, 8])
    generate(tmp_path, "step00-baseline/seed2", [1, 8])
    generate(tmp_path, "step05-ra/seed1", [1, 8])
    generate(tmp_path, "step05-ra/seed2", [1, 8], device="NVIDIA A10G")
    matrix = read_matrix(tmp_path)
    speeds = [row.get("infer_tokens_per_s") for row in matrix.rows]
    assert speeds == [100.0, 100.0, 100.0, None]
    (left,) = matrix.left_out
    assert left.path == "step05-ra/seed2/inference.json"
    assert left.reason == (
        "measured with NVIDIA A10G, torch 2.11, 8 + 16 tokens, batch at most 8, but "
        "others with CPU with 2 threads, torch 2.11, 8 + 16 tokens, batch at most 8"
    )


def test_a_large_batch_is_not_the_speed_of_one_sequence(tmp_path):
    write_matrix(tmp_path, steps=(0,), seeds=(1,))
    generate(tmp_path, "step00-baseline/seed1", [8, 32])
    (row,) = read_matrix(tmp_path).rows
    assert row["infer_batch_tokens_per_s"] == 3200.0
    assert "infer_tokens_per_s" not in row
