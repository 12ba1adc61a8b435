"""Report texts for arms whose pruned heads were removed."""

from __future__ import annotations

from collections.abc import Callable

from gpt2.report.arms import Arm
from lib import human


def short_time(seconds: float | None) -> str:
    """ "0.92 ms"."""
    return human.milliseconds(seconds, 2)


MEASURED = (
    ("decode cache", "kv_bytes_per_token", human.size, "per token"),
    ("decoding", "decode_seconds", short_time, "per token"),
    ("forward", "forward_seconds", short_time, "per pass"),
)


def has_removed(arm: Arm) -> bool:
    return arm.mean("heads_left") is not None


def heads_text(arm: Arm) -> str:
    """ "4 of 8": heads of the exported model and of the trained one."""
    left, trained = arm.mean("heads_left"), arm.mean("heads")
    if left is None:
        return human.NONE
    return f"{left:g} of {human.NONE if trained is None else f'{trained:g}'}"


def change_text(arm: Arm, name: str, form: Callable[[float | None], str]) -> str:
    """ "512 B → 256 B": before and after the removal, means over the seeds."""
    before, after = arm.mean(f"{name}_before"), arm.mean(name)
    if before is None:
        return human.NONE
    return f"{form(before)} → {form(after)}"


def removal_remark(arm: Arm) -> str:
    """One sentence on an arm whose heads were removed."""
    by_layer = "; ".join(
        f"seed {run.row['seed']}: {run.row['heads_by_layer']}"
        for run in arm.done
        if run.row.get("heads_by_layer")
    )
    changes = [
        f"{what} {change_text(arm, name, form)} {unit}"
        for what, name, form, unit in MEASURED
    ]
    spared = arm.mean("heads_spared")
    last = f", {spared:g} more were due, but each layer keeps one" if spared else ""
    found = f"{heads_text(arm)} heads left (by layer, {by_layer or human.NONE}){last}"
    return f"{found}; {', '.join(changes)}"
