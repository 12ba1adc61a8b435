"""Two sizes of a tiny model, one of them killed and continued, and their status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from lib.jobs import run_files
from tests.scratch import until
from tests.scripts.inprocess import run_script
from tests.tinymatrix import command, run_matrix

WORDS = (
    "--overrides",
    "STEPS=0 SEEDS=1 MAX_ITERS=4 EVAL_INTERVAL=2 WARMUP_STEPS=1 SIZES=1x16,2x24",
)
SMALL, LARGE = (f"step00-baseline/size={size}/seed1" for size in ("1x16", "2x24"))


def test_sizes_are_run_one_by_one_killed_continued_and_rerun(
    folder: Path,
) -> None:
    results = folder / "results"
    first = run_matrix(folder, *WORDS, "--only=*/size=1x16")
    assert first.returncode == 0, first.stderr
    assert not (results / LARGE).exists()

    runner = subprocess.Popen(
        command(*WORDS),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: (results / LARGE / "status.json").exists())
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    last = run_matrix(folder, *WORDS, "--json")
    found = json.loads(last.stdout)
    assert last.returncode == 0 and found["statuses"] == {"done": 2}, last.stderr
    models = [run_files.read_json(results / run / "job.json") for run in (SMALL, LARGE)]
    sizes = [m["settings"]["model"] for m in models]
    assert [(m["n_layer"], m["n_head"], m["n_embd"]) for m in sizes] == [
        (1, 4, 16),
        (2, 4, 24),
    ]
    weights = [(results / run / "model.safetensors").stat() for run in (SMALL, LARGE)]
    assert weights[0].st_size < weights[1].st_size

    again = run_matrix(folder, *WORDS, "--rerun", f"--only={SMALL}")
    assert again.returncode == 0, again.stderr
    assert (results / ".replaced").is_dir()
    untouched = (results / LARGE / "model.safetensors").stat()
    assert untouched.st_mtime_ns == weights[1].st_mtime_ns
    listed = run_script("run_test_matrix.py", "--list", *WORDS, cwd=folder)
    assert f"results/{SMALL}  [done]" in listed.stdout
