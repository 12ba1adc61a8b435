"""Real trainings of a moment: one process each, on a small real corpus.

Processes are forked from a server that has torch and the trainer imported already, as a
runner's are, which saves seconds for each; they are killed and signalled like any
other. What the command line itself does is tested with a whole interpreter.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gpt2.plan.jobs import Job
from gpt2.plan.planning import make_plan, step_job
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import SYMBOL_OF
from lib.atomic_files import atomic_write_json, read_json, read_jsonl
from lib.kconfig.config_py import Config
from tests.faults import planted
from tests.gpt2.tinydata import ROOT
from tests.scratch import PATIENT

SCRIPT = ROOT / "gpt2" / "train_ra_mla.py"
STEPS = 12
TINY = (
    "GPT2_MODEL_CUSTOM=y",
    "N_LAYER=2",
    "N_HEAD=2",
    "N_EMBD=32",
    "BLOCK_SIZE=32",
    "DATASET=TEXT",
    "TOKENIZER=BYTES",
    f"MAX_ITERS={STEPS}",
    "BATCH_SIZE=4",
    "ACCUMULATION=2",
    "WARMUP_STEPS=3",
    "EVAL_INTERVAL=4",
    "EVAL_SAMPLES=6",
    "LOG_INTERVAL=2",
    "CHECKPOINT_INTERVAL=3",
    "KEEP_CHECKPOINTS=y",
    "MIXED_PRECISION=n",
    "DEVICE=cpu",
    "CPU_THREADS=1",
    "DROPOUT=0.1",
)
BY_ATTEMPT = ("as_trained", "phase")
TIMES = (
    *("seconds", "train_seconds", "eval_seconds"),
    *("tokens_per_s", "epoch_seconds"),
)


@cache
def tiny_config(*overrides: str, text_path: str = "unknown") -> Config:
    """The configuration of these tests, as the command line would change it."""
    words = (*TINY, f"DATASET_TEXT_PATH={text_path}", *overrides)
    return strict_kconfig().load([], words)


def tiny_job(data_dir: Path, step: int | None = None, **fields: Any) -> Job:
    """A job on the data of ``prepare_texts``; ``fields`` are of the schema."""
    config = tiny_config()
    if step is None:
        job = make_plan(config).jobs[0]
    else:
        origins = dict.fromkeys(SYMBOL_OF, "default")
        job = step_job(settings_from(config), origins, step)
    where = {"data_dir": str(data_dir), "text_path": str(data_dir.parent / "texts")}
    return replace(job, settings=job.settings.replace(**where, **fields))


def command_line(*words: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, words)]


def run_command(
    *words: str | Path, cwd: Path, timeout: float = PATIENT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the trainer as a user does; raises TimeoutExpired and nothing else."""
    return subprocess.run(
        command_line(*words),
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# ---- forked processes -----------------------------------------------------------


@cache
def server() -> Any:
    """The context of multiprocessing that forks from such a server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "gpt2.train.run"])
    return context


def train_here(
    job: Mapping[str, Any],
    run_dir: str,
    micro_batch: int | None,
    environ: Mapping[str, str],
    setup: Callable[[], object] | None,
) -> None:
    """The training, in this process, which ends with it."""
    from gpt2.plan.jobs import job_from_json
    from gpt2.train.run import TrainingRun

    os.environ.update(environ)
    planted.install()
    log = os.open(f"{run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if setup is not None:
        setup()
    run = TrainingRun(job_from_json(job), Path(run_dir), micro_batch, os.environ)
    code = run.carry_out()
    sys.stdout.flush()
    os._exit(code)


class Training:
    """A training in a process of its own."""

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        *,
        micro_batch: int | None = None,
        setup: Callable[[], object] | None = None,
        **environ: str,
    ) -> None:
        self.run_dir = run_dir
        Path(f"{run_dir}.log").unlink(missing_ok=True)
        words = (job.to_json(), str(run_dir), micro_batch, environ, setup)
        self.process = server().Process(target=train_here, args=words)
        self.process.start()

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def log(self) -> str:
        path = Path(f"{self.run_dir}.log")
        return path.read_text() if path.exists() else ""

    def wait(self) -> int:
        """The exit code; negative for a signal."""
        self.process.join(PATIENT)
        assert self.process.exitcode is not None, f"it hangs:\n{self.log}"
        return int(self.process.exitcode)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until ``holds``; fails if the process ends before."""
        limit = time.monotonic() + PATIENT
        while not holds():
            assert self.process.is_alive(), f"it ended early:\n{self.log}"
            assert time.monotonic() < limit, self.log
            time.sleep(0.002)


def train(job: Job, run_dir: Path, **options: Any) -> Training:
    """Train to whatever end there is."""
    training = Training(job, run_dir, **options)
    training.wait()
    return training


def finish(job: Job, run_dir: Path, **options: Any) -> dict[str, Any]:
    """Train to the last update; the result."""
    training = Training(job, run_dir, **options)
    assert training.wait() == 0, training.log
    return dict(status(run_dir)["result"])


@contextmanager
def running(job: Job, run_dir: Path, **options: Any):
    """A training that is killed at the end of the block if it still runs."""
    training = Training(job, run_dir, **options)
    try:
        yield training
    finally:
        training.process.kill()
        training.process.join()


# ---- what they leave ------------------------------------------------------------


def status(run_dir: Path) -> dict[str, Any]:
    return dict(read_json(run_dir / "status.json"))


def manifest(run_dir: Path) -> dict[str, Any]:
    return dict(read_json(run_dir / "manifest.json"))


def records(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of a kind, without what depends on the clock. By default of all kinds
    but those of which a resumed run has more."""
    found = read_jsonl(run_dir / "metrics.jsonl")
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in found
        if kind == record["kind"] or (kind is None and record["kind"] not in BY_ATTEMPT)
    ]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, training loss) of every record."""
    return [(r["step"], r["loss"]) for r in records(run_dir, "train")]


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "ckpt").glob("step-*"))


def exported(run_dir: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and weights of the trained model."""
    with safe_open(run_dir / "model.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        return file.metadata(), weights


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Both ended with the same records and weights, bit for bit."""
    assert json.dumps(records(run_dir)) == json.dumps(records(other))
    metadata, weights = exported(run_dir)
    expected, theirs = exported(other)
    assert (metadata, weights.keys()) == (expected, theirs.keys())
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)


def write_job(path: Path, job: Job) -> Path:
    atomic_write_json(path, job.to_json())
    return path
