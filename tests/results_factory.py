"""Results directories as the trainer leaves them, made up from a seed.

Losses follow a power law with noise per seed that all arms share in part, as real
runs with common batches do. ``effects`` shifts an arm, in nats.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.audit.finding import OK, AuditLine
from gpt2.audit.stamp import write_audit
from lib.hashing import identity

# step: name, title, parent, parameters, tokens/s
STEPS: dict[int, tuple[str, str, int | None, int, float]] = {
    0: ("baseline", "GPT-2 baseline, r=2.0", None, 124_000_000, 400_000),
    2: ("r25", "r=2.5", 0, 138_000_000, 370_000),
    5: ("ra", "baseline + RA, alpha 0.3, window 64", 0, 124_000_000, 320_000),
    6: ("ra-r25", "RA + r=2.5", 5, 138_000_000, 300_000),
    8: ("mla", "MLA, latent 128, r=3.0", 0, 124_200_000, 410_000),
    29: ("ra-full", "RA over the whole context", 5, 124_000_000, 360_000),
}
UPDATES, EVERY, BATCH, BLOCK = 200, 20, 64, 1024
DEVICE = {
    **{"backend": "cuda", "name": "NVIDIA A10G", "driver": "550", "runtime": "12.4"},
    "float32_products": "high",
}


def settings(
    step: int | None, *, other_kernels: bool = False, **changes: Any
) -> dict[str, Any]:
    """Nested settings; ``changes`` are flat fields of the mechanisms."""
    ratio = 2.5 if step in (2, 6) else 2.0
    return {
        "model": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": BLOCK},
        "mechanisms": {"ra": step in (5, 6, 29), "mlp_ratio": ratio, **changes},
        "optim": {
            "optimizer": "adamw",
            "learning_rate": 6e-4,
            "max_iters": UPDATES,
            "mixed_precision": "bf16",
        },
        "data": {"dataset": "stdlib", "tokenizer": "gpt2"},
        "resources": {
            **{"batch_size": 16, "device": "auto", "output_dir": "out"},
            "other_kernels": other_kernels,
        },
    }


def write_matrix(
    root: Path,
    steps: Sequence[int] = (0, 5, 8, 29),
    seeds: Sequence[int] = (1, 2, 3),
    effects: Mapping[int, float] | None = None,
    noise: float = 0.0015,
    control: float | None = None,
    **run: Any,
) -> Path:
    """A finished matrix; further arguments go to every write_run.

    control: also an A/A control of step 0 that is so many nats off, besides noise.
    """
    for seed in seeds if control is not None else ():
        write_control(root, seed, effect=control, **run)
    for step in steps:
        for seed in seeds:
            effect = (effects or {}).get(step, 0.0)
            write_run(root, step, seed, effect=effect, noise=noise, **run)
    return root


def write_swept(
    root: Path,
    noises: Mapping[Any, float],
    steps: Sequence[int] = (0, 5, 8),
    field: str = "learning_rate",
    effects: Mapping[Any, float] | None = None,
) -> None:
    """Five seeds of each step at each value of a field, which has its own noise; step 5
    has an effect at some."""
    for value, step in itertools.product(noises, steps):
        name, title, of, *_ = STEPS[step]
        at = f"{field}={value}"
        effect = (effects or {}).get(value, 0.0) if step == 5 else 0.0
        for seed in range(5):
            job = {
                "name": f"{name}/{at}",
                "title": f"{title} ({at})",
                "coordinates": {field: value},
                "parent_name": None if of is None else f"{STEPS[of][0]}/{at}",
                "run_dir": f"step{step:02d}-{name}/{at}/seed{seed}",
            }
            found = {"effect": effect, "noise": noises[value], "twin": f"{step} {at}"}
            write_run(root, step, seed, job=job, **found)


def write_control(root: Path, seed: int, *, effect: float = 0.0, **run: Any) -> Path:
    """The A/A control of step 0: its losses but for rounding, by another path."""
    return write_run(
        root,
        0,
        seed,
        **{
            **run,
            "job": {
                "name": "baseline-aa",
                "title": "A/A control: step 0 with other kernels",
                "parent": 0,
                "parent_name": "baseline",
                "settings": settings(0, other_kernels=True),
                "run_dir": f"step00-baseline-aa/seed{seed}",
                **(run.get("job") or {}),
            },
            "manifest": {
                "attention_backend": "triton",
                **(run.get("manifest") or {}),
            },
            "effect": effect + 1e-4 * seed,
            "twin": "baseline",
        },
    )


def write_run(
    root: Path,
    step: int,
    seed: int,
    *,
    effect: float = 0.0,
    noise: float = 0.0015,
    status: str = "done",
    failure: str | None = None,
    updates: int = UPDATES,
    verified: str | None = "passed",
    gpu: bool = False,
    job: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    twin: str = "",
) -> Path:
    """One run directory; ``job``, ``manifest`` and ``result`` override fields.

    twin: the name of the arm of this step whose noise it shares.
    """
    name, title, parent, parameters, speed = STEPS[step]
    mine: dict[str, Any] = {
        "schema": 1,
        "step": step,
        "name": name,
        "title": title,
        "parent": parent,
        "parent_name": None if parent is None else STEPS[parent][0],
        "seed": seed,
        "settings": settings(step),
        "origins": {},
        "run_dir": f"step{step:02d}-{name}/seed{seed}",
        **(job or {}),
    }
    mine["hash"] = identity([mine["settings"], seed, mine["name"]])
    directory = root / f"step{step:02d}-{name}" / f"seed{seed}"
    if twin:
        directory = root / mine["run_dir"]
    if mine["step"] is None:
        directory = root / mine["name"] / f"seed{seed}"
        mine["run_dir"] = f"{mine['name']}/seed{seed}"
    directory.mkdir(parents=True)
    _write(directory / "job.json", mine)
    if status == "planned":
        return directory
    records = _records(step, seed, twin or mine["name"], effect, noise, updates, speed)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines)
    (directory / "train.log").write_text("started\n")
    _write(directory / "manifest.json", _manifest(mine, verified, manifest or {}))
    outcome = _result(records, parameters, speed) if status == "done" else None
    _write(
        directory / "status.json",
        {
            "schema": 1,
            "status": status,
            "failure": failure,
            "message": "" if failure is None else f"stopped: {failure}",
            "step": updates,
            "max_steps": UPDATES,
            "attempt": 1,
            "pid": 1,
            "host": "there",
            "started": "2026-01-01T00:00:00+00:00",
            "updated": "2026-01-01T01:00:00+00:00",
            "result": None if outcome is None else {**outcome, **(result or {})},
        },
    )
    if gpu:
        _write_gpu(directory / "gpu.jsonl", seed)
    return directory


def pass_audits(root: Path) -> None:
    """An audit.json in every run directory, as if an audit had passed."""
    for path in root.glob("*/*/status.json"):
        write_audit(path.parent, [AuditLine("val_loss", OK)])


def change_final_loss(run_dir: Path, change: Callable[[float], float]) -> None:
    """Change the final validation loss of a run, in its result and in its records."""
    path, records = run_dir / "status.json", run_dir / "metrics.jsonl"
    status = json.loads(path.read_text())
    old = status["result"]["val_loss"]
    status["result"]["val_loss"] = change(old)
    _write(path, status)
    new = json.dumps(change(old))
    text = records.read_text().replace(f'"val_loss": {old}', f'"val_loss": {new}')
    records.write_text(text)


def relabel(run_dir: Path, **fields: Any) -> None:
    """Change fields of a run's job.json, as if edited by hand."""
    path = run_dir / "job.json"
    _write(path, {**json.loads(path.read_text()), **fields})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _records(
    step: int,
    seed: int,
    name: str,
    effect: float,
    noise: float,
    updates: int,
    speed: float,
) -> list[dict[str, Any]]:
    common = np.random.default_rng([seed]).normal(scale=noise / math.sqrt(2))
    own = np.random.default_rng([seed, step, *name.encode()])
    shift = common + own.normal(scale=noise / math.sqrt(2)) + effect
    records: list[dict[str, Any]] = []
    for n in range(0, updates + 1, EVERY // 4):
        tokens = n * BATCH * BLOCK
        loss = 3.0 + 7.8 * (1 + n / 8) ** -0.9
        base = {"step": n, "tokens": tokens, "seconds": tokens / speed}
        if n:
            train = {"loss": loss + float(own.normal(scale=0.02)), "lr": 6e-4}
            rest = {"grad_norm": 1.0, "tokens_per_s": speed}
            records.append({"kind": "train", **base, **train, **rest})
        if n % EVERY == 0:
            value = loss + shift * n / UPDATES
            more = {"val_perplexity": math.exp(value), "val_accuracy": 0.35}
            records.append({"kind": "eval", **base, "val_loss": value, **more})
    return records


def _result(
    records: list[dict[str, Any]], parameters: int, speed: float
) -> dict[str, Any]:
    last = [r for r in records if r["kind"] == "eval"][-1]
    return {
        "val_loss": last["val_loss"],
        "val_perplexity": last["val_perplexity"],
        "val_accuracy": last["val_accuracy"],
        "best_val_loss": last["val_loss"],
        "train_loss": last["val_loss"] - 0.01,
        "parameters": parameters,
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "mean_epoch_seconds": last["seconds"],
        "tokens_per_s": speed,
        "peak_memory_bytes": 9 << 30,
        "flops_per_token": 6.0 * parameters,
        "kv_bytes_per_token": 36_864,
        "mfu": 0.41,
        "as_trained": 0.006,
    }


def _manifest(
    job: Mapping[str, Any], verified: str | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "provenance": {
            "date": "2026-01-01T00:00:00+00:00",
            "git": {"sha": "0123456789abcdef", "dirty": False, "diff_sha256": None},
            "python": "3.12.1",
            "packages": {"torch": "2.13.0", "numpy": "2.4.6", "triton": None},
            "host": "there",
            "platform": "Linux",
        },
        "device": DEVICE,
        "settings": job["settings"],
        "origins": {},
        "hash": job["hash"],
        "data_fingerprint": "d" * 64,
        "effective_batch": BATCH,
        "micro_batch": 16,
        "accumulation": 4,
        "world_size": 1,
        "compile": True,
        "attention_backend": "sdpa:flash",
        "mlp_backend": "torch",
        "verified": verified,
        "as_trained": {"checks": [{"step": 0, "passed": True}], "deviations": {}},
        "kernels": {},
        "parameters": STEPS[job["step"]][3] if job["step"] in STEPS else 1000,
        "pairing": pairing(job["seed"], job["step"]),
        "started": "2026-01-01T00:00:00+00:00",
        **changes,
    }


def pairing(seed: int, step: int | None) -> dict[str, Any]:
    """Fingerprints that runs of a seed share, as in their manifests."""
    updates = [str(2**n) for n in range(8)] + [str(UPDATES)]
    shared = {"wte.weight 50257x768": [1.28 + seed / 1000, 0.01 * seed]}
    own = {f"blocks.0.own.weight {step}x768": [float(step or 0), 0.5]}
    return {
        "batches": {n: f"{seed:08x}{int(n):08x}" for n in updates},
        "validation": "e" * 16,
        "initial_weights": shared | own,
    }


def _write_gpu(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for n in range(60):
            gpu = {
                "index": 0,
                "name": "NVIDIA A10G",
                "utilisation": float(random.uniform(90, 100)),
                "memory_used_bytes": 9 << 30,
                "memory_total_bytes": 24 << 30,
                "power_w": float(random.uniform(250, 300)),
                "temperature_c": 60 + n / 10,
            }
            file.write(json.dumps({"seconds": float(n), "gpus": [gpu]}) + "\n")
