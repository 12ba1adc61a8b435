"""A test matrix of tiny cells, from the listing through the runs to the table."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gpt2.infer.sampling import Sampling, generate
from gpt2.train.export import load_export
from tests.scripts.inprocess import run_script
from tests.tinymatrix import TINY, run_matrix, write_config

CELLS = (
    "adamw-none",
    "adamw-magnitude-50",
    "adamw-heads-50",
    "sgd-none",
    "sgd-magnitude-50",
    "adamwprune-bitter7-state-50",
)
SETS = """\
CONFIG_TEST_MATRIX_MODE=y
CONFIG_TEST_MATRIX_SGD=y
CONFIG_TEST_MATRIX_SGD_LEARNING_RATE="0.05"
CONFIG_TEST_MATRIX_ADAMWPRUNE=y
CONFIG_TEST_MATRIX_PRUNING_MAGNITUDE=y
CONFIG_TEST_MATRIX_PRUNING_HEADS=y
# CONFIG_TEST_MATRIX_BITTER0 is not set
CONFIG_TEST_MATRIX_BITTER7=y
CONFIG_PRUNING_WARMUP_STEPS=2
CONFIG_PRUNING_INTERVAL=2
"""
OF_AN_ABLATION = ("RA_MLA_ABLATION", "RA_MLA_LATENT_DIM", "RA_MLA_RA_WINDOW")


def preset() -> str:
    lines = TINY.splitlines(keepends=True)
    kept = [line for line in lines if not any(word in line for word in OF_AN_ABLATION)]
    return SETS + "".join(kept).replace('SEEDS="1,2"', 'SEEDS="1"')


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands after `make`: all cells are done."""
    folder = tmp_path_factory.mktemp("cells") / "here"
    shutil.copytree(prepared, folder)
    write_config(folder, preset())
    done = run_matrix(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_script("report.py", "results", "--no-plots", "--no-html", cwd=folder)


def test_the_listing_names_cells_partners_and_what_is_left_out(folder):
    listed = run_script("run_test_matrix.py", "--list", cwd=folder).stdout
    assert "6 cells x 1 seed = 6 jobs" in listed
    for name in CELLS:
        assert f"\n{name}\n" in listed
    assert "cell sgd-none" in listed
    assert "left out: sgd-state: state pruning scores by adamwprune" in listed
    assert "left out: adamwprune-none: adamwprune without state" in listed
    assert "left out: sgd-heads: heads pruning scores by Adam's two moments" in listed


def test_every_cell_is_done_and_has_its_columns(folder):
    with (folder / "results" / "results.csv").open() as file:
        rows = {row["run_dir"]: row for row in csv.DictReader(file)}
    assert set(rows) == {f"{name}/seed1" for name in CELLS}
    for run_dir, row in rows.items():
        assert row["status"] == "done", run_dir
        assert float(row["optimizer_state_bytes"]) > 0
        assert float(row["step_seconds"]) > 0
        pruned = run_dir.split("/")[0].endswith("-50")
        share = 1 / 6 if "heads" in run_dir else 0.5  # attention has a third
        assert float(row["sparsity"] or 0) == pytest.approx(share if pruned else 0)
        assert row["heads_left"] == ("4" if "heads" in run_dir else "")
    state = {n: float(rows[f"{n}/seed1"]["optimizer_state_bytes"]) for n in CELLS}
    assert state["adamw-none"] > 1.9 * state["sgd-none"]


def test_the_exported_model_has_the_heads_that_the_results_tell(folder):
    run_dir = folder / "results" / "adamw-heads-50" / "seed1"
    result = json.loads((run_dir / "status.json").read_text())["result"]
    found = load_export(run_dir / "model.safetensors")
    assert " ".join(map(str, found.heads)) == result["heads_by_layer"]
    counted = sum(p.numel() for p in found.model.parameters())
    assert counted == result["parameters_exported"] < result["parameters"]
    assert result["export_deviation"] <= 1e-5
    assert generate(found.model, torch.tensor([[1, 2]]), 9, Sampling()).shape == (1, 11)


def test_runs_of_one_seed_start_alike_and_end_apart(folder):
    curves = {}
    for name in CELLS:
        path = folder / "results" / name / "seed1" / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        evaluations = [r["val_loss"] for r in records if r["kind"] == "eval"]
        curves[name] = evaluations
    assert len({curve[0] for curve in curves.values()}) == 1
    assert len({curve[-1] for curve in curves.values()}) == len(CELLS)


def test_nothing_is_run_twice(folder):
    again = run_matrix(folder)
    assert again.returncode == 0
    status = json.loads(
        (folder / "results" / "sgd-none" / "seed1" / "status.json").read_text()
    )
    assert status["attempt"] == 1


def test_the_report_compares_the_cells_and_says_what_zeros_bring(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = report(folder)
    assert shown.returncode == 0, shown.stderr
    for name in CELLS:
        assert name in shown.stdout
    assert shown.stdout.count("50.0%") == 3
    assert "4 of 8 heads left (by layer, seed 1: " in shown.stdout
    assert "decode cache 256 B → 128 B per token" in shown.stdout
    assert "bring no speed" in shown.stdout
    text = (folder / "results" / "REPORT.md").read_text()
    assert "saves neither time nor memory" in text and " ms |" in text
    (row,) = (line for line in text.splitlines() if "4 of 8 |" in line)
    assert re.search(r"256 B → 128 B \| [\d.]+ ms → [\d.]+ ms \| [\d.]+ ms → ", row)
    assert "removed from the exported model" in text
    summary = json.loads((folder / "results" / "summary.json").read_text())
    partners = {
        c["name"]: c["partner"]["name"] for c in summary["verdicts"]["comparisons"]
    }
    assert partners == {
        "adamw-magnitude-50": "adamw-none",
        "adamw-heads-50": "adamw-none",
        "sgd-none": "adamw-none",
        "sgd-magnitude-50": "sgd-none",
        "adamwprune-bitter7-state-50": "adamw-magnitude-50",
    }
    left_out = {item["path"] for item in summary["left_out"]}
    assert {"sgd-state", "adamw-state", "adamwprune-none"} <= left_out
