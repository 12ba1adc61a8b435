"""A plan and its progress as data: the answers of commands with --json.

Torch-free. docs/json.md describes the fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2.plan.budget import budget, kv_bytes
from gpt2.plan.jobs import Job, Plan, cells
from gpt2.plan.memory import memory
from gpt2.plan.run_length import tokens_of
from gpt2.plan.sizes import sizes_of
from gpt2.run.estimate import training_seconds
from gpt2.run.plan_listing import (
    baseline_of,
    differences,
    notes,
)
from gpt2.run.progress import status_word
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import Settings
from lib.kconfig.config_py import Config


def described(plan: Plan, config: Config) -> dict[str, Any]:
    """Cells and runs of a plan with their costs, and what it leaves out."""
    reference = baseline_of(settings_from(config))
    return {
        "results": str(plan.output_dir),
        "mode": plan.base.matrix.mode,
        "axes": [
            {"setting": x.field, "symbol": x.symbol, "values": list(x.values)}
            for x in plan.axes
        ],
        "sizes": [size.to_json() for size in sizes_of(plan)],
        "cells": [_cell(plan, jobs, reference) for jobs in cells(plan.jobs)],
        "left_out": [{"name": x.name, "reason": x.reason} for x in plan.left_out],
        "notes": notes(plan, config),
        "tokens": sum(tokens_of(job.settings) for job in plan.jobs),
        "seconds": training_seconds(plan),
    }


def _cell(plan: Plan, jobs: Sequence[Job], reference: Settings) -> dict[str, Any]:
    job = jobs[0]
    costs = budget(job.settings)
    partner = None
    if job.parent_name is not None:
        partner = {"step": job.parent, "name": job.parent_name}
    return {
        "step": job.step,
        "name": job.name,
        "title": job.title,
        "partner": partner,
        "coordinates": dict(job.coordinates),
        "is_control": job.is_control,
        "parameters": costs.parameters,
        "flops_per_token": costs.flops_training,
        "kv_bytes_per_token": kv_bytes(job.settings),
        "memory_bytes": memory(job.settings).total,
        "tokens": tokens_of(job.settings),
        "changes": [
            {"setting": name, "from": before, "to": after, "origin": origin}
            for name, before, after, origin in differences(job, reference)
        ],
        "runs": [
            {
                "run_dir": one.run_dir,
                "seed": one.seed,
                "hash": one.hash,
                "status": status_word(plan.output_dir / one.run_dir),
            }
            for one in jobs
        ],
    }


def progress(plan: Plan, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the results are, how many runs are in each status, and all runs."""
    return {
        "results": str(plan.output_dir),
        "planned": len(plan.jobs),
        "statuses": dict(Counter(state["status"] for state in states)),
        "runs": list(states),
    }
