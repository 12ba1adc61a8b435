"""INIT_FROM with the real runner: from a trained GPT-2 in transformers' format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.audit.corpus import validation_offsets
from gpt2.data.tokenizer import vocabulary
from gpt2.infer.hf_export import write_folder
from gpt2.infer.trained import load_trained
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import symbol_types
from lib.atomic_files import read_json, read_jsonl
from lib.kconfig.config_py import render_config
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script
from tests.tinymatrix import TINY, run_matrix

SOURCE = "results/step00-baseline/seed1"
ARMS = ("step00-baseline", "step30-ra-learned")
SETTINGS = "STEPS=0,30 SEEDS=2 MAX_ITERS=2 WARMUP_STEPS=1"


def test_arms_start_where_the_source_ended_and_are_audited(finished, tmp_path):
    here = finished
    (here / "gpt2").mkdir()
    write_folder(load_trained(here / SOURCE), here / "gpt2", native=True)
    words = ("--overrides", f"{SETTINGS} OUTPUT_DIR=tuned INIT_FROM=gpt2")
    done = run_matrix(here, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = read_json(here / SOURCE / "status.json")["result"]["val_loss"]
    runs = [next((here / "tuned").glob(f"{arm[:6]}*/seed2")) for arm in ARMS]
    for run in runs:
        first = read_jsonl(run / "metrics.jsonl")
        (loss,) = (
            r["val_loss"] for r in first if r["kind"] == "eval" and r["step"] == 0
        )
        assert abs(loss - ended) < 1e-5
        assert "starts from INIT_FROM" in (run / "train.log").read_text()
        assert "logits equal the source's" in (run / "train.log").read_text()
    audited = run_script("audit.py", "--no-write", "--results", "tuned", cwd=here)
    assert audited.returncode == 0, audited.stdout
    # Elsewhere the same run; with other weights another one.
    (here / "gpt2").rename(here / "moved")
    moved = ("--overrides", f"{SETTINGS} OUTPUT_DIR=tuned INIT_FROM=moved")
    done = run_script("run_test_matrix.py", "--list", *moved, cwd=here)
    assert "refuses to start" not in done.stdout and done.returncode == 0, done.stderr
    write_folder(load_trained(runs[0]), here / "moved", native=True)
    done = run_script("run_test_matrix.py", "--list", *moved, cwd=here)
    assert "INIT_SHA256" in done.stdout
    done = run_script("run_test_matrix.py", "--list", *words, cwd=here)
    assert done.returncode == 2
    assert "INIT_FROM=gpt2: there is no such folder." in done.stderr


def foreign_gpt2(folder: Path) -> torch.nn.Module:
    """A GPT-2 of transformers' own making, of twice the context, as a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 32}
    config = transformers.GPT2Config(
        vocab_size=257,
        bos_token_id=256,
        eos_token_id=256,
        initializer_range=0.3,
        **shape,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary("bytes")))
    return model


def test_the_preset_fine_tunes_a_gpt2_with_and_without_ra(folder: Path) -> None:
    """In miniature: the loss before the first update is the source's by transformers,
    for both arms, and falls; RA's alpha leaves 0."""
    source = foreign_gpt2(folder / "models/gpt2")
    lines = [line.removeprefix("CONFIG_") for line in TINY.splitlines()]
    keep = ("GPT2_N_", "GPT2_BLOCK", "GPT2_MODEL", "GPT2_DATASET", "GPT2_TOKENIZER")
    tiny = [x.replace('"', "") for x in lines if x.startswith(keep)]
    tiny += ["RA_MLA_RA_WINDOW=4", "DEVICE=cpu", "MIXED_PRECISION=n", "CPU_THREADS=1"]
    tiny += [
        "COMPILE_MODEL=n",
        "LEARNING_RATE=3e-3",
        "CONTROLS=n",
        "SEEDS=1",
        "OUTPUT_DIR=results",
    ]
    tiny += ["GPT2_MAX_ITERS=20", "WARMUP_STEPS=2", "EVAL_SAMPLES=4"]
    preset = ROOT / "defconfigs/gpt2-finetune"
    config = strict_kconfig().load([preset], tiny)
    (folder / "config.py").write_text(render_config(config, symbol_types()))
    done = run_matrix(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("data/*/val.bin")
    text = torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64))
    windows = [text[n : n + 17] for n in validation_offsets(len(text), 16, 4)]
    with torch.no_grad():
        losses = [float(source(x[None], labels=x[None]).loss) for x in windows]
    for arm in ARMS:
        run = folder / f"results/{arm}/seed1"
        records = read_jsonl(run / "metrics.jsonl")
        values = [r["val_loss"] for r in records if r["kind"] == "eval"]
        assert values[0] == pytest.approx(sum(losses) / 4, rel=1e-5)
        assert values[-1] < values[0] - 0.1
    alpha = load_trained(run).model.blocks[0].attn.reciprocity.alpha
    assert float(alpha.abs().min()) > 0
