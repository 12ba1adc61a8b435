"""Certificates of a whole plan: sizes, the run of all steps, table and cache."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.ablation import STEPS, Step, Times
from gpt2.plan import SOLVED_FIELDS, Job, Plan, plan_settings, step_settings
from gpt2.proofs.certificates import CERTIFICATES, certify
from gpt2.proofs.subject import Finding, Subject
from gpt2.schema import IDENTITY_PARTS, WHOLE_CONTEXT, Settings
from lib.identity import identity
from lib.rundir import atomic_write_json, read_json

ROOT = Path(__file__).resolve().parents[2]
CACHE_SCHEMA = 1
COLUMNS = (*CERTIFICATES, "distinct")
NO_FINDING = Finding(True, "-")
# Fields that say nothing while the feature they belong to is off.
INERT: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("ra", False, ("ra_window", "ra_alpha", "ra_learned_alpha")),
    (
        "ract",
        False,
        (
            "ract_statistic",
            "ract_placement",
            "ract_topk",
            "ract_mix",
            "ract_head_average",
            "ract_detach",
        ),
    ),
    ("mlp_gate", False, ("mlp_gate_dim", "mlp_gate_mix", "mlp_gate_pool")),
    (
        "cross_token",
        False,
        (
            "cross_rank",
            "cross_mix",
            "cross_select",
            "cross_topk",
            "cross_tau",
            "cross_renorm",
        ),
    ),
    ("latent", "none", ("latent_mix",)),
    ("prune_method", "none", ("prune_sparsity", "prune_scope")),
)
INTENTS = ("mlp_ratio", "mechanism_share", "match_step", "model_size")


@dataclass(frozen=True, slots=True)
class Proof:
    """All findings of one step (or of a cell without a step)."""

    cell: str
    findings: Mapping[str, Finding]

    @property
    def ok(self) -> bool:
        return all(f.passed for f in self.findings.values())

    @property
    def message(self) -> str:
        """What failed and why; empty if nothing did."""
        return "; ".join(
            f"{name}: {f.detail or f.figure}"
            for name, f in self.findings.items()
            if not f.passed
        )


def shrink(
    settings: Settings,
    *,
    n_layer: int = 3,
    n_head: int = 4,
    n_embd: int = 64,
    block_size: int = 24,
) -> Settings:
    """The same configuration at certificate size; every width scales along.

    Settings are those of a plan's base: unsolved, zeros where derived.
    """
    m, x = settings.model, settings.mechanisms
    scale = n_embd / m.n_embd
    heads = min(n_head, m.n_head)

    def width(value: int, least: int = 1) -> int:
        return max(least, round(value * scale)) if value else 0

    banded = x.ra_window != WHOLE_CONTEXT and x.ra_window < m.block_size - 1
    window = max(2, min(x.ra_window, block_size // 3)) if banded else x.ra_window
    return settings.replace(
        model_size="custom",
        n_layer=min(n_layer, m.n_layer),
        n_head=heads,
        n_embd=n_embd,
        head_dim=width(m.head_dim),
        mlp_width=width(m.mlp_width),
        block_size=block_size,
        dropout=0.0,
        latent_dim=width(x.latent_dim, max(4, heads)),
        joint_latent_dim=width(x.joint_latent_dim, 4),
        rope_dim=2 * width(x.rope_dim // 2),
        ra_window=window,
        ract_topk=min(x.ract_topk, block_size // 6),
        mlp_gate_dim=width(x.mlp_gate_dim),
        cross_rank=width(x.cross_rank),
        cross_topk=min(x.cross_topk, block_size // 6),
        tokenizer="bytes",
        compile_model=False,
        mixed_precision="fp32",
    )


def subjects(plan: Plan, **size: int) -> dict[str, Subject]:
    """One subject for each cell of a plan, by run folder without the seed."""
    small = plan_settings(shrink(plan.base, **size), {})
    tiny = {job.run_dir: job.settings for job in small.jobs}
    found: dict[str, Subject] = {}
    for job in plan.jobs:
        subject = Subject(tiny[job.run_dir], job.settings)
        found.setdefault(job.cell, subject)
    return found


def prove(plan: Plan, cache: Path | None = None) -> Iterator[Proof]:
    """The proof of each cell of a plan, one by one as it is done.

    ``cache``: a JSON file of earlier proofs, used for cells whose code and
    settings have not changed since.
    """
    known = read_cache(cache)
    code = code_hash()
    signatures = _signatures(plan)
    for cell, subject in subjects(plan).items():
        key = identity([code, _proven(subject.settings), _proven(subject.full)])
        findings = _from_cache(known.get(key)) or certify(subject)
        known[key] = {name: dataclasses.asdict(f) for name, f in findings.items()}
        write_cache(cache, known)
        job = next(j for j in plan.jobs if j.cell == cell)
        findings = {**findings, "distinct": distinct(job, plan, signatures)}
        yield Proof(cell, findings)


def _proven(settings: Settings) -> dict[str, Any]:
    """What the certificates of a model depend on, as plain data: cells that differ
    in pruning alone share theirs."""
    whole = settings.replace(adamwprune_variant="").to_dict()
    return {part: whole[part] for part in IDENTITY_PARTS if part != "pruning"}


def write_cache(path: Path | None, proofs: Mapping[str, Any]) -> None:
    if path is not None:
        atomic_write_json(path, {"schema": CACHE_SCHEMA, "proofs": dict(proofs)})


def read_cache(path: Path | None) -> dict[str, Any]:
    """Earlier proofs by key; {} if there is none or it is damaged."""
    if path is None or not path.exists():
        return {}
    try:
        record = read_json(path)
        good = isinstance(record, dict) and record.get("schema") == CACHE_SCHEMA
        return dict(record["proofs"]) if good else {}
    except (ValueError, KeyError, TypeError):
        return {}  # a damaged cache only costs the time to prove again


def _from_cache(stored: Any) -> dict[str, Finding] | None:
    """Findings from the cache, if they are whole and all passed."""
    try:
        found = {name: Finding(**stored[name]) for name in CERTIFICATES}
    except (TypeError, KeyError):
        return None
    return found if all(f.passed for f in found.values()) else None


def code_hash() -> str:
    """Hash of what a proof depends on: our sources and torch's version."""
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for folder in ("gpt2", "lib"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# ---- 6 distinct -------------------------------------------------------------------


def signature(settings: Settings) -> str:
    """What a step builds and trains, without fields that have no effect."""
    flat = {
        name: value
        for part in IDENTITY_PARTS
        for name, value in settings.to_dict()[part].items()
    }
    for switch, off, fields in INERT:
        if flat[switch] == off:
            flat = {k: v for k, v in flat.items() if k not in fields}
    return identity({k: v for k, v in flat.items() if k not in INTENTS})


def _signatures(plan: Plan) -> dict[int, str]:
    """Signature of each step at hand. Steps that are not run together may round
    to the same model: shares of few heads do."""
    return {
        job.step: signature(job.settings) for job in plan.jobs if job.step is not None
    }


def distinct(job: Job, plan: Plan, signatures: Mapping[int, str]) -> Finding:
    """No other step builds the same, and the parent differs as declared."""
    if job.step is None:
        return Finding(True, "-")
    mine = signatures[job.step]
    twins = [i for i, s in signatures.items() if s == mine and i != job.step]
    problems = [f"builds the same as step {i}" for i in twins]
    problems += undeclared(STEPS[job.step], plan.base)
    return Finding(not problems, mine[:6], "; ".join(problems))


def undeclared(step: Step, base: Settings) -> list[str]:
    """Fields in which a step differs from its parent without saying so."""
    if step.parent is None:
        return []
    mine, parent = (step_settings(base, i).flat() for i in (step.id, step.parent))
    declared = {
        f: v.of(parent[f]) if isinstance(v, Times) else v
        for f, v in step.changes.items()
    }
    problems = [
        f"{f} is {mine[f]!r}, declared {v!r}"
        for f, v in declared.items()
        if mine[f] != v
    ]
    return problems + [
        f"{f} differs from step {step.parent} without being declared"
        for f in mine
        if mine[f] != parent[f] and f not in declared and f not in SOLVED_FIELDS
    ]


# ---- what people see --------------------------------------------------------------


def to_json(proofs: Iterable[Proof]) -> dict[str, Any]:
    """The table as data: the findings of each cell."""
    return {
        "schema": CACHE_SCHEMA,
        "code": code_hash(),
        "cells": [
            {
                "name": p.cell,
                "passed": p.ok,
                "findings": {n: dataclasses.asdict(f) for n, f in p.findings.items()},
            }
            for p in proofs
        ],
    }


def heading(first: str = "step", columns: Sequence[str] = COLUMNS) -> str:
    """The first line of a table."""
    return f"{first:<24}" + "".join(f" {name:>9}" for name in columns)


def row(proof: Proof, columns: Sequence[str] = COLUMNS) -> str:
    """One line of a table: the figure behind each certificate, FAILED, or a dash."""
    found = (proof.findings.get(name, NO_FINDING) for name in columns)
    figures = (f.figure if f.passed else "FAILED" for f in found)
    return f"{proof.cell[:24]:<24}" + "".join(f" {figure:>9}" for figure in figures)
