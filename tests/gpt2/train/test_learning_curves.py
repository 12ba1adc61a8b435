"""On a GPU every path learns what transformers' GPT-2 learns, and planted faults show.

Step 0 at half the size of GPT-2 124M trains 100 updates on real text as a user would
train it, by each path of attention and MLP, with graphs and without, at several micro
batches and on two ranks. transformers' model starts from the same weights and gets the
same batches, in a loop of this file.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from math import cos, pi
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.plan.jobs import Job
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import BatchPlan, gather, open_tokens
from lib.kernels.cublaslt import missing
from tests.gpt2.tinydata import ROOT, prepare_texts
from tests.gpt2.tinytraining import (
    SCRIPT,
    manifest,
    records,
    status,
    tiny_job,
    write_job,
)
from tests.gpt2.train import rank_faults

UPDATES, LENGTH, BATCH = 100, 1024, 32
RATE, WARMUP, SEED = 1e-3, 20, 1
HALF = {
    "n_layer": 6,
    "n_head": 12,
    "n_embd": 768,
    "head_dim": 64,
    "mlp_width": 3072,
    "block_size": LENGTH,
    "device": "cuda:0",
    "mixed_precision": "bf16",
    "compile_model": True,
    "dropout": 0.0,
    "max_iters": UPDATES,
    "warmup_steps": WARMUP,
    "learning_rate": RATE,
    "min_lr": RATE / 10,
    "log_interval": 1,
    "eval_interval": UPDATES,
    "eval_samples": 8,
    "checkpoint_interval": UPDATES,
    "num_workers": 2,
}
LOSS, NORM = 0.03, 1.5  # nats at the last updates; factor between gradient norms,
WINDOW = 20  # as geometric means over so many updates: single ones are chaotic
PATHS: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, micro batch 16": {"batch_size": 16},
    "auto, micro batch 32": {"batch_size": 32},
    "sdpa, torch": {"attention_backend": "sdpa", "mlp_backend": "torch"},
    "cudnn, cublaslt": {"attention_backend": "cudnn", "mlp_backend": "cublaslt"},
    "triton": {"attention_backend": "triton"},
    "flex": {"attention_backend": "flex", "mlp_backend": "torch"},
    "no graph": {"cuda_graphs": False},
    "eager": {
        "attention_backend": "sdpa",
        "mlp_backend": "torch",
        "compile_model": False,
        "cuda_graphs": False,
    },
}
gpu = pytest.mark.gpu(gib=16)


# ---- the peer --------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that the workers of a test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """The standard library's own sources as bytes, prepared once."""
    root = shared / "curves"
    with filelock.FileLock(f"{root}.lock"):
        if not (root / "data").exists():
            files = sorted(Path(os.__file__).parent.glob("[a-t]*.py"))
            texts = {path.name: path.read_bytes() for path in files}
            prepare_texts(root, texts)
    return root / "data"


@pytest.fixture(scope="session")
def peer(shared: Path, data: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each update of transformers' GPT-2."""
    path = shared / "peer.json"
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(list(peer_curve(data))))
    return [tuple(pair) for pair in json.loads(path.read_text())]


def job_of(data: Path, **fields: Any) -> Job:
    micro = fields.pop("batch_size", 8)
    accumulation = BATCH // micro
    sizes = {"batch_size": micro, "gradient_accumulation": accumulation}
    return tiny_job(data, **{**HALF, **sizes, **fields})


def peer_curve(data: Path) -> Iterator[tuple[float, float]]:
    """Plain PyTorch around transformers' model: bf16 autocast, AdamW, clip at 1."""
    job = job_of(data)
    model = peer_of(job).cuda().train()
    named = list(model.named_parameters())
    decay = job.settings.optim.weight_decay
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optim = job.settings.optim
    optimizer = torch.optim.AdamW(
        groups, lr=RATE, betas=(optim.beta1, optim.beta2), eps=optim.eps
    )
    tokens = open_tokens(next(data.glob("*/train.bin")))
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = rate_of(update + 1)
        total = 0.0
        for x, y in batches(tokens, update, job.seed):
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(x.cuda()).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), y.cuda().flatten()
            )
            (loss / 4).backward()
            total += loss.item() / 4
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        yield total, norm.item()


def rate_of(update: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    if update <= WARMUP:
        return RATE * update / WARMUP
    share = (update - WARMUP) / (UPDATES - WARMUP)
    return RATE / 10 + 0.5 * (RATE - RATE / 10) * (1 + cos(pi * share))


def batches(tokens: Any, update: int, seed: int) -> Iterator[Any]:
    plan = BatchPlan(tokens.size, LENGTH, split_batch(BATCH, 8), seed)
    for micro_step in range(BATCH // 8):
        yield gather(tokens, np.asarray(plan.offsets(update, micro_step)), LENGTH)


def peer_of(job: Job) -> Any:
    """transformers' GPT-2 with the weights that the run begins with."""
    import transformers

    config: Any = transformers.GPT2Config

    settings = job.settings
    ours = GPT(settings)
    init_parameters(ours, job.seed)
    model = transformers.GPT2LMHeadModel(
        config(
            vocab_size=settings.vocab_size,
            n_positions=LENGTH,
            n_embd=768,
            n_layer=6,
            n_head=12,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
        )
    )
    weights = ours.state_dict()
    names = {
        "attn.projection.qkv": "attn.c_attn",
        "attn.proj": "attn.c_proj",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
        "blocks.": "h.",
    }
    theirs = {}
    for name, weight in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        # their linear layers keep [in, out]
        linear = ".c_" in name and weight.ndim == 2
        theirs[f"transformer.{name}"] = weight.T if linear else weight
    missing = model.load_state_dict(theirs, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    model.tie_weights()
    return model


# ---- the curves ------------------------------------------------------------------


def run(
    folder: Path, job: Job, plant: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Train as a user does; plant: the name of a fault below, put in first."""
    path = write_job(folder / "job.json", job)
    words = ["--job", str(path), "--run-dir", str(folder / "run")]
    return subprocess.run(
        [sys.executable, "-m", __name__, plant or "none", *words],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def check_curve(run_dir: Path, peer: list[tuple[float, float]], log: str) -> None:
    found = [(r["loss"], r["grad_norm"]) for r in records(run_dir, "train")]
    assert len(found) == UPDATES, log
    ours, theirs = (np.mean([x for x, _ in c[-5:]]) for c in (found, peer))
    assert abs(ours - theirs) < LOSS, f"{ours} against {theirs}\n{log}"
    norms, others = ([norm for _, norm in curve] for curve in (found, peer))
    for start in range(0, UPDATES, WINDOW):
        part = slice(start, start + WINDOW)
        mine, other = (np.exp(np.log(x[part]).mean()) for x in (norms, others))
        assert 1 / NORM < mine / other < NORM, (norms, others)


@gpu
@pytest.mark.parametrize("path", PATHS)
def test_a_path_learns_as_its_peer(path: str, data: Path, peer, tmp_path: Path) -> None:
    job = job_of(data, **PATHS[path])
    if "reference" in served(job):
        pytest.skip("this card has no such kernel")
    if PATHS[path].get("mlp_backend") == "cublaslt" and (why := missing()):
        pytest.skip(why)
    done = run(tmp_path, job)
    assert done.returncode == 0, done.stdout
    check_curve(tmp_path / "run", peer, done.stdout)
    recorded = manifest(tmp_path / "run")
    print(
        path,
        recorded["attention_backend"],
        recorded["mlp_backend"],
        recorded.get("cuda_graph"),
    )
    print(
        [
            (c["step"], c["worst"], c["seconds"])
            for c in recorded["as_trained"]["checks"]
        ]
    )
    print("untimed:", recorded["untimed_kernels"])


def served(job: Job) -> str:
    from gpt2.model.backends.registry import platform_for, served_by

    return served_by(job.settings, platform_for(job.settings, "cuda"))


def needs_cards(backend: str) -> None:
    """NCCL takes a card for each rank; gloo is content with one for both."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs in this process (no -n, or one worker)")


@gpu
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
@pytest.mark.parametrize("micro_batch", [8, 16])
def test_two_ranks_learn_as_their_peer(
    backend: str, micro_batch: int, data: Path, peer, tmp_path: Path
) -> None:
    needs_cards(backend)
    ranks = {"ddp_gpus_per_job": 2, "ddp_backend": backend}
    job = job_of(data, batch_size=micro_batch, **ranks)
    assert two_ranks(tmp_path, job) == [0, 0], log_of(tmp_path)
    assert manifest(tmp_path / "run")["cuda_graph"] == "recorded", log_of(tmp_path)
    check_curve(tmp_path / "run", peer, log_of(tmp_path))


def two_ranks(folder: Path, job: Job, plant: str = "none") -> list[int]:
    """Train on two ranks, over NCCL each on its card; the exit codes."""
    path = write_job(folder / "job.json", job)
    words = ["--job", str(path), "--run-dir", str(folder / "run")]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    group["MASTER_PORT"] = str(20000 + os.getpid() % 20000)
    apart = job.settings.resources.ddp_backend == "nccl"
    with (folder / "log").open("w") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, plant, *words],
                cwd=ROOT,
                env={
                    **os.environ,
                    **group,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank if apart else 0),
                },
                stdout=log,
                stderr=log,
            )
            for rank in range(2)
        ]
        return [rank.wait() for rank in ranks]


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


# ---- planted faults --------------------------------------------------------------


def short(**fields: Any) -> dict[str, Any]:
    return {"max_iters": 24, "eval_interval": 24, **fields}


@gpu
def test_a_poisoned_plan_is_left_aside(data: Path, peer, tmp_path: Path) -> None:
    """cuDNN's plan for these strides was made for another memory order: `auto` goes on
    by another path, and trains right."""
    if torch.version.cuda is None:
        pytest.skip("cuDNN is NVIDIA's")
    done = run(tmp_path, job_of(data), "poison")
    assert done.returncode == 0, done.stdout
    recorded = manifest(tmp_path / "run")
    if recorded["attention_backend"] == "cudnn":
        assert "NOT AS THE FORMULAS" not in done.stdout, "this cuDNN is right"
    check_curve(tmp_path / "run", peer, done.stdout)


@gpu
def test_a_poisoned_plan_named_is_refused(data: Path, tmp_path: Path) -> None:
    if torch.version.cuda is None:
        pytest.skip("cuDNN is NVIDIA's")
    job = job_of(data, **short(attention_backend="cudnn", mlp_backend="torch"))
    done = run(tmp_path, job, "poison")
    if done.returncode == 0:
        pytest.skip("this cuDNN is right")
    assert done.returncode == 2, done.stdout
    assert "attention cudnn" in status(tmp_path / "run")["message"]


@gpu
@pytest.mark.parametrize("fault", ["stale", "algorithm"])
def test_a_planted_fault_is_seen(fault: str, data: Path, tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    job = job_of(data, **short(attention_backend="sdpa", mlp_backend="cublaslt"))
    done = run(tmp_path, job, fault)
    codes = {"stale": 7, "algorithm": 2}
    assert done.returncode == codes[fault], done.stdout
    assert "NOT AS THE FORMULAS" in status(tmp_path / "run")["message"]


@gpu
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "NOT AS THE FORMULAS"),
        ("early", "NOT AS THE FORMULAS"),
        ("seed", "ranks [1] hold other weights"),
    ],
)
def test_a_fault_between_ranks_is_seen(
    fault: str, said: str, backend: str, data: Path, tmp_path: Path
) -> None:
    needs_cards(backend)
    fields = short(ddp_gpus_per_job=2, ddp_backend=backend, attention_backend="sdpa")
    job = job_of(data, **fields, mlp_backend="torch")
    assert 0 not in two_ranks(tmp_path, job, fault), log_of(tmp_path)
    assert said in log_of(tmp_path)


def plant(fault: str) -> None:
    """Put a fault into this process, before the trainer is called."""
    from gpt2.train import update
    from lib.kernels import gelu_op

    if fault == "poison":
        qkv = torch.randn(
            (8, LENGTH, 3, 12, 64), dtype=torch.bfloat16, device="cuda"
        ).requires_grad_()
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        with torch.nn.attention.sdpa_kernel(
            torch.nn.attention.SDPBackend.CUDNN_ATTENTION
        ):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True
            )
        torch.autograd.grad(out, qkv, torch.randn(out.shape, device="cuda").to(out))
    elif fault == "stale":
        record = update.Updater.record

        def then_move(self, *pair: Any) -> str:
            found = record(self, *pair)
            self.old = [parameter.data for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()
            return found

        vars(update)["Updater"].record = then_move
    elif fault == "algorithm":
        product = gelu_op.product

        def wrong_when_large(left, *others, **options):
            out, argument = product(left, *others, **options)
            return out.mul_(1.1 if left.shape[0] > 277 else 1.0), argument

        gelu_op.product = wrong_when_large
    elif fault != "none":
        rank_faults.plant(fault)


if __name__ == "__main__":
    plant(sys.argv[1])
    sys.argv = [str(SCRIPT), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
