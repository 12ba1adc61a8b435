"""scripts/bench.py: the rows that a CPU gives, and the ratios of those it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import line_of, ratios

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
    result = bench("--parts", "gpu,cpu,start", "--repeats", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    assert "torch sees no GPU here: its rows are left out" in result.stdout
    found = json.loads(path.read_text())
    assert found["machine"]["gpu"] == "none"
    parts = [row["part"] for row in found["rows"]]
    assert parts in (["cpu", "cpu", "start"], ["cpu", "start"])
    for row in found["rows"]:
        assert (row.get("tokens/s") or row["seconds"]) > 0
        assert line_of(row) in result.stdout


def test_nonsense_is_refused() -> None:
    result = bench("--settings", "BLOCK_SIZ=4")
    assert result.returncode == 2
    assert "BLOCK_SIZ" in result.stderr
    assert "Traceback" not in result.stderr


def test_ratios_are_per_equal_flops() -> None:
    first = {"tokens/s": 100.0, "flops/token": 6.0, "peak GiB": 2.0}
    row = {"tokens/s": 80.0, "flops/token": 9.0, "peak GiB": 3.0}
    found = ratios(row, first)
    assert found["of step 0, equal FLOPs"] == pytest.approx(1.2)
    assert found["of step 0, memory"] == 1.5
    assert ratios({"failed": "out of memory"}, first) == {}
