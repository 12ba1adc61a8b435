"""README.md's way from `make` to a model in transformers, to the letter."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.scratch import ROOT, copy_tree, note_setup, run

TITLE = "After training"
# The preset with the same steps and seeds, of models that train in a moment.
SMALLER = {
    "GPT2_N_LAYER": "2",
    "GPT2_N_EMBD": "16",
    "RA_MLA_LATENT_DIM": "3",
    "GPT2_EVAL_INTERVAL": "5",
    "GPT2_EVAL_SAMPLES": "4",
    "GPT2_MAX_ITERS": "5",
    "BATCH_SIZE": "2",
    "GPT2_WARMUP_STEPS": "2",
    "CHECKPOINT_INTERVAL": "5",
}


def blocks(language: str) -> list[str]:
    """Code of the section, in its order."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {TITLE}\n")[1]
    )
    section = re.split(r"^## ", section, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


@pytest.mark.slow
def test_each_command_after_training_works_as_it_stands(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    preset = tree / "defconfigs/gpt2-quickstart"
    lines = preset.read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_"))
    assert {f"CONFIG_{name}" for name in SMALLER} <= values.keys()
    values |= {f"CONFIG_{name}": value for name, value in SMALLER.items()}
    others = [line for line in lines if not line.startswith("CONFIG_")]
    text = [*others, *(f"{name}={value}" for name, value in values.items())]
    preset.write_text("\n".join(text) + "\n")
    note_setup(tree)
    alone = {"PYTHON": sys.executable, "HF_HOME": str(tmp_path / "hf")}
    said = {}
    for command in blocks("sh")[0].splitlines():
        done = run(tree, "bash", "-c", command, **alone)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command.split("#")[0].strip()] = done.stdout
    sampled = next(text for command, text in said.items() if "sample" in command)
    assert "0 baseline, seed 1" in sampled and "def main" in sampled
    results = tree / "test_matrix_results_quickstart"
    (results / "step05-ra/seed1/attention.png").stat()
    report = (results / "REPORT.md").read_text()
    assert "accuracy, python\\_syntax" in report and "bits per byte" in report
    config = json.loads((tree / "ra-model/config.json").read_text())
    assert config["model_type"] == "kablate"
    # Elsewhere, where kablate itself cannot be imported.
    (tmp_path / "user").mkdir()
    (tree / "ra-model").rename(tmp_path / "user/ra-model")
    (code,) = blocks("python")
    done = run(tmp_path / "user", sys.executable, "-P", "-c", code, **alone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main") and len(done.stdout.encode()) > 20
