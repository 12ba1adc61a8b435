"""The typed settings of one run, and which Kconfig symbol feeds each field.

No default lives here: hyperparameters come from Kconfig, structure from the
step registry (gpt2/ablation.py). Integer ranges are Kconfig's; what Kconfig
must hold as strings (floats, lists) is parsed and range-checked here.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lib.generated import Config, ConfigError
from lib.pruning.names import why_not
from lib.pruning.schedules import head_target
from lib.trackers import BACKENDS, parse_trackers

VOCAB_SIZES = {"gpt2": 50257, "bytes": 257}
WHOLE_CONTEXT = 0  # ra_window: no band, the transposed score everywhere
LARGEST_ARM = "largest"
LARGEST_SEED = 2**32 - 1  # of numpy's generators
T = typing.TypeVar("T")


def setting(
    symbol: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    allowed: tuple[str, ...] | None = None,
) -> Any:
    """A field fed by CONFIG_<symbol>; bounds are inclusive except ``above``."""
    return dataclasses.field(
        metadata={
            "symbol": symbol,
            "low": low,
            "high": high,
            "above": above,
            "allowed": allowed,
        }
    )


def rate(symbol: str) -> Any:
    """A learning rate that may be left empty."""
    return setting(symbol, above=0.0, high=10.0)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(setting, rate)
)
def part(cls: type[T]) -> type[T]:
    """A frozen group of settings; field names are unique over all parts."""
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


@part
class Model:
    """Dimensions of the GPT-2 trunk. 0 for a width means: derive it."""

    model_size: str = setting("GPT2_MODEL")
    n_layer: int = setting("GPT2_N_LAYER")
    n_head: int = setting("GPT2_N_HEAD")
    n_embd: int = setting("GPT2_N_EMBD")
    head_dim: int = setting("GPT2_HEAD_DIM")
    mlp_width: int = setting("GPT2_MLP_WIDTH")
    block_size: int = setting("GPT2_BLOCK_SIZE")
    dropout: float = setting("GPT2_DROPOUT", low=0.0, high=0.9)
    bias: bool = setting("GPT2_BIAS")


@part
class Mechanisms:
    """What distinguishes the arms of an ablation."""

    attention: str = setting("RA_MLA_ATTENTION", allowed=("mha", "mla", "mla_rope"))
    latent_dim: int = setting("RA_MLA_LATENT_DIM")
    mla_shared_k: bool = setting("RA_MLA_SHARED_K")
    mla_shared_v: bool = setting("RA_MLA_SHARED_V")
    joint_latent_dim: int = setting("RA_MLA_JOINT_LATENT_DIM")
    rope_dim: int = setting("RA_MLA_ROPE_DIM")
    ra: bool = setting("RA_MLA_RA")
    ra_window: int = setting("RA_MLA_RA_WINDOW")
    ra_alpha: float = setting("RA_MLA_RA_ALPHA", low=-4.0, high=4.0)
    ra_learned_alpha: bool = setting("RA_MLA_RA_LEARNED_ALPHA")
    ract: bool = setting("RA_MLA_RACT")
    ract_statistic: str = setting(
        "RA_MLA_RACT_STATISTIC", allowed=("topk", "max", "entropy", "rms")
    )
    ract_placement: str = setting(
        "RA_MLA_RACT_PLACEMENT", allowed=("output", "weights")
    )
    ract_topk: int = setting("RA_MLA_RACT_TOPK")
    ract_mix: float = setting("RA_MLA_RACT_MIX", low=0.0, high=1.0)
    ract_head_average: bool = setting("RA_MLA_RACT_HEAD_AVERAGE")
    ract_detach: bool = setting("RA_MLA_RACT_DETACH")
    mlp_gate: bool = setting("RA_MLA_MLP_GATE")
    mlp_gate_dim: int = setting("RA_MLA_MLP_GATE_DIM")
    mlp_gate_mix: float = setting("RA_MLA_MLP_GATE_MIX", low=0.0, high=1.0)
    mlp_gate_pool: str = setting(
        "RA_MLA_MLP_GATE_POOL", allowed=("token", "prefix_mean")
    )
    cross_token: bool = setting("RA_MLA_CROSS_TOKEN")
    cross_rank: int = setting("RA_MLA_CROSS_RANK")
    cross_mix: float = setting("RA_MLA_CROSS_MIX", low=0.0, high=1.0)
    cross_select: str = setting("RA_MLA_CROSS_SELECT", allowed=("topk", "rms", "none"))
    cross_topk: int = setting("RA_MLA_CROSS_TOPK")
    cross_tau: float = setting("RA_MLA_CROSS_TAU", above=0.0, high=1.0)
    cross_renorm: bool = setting("RA_MLA_CROSS_RENORM")
    latent: str = setting(
        "RA_MLA_LATENT_RECIPROCITY",
        allowed=("none", "tied_transpose", "untied", "per_head_scalar"),
    )
    latent_mix: float = setting("RA_MLA_LATENT_MIX", low=0.0, high=1.0)
    output_gate: bool = setting("RA_MLA_OUTPUT_GATE")
    mlp_ratio: float = setting("RA_MLA_MLP_RATIO", low=0.0, high=16.0)
    mechanism_share: float = setting("RA_MLA_MECHANISM_SHARE", low=0.0, high=0.5)
    match_step: str = setting("RA_MLA_MATCH_STEP")


@part
class Optim:
    """Optimizer, schedule and arithmetic; steps count optimizer updates."""

    optimizer: str = setting("OPTIMIZER")
    learning_rate: float = setting("LEARNING_RATE", above=0.0, high=10.0)
    min_lr: float = setting("GPT2_MIN_LR", low=0.0, high=10.0)
    warmup_steps: int = setting("GPT2_WARMUP_STEPS")
    max_iters: int = setting("GPT2_MAX_ITERS")
    time_budget: str = setting("TIME_BUDGET")
    weight_decay: float = setting("WEIGHT_DECAY", low=0.0, high=10.0)
    beta1: float = setting("ADAM_BETA1", low=0.0, high=0.9999)
    beta2: float = setting("ADAM_BETA2", low=0.0, high=0.99999)
    eps: float = setting("ADAM_EPS", above=0.0, high=0.1)
    momentum: float = setting("SGD_MOMENTUM", low=0.0, high=0.9999)
    grad_clip: float = setting("GPT2_GRAD_CLIP", low=0.0, high=1e6)
    mixed_precision: str = setting(
        "MIXED_PRECISION_DTYPE", allowed=("fp32", "bf16", "fp16")
    )
    residual_fp32: bool = setting("RESIDUAL_FP32")
    spam_threshold: float = setting("SPAM_THRESHOLD", above=0.0, high=1e9)
    spam_interval: int = setting("SPAM_INTERVAL")
    spam_warmup: int = setting("SPAM_WARMUP")
    spam_reset_counter: bool = setting("SPAM_RESET_COUNTER")
    adamwprune_variant: str = setting("ADAMWPRUNE_VARIANT")


@part
class Pruning:
    """Pruning of single linear weights, or of heads; cadence in updates."""

    prune_method: str = setting(
        "PRUNING_METHOD", allowed=("none", "magnitude", "movement", "state", "heads")
    )
    prune_sparsity: float = setting("PRUNING_SPARSITY", low=0.0, high=0.99)
    prune_interval: int = setting("PRUNING_INTERVAL")
    prune_warmup: int = setting("PRUNING_WARMUP_STEPS")
    prune_ramp_end: float = setting("PRUNING_RAMP_END", above=0.0, high=1.0)
    prune_scope: str = setting("PRUNING_SCOPE", allowed=("global", "layer"))


@part
class Data:
    """The corpus and what is scored on it."""

    dataset: str = setting("GPT2_DATASET")
    tokenizer: str = setting("GPT2_TOKENIZER", allowed=tuple(VOCAB_SIZES))
    text_path: str = setting("GPT2_DATASET_TEXT_PATH")
    max_tokens: int = setting("GPT2_DATASET_MAX_TOKENS")
    eval_interval: int = setting("GPT2_EVAL_INTERVAL")
    eval_samples: int = setting("GPT2_EVAL_SAMPLES")


@part
class Resources:
    """How a run is carried out; never part of its identity."""

    batch_size: int = setting("BATCH_SIZE")
    gradient_accumulation: int = setting("GPT2_GRADIENT_ACCUMULATION")
    device: str = setting("DEVICE")
    attention_backend: str = setting("RA_MLA_ATTENTION_BACKEND")
    mlp_backend: str = setting("MLP_BACKEND")
    compile_model: bool = setting("COMPILE_MODEL")
    compile_mode: str = setting("COMPILE_MODE")
    cuda_graphs: bool = setting("CUDA_GRAPHS")
    auto_batch: bool = setting("AUTO_BATCH")
    gpu_memory: int = setting("GPU_MEMORY_GB")
    tf32: bool = setting("TF32")
    cudnn_benchmark: bool = setting("CUDNN_BENCHMARK")
    gpu_warmup: int = setting("GPU_WARMUP")
    alloc_conf: str = setting("PYTORCH_CUDA_ALLOC_CONF")
    num_workers: int = setting("NUM_WORKERS")
    pin_memory: bool = setting("PIN_MEMORY")
    prefetch_factor: int = setting("PREFETCH_FACTOR")
    persistent_workers: bool = setting("PERSISTENT_WORKERS")
    attention_metrics: bool = setting("RA_MLA_METRICS")
    attention_metrics_rows: int = setting("RA_MLA_METRICS_ROWS")
    log_interval: int = setting("GPT2_LOG_INTERVAL")
    checkpoint_interval: int = setting("CHECKPOINT_INTERVAL")
    profile: bool = setting("PROFILE")
    profile_steps: tuple[int, ...] = setting("PROFILE_STEPS")
    keep_checkpoints: bool = setting("KEEP_CHECKPOINTS")
    threads: int = setting("CPU_THREADS")
    engine: str = setting("RUN_ENGINE", allowed=("local", "ray"))
    ray_address: str = setting("RAY_ADDRESS")
    parallel_jobs: int = setting("PARALLEL_JOBS")
    preload: bool = setting("PRELOAD")
    fail_fast: bool = setting("FAIL_FAST")
    hang_timeout: int = setting("HANG_TIMEOUT")
    gpus: str = setting("GPUS")
    jobs_per_gpu: int = setting("JOBS_PER_GPU")
    ddp_gpus_per_job: int = setting("DDP_GPUS_PER_JOB")
    ddp_backend: str = setting("DDP_BACKEND", allowed=("auto", "nccl", "gloo"))
    data_dir: str = setting("DATA_DIR")
    output_dir: str = setting("OUTPUT_DIR")
    with_trackio: bool = setting("ENABLE_TRACKIO")
    with_wandb: bool = setting("ENABLE_WANDB")
    with_tensorboard: bool = setting("ENABLE_TENSORBOARD")
    tracker_project: str = setting("TRACKER_PROJECT")
    wandb_online: bool = setting("TRACKER_WANDB_ONLINE")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers that are told of a run."""
        return tuple(name for name in BACKENDS if getattr(self, f"with_{name}"))


@part
class Matrix:
    """Which runs a plan consists of, and what they are judged by."""

    mode: str = setting("KABLATE_MODE", allowed=("ablation", "matrix", "single"))
    steps: tuple[int, ...] = setting("RA_MLA_ABLATION_STEPS")
    seeds: tuple[int, ...] = setting("SEEDS")
    report_margin: float = setting("REPORT_MARGIN", above=0.0, high=10.0)
    train_tokens: int = setting("GPT2_MAX_TOKENS")
    train_epochs: float = setting("GPT2_MAX_EPOCHS", low=0.0, high=1e6)
    # The sets of the test matrix, and learning rates (None: LEARNING_RATE).
    with_sgd: bool = setting("TEST_MATRIX_SGD")
    with_adam: bool = setting("TEST_MATRIX_ADAM")
    with_adamw: bool = setting("TEST_MATRIX_ADAMW")
    with_adamwadv: bool = setting("TEST_MATRIX_ADAMWADV")
    with_adamwspam: bool = setting("TEST_MATRIX_ADAMWSPAM")
    with_adamwprune: bool = setting("TEST_MATRIX_ADAMWPRUNE")
    with_muon: bool = setting("TEST_MATRIX_MUON")
    with_none: bool = setting("TEST_MATRIX_PRUNING_NONE")
    with_magnitude: bool = setting("TEST_MATRIX_PRUNING_MAGNITUDE")
    with_movement: bool = setting("TEST_MATRIX_PRUNING_MOVEMENT")
    with_state: bool = setting("TEST_MATRIX_PRUNING_STATE")
    with_heads: bool = setting("TEST_MATRIX_PRUNING_HEADS")
    sparsities: tuple[float, ...] = setting(
        "TEST_MATRIX_SPARSITIES", above=0.0, high=0.99
    )
    with_bitter0: bool = setting("TEST_MATRIX_BITTER0")
    with_bitter1: bool = setting("TEST_MATRIX_BITTER1")
    with_bitter2: bool = setting("TEST_MATRIX_BITTER2")
    with_bitter3: bool = setting("TEST_MATRIX_BITTER3")
    with_bitter4: bool = setting("TEST_MATRIX_BITTER4")
    with_bitter5: bool = setting("TEST_MATRIX_BITTER5")
    with_bitter6: bool = setting("TEST_MATRIX_BITTER6")
    with_bitter7: bool = setting("TEST_MATRIX_BITTER7")
    with_bitter8: bool = setting("TEST_MATRIX_BITTER8")
    with_bitter9: bool = setting("TEST_MATRIX_BITTER9")
    rate_sgd: float | None = rate("TEST_MATRIX_SGD_LEARNING_RATE")
    rate_adam: float | None = rate("TEST_MATRIX_ADAM_LEARNING_RATE")
    rate_adamw: float | None = rate("TEST_MATRIX_ADAMW_LEARNING_RATE")
    rate_adamwadv: float | None = rate("TEST_MATRIX_ADAMWADV_LEARNING_RATE")
    rate_adamwspam: float | None = rate("TEST_MATRIX_ADAMWSPAM_LEARNING_RATE")
    rate_adamwprune: float | None = rate("TEST_MATRIX_ADAMWPRUNE_LEARNING_RATE")
    rate_muon: float | None = rate("TEST_MATRIX_MUON_LEARNING_RATE")


@part
class Settings:
    """Everything a run is told, resolved or not (gpt2/plan.py resolves it)."""

    model: Model
    mechanisms: Mechanisms
    optim: Optim
    pruning: Pruning
    data: Data
    resources: Resources
    matrix: Matrix

    def flat(self) -> dict[str, Any]:
        """Field name to value over all parts."""
        return {f.name: getattr(p, f.name) for p, f in self._fields()}

    def _fields(self) -> Iterator[tuple[Any, dataclasses.Field[Any]]]:
        for p in dataclasses.fields(self):
            value = getattr(self, p.name)
            for f in dataclasses.fields(value):
                yield value, f

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain data, as written to job.json."""
        return {
            p.name: {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in dataclasses.asdict(getattr(self, p.name)).items()
            }
            for p in dataclasses.fields(self)
        }

    def replace(self, **changes: Any) -> Settings:
        """A copy with fields changed by flat name; KeyError for an unknown one."""
        unknown = set(changes) - set(PART_OF)
        if unknown:
            raise KeyError(f"no such setting: {', '.join(sorted(unknown))}")
        parts = {}
        for name in {PART_OF[k] for k in changes}:
            mine = {k: v for k, v in changes.items() if PART_OF[k] == name}
            parts[name] = dataclasses.replace(getattr(self, name), **mine)
        return dataclasses.replace(self, **parts)

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZES[self.data.tokenizer]

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer update, over all ranks and micro steps."""
        return self.resources.batch_size * self.resources.gradient_accumulation


PARTS: dict[str, type] = typing.get_type_hints(Settings)
PART_OF: dict[str, str] = {
    f.name: name for name, cls in PARTS.items() for f in dataclasses.fields(cls)
}
FIELDS: dict[str, dataclasses.Field[Any]] = {
    f.name: f for cls in PARTS.values() for f in dataclasses.fields(cls)
}
FIELD_TYPES: dict[str, Any] = {
    name: hint
    for cls in PARTS.values()
    for name, hint in typing.get_type_hints(cls).items()
}
SYMBOL_OF: dict[str, str] = {n: f.metadata["symbol"] for n, f in FIELDS.items()}
FIELD_OF: dict[str, str] = {s: n for n, s in SYMBOL_OF.items()}
IDENTITY_PARTS = ("model", "mechanisms", "optim", "pruning", "data")


def parse_int_list(text: str) -> tuple[int, ...]:
    """``"0,5,8-12"`` to (0, 5, 8, 9, 10, 11, 12); order kept, no repeats."""
    numbers: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{item.strip()!r} is no number and no range like 8-12")
        low, high = int(first), int(last or first)
        if high < low or high - low > 10_000:
            raise ValueError(f"{item.strip()!r} is not an ascending range")
        numbers.extend(range(low, high + 1))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{text!r} names a number twice")
    return tuple(numbers)


def _parse_float(text: str) -> float:
    if "_" in text:  # which Python reads over: 1_0 is more likely 1.0 than 10
        raise ValueError(f"{text!r} is no number")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def _parse_floats(text: str) -> tuple[float, ...]:
    """``"0.5, 0.9"`` to (0.5, 0.9); order kept, no repeats."""
    numbers = tuple(_parse_float(item) for item in text.split(","))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{text!r} names a number twice")
    return numbers


def symbol_types() -> dict[str, Callable[[str], Any]]:
    """How config.py types the string symbols: only floats change their type."""
    return {
        SYMBOL_OF[name]: _parse_float
        for name, hint in FIELD_TYPES.items()
        if hint is float
    }


def _convert(name: str, value: Any) -> Any:
    """``value`` as the type of field ``name``; ValueError if it cannot be."""
    hint, bounds = FIELD_TYPES[name], FIELDS[name].metadata
    if hint == float | None:
        if value is None or value == "":
            return None
        hint = float
    if hint is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = _parse_float(str(value))
    elif hint in _PARSERS and isinstance(value, str):
        value = _PARSERS[hint](value)
    elif hint in _PARSERS and isinstance(value, list):
        value = tuple(value)
    expected = tuple if isinstance(hint, types.GenericAlias) else hint
    if type(value) is not expected:
        raise ValueError(f"{value!r} is no {_KINDS[expected]}")
    if bounds["allowed"] and value not in bounds["allowed"]:
        raise ValueError(f"{value!r} is none of {', '.join(bounds['allowed'])}")
    for number in value if expected is tuple else ():
        if type(number) is not typing.get_args(hint)[0]:
            raise ValueError(f"{value!r} holds {number!r}, which is no number of ours")
    if float in (hint, *typing.get_args(hint)):
        for number in value if expected is tuple else (value,):
            _require_within(number, bounds)
    return value


_KINDS = {
    bool: "y or n",
    int: "whole number",
    float: "number",
    str: "text",
    tuple: "list such as '1,2'",
}
_PARSERS: dict[Any, Callable[[str], tuple[Any, ...]]] = {
    tuple[int, ...]: parse_int_list,
    tuple[float, ...]: _parse_floats,
}


def _require_within(value: float, bounds: Mapping[str, Any]) -> None:
    if bounds["low"] <= value <= bounds["high"] and value > bounds["above"]:
        return
    low = f"above {bounds['above']:g}" if bounds["above"] > -math.inf else None
    low = low or f"from {bounds['low']:g}"
    raise ValueError(f"{value!r} is not {low} to {bounds['high']:g}")


def settings_from(config: Config) -> Settings:
    """Settings of a loaded configuration.

    Raises ValueError naming the symbol, its value, its origin and what is
    allowed; every wrong symbol is named, not only the first.
    """
    values, problems, missing = {}, [], []
    for name, symbol in SYMBOL_OF.items():
        origin = config.origins.get(symbol, "default")
        try:
            values[name] = _convert(name, config.values[symbol])
        except KeyError:
            missing.append(f"CONFIG_{symbol}")
        except ValueError as error:
            problems.append(f"{origin}: CONFIG_{symbol}: {error}")
    if missing:
        more = f" and {len(missing) - 3} more" * (len(missing) > 3)
        names = ", ".join(missing[:3])
        problems.append(f"missing: {names}{more}; run `make olddefconfig`")
    if problems:
        raise ValueError("\n".join(problems))
    settings = _assemble(values)
    check(settings)
    return settings


def settings_from_dict(data: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The inverse of ``Settings.to_dict``; strict about places, names and types.

    Raises ValueError, also for what is no mapping of mappings.
    """
    if not isinstance(data, Mapping) or set(data) != set(PARTS):
        raise ValueError(f"settings of another version: not {', '.join(PARTS)}")
    if not all(isinstance(part, Mapping) for part in data.values()):
        raise ValueError("settings of another version: a part is no mapping")
    found = {(part, name) for part, values in data.items() for name in values}
    if odd := found ^ {(part, name) for name, part in PART_OF.items()}:
        names = ", ".join(sorted(f"{part}.{name}" for part, name in odd))
        raise ValueError(f"settings of another version: {names} differ")
    given = {name: value for part in data.values() for name, value in part.items()}
    settings = _assemble({n: _convert(n, v) for n, v in given.items()})
    check(settings)
    return settings


def _assemble(values: Mapping[str, Any]) -> Settings:
    parts = {
        name: cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
        for name, cls in PARTS.items()
    }
    return Settings(**parts)


def check(settings: Settings) -> None:
    """Refuse combinations that make no sense, with the reason.

    Raises ValueError with one line per problem.
    """
    problems = [text for bad, text in _rules(settings) if bad]
    if problems:
        raise ValueError("\n".join(problems))


def _rules(s: Settings) -> Iterator[tuple[bool, str]]:
    m, x, o, r = s.model, s.mechanisms, s.optim, s.resources
    yield (
        not m.head_dim and m.n_embd % m.n_head != 0,
        f"GPT2_N_EMBD={m.n_embd} is no multiple of GPT2_N_HEAD={m.n_head}: "
        "change one of them or set GPT2_HEAD_DIM",
    )
    yield (
        x.latent != "none" and x.attention != "mla",
        "latent reciprocity exchanges MLA's key latent: it needs "
        f"RA_MLA_ATTENTION_MLA=y, but attention is {x.attention!r}",
    )
    yield (
        x.latent == "per_head_scalar" and x.latent_dim < m.n_head,
        f"per_head_scalar cuts RA_MLA_LATENT_DIM={x.latent_dim} into one chunk "
        f"a head, and there are {m.n_head} heads: widen the latent",
    )
    yield (
        x.latent == "per_head_scalar" and 0 < m.mlp_width < x.latent_dim,
        f"per_head_scalar projects an MLP of width {m.mlp_width} on orthonormal "
        f"directions, of which RA_MLA_LATENT_DIM={x.latent_dim} are too many: "
        "narrow the latent or widen the MLP",
    )
    yield (
        x.attention == "mla_rope" and x.rope_dim % 2 != 0,
        f"RA_MLA_ROPE_DIM={x.rope_dim} must be even: rotations act on pairs",
    )
    yield (
        x.mechanism_share > 0 and not (x.mlp_gate or x.cross_token),
        f"RA_MLA_MECHANISM_SHARE={x.mechanism_share} has no mechanism to pay for: "
        "enable RA_MLA_MLP_GATE or RA_MLA_CROSS_TOKEN, or set it to 0",
    )
    for symbol, on, width in (
        ("RA_MLA_MLP_GATE_DIM", x.mlp_gate, x.mlp_gate_dim),
        ("RA_MLA_CROSS_RANK", x.cross_token, x.cross_rank),
    ):
        yield (
            on and not width and not x.mechanism_share,
            f"{symbol}=0 takes its width from RA_MLA_MECHANISM_SHARE, which is 0: "
            "set one of them",
        )
    needs_layers = [
        name for name, on in (("MLP gate", x.mlp_gate), ("latent", latent_on(s))) if on
    ]
    yield (
        bool(needs_layers) and m.n_layer < 2,
        f"{' and '.join(needs_layers)} flows from one block to the next: "
        f"GPT2_N_LAYER={m.n_layer} leaves nothing to flow to",
    )
    yield (
        o.min_lr > o.learning_rate,
        f"GPT2_MIN_LR={o.min_lr:g} is above LEARNING_RATE={o.learning_rate:g}",
    )
    yield (
        s.pruning.prune_method == "state" and o.optimizer != "adamwprune",
        "PRUNING_METHOD 'state' prunes by AdamWPrune's state: it needs "
        f"OPTIMIZER_ADAMWPRUNE=y, but the optimizer is {o.optimizer!r}",
    )
    if s.pruning.prune_method == "heads":
        yield from _head_rules(s)
    yield (
        s.data.dataset == "text" and not s.data.text_path,
        "GPT2_DATASET_TEXT_PATH is empty: name a folder or a glob of text files",
    )
    first, last = r.profile_steps[0], r.profile_steps[-1]
    yield (
        first < 1 or r.profile_steps != tuple(range(first, last + 1)),
        f"PROFILE_STEPS={','.join(map(str, r.profile_steps))} must be one update, "
        "counted from 1, or a range like 10-12",
    )
    yield (
        r.gradient_accumulation % r.ddp_gpus_per_job != 0,
        f"DDP_GPUS_PER_JOB={r.ddp_gpus_per_job} ranks share "
        f"GPT2_GRADIENT_ACCUMULATION={r.gradient_accumulation} micro steps, which "
        "does not come out even: choose a multiple (and a smaller BATCH_SIZE)",
    )
    yield (
        r.engine == "ray" and bool(r.gpus or ":" in r.device),
        f"GPUS={r.gpus!r}, DEVICE={r.device!r}: with ENGINE=ray no GPU can be named: "
        "Ray deals them out; leave GPUS empty and DEVICE auto, cpu, cuda or rocm",
    )
    yield (
        r.engine == "ray" and r.jobs_per_gpu > 0,
        f"JOBS_PER_GPU={r.jobs_per_gpu}: with ENGINE=ray no GPU is shared: leave it 0",
    )
    yield (
        re.fullmatch(r"auto|cpu|(cuda|rocm)(:[0-9]+)?", r.device) is None,
        f"DEVICE={r.device!r} is none of auto, cpu, cuda, rocm, nor one GPU such as "
        "cuda:1",
    )
    yield (
        max(s.matrix.seeds, default=0) > LARGEST_SEED,
        f"SEEDS: {max(s.matrix.seeds)} is above {LARGEST_SEED}",
    )
    yield (
        not r.output_dir
        or not r.output_dir.isprintable()
        or r.output_dir.startswith("~")  # which would be a folder of that name
        or ".." in PurePath(r.output_dir).parts,
        f"OUTPUT_DIR={r.output_dir!r} must name a folder, without '~', '..' and "
        "control characters",
    )


def _head_rules(s: Settings) -> Iterator[tuple[bool, str]]:
    refusal = heads_refusal(s.mechanisms)
    yield bool(refusal), f"PRUNING_METHOD 'heads': {refusal}"
    why = why_not(s.optim.optimizer, "heads")
    yield why is not None, f"PRUNING_METHOD 'heads': {why}"


def remarks(settings: Settings) -> list[str]:
    """What is allowed but worth a word before a run."""
    o, r, matrix = settings.optim, settings.resources, settings.matrix
    found = []
    if r.profile and r.profile_steps[0] > o.max_iters:
        found.append(
            f"PROFILE_STEPS begins at update {r.profile_steps[0]}, and a run has "
            f"{o.max_iters}: nothing is profiled"
        )
    if o.warmup_steps >= o.max_iters:
        peak = o.learning_rate * o.max_iters / o.warmup_steps
        found.append(
            f"the warm-up of {o.warmup_steps} updates outlasts the {o.max_iters} of a "
            f"run: the learning rate ends at {peak:.3g} and never decays"
        )
    in_cells = matrix.mode == "matrix" and matrix.with_adamwspam
    if (in_cells or o.optimizer == "adamwspam") and o.spam_interval > o.max_iters:
        found.append(
            f"adamwspam resets its moments every {o.spam_interval} updates, and a run "
            f"has {o.max_iters}: it never does"
        )
    return found + list(_head_remarks(settings))


def _head_remarks(s: Settings) -> Iterator[str]:
    """Where the last head of a layer keeps a run from what was asked of it."""
    if s.matrix.mode == "matrix":
        asked = s.matrix.sparsities if s.matrix.with_heads else ()
    else:
        is_asked = s.pruning.prune_method == "heads"
        asked = (s.pruning.prune_sparsity,) if is_asked else ()
    for sparsity in asked:
        wanted, possible = heads_pruned(s, sparsity)
        if possible < wanted:
            yield (
                f"heads pruned to {100 * sparsity:g}% would be {wanted} of "
                f"{s.model.n_layer * s.model.n_head}; {possible} go, since each layer "
                "keeps one"
            )


def latent_on(settings: Settings) -> bool:
    """Whether latent reciprocity flows between the blocks."""
    return settings.mechanisms.latent != "none"


def heads_refusal(x: Mechanisms) -> str:
    """Why single heads cannot be removed from a model; empty if they can.

    Each head must own its weights, and no other part of the model may read all heads.
    """
    reasons = {
        f"RA_MLA_ATTENTION is {x.attention!r}, whose heads share a latent: it needs "
        "RA_MLA_ATTENTION_MHA=y": x.attention != "mha",
        "RA_MLA_CROSS_TOKEN=y reads the mean over all heads' weights, removed ones "
        "too": x.cross_token,
        "RA_MLA_RACT_HEAD_AVERAGE=y gates by the mean over all heads' weights, "
        "removed ones too": x.ract
        and x.ract_head_average,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return f"heads cannot be removed: {'; '.join(found)}" if found else ""


def heads_pruned(settings: Settings, sparsity: float) -> tuple[int, int]:
    """(heads that a final sparsity asks to prune, those that go): one a layer stays."""
    m = settings.model
    if settings.pruning.prune_scope == "global":
        return head_target(sparsity, [m.n_head] * m.n_layer)
    wanted, possible = head_target(sparsity, [m.n_head])
    return m.n_layer * wanted, m.n_layer * possible


# Symbols may be named without these on the command line.
PREFIXES = ("GPT2_", "RA_MLA_")


def _tracker_symbols(value: str) -> dict[str, str]:
    """TRACKER=trackio,wandb: these and no others."""
    try:
        wanted = parse_trackers(value)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {
        f"ENABLE_{name.upper()}": "y" if name in wanted else "n" for name in BACKENDS
    }


# Short names for overrides on the command line, besides those.
ALIASES: dict[str, str | Callable[[str], dict[str, str]]] = {
    "STEPS": "RA_MLA_ABLATION_STEPS",
    "SPARSITIES": "TEST_MATRIX_SPARSITIES",
    "JOBS": "PARALLEL_JOBS",
    "ENGINE": lambda value: {f"ENGINE_{value.upper()}": "y"},
    "TIME": "TIME_BUDGET",
    "LR": "LEARNING_RATE",
    "ACCUMULATION": "GPT2_GRADIENT_ACCUMULATION",
    "MODEL": lambda value: {f"GPT2_MODEL_{value.upper()}": "y"},
    "DATASET": lambda value: {f"GPT2_DATASET_{value.upper()}": "y"},
    "TOKENIZER": lambda value: {f"GPT2_TOKENIZER_{value.upper()}": "y"},
    "TRACKER": _tracker_symbols,
}
