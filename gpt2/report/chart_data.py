"""Data of the charts of the HTML report, embedded in the page as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpt2.report.arms import Arm
from gpt2.report.curves import AXES, band
from gpt2.report.gpu_records import PANELS
from gpt2.report.grades import Verdict
from gpt2.report.lines import (
    MARKS,
    difference_text,
    interval_text,
    lines_of,
    shown,
)
from gpt2.report.plots import baselines, places, spread
from gpt2.report.results import Run
from gpt2.report.verdicts import Comparison, Judgement
from gpt2.settings.shown import shown_name
from lib import human
from lib.safe_json import clean

COSTS = (
    ("parameters", "parameters"),
    ("seconds", "training time (s)"),
    ("peak_memory_bytes", "peak memory (bytes)"),
    ("flops_per_token", "FLOPs per token"),
    ("kv_bytes_per_token", "decode cache (bytes per token)"),
    ("infer_p50_ms", "generation (ms per token)"),
)
# Fields of a manifest.
FACTS = """micro_batch accumulation world_size compile attention_backend mlp_backend
data_fingerprint""".split()


def costs(judged: Judgement) -> list[tuple[str, str]]:
    """Keys and labels of the costs that any arm has."""
    return [
        (key, label)
        for key, label in COSTS
        if any(arm.mean(key) is not None for arm in judged.arms)
    ]


def chart_data(judged: Judgement, gpu: list[tuple[Run, Any]]) -> dict[str, Any]:
    """Arms, effects, settings and GPU use. gpu: runs and their ``gpu_use``."""
    place = places(judged)
    ordered = sorted(judged.arms, key=lambda arm: place[arm.label])
    bases = baselines(judged)
    base_settings, runs = _settings(judged)
    return {
        "margin": judged.rules.margin,
        "arms": [_arm(arm, place[arm.label], bases[arm.label]) for arm in ordered],
        "effects": [
            _effect(line.comparison) for line in lines_of(judged) if line.comparison
        ],
        "base_settings": base_settings,
        "runs": runs,
        "gpu": [{"label": run.run_dir, "gpus": use} for run, use in gpu],
        "gpu_panels": [[key, title] for key, title, _ in PANELS],
    }


def _arm(arm: Arm, place: int, base: Arm) -> dict[str, Any]:
    curves, less = (
        {kind: {a: _band(arm, a, kind, b) for a in AXES} for kind in ("eval", "train")}
        for b in (None, base)
    )
    values = {key: arm.mean(key) for key, _ in COSTS}
    values |= {"val_loss": arm.mean("val_loss"), "sd": spread(arm)}
    found = {"curves": curves, "differences": less, "values": values}
    return {"label": arm.label, "place": place, **found}


def _band(arm: Arm, axis: str, kind: str, base: Arm | None) -> dict[str, Any] | None:
    found = band(arm, axis, kind, base)
    return None if found is None else asdict(found)


def _effect(comparison: Comparison) -> dict[str, Any]:
    return {
        "label": f"{comparison.arm.label} vs {comparison.partner.label}",
        "arm": comparison.arm.label,
        "steps": _measure(comparison.at_steps),
        "time": _measure(comparison.at_time),
    }


def _measure(verdict: Verdict) -> dict[str, Any]:
    interval = interval_text(verdict.interval)
    summary = f"{verdict.grade}: {difference_text(verdict)}, {interval}"
    return {
        "mean": verdict.mean,
        "inner": verdict.interval,
        "outer": verdict.family_interval,
        "mark": MARKS[verdict.grade],
        "text": "; ".join([summary, *verdict.reasons]),
    }


def _settings(judged: Judgement) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """All settings of the first run, and for each run those that differ from them."""
    runs = [(arm, run, _flat(run)) for arm in judged.arms for run in arm.runs]
    base = runs[0][2] if runs else {}
    return base, [
        {
            "label": f"{arm.label}, seed {shown(run.seed)}",
            "arm": arm.label,
            "settings": {
                **{k: v for k, v in flat.items() if base.get(k) != v},
                **{k: human.NONE for k in base if k not in flat},
            },
        }
        for arm, run, flat in runs
    ]


def _flat(run: Run) -> dict[str, str]:
    found = {"seed": shown(run.seed)}
    for part, fields in run.settings.items():
        if not isinstance(fields, dict):
            found[clean(part)] = shown(fields)
            continue
        found |= {clean(shown_name(f"{part}.{k}")): shown(v) for k, v in fields.items()}
    facts = {name: run.manifest.get(name) for name in FACTS}
    return found | {f"run.{k}": shown(v) for k, v in facts.items() if v is not None}
