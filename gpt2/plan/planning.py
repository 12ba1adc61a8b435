"""Turn a configuration into a plan: each job fully resolved and hashed.

Torch-free, so that listing a matrix is fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2.mechanisms import mechanisms
from gpt2.plan.axes import (
    LR_SWEEP,
    SWEEP,
    Axis,
    Point,
    axes_of,
    config_at,
    label,
    refusing,
    set_by,
    with_rates,
)
from gpt2.plan.budget import budget, derive_widths, resolve_widths
from gpt2.plan.init_source import resolve_source
from gpt2.plan.jobs import Job, Plan, trained_identity
from gpt2.plan.lr_sweep import extension, tuning_seeds, without_needless
from gpt2.plan.matrix_cells import (
    LeftOutCell,
    cell_changes,
    cells_of,
    partner_of,
    require_effect,
)
from gpt2.plan.registry import Registry, Times
from gpt2.plan.run_length import resolve
from gpt2.plan.sizes import with_sizes
from gpt2.plan.steps import SHIPPED
from gpt2.plan.steps_file import registry_of
from gpt2.plan.sweep import Frozen, Sweep
from gpt2.settings.checks import check
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import LARGEST_ARM, SYMBOL_OF, Settings
from lib.kconfig.config_py import Config
from lib.kconfig.dotconfig import COMMAND_LINE

SOLVED_FIELDS = (
    "head_dim",
    "mlp_width",
    *(m.paid_width for m in mechanisms() if m.paid_width),
)


def make_plan(config: Config) -> Plan:
    """Plan the jobs of the configured mode for all seeds.

    Raises ValueError for invalid settings and unknown steps, with symbol, value, origin
    and the allowed values.
    """
    try:
        return _plan(config)
    except ValueError as error:
        raise ValueError(config.located(str(error))) from error


def _plan(config: Config) -> Plan:
    axes = with_sizes(config, axes_of(config))
    known: dict[Frozen, Plan] = {}
    plan = _crossed(config, axes, known) if axes else _plan_at_point(config)
    rates = next((axis for axis in axes if axis.source == LR_SWEEP), None)
    added: list[str] = []
    while rates is not None and plan.base.matrix.lr_sweep_extend:
        if not (more := dict(extension(plan, rates))):
            break
        before = next(axis.values for axis in plan.axes if axis.field == rates.field)
        wider = with_rates(rates, (*before, *more))
        added += [f"{rate:g}, since {why}" for rate, why in more.items()]
        plan = _crossed(config, [*(a for a in axes if a is not rates), wider], known)
    plan = dataclasses.replace(plan, added_rates=tuple(added))
    for job in plan.jobs:
        try:
            require_effect(job.settings)
        except ValueError as error:
            raise ValueError(f"{job.run_dir}: {error}") from error
    return plan


def _crossed(config: Config, axes: Sequence[Axis], known: dict[Frozen, Plan]) -> Plan:
    """Plan of a configuration at all points of its axes; those known are kept."""
    flat = settings_from(config).flat()
    usual = {axis.field: flat.get(axis.field) for axis in axes}
    at = functools.partial(_plan_at, config, axes)
    return without_needless(Sweep(axes, at, trained_identity, usual, known).crossed())


def steps_from(config: Config) -> tuple[Settings, Registry]:
    """Settings of a configuration, with the ids of the configured steps, and the
    registry that has them. Raises ValueError."""
    settings = settings_from(config)
    registry = registry_of(config, settings)
    with refusing(config, SYMBOL_OF["steps"]):
        steps = registry.ids(settings.matrix.steps)
    return settings.replace(steps=steps), registry


def _plan_at_point(config: Config) -> Plan:
    return plan_settings(*_settings_of(config))


def _settings_of(config: Config) -> tuple[Settings, dict[str, str], Registry]:
    """Settings with resolved length and source of weights, their origins, and the
    registry of the steps. Raises ValueError."""
    origins = {f: config.origin(symbol) for f, symbol in SYMBOL_OF.items()}
    base, registry = steps_from(config)
    size = functools.partial(baseline_parameters, registry=registry)
    return *resolve_source(*resolve(base, origins, size)), registry


def configured_step(config: Config, step_id: int) -> Job:
    """Job of one step over a configuration of any mode, with the first seed.

    Raises ValueError like ``make_plan``, and for a sweep, which is of several runs.
    """
    if axes := with_sizes(config, axes_of(config)):
        sources = ", ".join(dict.fromkeys(axis.source for axis in axes))
        raise ValueError(f"{sources}: one run has no axes: leave it empty")
    settings, origins, registry = _settings_of(config)
    (step,) = registry.ids([step_id])
    job = step_job(settings, origins, step, registry)
    require_effect(job.settings)
    return job


def _plan_at(config: Config, axes: Sequence[Axis], point: Point) -> Plan:
    """Plan at a point of a sweep. Raises ValueError with the point."""
    there = config_at(config, axes, point)
    try:
        plan = _plan_at_point(there)
    except ValueError as error:
        sources = ", ".join(dict.fromkeys(a.source for a in axes if a.field in point))
        raise ValueError(f"{sources}, at {label(point)}: {error}") from error
    swept = set_by(config, there, point)
    sources_of = {f: axis.source for axis in axes for f in (axis.field, *axis.sets)}
    jobs = [
        dataclasses.replace(
            job,
            origins={
                name: (
                    sources_of.get(name, SWEEP)
                    if name in swept and origin == COMMAND_LINE
                    else origin
                )
                for name, origin in job.origins.items()
            },
        )
        for job in plan.jobs
    ]
    return dataclasses.replace(plan, jobs=tuple(jobs))


def plan_settings(
    settings: Settings, origins: Mapping[str, str], registry: Registry = SHIPPED
) -> Plan:
    """Like ``make_plan``, from settings with the given origins."""
    cells, left_out = _CELLS[settings.matrix.mode](settings, origins, registry)
    if settings.matrix.controls:
        cells, without = _with_control(settings, cells)
        left_out = [*left_out, *without]
    jobs = tuple(
        dataclasses.replace(
            cell, seed=seed, run_dir=f"{cell.run_dir}/seed{seed}", tuning=is_tuning
        )
        for cell in cells
        for is_tuning, seeds in (
            (False, settings.matrix.seeds),
            (True, tuning_seeds(settings)),
        )
        for seed in seeds
    )
    if not jobs:
        raise ValueError("nothing to run: SEEDS or RA_MLA_ABLATION_STEPS is empty")
    output_dir = Path(settings.resources.output_dir)
    return Plan(jobs, tuple(left_out), output_dir, settings, registry)


def registry_plan(config: Config) -> Plan:
    """Plan every step of the registry, or those named on the command line, for a
    configuration of any mode. Raises ValueError like ``make_plan``."""
    plan = make_plan(config)
    asked = config.origin(SYMBOL_OF["steps"]) == COMMAND_LINE
    steps = plan.base.matrix.steps if asked else tuple(plan.registry.steps)
    base = plan.base.replace(mode="ablation", steps=steps, controls=False)
    return plan_settings(base, {}, plan.registry)


Cells = tuple[list[Job], list[LeftOutCell]]


def _with_control(settings: Settings, cells: list[Job]) -> Cells:
    """Add an A/A control after the baseline, or leave it out with the reason."""
    baseline = next((c for c in cells if c.parent_name is None), None)
    why = ""
    if baseline is None:
        why = "its baseline, step 0, is not among RA_MLA_ABLATION_STEPS"
    elif settings.optim.time_budget:
        why = "with TIME_BUDGET slower kernels make fewer updates"
    elif settings.model.dropout:
        why = "with GPT2_DROPOUT other kernels drop other weights"
    if baseline is None or why:
        return cells, [LeftOutCell("A/A control", f"CONTROLS=y, but {why}")]
    place = cells.index(baseline) + 1
    return [*cells[:place], control_of(baseline), *cells[place:]], []


def control_of(baseline: Job) -> Job:
    """A/A control of a baseline: the same training with other kernels."""
    which = baseline.name if baseline.step is None else f"step {baseline.step}"
    return dataclasses.replace(
        baseline,
        name=f"{baseline.name}-aa",
        title=f"A/A control: {which} with other kernels",
        parent=baseline.step,
        parent_name=baseline.name,
        settings=baseline.settings.replace(other_kernels=True),
        origins={**baseline.origins, "other_kernels": "CONTROLS=y"},
        run_dir=f"{baseline.run_dir}-aa",
    )


def _single(settings: Settings, origins: Mapping[str, str], _: Registry) -> Cells:
    resolved = _resolved(settings)
    job = Job(
        name="single",
        title="the model as configured",
        settings=resolved,
        origins=_with_solved(origins, settings, resolved),
        run_dir="single",
    )
    return [job], []


def _ablation(
    settings: Settings, origins: Mapping[str, str], registry: Registry
) -> Cells:
    steps = registry.ids(settings.matrix.steps)
    return [step_job(settings, origins, step, registry) for step in steps], []


def _matrix(settings: Settings, origins: Mapping[str, str], _: Registry) -> Cells:
    cells, left_out = cells_of(settings)
    model = _resolved(settings)
    jobs = []
    for cell in cells:
        partner = partner_of(cell, cells)
        changes = cell_changes(cell, settings)
        resolved = model.replace(**changes)
        check(resolved)
        set_by = dict.fromkeys(changes, f"cell {cell.name}")
        job = Job(
            name=cell.name,
            title=cell.title,
            parent_name=None if partner is None else partner.name,
            settings=resolved,
            origins=_with_solved({**origins, **set_by}, settings, resolved),
            run_dir=cell.name,
        )
        jobs.append(job)
    return jobs, left_out


def _resolved(settings: Settings) -> Settings:
    """Settings as configured, with all widths resolved."""
    base = derive_widths(settings)
    return resolve_widths(base, functools.partial(parameters_of, base))


_CELLS = {"single": _single, "ablation": _ablation, "matrix": _matrix}


def step_job(
    settings: Settings,
    origins: Mapping[str, str],
    step_id: int,
    registry: Registry = SHIPPED,
) -> Job:
    """Job of one ablation step over the base settings, with the first seed."""
    *above, step = registry.lineage(step_id)
    resolved = step_settings(settings, step_id, registry)
    set_by = {f: f"step {by}" for f, (_, by) in registry.changes_of(step_id).items()}
    return Job(
        step=step.id,
        name=step.name,
        title=step.title,
        parent=step.parent,
        parent_name=above[-1].name if above else None,
        seed=settings.matrix.seeds[0],
        settings=resolved,
        origins=_with_solved({**origins, **set_by}, settings, resolved),
        run_dir=f"step{step.id:02d}-{step.name}",
        ancestors=tuple(ancestor.id for ancestor in reversed(above)),
    )


def step_settings(
    settings: Settings, step_id: int, registry: Registry = SHIPPED, **instead: Any
) -> Settings:
    """Resolved settings of a step over base settings.

    instead: values that replace those set by the step and its ancestors. Raises
    ValueError with the step if the combination is invalid.
    """
    base = derive_widths(settings)
    flat = base.flat()
    changes = {
        field: value.of(flat[field]) if isinstance(value, Times) else value
        for field, (value, _) in registry.changes_of(step_id).items()
    }
    changed = base.replace(**{**changes, **instead})
    try:
        check(changed)
    except ValueError as error:
        raise ValueError(f"step {step_id}: {error}") from error
    sizes = functools.partial(parameters_of, settings, registry=registry)
    return resolve_widths(changed, sizes)


def baseline_parameters(settings: Settings, registry: Registry = SHIPPED) -> int:
    """Number of parameters of step 0, or of the model as configured in other modes."""
    if settings.matrix.mode == "ablation":
        return budget(step_settings(settings, 0, registry)).parameters
    return budget(_resolved(settings)).parameters


def parameters_of(settings: Settings, which: str, registry: Registry = SHIPPED) -> int:
    """Parameters of step ``which`` over base settings, or of LARGEST_ARM."""
    if which == LARGEST_ARM:
        return max(_arm_sizes(settings))
    if not which.isdecimal() or int(which) not in registry.steps:
        raise ValueError(
            f"CONFIG_RA_MLA_MATCH_STEP={which!r} is neither a step nor {LARGEST_ARM!r}"
        )
    return budget(step_settings(settings, int(which), registry)).parameters


def _arm_sizes(settings: Settings) -> Iterator[int]:
    """Parameters of all shipped arms that are valid with the base settings, except the
    control. A user's own arms do not count: adding one must not change step 20."""
    for arm in SHIPPED.steps:
        matched, _ = SHIPPED.changes_of(arm).get("match_step", ("", 0))
        if matched != LARGEST_ARM:
            with contextlib.suppress(ValueError):
                yield parameters_of(settings, str(arm))


def _with_solved(
    origins: Mapping[str, str], base: Settings, resolved: Settings
) -> dict[str, str]:
    """Record the solver as origin of the widths that it set."""
    before, after = base.flat(), resolved.flat()
    solved = {f: "solved" for f in SOLVED_FIELDS if before[f] != after[f]}
    return {**origins, **solved}
