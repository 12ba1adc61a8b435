"""A matrix of models that train in a moment, as a user would configure it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import symbol_types
from lib.kconfig.config_py import Config, render_config
from tests.scratch import ROOT

SCRIPT = ROOT / "scripts" / "run_test_matrix.py"
TINY = """\
CONFIG_RA_MLA_ABLATION_MODE=y
CONFIG_RA_MLA_ABLATION_STEPS="0,5"
CONFIG_SEEDS="1,2"
CONFIG_OUTPUT_DIR="results"
CONFIG_GPT2_MODEL_CUSTOM=y
CONFIG_GPT2_N_LAYER=2
CONFIG_GPT2_N_HEAD=4
CONFIG_GPT2_N_EMBD=16
CONFIG_GPT2_BLOCK_SIZE=16
CONFIG_RA_MLA_LATENT_DIM=8
CONFIG_RA_MLA_RA_WINDOW=4
CONFIG_GPT2_DATASET_TEXT=y
CONFIG_GPT2_DATASET_TEXT_PATH="texts"
CONFIG_GPT2_TOKENIZER_BYTES=y
CONFIG_GPT2_EVAL_INTERVAL=5
CONFIG_GPT2_EVAL_SAMPLES=4
CONFIG_GPT2_MAX_ITERS=10
CONFIG_GPT2_WARMUP_STEPS=2
CONFIG_BATCH_SIZE=2
CONFIG_GPT2_GRADIENT_ACCUMULATION=1
CONFIG_GPT2_LOG_INTERVAL=1
CONFIG_CHECKPOINT_INTERVAL=2
CONFIG_DEVICE="cpu"
CONFIG_CPU_THREADS=1
# CONFIG_MIXED_PRECISION is not set
"""


def write_config(folder: Path, text: str = TINY) -> Config:
    """config.py in a folder, from the lines of a defconfig."""
    preset = folder / "preset"
    preset.write_text(text)
    config = strict_kconfig().load([preset])
    (folder / "config.py").write_text(render_config(config, symbol_types()))
    return config


def command(*words: str, script: Path = SCRIPT) -> list[str]:
    """scripts/run_test_matrix.py without its first stage, the certificates, and without
    its last, the table, which takes a second to import."""
    return [sys.executable, str(script), "--skip-verify", "--no-table", *words]


def run_matrix(
    folder: Path, *words: str, script: Path = SCRIPT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """``command`` in a folder; never raises."""
    return run_command(folder, command(*words, script=script), **environ)


def prove_and_run(
    folder: Path, *words: str, script: Path = SCRIPT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The whole of scripts/run_test_matrix.py in a folder; never raises."""
    return run_command(folder, [sys.executable, str(script), *words], **environ)


def run_command(
    folder: Path, command: list[str], **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
