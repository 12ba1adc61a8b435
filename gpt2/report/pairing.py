"""Pairing of runs of one seed, from the fingerprints in their manifests.

Paired runs have the same batches and validation windows, and the same initial weights
where they share parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gpt2.report.results import Run
from lib.safe_json import as_dict, clean, number, text, whole

ROUNDING = 1e-5  # of initial weights drawn on different processors
MAX_NAMED = 3


def recorded(run: Run) -> dict[str, Any]:
    """Fingerprints in a run's manifest; {} if there are none of its batches."""
    found = as_dict(run.manifest.get("pairing"))
    return found if as_dict(found.get("batches")) else {}


def unpaired(one: Run, other: Run) -> list[str]:
    """Reasons why two runs of a seed are not paired; [] if paired or unknown.

    Batches of different size or data are not compared: these differences are reported
    as such.
    """
    mine, theirs = recorded(one), recorded(other)
    if not (mine and theirs) or _has_other_tokens(one, other):
        return []
    found = []
    differing = _differing(mine["batches"], theirs["batches"])
    if differing:
        first = min(differing, key=lambda n: (len(n), n))  # numbers as text
        found.append(f"the batches of update {clean(first)} differ")
    if text(mine.get("validation")) != text(theirs.get("validation")):
        found.append("the validation windows differ")
    # Initial weights are scaled by the depth.
    if _model(one, "n_layer") == _model(other, "n_layer"):
        weights = as_dict(mine.get("initial_weights"))
        found += _other_weights(weights, as_dict(theirs.get("initial_weights")))
    return found


def _has_other_tokens(one: Run, other: Run) -> bool:
    prints = (text(run.manifest.get("data_fingerprint")) for run in (one, other))
    sizes = [
        (run.row["effective_batch"], _model(run, "block_size")) for run in (one, other)
    ]
    return len(set(prints)) > 1 or len(set(sizes)) > 1


def _model(run: Run, name: str) -> int | None:
    return whole(run.part("model").get(name))


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    both = mine.keys() & theirs.keys()
    return [key for key in both if text(mine[key]) != text(theirs[key])]


def _other_weights(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    other = [k for k in mine if k in theirs and not _is_near(mine[k], theirs[k])]
    if not other:
        return []
    names = ", ".join(clean(key) for key in other[:MAX_NAMED])
    more = f" and {len(other) - MAX_NAMED} more" if len(other) > MAX_NAMED else ""
    return [f"the initial weights {names}{more} differ"]


def _is_near(mine: object, theirs: object) -> bool:
    """True if two fingerprints [length, direction] are equal up to rounding."""
    if not (isinstance(mine, list) and isinstance(theirs, list)):
        return False
    pairs = [(number(a), number(b)) for a, b in zip(mine, theirs, strict=False)]
    # torch's normal numbers differ in the last digits between kinds of processors.
    return len(mine) == len(theirs) and all(
        a is not None and b is not None and abs(a - b) <= ROUNDING * max(1.0, abs(a))
        for a, b in pairs
    )


def unpaired_runs(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Reasons by run directory why a run is not paired with most of its seed's."""
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        if recorded(run):
            by_seed.setdefault(run.seed, []).append(run)
    found = {}
    for group in by_seed.values():
        ((usual, _),) = Counter(map(_start, group)).most_common(1)
        other = next(run for run in group if _start(run) == usual)
        reasons = {run.run_dir: unpaired(other, run) for run in group}
        found.update({run_dir: why for run_dir, why in reasons.items() if why})
    return found


def _start(run: Run) -> tuple[str | None, str | None]:
    pairing = recorded(run)
    return text(pairing["batches"].get("1")), text(pairing.get("validation"))
