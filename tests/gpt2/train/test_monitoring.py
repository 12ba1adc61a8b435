"""Watching around a training, energy and MFU of a run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2.plan.budget import budget
from gpt2.plan.planning import make_plan
from gpt2.train.batch_split import BatchSplit
from gpt2.train.costs_and_scores import trained
from gpt2.train.monitoring import energy_used, watching
from gpt2.train.progress import Progress
from gpt2.train.run_context import RunContext
from lib.atomic_files import read_jsonl
from lib.gpu import device as devices
from lib.gpu.peaks import peak_flops
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import finish, status, tiny_config, tiny_job


def context(info: devices.DeviceInfo) -> RunContext:
    split = BatchSplit(micro_batch=1, accumulation=1)
    nothing = SimpleNamespace()
    return RunContext(device=info, split=split, train=nothing, val=nothing)


def test_on_a_cpu_there_is_nothing_to_watch(tmp_path: Path) -> None:
    said: list[str] = []
    with watching(context(devices.select_device("cpu")), tmp_path, said.append):
        pass
    assert not said and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to watch")
def test_what_cannot_be_watched_is_said_once_and_fails_nothing(tmp_path: Path) -> None:
    cpu = devices.select_device("cpu")
    gpu = replace(cpu, backend="rocm", device="cuda:0", name="AMD Radeon PRO W7900")
    said: list[str] = []
    inside: list[Any] = []
    with watching(context(gpu), tmp_path, said.append):
        inside.append("trained")
    assert inside and len(said) == 1 and "not watched" in said[0]
    assert not (tmp_path / "gpu.jsonl").exists()


def test_energy_of_a_run_and_a_million_tokens(tmp_path: Path) -> None:
    records = [
        {"seconds": second, "gpus": [{"index": 0, "power_w": 300.0}]}
        for second in range(11)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "gpu.jsonl").write_text(text)
    used = energy_used(tmp_path, tokens=500_000)
    assert used == {"energy_j": 3000.0, "energy_j_per_mtoken": 6000.0}


@pytest.mark.parametrize("text", [None, "", '{"seconds": 1}\n{"seconds": 2}\n', "x\ny"])
def test_energy_is_left_out_where_it_is_not_known(tmp_path: Path, text) -> None:
    if text is not None:
        (tmp_path / "gpu.jsonl").write_text(text)
    assert energy_used(tmp_path, tokens=1) == {}


def test_mfu_is_of_the_model_flops_at_the_known_peak() -> None:
    settings = make_plan(tiny_config()).jobs[0].settings
    progress = Progress(step=5, tokens=10_000, train_seconds=2.0, seconds=3.0)
    peak = peak_flops("NVIDIA H200", 132, "bf16")
    result = trained(settings, progress, 5_000, peak)
    flops = budget(settings).flops_training * 10_000 / 2.0
    assert result["mfu"] == pytest.approx(flops / 989.4e12)
    assert "mfu" not in trained(settings, progress, 5_000, None)


def test_a_cpu_run_claims_neither_mfu_nor_energy(tmp_path: Path) -> None:
    result = finish(tiny_job(prepare_texts(tmp_path)), tmp_path / "run")
    assert not {"mfu", "energy_j"} & result.keys()


@pytest.mark.gpu
def test_a_run_on_a_gpu_is_watched(tmp_path: Path) -> None:
    fields = {"device": "cuda:0", "mixed_precision": "bf16"}
    run_dir = tmp_path / "run"
    result = finish(tiny_job(prepare_texts(tmp_path), **fields), run_dir)
    records = read_jsonl(run_dir / "gpu.jsonl")
    assert len(records) >= 2 and len(records[0]["gpus"]) == 1
    gpu = records[-1]["gpus"][0]
    assert gpu["name"] in torch.cuda.get_device_name(0)
    for key in ("utilisation", "memory_used_bytes", "power_w", "temperature_c"):
        assert gpu[key] is not None, gpu
    assert result["energy_j"] > 0 and status(run_dir)["status"] == "done"
    known = peak_flops(gpu["name"], None, "bf16") is not None
    trains = [r for r in read_jsonl(run_dir / "metrics.jsonl") if r["kind"] == "train"]
    assert known == ("mfu" in result) == all("mfu" in record for record in trains)
