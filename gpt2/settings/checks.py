"""Conflicts between settings, and remarks on settings that are valid but unusual.

Bounds of single symbols are in Kconfig and gpt2/settings/schema.py. Torch-free.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

from gpt2.mechanisms import enabled, mechanisms
from gpt2.settings.schema import SYMBOL_OF, Settings
from lib.gpu.env import check_allocator
from lib.jobs.slots import gpu_names
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS, why_not
from lib.pruning.schedules import head_target

LARGEST_SEED = 2**32 - 1  # limit of numpy's generators


SWEPT_RATES = (
    "LR_SWEEP compares each arm at its own best rate, for which a sequential family "
    "has no levels: use REPORT_FAMILY_TOGETHER=y, or SWEEP for rates as values"
)


def check(settings: Settings) -> None:
    """Refuse invalid combinations of settings, with the reason.

    Raises ValueError with one line per problem.
    """
    problems = [text for bad, text in _rules(settings) if bad]
    if problems:
        raise ValueError("\n".join(problems))


def _rules(s: Settings) -> Iterator[tuple[bool, str]]:
    m, o = s.model, s.optim
    yield (
        not m.head_dim and m.n_embd % m.n_head != 0,
        f"GPT2_N_EMBD={m.n_embd} is not a multiple of GPT2_N_HEAD={m.n_head}: "
        "change one of them or set GPT2_HEAD_DIM",
    )
    yield from _mechanism_rules(s)
    yield (
        o.min_lr > o.learning_rate and s.matrix.min_lr_ratio is None,
        f"GPT2_MIN_LR={o.min_lr:g} is above LEARNING_RATE={o.learning_rate:g}",
    )
    yield from _pruning_rules(s)
    yield (
        s.data.dataset == "text" and not s.data.text_path,
        "GPT2_DATASET_TEXT_PATH is empty: name a folder or a glob of text files",
    )
    yield from _resource_rules(s)
    yield (
        max(s.matrix.seeds, default=0) > LARGEST_SEED,
        f"SEEDS: {max(s.matrix.seeds)} is above {LARGEST_SEED}",
    )
    yield from _rate_rules(s)
    yield from _family_rules(s)
    place = s.resources.output_dir
    yield (
        not place
        or not place.isprintable()
        or place.startswith("~")  # ~ would be a folder of that name
        or ".." in PurePath(place).parts,
        f"OUTPUT_DIR={place!r} must name a folder, without '~', '..' and "
        "control characters",
    )


def _resource_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    r, precision = s.resources, s.optim.mixed_precision
    first, last = r.profile_steps[0], r.profile_steps[-1]
    yield (
        first < 1 or r.profile_steps != tuple(range(first, last + 1)),
        f"PROFILE_STEPS={','.join(map(str, r.profile_steps))} must be one update, "
        "counted from 1, or a range such as 10-12",
    )
    yield (
        r.gradient_accumulation % r.ddp_gpus_per_job != 0,
        f"DDP_GPUS_PER_JOB={r.ddp_gpus_per_job} ranks share "
        f"GPT2_GRADIENT_ACCUMULATION={r.gradient_accumulation} micro steps, which is "
        "not a multiple: choose a multiple (and a smaller BATCH_SIZE)",
    )
    yield (
        r.engine == "ray" and bool(r.gpus or ":" in r.device),
        f"GPUS={r.gpus!r}, DEVICE={r.device!r}: with ENGINE=ray GPUs cannot be named: "
        "Ray assigns them; leave GPUS empty and DEVICE auto, cpu, cuda or rocm",
    )
    yield (
        r.engine == "ray" and r.jobs_per_gpu > 0,
        f"JOBS_PER_GPU={r.jobs_per_gpu}: with ENGINE=ray GPUs are not shared: set 0",
    )
    yield (
        r.prepare_ahead > 0 and not r.is_one_local_process,
        f"PREPARE_AHEAD={r.prepare_ahead}: with ENGINE=ray or DDP_GPUS_PER_JOB above 1 "
        "no run prepares while another trains: leave it -1",
    )
    yield (
        re.fullmatch(r"auto|cpu|(cuda|rocm)(:[0-9]+)?", r.device) is None,
        f"DEVICE={r.device!r} must be auto, cpu, cuda, rocm, or one GPU such as cuda:1",
    )
    yield (
        r.device == "cpu" and precision == "fp16",
        "DEVICE='cpu' with MIXED_PRECISION_FP16=y: a CPU trains in bf16 or fp32",
    )
    yield (
        r.device == "cpu" and r.ddp_backend == "nccl",
        "DEVICE='cpu' with DDP_BACKEND='nccl': CPUs communicate with gloo",
    )
    for symbol, text, read in (
        ("GPUS", r.gpus, gpu_names),
        ("PYTORCH_CUDA_ALLOC_CONF", r.alloc_conf, check_allocator),
    ):
        why = _why_unreadable(text, read)
        yield bool(why), f"{symbol}={text!r}: {why}"


def _family_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    matrix = s.matrix
    if matrix.report_family == "together":
        return
    yield bool(matrix.lr_sweep.strip()), SWEPT_RATES
    yield (
        matrix.report_looks > 1,
        f"REPORT_LOOKS={matrix.report_looks} with "
        f"REPORT_FAMILY={matrix.report_family}: a look after more seeds is a further "
        "test of the series; set REPORT_LOOKS=1",
    )


def _rate_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    matrix, r = s.matrix, s.resources
    stable = "KEEP_STABLE=y" if r.keep_stable else f"STABLE_FROM={r.stable_from}"
    for bad, why in (
        (s.optim.lr_schedule != "wsd", "LR_SCHEDULE=cosine has no stable phase"),
        (bool(s.optim.time_budget), "with TIME_BUDGET the decay begins at a time"),
        (s.pruning.prune_method != "none", "a pruning schedule depends on the length"),
    ):
        yield bad and (r.keep_stable or bool(r.stable_from)), f"{stable}: {why}"
    if not matrix.lr_sweep.strip():
        return
    shared = sorted({*matrix.seeds} & {*matrix.lr_tuning_seeds})
    listed = ",".join(map(str, matrix.lr_tuning_seeds))
    yield (
        bool(shared),
        f"LR_TUNING_SEEDS={listed}: of these, SEEDS has {', '.join(map(str, shared))}: "
        "the seeds that choose a rate must not be those of the verdict",
    )
    yield (
        not matrix.lr_tuning_seeds or max(matrix.lr_tuning_seeds) > LARGEST_SEED,
        f"LR_TUNING_SEEDS={listed!r} must be seeds from 0 to {LARGEST_SEED}",
    )


def _mechanism_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    on, share = enabled(s), s.mechanisms.mechanism_share
    for mechanism in on:
        yield from mechanism.problems(s)
        for name, value in mechanism.needs.items():
            found = getattr(s.mechanisms, name)
            yield (
                found != value,
                f"{mechanism.title} needs {SYMBOL_OF[name]}={value!r}, but it is "
                f"{found!r}",
            )
    asked = Counter(name for each in on for name in each.attention(s))
    yield (
        max(asked.values(), default=0) > 1,
        f"{' and '.join(m.name for m in on if m.attention(s))} use the same part of an "
        "attention call: switch one of them off",
    )
    switches = [SYMBOL_OF[next(iter(m.off))] for m in mechanisms() if m.paid_width]
    yield (
        share > 0 and not any(m.paid_width for m in on),
        f"RA_MLA_MECHANISM_SHARE={share} has no mechanism to apply to: "
        f"enable {' or '.join(switches)}, or set it to 0",
    )
    for name in (m.paid_width for m in on if m.paid_width):
        yield (
            not getattr(s.mechanisms, name) and not share,
            f"{SYMBOL_OF[name]}=0 takes its width from RA_MLA_MECHANISM_SHARE, which "
            "is 0: set one of them",
        )
    flows = [m.title for m in on if m.hands_on]
    yield (
        bool(flows) and s.model.n_layer < 2,
        f"{' and '.join(flows)} connects a block to the next one: it needs "
        f"GPT2_N_LAYER of at least 2, but it is {s.model.n_layer}",
    )


@contextmanager
def naming(settings: str, way_out: str = "") -> Iterator[None]:
    """Add the names of settings, and a remedy, to a ValueError about their values."""
    try:
        yield
    except ValueError as error:
        text = f"{str(error).rstrip('.')}. {way_out}" if way_out else str(error)
        raise ValueError(f"{settings}: {text}") from error


def _why_unreadable(text: str, read: Callable[[str], object]) -> str:
    try:
        read(text)
    except ValueError as error:
        return str(error)
    return ""


def _pruning_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    """Rules of methods that score by Adam's moments. With any other method adamwprune
    trains as adamw, which is allowed; only a test matrix leaves such cells out."""
    method = s.pruning.prune_method
    if not METHODS[method].reads_moments:
        return
    refusal = heads_refusal(s) if METHODS[method].is_structured else ""
    why = why_not(s.optim.optimizer, method)
    for reason in (refusal, why or ""):
        yield bool(reason), f"PRUNING_METHOD {method!r}: {reason}"


def remarks(settings: Settings) -> list[str]:
    """Remarks on valid but unusual settings, before a run."""
    o, r = settings.optim, settings.resources
    found = []
    if r.profile and r.profile_steps[0] > o.max_iters:
        found.append(
            f"PROFILE_STEPS begins at update {r.profile_steps[0]}, but a run has only "
            f"{o.max_iters}: nothing is profiled"
        )
    if o.warmup_steps >= o.max_iters:
        peak = o.learning_rate * o.max_iters / o.warmup_steps
        found.append(
            f"the warm-up ({o.warmup_steps} updates) takes the whole run "
            f"({o.max_iters}): the learning rate ends at {peak:.3g} and never decays"
        )
    decay = o.decay_updates
    if o.lr_schedule == "wsd" and o.warmup_steps + decay >= o.max_iters:
        found.append(
            f"LR_SCHEDULE=wsd has no stable phase: the warm-up ({o.warmup_steps}) and "
            f"the decay ({decay}) take all of the {o.max_iters} updates"
        )
    found.append(OPTIMIZERS[o.optimizer].remark(o.own_of(o.optimizer), o.max_iters))
    return [text for text in found if text] + list(_head_remarks(settings))


def _head_remarks(s: Settings) -> Iterator[str]:
    """Remark if a sparsity cannot be reached because each layer keeps a head."""
    if s.pruning.prune_method != "heads":
        return
    sparsity = s.pruning.prune_sparsity
    wanted, possible = heads_pruned(s, sparsity)
    if possible < wanted:
        yield (
            f"a sparsity of {100 * sparsity:g}% would prune {wanted} of "
            f"{s.model.n_layer * s.model.n_head} heads; {possible} are pruned, "
            "since each layer keeps one"
        )


def heads_refusal(s: Settings) -> str:
    """Reason why single heads cannot be removed from a model; "" if they can.

    Each head must own its weights, and no other part of the model may read all heads.
    """
    found = [reason for m in enabled(s) if (reason := m.heads_refusal(s))]
    return f"heads cannot be removed: {'; '.join(found)}" if found else ""


def heads_pruned(settings: Settings, sparsity: float) -> tuple[int, int]:
    """Heads to prune at a final sparsity, and those pruned: each layer keeps one."""
    m = settings.model
    if settings.pruning.prune_scope == "global":
        return head_target(sparsity, [m.n_head] * m.n_layer)
    wanted, possible = head_target(sparsity, [m.n_head])
    return m.n_layer * wanted, m.n_layer * possible
