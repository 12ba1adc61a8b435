"""scripts/bench.py: the rows that a CPU gives, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt2.plan.steps import STEPS
from gpt2.train import benchmark
from scripts import bench
from tests.scripts.inprocess import run_script

SMALL = "MODEL=CUSTOM N_LAYER=1 N_EMBD=24 BLOCK_SIZE=16"


def test_a_table_and_its_json_on_a_machine_without_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/gpt2/model/test_gpt.py has the comparison with transformers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "deep" / "bench.json"
    parts = ("--parts", "gpu,cpu,start,certificates", "--peers=", "--settings", SMALL)
    words = ("--steps", "0", "--repeats", "1", "--out", path)
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
    [
        ("--settings", "BLOCK_SIZ=4"),
        ("--settings", "DEVICE=cpu"),
        ("--peers", "eagre"),
        ("--parts", "gpus"),
        ("--parts", ","),
        ("--steps", "zero"),
        ("--repeats", "0"),
        ("--nanogpt", "nowhere"),
        ("--at_once", "two"),
        ("--micro_batches", "x"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, option: str, text: str) -> None:
    result = run_script("bench.py", option, text, cwd=tmp_path)
    assert result.returncode == 2
    name = option.removeprefix("--").upper()
    assert text.split("=")[0] in result.stderr and "Traceback" not in result.stderr
    assert name in ("SETTINGS", "STEPS") or f"{name}=" in result.stderr
    assert not (tmp_path / "bench_results").exists()


def test_nothing_that_can_be_measured_is_not_a_success(tmp_path: Path) -> None:
    result = run_script("bench.py", "--parts", ",", "--out", "x.json", cwd=tmp_path)
    assert result.returncode == 2 and "PARTS=, names nothing" in result.stderr
    assert "written" not in result.stdout and not (tmp_path / "x.json").exists()


def test_a_command_that_fails_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    words = ("--parts", "certificates", "--steps", "0,999", "--out", "x.json")
    result = run_script("bench.py", *words, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "verify.py exits with 2: " in result.stderr and "999" in result.stderr


def test_steps_are_those_of_the_settings_unless_named() -> None:
    assert bench.steps_of("", "STEPS=0,5-7") == [0, 5, 6, 7]
    assert bench.steps_of("3", "STEPS=0,5") == [3]
    assert bench.steps_of("", "BLOCK_SIZE=64") == [*STEPS]


NANOGPT = """
from dataclasses import dataclass
import torch
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_nanogpts_own_model_is_trained_from_its_file(tmp_path: Path) -> None:
    """By a stand-in of its interface: GPTConfig, GPT and what its forward returns."""
    (tmp_path / "model.py").write_text(NANOGPT)
    words = f"{SMALL} TOKENIZER=BYTES DEVICE=cpu MIXED_PRECISION=n"
    settings, cpu = benchmark.settings_of(words), torch.device("cpu")
    make = benchmark.update_of(benchmark.NANOGPT, str(tmp_path))
    update = make(settings, cpu, 2)
    assert update.parameters[0].shape == (320, 320), "257 words, padded to 64"
    before = update.parameters[0].detach().clone()
    update()
    assert not torch.equal(before, update.parameters[0])
    (tmp_path / "model.py").write_text("GPT = None")
    with pytest.raises(ValueError, match="is not nanoGPT's model"):
        make(settings, cpu, 2)
    with pytest.raises(ValueError, match=r"there is no model\.py"):
        benchmark.update_of(benchmark.NANOGPT, str(tmp_path / "none"))(settings, cpu, 2)


def test_peers_in_the_fastest_mode_are_compiled_in_it() -> None:
    for name, mode in (("plain", None), ("plain-fast", "reduce-overhead")):
        assert benchmark.is_others(benchmark.PEERS[name])
        made = benchmark.update_of(benchmark.PEERS[name], "")
        assert made.keywords == {"mode": mode}  # type: ignore[attr-defined]
    assert not benchmark.is_others(0) and not benchmark.is_others(benchmark.EAGER)


@pytest.mark.slow
def test_the_share_of_slot_time_that_a_matrix_trains(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = ("--settings", "MAX_ITERS=1 EVAL_SAMPLES=4", "--out", str(path))
    result = run_script("bench.py", "--parts", "matrix", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["what"] == "12 runs on 2 slots"
    assert 0 < row["share training"] < 1
    training = 12 * row["seconds a run"]
    assert row["share training"] == pytest.approx(training / (2 * row["seconds"]))
    assert 0 < row["first update"] < row["seconds"]
    assert 0 < row["gap"] <= row["longest gap"]
    shares = [x for name, x in row.items() if name.startswith("of time ")]
    assert sum(shares) == pytest.approx(1)
