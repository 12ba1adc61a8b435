"""Commands of README.md and docs/after-training.md, to the letter."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.scratch import ROOT, copy_tree, note_setup, run

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

# Fewer runs, and updates, of a study.
SHORTER = {
    r"\bSEEDS=1,2,3": "SEEDS=1",
    r"\bLR_SWEEP=3e-4,6e-4,1.2e-3": "LR_SWEEP=3e-4,6e-4",
    r"\bLR_SWEEP_EXTEND=y": "LR_TUNING_SEEDS=7",
    r"(LR_SCHEDULE=wsd .*)MAX_ITERS=(\d)000": r"\1SEEDS=1 MAX_ITERS=\g<2>0",
}


def blocks(language: str, page: str, title: str) -> list[str]:
    """Code below a heading, up to the next one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {title}\n", text, flags=re.M)[1]
    section = re.split(r"^#+ ", section, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


AFTER = "docs/after-training.md", "After training"


def small_tree(folder: Path) -> Path:
    """A copy of the project in which the quickstart trains in a moment."""
    tree = copy_tree(folder / "tree")
    preset = tree / "defconfigs/gpt2-quickstart"
    lines = preset.read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_"))
    assert {f"CONFIG_{name}" for name in SMALLER} <= values.keys()
    values |= {f"CONFIG_{name}": value for name, value in SMALLER.items()}
    others = [line for line in lines if not line.startswith("CONFIG_")]
    text = [*others, *(f"{name}={value}" for name, value in values.items())]
    preset.write_text("\n".join(text) + "\n")
    note_setup(tree)
    return tree


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_command_of_a_study_works_as_it_stands(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    quick = (tree / "defconfigs/gpt2-quickstart").read_text()
    (tree / "defconfigs/gpt2-ratio-ablation").write_text(quick)
    shell = [
        line
        for text in blocks("sh", "README.md", "A study")
        for line in text.splitlines()
    ]
    for command in shell:
        for long, short in SHORTER.items():
            command = re.sub(long, short, command)
        command = command.replace(".venv/bin/python", sys.executable)
        command = command.replace("/tmp/ra", str(tmp_path / "ra"))
        if command.startswith("make menuconfig"):
            continue  # tests/scripts/test_kconfig_cli.py types its keys
        done = run(tree, "bash", "-c", command, PYTHON=sys.executable)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for name in ("results_windows/report.html", "results_2000/summary.json"):
        assert (tree / name).is_file()
    assert (tmp_path / "ra/model.safetensors").is_file()


@pytest.mark.slow
def test_each_command_after_training_works_as_it_stands(tmp_path: Path) -> None:
    tree = small_tree(tmp_path)
    alone = {"PYTHON": sys.executable, "HF_HOME": str(tmp_path / "hf")}
    said = {}
    for command in blocks("sh", *AFTER)[0].splitlines():
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
    (code,) = blocks("python", *AFTER)
    done = run(tmp_path / "user", sys.executable, "-P", "-c", code, **alone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main") and len(done.stdout.encode()) > 20
