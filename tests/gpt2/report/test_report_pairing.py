"""Runs that do not share what their seed should give them have no verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpt2.report.grades import INVALID
from gpt2.report.pairing import unpaired, unpaired_runs
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from tests.results_factory import pairing, write_control, write_matrix


def with_pairing(root, change):
    """A matrix in which step 5, seed 2, recorded something else."""
    write_matrix(root)
    (path,) = root.glob("step05-*/seed2/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["pairing"] = change(manifest["pairing"])
    path.write_text(json.dumps(manifest))
    return read_matrix(root)


def changed(part, key, value):
    return lambda found: {**found, part: {**found[part], key: value}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (changed("batches", "4", "f" * 16), "the batches of update 4 differ"),
        (lambda found: {**found, "validation": "0"}, "the validation windows differ"),
        (
            changed("initial_weights", "wte.weight 50257x768", [1.282, 0.0201]),
            "the initial weights wte.weight 50257x768 differ",
        ),
    ],
)
def test_runs_that_share_less_than_they_should_are_invalid(tmp_path, change, text):
    judged = judge(with_pairing(tmp_path, change))
    verdicts = {c.arm.step: c.at_steps for c in judged.comparisons}
    assert verdicts[5].grade == verdicts[29].grade == INVALID
    assert f"not paired with 0 baseline: {text} (seeds 2)" in verdicts[5].reasons
    assert verdicts[8].grade != INVALID


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {},  # as of an older version
        lambda found: {**found, "initial_weights": {}},  # resumed without a manifest
        changed("batches", "150", "f" * 16),  # an update that the others have not
        changed("initial_weights", "wte.weight 50257x768", [1.2820004, 0.0199996]),
        changed("initial_weights", "wte.weight 50257x1536", [7.0, 0.7]),
    ],
)
def test_what_is_not_common_is_not_compared(tmp_path, change):
    matrix = with_pairing(tmp_path, change)
    assert unpaired_runs(matrix.runs) == {}
    assert all(c.at_steps.grade != INVALID for c in judge(matrix).comparisons)


def test_a_control_that_is_not_paired_spoils_the_matrix(tmp_path):
    write_matrix(tmp_path)
    for seed in (1, 2, 3):
        other = {"pairing": pairing(seed + 7, 0)}
        write_control(tmp_path, seed, manifest=other)
    judged = judge(read_matrix(tmp_path))
    assert {c.at_steps.grade for c in judged.comparisons} == {INVALID}
    (control,) = judged.controls
    assert "the batches of update 1 differ (seeds 1, 2, 3)" in control.reasons[0]


def test_batches_of_another_size_and_other_text_have_reasons_of_their_own(tmp_path):
    write_matrix(tmp_path, (0,), (1,))
    write_matrix(tmp_path, (5,), (1,), manifest={"pairing": pairing(7, 5)})
    base, ra = read_matrix(tmp_path).runs
    assert len(unpaired(base, ra)) > 1
    others = (
        {"row": ra.row | {"effective_batch": 32}},
        {"manifest": ra.manifest | {"data_fingerprint": "f" * 64}},
        {"job": {"settings": ra.settings | {"model": {"block_size": 7}}}},
    )
    for other in others:
        assert unpaired(base, replace(ra, **other)) == []


@pytest.mark.parametrize(
    ("mine", "theirs", "is_paired"),
    [
        (1000.0, 1000.009, True),  # relative to a length above 1
        (1000.0, 1000.011, False),
        (0.001, 0.001009, True),  # else absolute: directions are near 0
        (0.001, 0.001011, False),
    ],
)
def test_weights_of_other_processors_differ_by_rounding(
    tmp_path, mine, theirs, is_paired
):
    write_matrix(tmp_path, (0,), (1,))
    (run,) = read_matrix(tmp_path).runs

    def drew(length):
        weights = {"initial_weights": {"wte.weight": [length, 0.5]}}
        found = run.manifest["pairing"] | weights
        return replace(run, manifest=run.manifest | {"pairing": found})

    assert (unpaired(drew(mine), drew(theirs)) == []) == is_paired


def test_models_of_other_depth_scale_their_weights_otherwise(tmp_path):
    weights = changed("initial_weights", "wte.weight 50257x768", [9.0, 0.5])
    matrix = with_pairing(tmp_path, weights)
    run = next(r for r in matrix.runs if r.row["step"] == 5 and r.row["seed"] == 2)
    run.settings["model"]["n_layer"] = 24
    assert unpaired_runs(matrix.runs) == {}


@pytest.mark.parametrize("junk", [7, "x", [], {"batches": 7}, {"batches": {"1": []}}])
def test_a_damaged_record_breaks_no_report(tmp_path, junk):
    matrix = with_pairing(tmp_path, lambda found: junk)
    judge(matrix)
    assert set(unpaired_runs(matrix.runs)) <= {"step05-ra/seed2"}


def test_the_run_that_differs_from_most_of_its_seed_is_named(tmp_path):
    matrix = with_pairing(tmp_path, changed("batches", "4", "f" * 16))
    assert len({run.row["step"] for run in matrix.runs}) > 2
    for runs in (matrix.runs, matrix.runs[::-1]):
        found = unpaired_runs(runs)
        assert found == {"step05-ra/seed2": ["the batches of update 4 differ"]}


def test_the_run_that_most_differ_from_is_the_one_that_is_named(tmp_path):
    """Also if it comes first, as the baseline does."""
    write_matrix(tmp_path, (0,), (1,), manifest={"pairing": pairing(7, 0)})
    write_matrix(tmp_path, (5, 8), (1,))
    assert list(unpaired_runs(read_matrix(tmp_path).runs)) == ["step00-baseline/seed1"]


def test_three_weights_that_differ_are_named_and_more_counted(tmp_path):
    write_matrix(tmp_path, (0,), (1,))
    (run,) = read_matrix(tmp_path).runs

    def drew(length, count):
        weights = {f"w{n}": [length, 0.5] for n in range(count)}
        found = run.manifest["pairing"] | {"initial_weights": weights}
        return replace(run, manifest=run.manifest | {"pairing": found})

    assert unpaired(drew(1.0, 3), drew(2.0, 3)) == [
        "the initial weights w0, w1, w2 differ"
    ]
    assert unpaired(drew(1.0, 5), drew(2.0, 5)) == [
        "the initial weights w0, w1, w2 and 2 more differ"
    ]
