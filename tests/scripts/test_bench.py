"""scripts/bench.py: the rows that a CPU gives, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.scripts.inprocess import run_script

SMALL = "MODEL=CUSTOM N_LAYER=1 N_EMBD=24 BLOCK_SIZE=16"


def test_a_table_and_its_json_on_a_machine_without_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside transformers: in tests/gpt2/model/test_gpt.py, which imports it anyway."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "deep" / "bench.json"
    parts = ("--parts", "gpu,cpu,start,certificates", "--peers=", "--settings", SMALL)
    words = ("--steps", "0", "--repeats", "1", "--json", path)
    result = run_script("bench.py", *parts, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "torch sees no GPU here: its rows are left out" in result.stdout
    found = json.loads(path.read_text())
    assert found["machine"]["gpu"] == "none"
    shown = [row["part"] for row in found["rows"]]
    assert shown == ["cpu", "start", "certificates"]
    for row in found["rows"]:
        assert (row.get("tokens/s") or row["seconds"]) > 0
        assert row["what"] in result.stdout


@pytest.mark.parametrize(
    ("option", "text"),
    [("--settings", "BLOCK_SIZ=4"), ("--peers", "eagre"), ("--parts", "gpus")],
)
def test_nonsense_is_refused(tmp_path: Path, option: str, text: str) -> None:
    result = run_script("bench.py", option, text, cwd=tmp_path)
    assert result.returncode == 2
    assert text.split("=")[0] in result.stderr


@pytest.mark.slow
def test_the_share_of_slot_time_that_a_matrix_trains(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = ("--settings", "MAX_ITERS=1 EVAL_SAMPLES=4", "--json", str(path))
    result = run_script("bench.py", "--parts", "matrix", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["what"] == "12 runs on 2 slots"
    assert 0 < row["share training"] < 1
    training = 12 * row["seconds a run"]
    assert row["share training"] == pytest.approx(training / (2 * row["seconds"]))
