"""scripts/bench.py: the rows that a CPU gives, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.inprocess import run_script

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_table_and_its_json_on_a_machine_without_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "deep" / "bench.json"
    parts = "gpu,cpu,start,certificates"
    words = ("--steps", "0", "--repeats", "1", "--json", str(path))
    result = bench("--parts", parts, *words)
    assert result.returncode == 0, result.stderr
    assert "torch sees no GPU here: its rows are left out" in result.stdout
    found = json.loads(path.read_text())
    assert found["machine"]["gpu"] == "none"
    shown = [row["part"] for row in found["rows"]]
    assert shown in ([*peer, "cpu", "start", "certificates"] for peer in (["cpu"], []))
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
    result = bench("--parts", "matrix", *words)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["what"] == "12 runs on 2 slots"
    assert 0 < row["share training"] < 1
    training = 12 * row["seconds a run"]
    assert row["share training"] == pytest.approx(training / (2 * row["seconds"]))
