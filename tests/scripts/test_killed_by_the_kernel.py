"""A run that the kernel kills for lack of memory, in too small a control group."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib import atomic_files
from tests.tinymatrix import TINY, command, write_config

CGROUPS = Path("/sys/fs/cgroup")
# A micro batch of 1024 keeps about 1 GB for its backward pass.
LARGE = {
    "CONFIG_BATCH_SIZE=2": "CONFIG_BATCH_SIZE=1024",
    "CONFIG_GPT2_BLOCK_SIZE=16": "CONFIG_GPT2_BLOCK_SIZE=128",
    "CONFIG_GPT2_N_EMBD=16": "CONFIG_GPT2_N_EMBD=64",
    "CONFIG_GPT2_MAX_ITERS=10": "CONFIG_GPT2_MAX_ITERS=3",
    "CONFIG_GPT2_GRADIENT_ACCUMULATION=1": "CONFIG_GPT2_GRADIENT_ACCUMULATION=2",
}
OVERRIDES = "STEPS=0 SEEDS=1 EVAL_INTERVAL=3"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of our own with a memory limit, version 2 or 1."""
    one = CGROUPS / "memory"
    group = (one if one.is_dir() else CGROUPS) / f"kablate-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = "memory.limit_in_bytes" if one.is_dir() else "memory.max"
        (group / limit).read_text()
    except OSError as error:
        pytest.skip(f"no control group with memory can be made here: {error}")
    yield group
    group.rmdir()


def limited(group: Path, megabytes: int, words: list[str]) -> list[str]:
    """The command, run within the group."""
    v1 = (group / "memory.limit_in_bytes").exists()
    limit = group / ("memory.limit_in_bytes" if v1 else "memory.max")
    limit.write_text(f"{megabytes}M")
    script = f'echo $$ > {group / "cgroup.procs"}; exec "$@"'
    return ["sh", "-c", script, "sh", *words]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_it_goes_on_with_half_the_micro_batch(
    cgroup: Path, tmp_path: Path, ranks: int
) -> None:
    text = TINY
    for old, new in LARGE.items():
        assert old in text
        text = text.replace(old, new)
    write_config(tmp_path, text)
    (tmp_path / "texts").mkdir()
    shutil.copy(__file__, tmp_path / "texts" / "some.txt")
    prepare = Path(__file__).parents[2] / "scripts" / "prepare_data.py"
    subprocess.run(command(script=prepare)[:2], cwd=tmp_path, check=True)
    words = command("--overrides", f"{OVERRIDES} DDP_GPUS_PER_JOB={ranks}")
    # The runner and each rank take about 0.25 GB before they train.
    done = subprocess.run(
        limited(cgroup, 350 + 500 * ranks, words),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = "FAILED (oom): killed by the kernel for lack of memory; will be tried again"
    assert line in done.stdout
    manifest = atomic_files.read_json(
        tmp_path / "results" / "step00-baseline" / "seed1" / "manifest.json"
    )
    assert manifest["micro_batch"] < 1024 and manifest["world_size"] == ranks
    effective = manifest["micro_batch"] * manifest["accumulation"] * ranks
    assert effective == 2048
    assert manifest["out_of_memory"][0]["micro_batch"] == 1024
