"""manifest.json: provenance of the results in a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gpt2.plan.jobs import Job
from gpt2.plan.names import VERIFIED
from gpt2.train.as_trained import GradientComparison
from gpt2.train.run_context import RunContext
from lib import provenance
from lib.atomic_files import atomic_write_json, read_json
from lib.gpu.backend_probe import Startup
from lib.jobs.run_files import MANIFEST_FILE, now

ROOT = Path(__file__).resolve().parents[2]


class Manifest:
    """manifest.json of one run; only the first of several ranks writes to it."""

    def __init__(self, run_dir: Path, run_hash: str, writes: bool) -> None:
        self.path, self.hash, self.writes = run_dir / MANIFEST_FILE, run_hash, writes

    def read(self) -> dict[str, Any]:
        """Manifest of earlier attempts at the same run; {} if there is none."""
        try:
            found = read_json(self.path)
        except (FileNotFoundError, ValueError):
            return {}
        same = isinstance(found, dict) and found.get("hash") == self.hash
        return found if same else {}

    def allowed_micro_batch(self, configured: int) -> int:
        """The micro batch to begin with: the reduced one, if memory once ran out."""
        found = self.read()
        if not found.get("out_of_memory"):
            return configured
        return min(configured, int(found.get("micro_batch", configured)))

    def settled_micro_batch(self) -> int | None:
        """The micro batch that an earlier attempt trained with; None if none did."""
        found = self.read().get("micro_batch")
        return found if isinstance(found, int) and found > 0 else None

    def write(
        self,
        job: Job,
        context: RunContext,
        *,
        parameters: int,
        serving: Mapping[str, str],
        resumed_at: int | None,
        random_streams: str,
        environ: Mapping[str, str],
        startup: Startup,
        start: Mapping[str, Any],
    ) -> None:
        """Write the manifest of an attempt that begins.

        serving: the kernels that serve the model (gpt2/model/autotune). start:
        fingerprints of what the run starts from (gpt2/train/fingerprints.py).
        random_streams: dropout's, "continued" from a checkpoint or "fresh". A fresh run
        gets a new manifest; one that is resumed keeps where it began and adds to
        ``resumed``. Raises lib.atomic_files.DiskFull.
        """
        before = self.read()
        here = provenance.collect(ROOT, environ)
        kept = before if resumed_at is not None else {}
        used = _environment(job, context, here, serving)
        resumed = kept.get("resumed", [])
        if resumed_at is not None:
            entry = {"step": resumed_at, "random_streams": random_streams, **used}
            resumed = [*resumed, entry]
        manifest = {
            "schema": 1,
            "provenance": kept.get("provenance", here),
            "began": kept.get("began", used),
            "device": asdict(context.device) | asdict(startup),
            "settings": job.settings.to_dict(),
            "origins": dict(job.origins),
            "hash": job.hash,
            "seed": job.seed,
            "data_fingerprint": context.train.fingerprint,
            "effective_batch": job.settings.effective_batch,
            **_resources(job, context),
            **serving,
            "verified": environ.get(VERIFIED) or before.get("verified"),
            "parameters": parameters,
            "pairing": {**kept.get("pairing", {}), **start},
            "started": kept.get("started", now()),
            "resumed": resumed,
            "as_trained": kept.get("as_trained"),
            "kernels": {},
            "out_of_memory": before.get("out_of_memory", []),
        }
        if "stable_from" in kept:
            manifest["stable_from"] = kept["stable_from"]
        atomic_write_json(self.path, manifest, make_folder=False)

    def note(self, **fields: Any) -> None:
        """Record what is known only after the start."""
        if self.writes:
            atomic_write_json(self.path, self.read() | fields, make_folder=False)

    def note_out_of_memory(self, step: int, micro_batch: int, smaller: int) -> None:
        """Record that memory ran out, and the micro batch of the next attempt."""
        before = self.read() or {"schema": 1, "hash": self.hash}
        entry = {"date": now(), "step": step, "micro_batch": micro_batch}
        entries = [*before.get("out_of_memory", []), entry]
        self.note(**before | {"out_of_memory": entries, "micro_batch": smaller})

    def note_comparison(self, found: GradientComparison) -> None:
        """Add a comparison with the formulas: each one in short, and of each parameter
        the largest deviation of all."""
        before = self.read().get("as_trained") or {}
        record = found.record()
        deviations = record.pop("deviations")
        record.pop("rounding", None)  # of each parameter; in metrics.jsonl
        largest = before.get("deviations", {})
        self.note(
            as_trained={
                "checks": [*before.get("checks", []), record],
                "deviations": {
                    name: max(value, largest.get(name, 0.0))
                    for name, value in deviations.items()
                },
            },
        )

    def note_batches(self, batches: Mapping[str, str]) -> None:
        """Record fingerprints of batches by update, in addition to earlier
        attempts'."""
        pairing = self.read().get("pairing", {})
        both = {**pairing.get("batches", {}), **batches}
        self.note(pairing={**pairing, "batches": both})


def _resources(job: Job, context: RunContext) -> dict[str, Any]:
    resources, split = job.settings.resources, context.split
    return {
        "micro_batch": split.micro_batch,
        "accumulation": split.accumulation,
        "world_size": split.world_size,
        "compile": resources.compile_model,
        "precision": job.settings.optim.mixed_precision,
        "float32_products": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _environment(
    job: Job,
    context: RunContext,
    here: Mapping[str, Any],
    serving: Mapping[str, str],
) -> dict[str, Any]:
    """Enough to see whether code, versions, machine, kernels or split of the batch
    changed between attempts."""
    device = asdict(context.device)
    return {
        "date": here["date"],
        "host": here["host"],
        "git": {k: here["git"].get(k) for k in ("sha", "dirty", "diff_sha256")},
        "python": here["python"],
        "packages": here["packages"],
        "device": device["name"],
        **{k: device[k] for k in ("backend", "runtime", "driver")},
        **_resources(job, context),
        **{k: serving[k] for k in ("attention_backend", "mlp_backend") if k in serving},
    }
