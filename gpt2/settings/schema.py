"""Typed settings of one run, and the Kconfig symbol of each field.

There are no defaults here: hyperparameters come from Kconfig, structure from the step
registry (gpt2/plan/steps.py). Kconfig has the ranges of integers; those of floats and
lists, which are strings in Kconfig, are here, and gpt2/settings/parse.py checks them.
gpt2/settings/checks.py has the conflicts between settings.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2.mechanisms import mechanisms, projections
from gpt2.mechanisms.spec import GPT2_ATTENTION, annotated, setting
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS, SCOPES, VARIANTS
from lib.trackers import BACKENDS as TRACKERS

VOCAB_SIZES = {"gpt2": 50257, "bytes": 257}
LARGEST_ARM = "largest"
T = typing.TypeVar("T")


def rate(symbol: str) -> Any:
    """Field for a learning rate that may be empty."""
    return setting(symbol, above=0.0, high=10.0)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(setting, rate)
)
def part(cls: type[T]) -> type[T]:
    """Decorator for a frozen group of settings; field names are unique overall."""
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


def derived(fields: Iterable[tuple[str, Any, Any]]) -> Callable[[type[T]], type[T]]:
    """Add fields, (name, type, setting), to a class that becomes a part."""

    def add(cls: type[T]) -> type[T]:
        for name, hint, value in fields:
            cls.__annotations__[name] = hint
            setattr(cls, name, value)
        return cls

    return add


def own_fields() -> Iterator[tuple[str, Any, Any]]:
    """Settings that only one optimizer has."""
    for own in (own for spec in OPTIMIZERS.values() for own in spec.own):
        names = ("low", "high", "above", "before")
        bounds: dict[str, Any] = {name: getattr(own, name) for name in names}
        yield own.name, own.kind, setting(own.name.upper(), **bounds)


def cell_fields() -> Iterator[tuple[str, Any, Any]]:
    """Sets of the test matrix, and learning rates (None: LEARNING_RATE)."""
    for name in OPTIMIZERS:
        yield f"with_{name}", bool, setting(f"TEST_MATRIX_{name.upper()}")
    for name in METHODS:
        yield f"with_{name}", bool, setting(f"TEST_MATRIX_PRUNING_{name.upper()}")
    for name in VARIANTS:
        yield f"with_{name}", bool, setting(f"TEST_MATRIX_{name.upper()}")
    for name in OPTIMIZERS:
        symbol = f"TEST_MATRIX_{name.upper()}_LEARNING_RATE"
        yield f"rate_{name}", float | None, rate(symbol)


@part
class Model:
    """Dimensions of the GPT-2 trunk; a width of 0 is derived."""

    model_size: str = setting("GPT2_MODEL")
    n_layer: int = setting("GPT2_N_LAYER")
    n_head: int = setting("GPT2_N_HEAD")
    n_embd: int = setting("GPT2_N_EMBD")
    head_dim: int = setting("GPT2_HEAD_DIM")
    mlp_width: int = setting("GPT2_MLP_WIDTH")
    block_size: int = setting("GPT2_BLOCK_SIZE")
    dropout: float = setting("GPT2_DROPOUT", low=0.0, high=0.9)
    bias: bool = setting("GPT2_BIAS")


class WidthRequests:
    """Requests that gpt2/plan/budget.py solves for widths; the model reads none."""

    mlp_ratio: float = setting("RA_MLA_MLP_RATIO", low=0.0, high=16.0)
    mechanism_share: float = setting("RA_MLA_MECHANISM_SHARE", low=0.0, high=0.5)
    match_step: str = setting("RA_MLA_MATCH_STEP")


NO_WIDTH_REQUESTS = {"mlp_ratio": 0.0, "mechanism_share": 0.0, "match_step": ""}


class Attention:
    """Choice of the attention projection in gpt2/mechanisms."""

    attention: str = setting(
        "RA_MLA_ATTENTION", allowed=(GPT2_ATTENTION, *(p.kind for p in projections()))
    )


if typing.TYPE_CHECKING:
    Mechanisms = Any  # its fields are those of the folders in gpt2/mechanisms
else:
    groups = (Attention, *(m.Fields for m in mechanisms()), WidthRequests)
    Mechanisms = dataclasses.make_dataclass(
        "Mechanisms",
        [field for group in groups for field in annotated(group)],
        namespace={
            "__doc__": "Settings that distinguish the arms of an ablation.",
            "__module__": __name__,
        },
        frozen=True,
        kw_only=True,
        slots=True,
    )


@part
@derived(own_fields())
class Optim:
    """Optimizer, schedule and arithmetic; steps are optimizer updates."""

    optimizer: str = setting("OPTIMIZER", allowed=tuple(OPTIMIZERS))
    learning_rate: float = setting("LEARNING_RATE", above=0.0, high=10.0)
    min_lr: float = setting("GPT2_MIN_LR", low=0.0, high=10.0)
    warmup_steps: int = setting("GPT2_WARMUP_STEPS")
    lr_schedule: str = setting(
        "LR_SCHEDULE", allowed=("cosine", "wsd"), before="cosine"
    )
    lr_decay_share: float = setting("LR_DECAY_SHARE", above=0.0, high=1.0, before=0.2)
    lr_decay_shape: str = setting(
        "LR_DECAY_SHAPE", allowed=("sqrt", "linear"), before="sqrt"
    )
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
    adamwprune_variant: str = setting("ADAMWPRUNE_VARIANT", allowed=tuple(VARIANTS))

    @property
    def decay_updates(self) -> int:
        """Last updates, in which the rate of LR_SCHEDULE=wsd decays; at least one."""
        return max(1, round(self.lr_decay_share * self.max_iters))

    def own_of(self, optimizer: str) -> dict[str, Any]:
        """Values of the settings that only one optimizer has, by field."""
        return {own.name: getattr(self, own.name) for own in OPTIMIZERS[optimizer].own}


@part
class Pruning:
    """Pruning of single linear weights, or of heads; cadence in updates."""

    prune_method: str = setting("PRUNING_METHOD", allowed=tuple(METHODS))
    prune_sparsity: float = setting("PRUNING_SPARSITY", low=0.0, high=0.99)
    prune_interval: int = setting("PRUNING_INTERVAL")
    prune_warmup: int = setting("PRUNING_WARMUP_STEPS")
    prune_ramp_end: float = setting("PRUNING_RAMP_END", above=0.0, high=1.0)
    prune_scope: str = setting("PRUNING_SCOPE", allowed=SCOPES)


@part
class Data:
    """Corpus, tokenizer, evaluation, and the content of the weights to start from."""

    dataset: str = setting("GPT2_DATASET")
    tokenizer: str = setting("GPT2_TOKENIZER", allowed=tuple(VOCAB_SIZES))
    text_path: str = setting("GPT2_DATASET_TEXT_PATH")
    max_tokens: int = setting("GPT2_DATASET_MAX_TOKENS")
    eval_interval: int = setting("GPT2_EVAL_INTERVAL")
    eval_samples: int = setting("GPT2_EVAL_SAMPLES")
    init_sha256: str = setting("INIT_SHA256", before="")


@part
class Resources:
    """Hardware and execution of a run; not part of its identity."""

    batch_size: int = setting("BATCH_SIZE")
    gradient_accumulation: int = setting("GPT2_GRADIENT_ACCUMULATION")
    device: str = setting("DEVICE")
    init_from: str = setting("INIT_FROM")
    attention_backend: str = setting("RA_MLA_ATTENTION_BACKEND")
    mlp_backend: str = setting("MLP_BACKEND")
    other_kernels: bool = setting("OTHER_KERNELS")  # set for an A/A control
    compile_model: bool = setting("COMPILE_MODEL")
    compile_mode: str = setting("COMPILE_MODE")
    cuda_graphs: bool = setting("CUDA_GRAPHS")
    as_trained: bool = setting("AS_TRAINED")
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
    keep_stable: bool = setting("KEEP_STABLE")
    stable_from: str = setting("STABLE_FROM")
    threads: int = setting("CPU_THREADS")
    engine: str = setting("RUN_ENGINE", allowed=("local", "ray"))
    ray_address: str = setting("RAY_ADDRESS")
    parallel_jobs: int = setting("PARALLEL_JOBS")
    fail_fast: bool = setting("FAIL_FAST")
    hang_timeout: int = setting("HANG_TIMEOUT")
    hang_factor: int = setting("HANG_FACTOR")
    gpus: str = setting("GPUS")
    jobs_per_gpu: int = setting("JOBS_PER_GPU")
    prepare_ahead: int = setting("PREPARE_AHEAD")
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
        """Names of the enabled trackers."""
        return tuple(name for name in TRACKERS if getattr(self, f"with_{name}"))

    @property
    def is_one_local_process(self) -> bool:
        """Whether a run is a single process of this machine, not ranks, not on Ray."""
        return self.engine != "ray" and self.ddp_gpus_per_job == 1


@part
@derived(cell_fields())
class Matrix:
    """Selection of the runs of a plan, and rules of their verdicts."""

    mode: str = setting("KABLATE_MODE", allowed=("ablation", "matrix", "single"))
    steps: tuple[int | str, ...] = setting("RA_MLA_ABLATION_STEPS")  # ids in a plan
    steps_file: str = setting("STEPS_FILE")
    sweep: str = setting("SWEEP")
    lr_sweep: str = setting("LR_SWEEP")
    lr_tuning_seeds: tuple[int, ...] = setting("LR_TUNING_SEEDS")
    lr_sweep_extend: bool = setting("LR_SWEEP_EXTEND")
    sizes: str = setting("SIZES")
    sizes_scale_rate: bool = setting("SIZES_SCALE_RATE")
    seeds: tuple[int, ...] = setting("SEEDS")
    report_margin: float = setting("REPORT_MARGIN", above=0.0, high=10.0)
    report_looks: int = setting("REPORT_LOOKS", low=1, high=20)
    report_family: str = setting(
        "REPORT_FAMILY", allowed=("together", "sequential", "sequential-fdr")
    )
    price_per_gpu_hour: float | None = setting(
        "PRICE_PER_GPU_HOUR", above=0.0, high=1e6
    )
    controls: bool = setting("CONTROLS")
    min_lr_ratio: float | None = setting("MIN_LR_RATIO", low=0.0, high=1.0)
    train_tokens: int = setting("GPT2_MAX_TOKENS")
    train_epochs: float = setting("GPT2_MAX_EPOCHS", low=0.0, high=1e6)
    tokens_per_parameter: float | None = setting(
        "TOKENS_PER_PARAMETER", above=0.0, high=1e6
    )
    sparsities: tuple[float, ...] = setting(
        "TEST_MATRIX_SPARSITIES", above=0.0, high=0.99
    )

    def has(self, name: str) -> bool:
        """True if an optimizer, pruning method or score is in the test matrix."""
        return bool(getattr(self, f"with_{name}"))

    def own_rate(self, optimizer: str) -> float | None:
        """Learning rate of an optimizer's cells, if it has its own."""
        found: float | None = getattr(self, f"rate_{optimizer}")
        return found


@part
class Settings:
    """All settings of a run, before or after resolution by gpt2/plan/planning.py."""

    model: Model
    mechanisms: Mechanisms
    optim: Optim
    pruning: Pruning
    data: Data
    resources: Resources
    matrix: Matrix

    def flat(self) -> dict[str, Any]:
        """Values by field name, over all parts."""
        return {f.name: getattr(p, f.name) for p, f in self._fields()}

    def _fields(self) -> Iterator[tuple[Any, dataclasses.Field[Any]]]:
        for p in dataclasses.fields(self):
            value = getattr(self, p.name)
            for f in dataclasses.fields(value):
                yield value, f

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain data, as written to job.json."""
        data: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
        for name, value in self.flat().items():  # no asdict: it copies all values
            plain = list(value) if isinstance(value, tuple) else value
            data[PART_OF[name]][name] = plain
        return data

    def replace(self, **changes: Any) -> Settings:
        """Copy with fields replaced by flat name; KeyError for an unknown one."""
        unknown = set(changes) - set(PART_OF)
        if unknown:
            raise KeyError(f"no such setting: {', '.join(sorted(unknown))}")
        parts = {}
        for name in {PART_OF[k] for k in changes}:
            mine = {k: v for k, v in changes.items() if PART_OF[k] == name}
            parts[name] = dataclasses.replace(getattr(self, name), **mine)
        return dataclasses.replace(self, **parts)

    @property
    def score_variant(self) -> str:
        """Score in use, of a pruning method that has several; else empty."""
        variants = METHODS[self.pruning.prune_method].variants
        return self.optim.adamwprune_variant if variants else ""

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZES[self.data.tokenizer]

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer update, over all ranks and micro steps."""
        return self.resources.batch_size * self.resources.gradient_accumulation

    @property
    def tokens_per_update(self) -> int:
        """Tokens per optimizer update, over all ranks and micro steps."""
        return self.effective_batch * self.model.block_size


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
IDENTITY_PARTS = ("model", "mechanisms", "optim", "pruning", "data")
