"""Peak GPU memory of training, by arithmetic. Torch-free.

The peak is inside the loss: weights, optimizer state, what each block keeps for the
backward pass, and the logits of one chunk. What a block keeps is listed tensor by
tensor, as autograd saves them without a compiler (tests count them); compiled code
keeps the same except that casts are computed twice. The sizes of temporaries, in TUNED,
are those that a GPU has to confirm.

torch's own estimate, MemTracker of torch.distributed over fake tensors, was compared.
It is exact for eager code (19.6 GiB for step 0 at micro batch 32; this says 18.6), but
knows nothing of a compiler: a compiled run took 12.2 on an H200, and this says 12.1.
It takes 11 to 28 s per step at 124M besides torch's import, this 5 ms at most.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from gpt2.mechanisms import enabled, needs_of, projection_of
from gpt2.mechanisms.spec import FLOAT, Kept
from gpt2.plan.budget import budget, linear_weights
from gpt2.settings.schema import Settings
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS

BOOL, INT64 = 1, 8
# Of gpt2/model/loss.py: rows whose logits are in memory at a time (0.8 GB in bf16 at
# GPT-2's vocabulary), and what the vocabulary is padded to a multiple of.
CHUNK, MULTIPLE = 8192, 128


class Tuned(NamedTuple):
    """Temporaries. logit: bytes for each logit of a chunk; head: bytes for each
    weight of the tied head inside the loss; backward: 16-bit numbers for each token
    and unit of width in one block's backward pass; scores: fp32 matrices T x T a
    head at the same time in that of the reference; workspace: bytes that matrix
    products and the rest take at all times."""

    logit: float
    head: float
    backward: float
    scores: float
    workspace: int


# By whether the model is compiled. Logit and head of the eager loss are counted by
# tests. Compiled, 13 steps at 124M and micro batch 8 on an H100 (torch 2.11) were
# within 5% of their measured peak.
TUNED = {
    False: Tuned(logit=17, head=6, backward=5, scores=3, workspace=64 << 20),
    True: Tuned(logit=2, head=8, backward=4, scores=2, workspace=64 << 20),
}
USABLE = 0.9  # of a card's memory: driver, display and fragmentation need the rest


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak, by use."""

    weights: int
    gradients: int
    optimizer: int
    pruning: int
    casts: int  # 16-bit copies of the weights
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def memory(settings: Settings, micro_batch: int | None = None) -> Memory:
    """Peak memory on one GPU, widths resolved; micro_batch replaces BATCH_SIZE."""
    s, r = settings, settings.resources
    batch = micro_batch or r.batch_size
    tokens = batch * s.model.block_size
    n = budget(s).parameters
    # Between micro steps the gradients are there, and in a recorded one always;
    # otherwise the peak finds none.
    accumulates = s.effective_batch > batch * r.ddp_gpus_per_job
    in_loss = Memory(
        weights=FLOAT * n,
        gradients=FLOAT * n if accumulates or r.cuda_graphs else 0,
        optimizer=optimizer_bytes(s),
        pruning=pruning_bytes(s),
        casts=_casts(s),
        activations=tokens * activations_per_token(s),
        temporaries=_temporaries(s, tokens),
    )
    return max(in_loss, _in_update(s, in_loss), key=lambda m: m.total)


def misfit(settings: Settings) -> str:
    """Reason why a run hardly fits into GPU_MEMORY_GB; "" if it does, or unknown."""
    there, needed = settings.resources.gpu_memory, memory(settings).total
    if not there or settings.resources.device == "cpu":
        return ""
    if needed <= USABLE * there * 1e9:
        return ""
    return (
        f"about {needed / 1e9:.1f} GB of memory by estimate, and GPU_MEMORY_GB="
        f"{there}: lower BATCH_SIZE and raise GPT2_GRADIENT_ACCUMULATION"
    )


def _in_update(s: Settings, peak: Memory) -> Memory:
    """Memory while the weights are updated: gradients, but no activations."""
    scratch = FLOAT * OPTIMIZERS[s.optim.optimizer].scratch
    sums = FLOAT if s.resources.ddp_gpus_per_job > 1 else 0  # over the ranks
    n = peak.weights // FLOAT
    temporaries = (scratch + sums) * n + TUNED[s.resources.compile_model].workspace
    return Memory(
        peak.weights, FLOAT * n, peak.optimizer, peak.pruning, 0, 0, temporaries
    )


def _is_mixed(s: Settings) -> bool:
    return s.optim.mixed_precision != "fp32"


def _compute(s: Settings) -> int:
    """Bytes of a number in matrix products."""
    return 2 if _is_mixed(s) else FLOAT


def _casts(s: Settings) -> int:
    """16-bit copies of weights for the backward pass; tensors that are used transposed,
    or are not parameters, are cast at each use. Compiled code casts again instead."""
    if not _is_mixed(s) or s.resources.compile_model:
        return 0
    again = sum(mechanism.cast_again(s) for mechanism in enabled(s))
    return 2 * (linear_weights(s) + again)


def _normed(s: Settings) -> int:
    """Bytes of a number that a norm keeps: without a compiler autocast gives it a
    copy in fp32, whatever the residual stream is kept in."""
    narrow = s.resources.compile_model and not s.optim.residual_fp32
    return _compute(s) if narrow else FLOAT


def optimizer_bytes(s: Settings) -> int:
    """Bytes of optimizer state, without counters."""
    spec, values = OPTIMIZERS[s.optim.optimizer], s.flat()
    hidden, n = linear_weights(s), budget(s).parameters
    kept = spec.kept_by(True, values) * hidden
    return FLOAT * (kept + spec.kept_by(False, values) * (n - hidden))


def pruning_bytes(s: Settings) -> int:
    """Masks; of methods that bring weights back also scores and the weights."""
    if s.pruning.prune_method == "none":
        return 0
    method = METHODS[s.pruning.prune_method]
    if method.is_structured:
        return BOOL * s.model.n_layer * s.model.n_head
    numbers = (method.accumulate is not None) + method.regrows
    return (BOOL + FLOAT * numbers) * linear_weights(s)


def _temporaries(s: Settings, tokens: int) -> int:
    """Temporaries in the loss or early in the backward pass, the larger of both."""
    m, tuned = s.model, TUNED[s.resources.compile_model]
    wide = -(-s.vocab_size // MULTIPLE) * MULTIPLE
    loss = tuned.logit * min(tokens, CHUNK) * wide + tuned.head * wide * m.n_embd
    width = max(m.mlp_width, m.n_head * m.head_dim, m.n_embd)
    backward = tuned.backward * _compute(s) * tokens * width
    if attention_backend(s) == "reference":
        backward += tuned.scores * FLOAT * tokens * m.block_size * m.n_head
    return int(max(loss, backward)) + tuned.workspace


# ---- tensors kept for the backward pass -----------------------------------------


def activations_per_token(s: Settings) -> int:
    """Bytes that all blocks, embedding and last norm keep for each token."""
    m = s.model
    blocks = m.n_layer * sum(kept_by_block(s).values())
    blocks += (m.n_layer - 1) * sum(kept_by_producer(s).values())
    blocks -= sum(kept_of_context(s).values())  # block 0 reads none
    dropped = BOOL * m.n_embd if m.dropout else 0
    last = (_normed(s) + _compute(s)) * m.n_embd + 2 * FLOAT
    return blocks + dropped + last + 2 * INT64


def kept_by_block(s: Settings) -> dict[str, int]:
    """Bytes per token kept by one block (not the first), by kind of tensor.

    Per token, so that a matrix T x T of one sequence counts T.
    """
    m, by = s.model, _keeping(s)
    c = by.number
    kept = {
        "norms": 2 * (_normed(s) * m.n_embd + 2 * FLOAT),
        "their outputs": (_copies(s) + 1) * c * m.n_embd,
        "gelu": 2 * c * m.mlp_width,
        **_kept_by_attention(s, by),
        **kept_of_context(s),
    }
    if m.dropout:
        kept["dropout"] = 2 * BOOL * m.n_embd
    for mechanism in enabled(s):
        kept |= mechanism.kept(s, by)
    return kept


def _keeping(s: Settings) -> Kept:
    return Kept(_compute(s), attention_backend(s), needs_of(s))


def kept_of_context(s: Settings) -> dict[str, int]:
    """Bytes per token that a block keeps of its inputs from the previous block."""
    parts = (m.kept_of_context(s, _keeping(s)) for m in enabled(s))
    return {name: size for part in parts for name, size in part.items()}


def kept_by_producer(s: Settings) -> dict[str, int]:
    """Bytes per token that a block keeps to compute the outputs for the next one."""
    parts = (m.kept_by_producer(s, _keeping(s)) for m in enabled(s))
    return {name: size for part in parts for name, size in part.items()}


def _copies(s: Settings) -> int:
    """Number of kept copies of attention's input: without a compiler autocast makes one
    for each product that reads it."""
    if s.resources.compile_model or not _is_mixed(s):
        return 1
    apart = s.resources.attention_backend == "reference"
    products = projection_of(s).products if apart else 1
    return products + sum(mechanism.input_products for mechanism in enabled(s))


def _kept_by_attention(s: Settings, by: Kept) -> dict[str, int]:
    projection = projection_of(s)
    kept = {
        "latents": projection.kept_latents(s, by),
        "attention output": by.number * s.model.n_head * s.model.head_dim,
    }
    if by.path == "reference":
        kept["attention"] = _kept_by_reference(s, by)
    else:
        heads = projection.kept_queries_keys_values(s, by)
        kept["attention"] = heads + _kept_by_fused(s, by)
    return kept


def _kept_by_fused(s: Settings, by: Kept) -> int:
    """Bytes besides those of queries, keys, values and output: numbers for each row,
    and tensors that are joined for the call."""
    m, needs = s.model, by.needs
    row, width = FLOAT * m.n_head, by.number * m.n_head * m.head_dim
    doubled = 0 if needs.window is None else 4 * width
    match by.path:
        case "sdpa" | "cudnn":
            return row + doubled
        case "flex":  # a band is two calls
            banded = needs.is_banded(m.block_size)
            return row + doubled + (row + width if banded else 0)
    if needs.statistic is None:
        return row
    limits = needs.statistic.kind in ("topk", "max")
    calls = 2 if needs.at_weights else 1
    return row * (calls + 1 + limits)


def _kept_by_reference(s: Settings, by: Kept) -> int:
    """Queries, keys and values in fp32, and T x T weights for each head."""
    m, needs, c = s.model, by.needs, by.number
    inner, square = m.n_head * m.head_dim, m.n_head * m.block_size
    keys = m.n_head * projection_of(s).key_width(s)
    kept = FLOAT * (2 * keys + inner + square)
    if needs.window is not None:
        kept += 2 * c * inner + (c * square if needs.learned else 0)
    if needs.statistic is not None:
        kept += {
            "topk": INT64 * m.n_head * needs.statistic.topk,
            "max": 0,
            "entropy": (2 * FLOAT + BOOL) * square,
            "rms": 0,
        }[needs.statistic.kind]
        kept += FLOAT * m.n_head
        if needs.at_weights:
            kept += 2 * FLOAT * (inner + square)
    return kept


# ---- which path serves ---------------------------------------------------------------


def attention_backend(s: Settings) -> str:
    """Attention backend on a GPU, as far as it is known in advance: `auto` is assumed
    to choose SDPA if it supports the step, and this project's kernels otherwise."""
    needs, backend = needs_of(s), s.resources.attention_backend
    fused = backend in ("auto", "sdpa", "cudnn")
    shows_weights = needs.statistic is not None or needs.mean
    if fused and not shows_weights and not needs.is_banded(s.model.block_size):
        return "sdpa"
    if backend in ("auto", "triton"):
        return "reference" if s.model.dropout else "triton"
    return "reference" if fused else backend
