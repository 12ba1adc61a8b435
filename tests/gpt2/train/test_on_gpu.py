"""Whole runs on a real GPU, started as a user starts them.

What a card shows, with the tables on the screen:

    python -m pytest -m gpu -rP tests/lib tests/gpt2/train
"""

from math import inf
from pathlib import Path
from typing import Any

import pytest

from gpt2.train.export import load_export
from lib.gpu import compile_cache, profiler
from tests.gpt2.tinydata import ROOT, prepare_texts, texts
from tests.gpt2.tinytraining import (
    losses,
    manifest,
    run_command,
    status,
    tiny_job,
    write_job,
)

pytestmark = pytest.mark.gpu
BF16 = {"device": "cuda:0", "mixed_precision": "bf16", "dropout": 0.0}
# Four blocks of GPT-2's width: with bytes for words, about 0.1 GB a sequence.
WIDE = {
    "n_layer": 4,
    "n_head": 12,
    "n_embd": 768,
    "head_dim": 64,
    "mlp_width": 3072,
    "block_size": 1024,
}


def run_on_gpu(folder: Path, **fields: Any) -> str:
    """Train to the end; the log, which is also printed."""
    job = tiny_job(prepare_texts(folder, texts(60)), **BF16, **fields)
    path = write_job(folder / "job.json", job)
    words = ("--job", path, "--run-dir", folder / "run")
    done = run_command(*words, cwd=ROOT, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(folder / "run")["status"] == "done"
    return done.stdout


def test_the_start_tells_what_is_used(tmp_path):
    log = run_on_gpu(tmp_path, num_workers=2)
    table = dict(
        line.strip().split(maxsplit=1)
        for line in log.splitlines()
        if line.startswith("  ") and len(line.split()) > 1
    )
    for row in ("device", "name", "architecture", "driver", "bf16", "allocator"):
        assert table[row] != "unknown", log
    assert "GiB" in table["memory"] and "by estimate" in table["peak"], log
    assert {"CUDA", "HIP"} & table.keys(), log
    assert not table["SDPA"].startswith("math"), log
    device = manifest(tmp_path / "run")["device"]
    if device["backend"] == "cuda":
        assert "expandable_segments:True" in table["allocator"], log
    assert device["float32_products"] == "high" and not device["warning"]


def test_a_profile_of_a_run_has_kernels_and_memory(tmp_path):
    log = run_on_gpu(tmp_path, profile=True, profile_steps=(8, 9))
    assert "profile: updates 8 to 9 on" in log and "no kernel ran" in log
    folder = tmp_path / "run" / profiler.FOLDER
    for name in ("TRACE_FILE", "SNAPSHOT_FILE", "SUMMARY_FILE"):
        assert (folder / getattr(profiler, name)).stat().st_size > 500
    print((folder / profiler.SUMMARY_FILE).read_text())


def test_a_run_finds_compiled_what_the_choice_of_kernels_compiled(
    tmp_path, monkeypatch
):
    for name in (compile_cache.INDUCTOR, compile_cache.TRITON):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = run_on_gpu(tmp_path, **WIDE, compile_model=True, batch_size=2)
    assert "choosing kernels for this arm" in log
    assert "compiled graphs: 3 from the cache, 1 new" in log, "the head that evaluates"


@pytest.mark.gpu(gib=inf)  # fills the card
def test_an_absurd_micro_batch_is_halved_until_it_fits(tmp_path):
    fields = {"batch_size": 4096, "gradient_accumulation": 1, "max_iters": 2}
    steps = {"eval_interval": 2, "checkpoint_interval": 2, "log_interval": 1}
    # Named, or kernels would be chosen for each micro batch that is tried.
    kernels = {"attention_backend": "sdpa", "mlp_backend": "torch"}
    warm = {"warmup_steps": 1, "gpu_warmup": 1}
    log = run_on_gpu(tmp_path, **WIDE, **fields, **steps, **kernels, **warm)
    recorded = manifest(tmp_path / "run")
    assert recorded["out_of_memory"] and "out of memory after update 0" in log
    assert recorded["micro_batch"] < 4096
    assert recorded["micro_batch"] * recorded["accumulation"] == 4096
    assert len(losses(tmp_path / "run")) == 2


def test_pruned_heads_are_cut_out_of_what_a_gpu_trained(tmp_path):
    ramp = {"prune_warmup": 2, "prune_interval": 2, "prune_ramp_end": 0.9}
    log = run_on_gpu(tmp_path, **WIDE, **ramp, prune_method="heads")
    result = status(tmp_path / "run")["result"]
    assert "24 of 48 heads left" in log and result["export_deviation"] <= 1e-5
    assert sum(load_export(tmp_path / "run" / "model.safetensors").heads) == 24
    assert result["decode_seconds"] > 0 and result["forward_seconds"] > 0
