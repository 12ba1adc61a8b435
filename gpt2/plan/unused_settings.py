"""Report settings that no job of a plan reads.

A preset is used with many sets of steps, so this is not an error, but a result must not
be mistaken for the effect of a setting that was not read. Torch-free.
"""

from __future__ import annotations

from gpt2.plan.jobs import Plan
from gpt2.plan.readers import READERS
from gpt2.plan.sizes import SIZES
from gpt2.settings.schema import IDENTITY_PARTS, PART_OF, SYMBOL_OF
from gpt2.settings.shown import shown_value
from lib.kconfig.config_py import Config
from lib.kconfig.dotconfig import COMMAND_LINE, SAVED


def unused_settings(plan: Plan, config: Config) -> list[str]:
    """Line for each setting of ``config`` that no job reads, with its origin."""
    found, has_own = [], any(job.step in plan.registry.own for job in plan.jobs)
    for name, symbol in SYMBOL_OF.items():
        origin = config.origins.get(symbol)
        why = "" if origin is None else _why_unused(plan, name, origin)
        if name == "steps_file" and config.values[symbol] and not has_own:
            why = "STEPS names none of its steps"
        if why:
            value = shown_value(config.values[symbol])
            found.append(f"{symbol}={value} ({origin}) has no effect: {why}")
    for axis in plan.axes:
        acts = any(axis.field in job.coordinates for job in plan.jobs)
        if len(axis.values) > 1 and not acts:
            origin = config.origin(axis.source)
            why = "none of its values changes what a job trains"
            found.append(
                f"{axis.source} of {axis.symbol} ({origin}) has no effect: {why}"
            )
    return found


def _why_unused(plan: Plan, name: str, origin: str) -> str:
    """Reason why a field set at ``origin`` has no effect on any job; "" if it has."""
    reader = next((r for r in READERS if name in r.fields), None)
    jobs = [job for job in plan.jobs if reader is None or reader.is_on(job.settings)]
    if reader is not None and not jobs:
        return f"no job {reader.what}"
    origins = dict.fromkeys(job.origins[name] for job in jobs)
    # SIZES replaces the size of a preset, but one that was typed is reported
    is_of_preset = origin not in (COMMAND_LINE, SAVED)
    if SIZES in origins and (
        is_of_preset or (name == "n_embd" and plan.base.matrix.sizes_scale_rate)
    ):
        return ""
    if PART_OF[name] in IDENTITY_PARTS and origin not in origins:
        return f"the jobs have it from {', '.join(origins)}"
    return ""
