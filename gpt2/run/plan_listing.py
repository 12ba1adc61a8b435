"""Listing of a plan in plain text: jobs, what differs from the baseline, costs.

Torch-free: a listing has to be there at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2.data.small_text import small_text
from gpt2.plan.budget import Budget, budget, derive_widths, kv_bytes
from gpt2.plan.jobs import Job, Plan, cells
from gpt2.plan.memory import memory, misfit
from gpt2.plan.planning import step_settings
from gpt2.plan.run_length import tokens_of
from gpt2.plan.sizes import same_widths, sizes_of
from gpt2.plan.unused_settings import unused_settings
from gpt2.run.conflicts import conflicts
from gpt2.run.device_limits import too_many_loaders, without_effect_here
from gpt2.run.progress import status_word
from gpt2.settings.checks import remarks
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import SYMBOL_OF, Settings
from gpt2.settings.shown import shown_value
from lib.gpu.compile_cache import INDUCTOR, cache_folder, is_empty
from lib.human import counted, size
from lib.kconfig.config_py import DEFAULT, Config
from lib.terminal import aligned, paragraph, table

COLUMNS = 26, 16  # widths at most of a setting and its value
# Never shown as a difference of a job: where and on what it runs.
_PLACE = ("output_dir", "steps", "seeds", "mode")


def listing(plan: Plan, config: Config) -> str:
    """All jobs of a plan, as `--list` and `--dry-run` print them."""
    settings = settings_from(config)
    reference = baseline_of(settings)
    sizes = size_table(plan)
    lines = [*_head(plan, settings), "", *(sizes.split("\n") if sizes else ())]
    lines += [*_asked(config), ""]
    for jobs in cells(plan.jobs):
        lines += [*_cell(jobs, reference, plan.output_dir), ""]
    lines += note_lines(plan, config)
    lines += [f"left out: {cell.name}: {cell.reason}" for cell in plan.left_out]
    return "\n".join(lines).rstrip() + "\n"


def notes(plan: Plan, config: Config, is_here: bool = True) -> list[str]:
    """Notes on settings that are allowed but questionable, before jobs are run.

    is_here: whether they will run on this machine.
    """
    found = [*job_remarks(plan), *unused_settings(plan, config), *too_large(plan)]
    if is_here:
        found += without_effect_here(plan, config)
        found += too_many_loaders(plan)
    found += small_text(max((job.settings for job in plan.jobs), key=tokens_of))
    found += control_costs(plan) + kept_final_rate(plan)
    return list(dict.fromkeys([*found, *added_rates(plan), *same_widths(plan)]))


def job_remarks(plan: Plan) -> Iterator[str]:
    """Remarks on the settings of jobs; those on some cells begin with their names."""
    groups = cells(plan.jobs)
    names: dict[str, list[str]] = {}
    for jobs in groups:
        for text in remarks(jobs[0].settings):
            names.setdefault(text, []).append(jobs[0].name)
    for text, found in names.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        some = f"{', '.join(found[:3])}{more}: "
        yield text if len(found) == len(groups) else some + text


def note_lines(plan: Plan, config: Config, is_here: bool = True) -> list[str]:
    """The notes as paragraphs."""
    return [paragraph(f"note: {text}") for text in notes(plan, config, is_here)]


def size_table(plan: Plan) -> str:
    """Parameters and work of each size of SIZES; "" without them."""
    sizes = sizes_of(plan)
    whole = math.fsum(one.flops for one in sizes)
    head = ("size", "heads", "parameters", "updates", "rate", "tokens of all", "FLOPs")
    rows = []
    for one in sizes:
        model = one.first.settings.model
        rows.append(
            (
                one.name,
                f"{model.n_head} of {model.head_dim}",
                f"{one.parameters:,}",
                _ends([f"{number:,}" for number in one.updates]),
                _ends([f"{rate:g}" for rate in one.rates]),
                f"{one.tokens:,}",
                f"{one.flops:.1e} ({one.flops / whole:.0%})",
            )
        )
    spare = ("heads", "rate", "tokens of all", "updates")
    return table(head, rows, left=(0,), spare=spare) if rows else ""


def _ends(numbers: Sequence[str]) -> str:
    """A number, or the first and the last of several."""
    return " to ".join(dict.fromkeys((numbers[0], numbers[-1])))


def cold_cache(plan: Plan, environ: Mapping[str, str]) -> list[str]:
    """One line if the plan compiles and no compiled code is kept yet."""
    compiles = any(job.settings.resources.compile_model for job in plan.jobs)
    if not compiles or not is_empty(environ):
        return []
    place = environ.get(INDUCTOR) or cache_folder(environ) or "a temporary folder"
    return [
        f"note: no compiled code in {place} yet: the first run of each step compiles, "
        "which later runs of it need not"
    ]


def too_large(plan: Plan) -> list[str]:
    """One line for each cell that will hardly fit the GPU the plan is made for."""
    found = ((jobs[0], misfit(jobs[0].settings)) for jobs in cells(plan.jobs))
    return [f"{job.name}: {problem}" for job, problem in found if problem]


def control_costs(plan: Plan) -> list[str]:
    """One line on the price of the A/A control, if there is one."""
    controls = [job for job in plan.jobs if job.is_control]
    if not controls:
        return []
    share = f"{len(controls)} of {counted(len(plan.jobs), 'job')}"
    return [
        f"{controls[0].cell}: {share}, to measure numerical noise; CONTROLS=n leaves "
        "it out"
    ]


def kept_final_rate(plan: Plan) -> list[str]:
    """One line if a sweep changes the peak of the learning rate and not its end."""
    swept = {axis.field for axis in plan.axes}
    base = plan.base
    is_kept = base.matrix.min_lr_ratio is None and base.optim.min_lr > 0
    if "learning_rate" not in swept or swept & {"min_lr", "min_lr_ratio"}:
        return []
    source = next(axis.source for axis in plan.axes if axis.field == "learning_rate")
    return [
        f"{source} of LEARNING_RATE: GPT2_MIN_LR={base.optim.min_lr:g} is the end of "
        "all schedules, which so differ in shape; MIN_LR_RATIO=0.1 ends each at a "
        "tenth of its peak"
    ] * is_kept


def added_rates(plan: Plan) -> list[str]:
    """One line for each rate that LR_SWEEP_EXTEND has added."""
    return [f"LR_SWEEP_EXTEND=y adds LEARNING_RATE={text}" for text in plan.added_rates]


def baseline_of(settings: Settings) -> Settings:
    """The settings that jobs are compared with: step 0, or the configuration."""
    if settings.matrix.mode == "ablation":
        return step_settings(settings, 0)
    return derive_widths(settings)


def differences(job: Job, reference: Settings) -> list[tuple[str, Any, Any, str]]:
    """Each (field, reference's value, the job's, origin) that differs."""
    before, after = reference.flat(), job.settings.flat()
    return [
        (name, before[name], value, job.origins.get(name, DEFAULT))
        for name, value in after.items()
        if value != before[name] and name not in _PLACE
    ]


def budget_table(plan: Plan) -> str:
    """Analytic costs of each cell: `--budget`."""
    shares = ("vs first", "vs partner", "partner")
    costs = ("r", "FLOPs/token", "KV/token", "GPU memory")
    head = ("step", "name", "parameters", *shares, *costs)
    rows = []
    first: Budget | None = None
    for jobs in cells(plan.jobs):
        b = budget(jobs[0].settings)
        first = first or b
        step = "-" if jobs[0].step is None else str(jobs[0].step)
        partner, name = _partner(jobs[0], plan)
        share = (_share(b, first), _share(b, partner) if partner else "-", name)
        flops, cache = f"{b.flops_training:,}", size(kv_bytes(jobs[0].settings))
        cost = (f"{b.ratio:.2f}", flops, cache, _memory(jobs[0].settings))
        rows.append((step, jobs[0].name, f"{b.parameters:,}", *share, *cost))
    notes = (
        "FLOPs of training, forward and backward; KV/token: decode cache per token of\n"
        "a full context, in training's precision; r: MLP over attention weights; GPU\n"
        "memory: peak of training by estimate, at the micro batch of BATCH_SIZE.\n"
    )
    spare = ("vs first", "r", "KV/token", "partner", "vs partner", "FLOPs/token")
    return table(head, rows, left=(1,), spare=spare) + notes


def _partner(job: Job, plan: Plan) -> tuple[Budget | None, str]:
    """Costs and name of what a job is compared with, planned or not."""
    for other in plan.jobs:
        if (other.step, other.name) == (job.parent, job.parent_name):
            name = other.name if job.parent is None else str(job.parent)
            return budget(other.settings), name
    if job.parent is not None:
        base = plan.base_of(job)
        settings = step_settings(base, job.parent, plan.registry)
        return budget(settings), str(job.parent)
    return None, "-"


def _share(mine: Budget, other: Budget) -> str:
    return f"{100 * (mine.parameters / other.parameters - 1):+.2f}%"


def _head(plan: Plan, settings: Settings) -> Iterator[str]:
    groups = cells([job for job in plan.jobs if not job.is_control])
    control = " and an A/A control" if any(job.is_control for job in plan.jobs) else ""
    kind = {"ablation": "step", "matrix": "cell"}.get(settings.matrix.mode, "model")
    swept = ""
    if plan.axes:
        arms = len({jobs[0].arm for jobs in groups})
        swept = f" ({counted(arms, kind)}; sweep of {'; '.join(map(str, plan.axes))})"
        kind = "arm"
    total = sum(tokens_of(job.settings) for job in plan.jobs)
    work = f"{total:,} tokens in all"
    if settings.optim.time_budget:
        work = f"{settings.optim.time_budget} of training each"
    seeds = counted(len({job.seed for job in plan.jobs if not job.tuning}), "seed")
    if tuning := {job.seed for job in plan.jobs if job.tuning}:
        seeds += f" and {counted(len(tuning), 'tuning seed')}"
    yield (
        f"{counted(len(groups), kind)}{swept}{control} x {seeds} = "
        f"{counted(len(plan.jobs), 'job')}, {work}"
    )
    yield f"results in {plan.output_dir}"


def _asked(config: Config) -> Iterator[str]:
    """The settings changed from their Kconfig defaults, with their origin."""
    found = {symbol: config.origins.get(symbol) for symbol in SYMBOL_OF.values()}
    asked = {s: origin for s, origin in found.items() if origin not in (None, DEFAULT)}
    if not asked:
        yield "all settings have their defaults"
        return
    yield "settings changed from their defaults"
    rows = [(s, shown_value(config.values[s]), origin) for s, origin in asked.items()]
    yield from aligned(rows, COLUMNS, indent=4)


def _cell(jobs: Sequence[Job], reference: Settings, root: Path) -> Iterator[str]:
    job = jobs[0]
    yield f"step {job.step}  {job.name}" if job.step is not None else job.name
    yield f"  {job.title}"
    yield "  " + _costs(job, reference)
    rows = [
        (SYMBOL_OF[field], f"{before} -> {after}", origin)
        for field, old, new, origin in differences(job, reference)
        if (before := _rounded(old)) != (after := _rounded(new))
    ]
    yield from aligned(rows, COLUMNS, indent=4)
    for one in jobs:
        use = " (chooses the rate)" if one.tuning else ""
        yield f"  seed {one.seed:<6} {root / one.run_dir}{use}{_status(root, one)}"


def _rounded(value: Any) -> str:
    """A value without the rounding error of a product, as of 0.1 x 0.0006."""
    exact = float(f"{value:.12g}") if isinstance(value, float) else value
    return shown_value(exact)


def _costs(job: Job, reference: Settings) -> str:
    b = budget(job.settings)
    partner = "baseline (no comparison)"
    if job.parent is not None:
        partner = f"compared with step {job.parent} ({job.parent_name})"
    elif job.parent_name is not None:
        partner = f"compared with {job.parent_name}"
    share = b.parameters / budget(reference).parameters - 1
    more = f" ({100 * share:+.2f}% against the baseline)" * (
        job.parent_name is not None
    )
    work = job.settings.optim.time_budget or f"{tokens_of(job.settings):,} tokens"
    needs = f", about {_memory(job.settings)}" if _on_gpu(job.settings) else ""
    return f"{partner}, {b.parameters:,} parameters{more}, {work}{needs}"


def _on_gpu(settings: Settings) -> bool:
    """Whether it may be trained on a GPU, by its settings."""
    return settings.resources.device != "cpu"


def _memory(settings: Settings) -> str:
    return size(memory(settings).total) if _on_gpu(settings) else "-"


def _status(root: Path, job: Job) -> str:
    status = status_word(root / job.run_dir)
    with suppress(OSError):
        if conflicts(root, [job]):
            return f"  [{status}, with other settings]"
    return "" if status == "planned" else f"  [{status}]"
