"""INIT_FROM with the real runner: from a trained GPT-2 in transformers' format."""

import shutil
from pathlib import Path

from gpt2.infer.hf_export import write_folder
from gpt2.infer.trained import load_trained
from lib.atomic_files import read_json, read_jsonl
from tests.scripts.inprocess import run_script
from tests.tinymatrix import run_matrix

SOURCE = "results/step00-baseline/seed1"
ARMS = ("step00-baseline", "step30-ra-learned")
SETTINGS = "STEPS=0,30 SEEDS=2 MAX_ITERS=2 WARMUP_STEPS=1"


def test_arms_start_where_the_source_ended_and_are_audited(undisturbed, tmp_path):
    here = Path(shutil.copytree(undisturbed, tmp_path / "here"))
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
    assert "init_sha256" in done.stdout
    done = run_script("run_test_matrix.py", "--list", *words, cwd=here)
    assert (
        done.returncode == 2 and "INIT_FROM=gpt2: config.json: missing" in done.stderr
    )
