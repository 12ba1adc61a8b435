"""Costs of a run: FLOPs, cache, utilisation, energy.

Torch-free. FLOPs and cache per token come from gpt2/plan/budget.py, which `make verify`
compares with counted ones; the audit checks that these were reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpt2.audit.evidence import RunFiles, value
from gpt2.audit.finding import (
    EXACT,
    SAME,
    AuditLine,
    Tolerance,
    compare,
    compare_all,
    not_checked,
)
from gpt2.audit.records import at
from gpt2.plan.budget import budget, kv_bytes
from lib.gpu.peaks import peak_flops
from lib.jobs.run_files import GPU_FILE
from lib.safe_json import Unusable, as_dict, number, read_records, text, whole

LONGEST_GAP = 10.0  # seconds; no energy is counted over longer gaps between readings
JOULES = Tolerance(relative=1e-6, why="a sum of many readings")


def cost_findings(
    evidence: RunFiles, heads: Sequence[int] | None
) -> Iterator[AuditLine]:
    """Check all costs; heads: left per layer in the export, None: none was removed."""
    settings, result = evidence.settings, evidence.result
    flops = budget(settings).flops_training
    yield compare("flops_per_token", result.get("flops_per_token"), flops, SAME)
    cached = kv_bytes(settings, heads)
    yield compare("kv_bytes_per_token", result.get("kv_bytes_per_token"), cached, EXACT)
    if heads is not None:
        figure = "kv_bytes_per_token_before"
        yield compare(figure, result.get(figure), kv_bytes(settings), EXACT)
    yield from _utilisation(evidence, flops)
    if "energy_j" in result:
        yield from _energy(evidence)


def _utilisation(evidence: RunFiles, flops: int) -> Iterator[AuditLine]:
    """MFU = FLOPs per token x tokens per second / peak of all ranks' devices."""
    reported = "mfu" in evidence.result
    device = as_dict(evidence.manifest.get("device"))
    units, name = whole(device.get("compute_units")), text(device.get("name")) or ""
    one = peak_flops(name, units, evidence.settings.optim.mixed_precision)
    if one is None or not reported:
        if reported:
            yield not_checked("mfu", f"the peak of {name!r} is unknown")
        return
    peak = one * evidence.ranks
    rate = value(evidence.result, "tokens_per_s")
    mfu = None if rate is None else flops * rate / peak
    yield compare("mfu", evidence.result.get("mfu"), mfu, EXACT, f"peak {peak:.3g}/s")
    rows = [
        (at(r), r.get("mfu"), flops * rate / peak)
        for r in evidence.trains
        if (rate := value(r, "tokens_per_s")) is not None
    ]
    yield compare_all("mfu of each record", rows)


def _energy(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check the energy, the integral of the power in gpu.jsonl, also per Mtoken."""
    figure, result = "energy_j", evidence.result
    try:
        records, _ = read_records(evidence.run_dir / GPU_FILE)
    except Unusable as error:
        yield not_checked(figure, f"{GPU_FILE}: {error}", result.get(figure))
        return
    joules = _joules(records)
    yield compare(figure, result.get(figure), joules, JOULES)
    tokens = value(result, "tokens")
    each = joules / tokens * 1e6 if tokens else None
    figure = "energy_j_per_mtoken"
    yield compare(figure, result.get(figure), each, JOULES)


def _joules(records: Sequence[dict[str, Any]]) -> float:
    """Joules by the trapezoidal rule, per GPU, over gaps of at most LONGEST_GAP."""
    total = 0.0
    last: dict[int, float] = {}
    moment: float | None = None
    for record in records:
        now = number(record.get("seconds"))
        if now is None:
            continue
        powers = _powers(record)
        if moment is not None and 0 <= now - moment <= LONGEST_GAP:
            shared = powers.keys() & last.keys()
            total += sum((powers[g] + last[g]) / 2 * (now - moment) for g in shared)
        moment, last = now, powers
    return total


def _powers(record: dict[str, Any]) -> dict[int, float]:
    """Watts by GPU index."""
    gpus = record.get("gpus")
    found = {}
    for gpu in gpus if isinstance(gpus, list) else []:
        reading = as_dict(gpu)
        index, watts = whole(reading.get("index")), number(reading.get("power_w"))
        if index is not None and watts is not None:
            found[index] = float(watts)
    return found
