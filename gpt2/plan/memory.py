"""Peak GPU memory of training, by arithmetic. Torch-free.

What is there at the moment of the peak, which is inside the loss: weights, optimizer
state, what each block keeps for the backward pass, and the logits of one chunk. What
a block keeps is listed tensor by tensor, as autograd saves them without a compiler
(tests count them); compiled code keeps the same but for casts made twice. The sizes
of temporaries, in TUNED, are those that a GPU has to confirm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from gpt2.plan.budget import budget, linear_weights
from gpt2.settings.schema import WHOLE_CONTEXT, Settings, few_kept
from lib.pruning.names import method_kind

FLOAT, BOOL, INT32, INT64 = 4, 1, 4, 8
CHUNK, MULTIPLE = 8192, 128  # as in gpt2/model/loss.py


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
USABLE = 0.9  # of a card's memory: the driver, the display, fragments take the rest
# Optimizer state, bytes a parameter.
STATES = {"adamwadv": 3 * FLOAT, "sgd": FLOAT}
MOMENTS = 2 * FLOAT


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak, by what takes them."""

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
    """Of a model whose widths are resolved, on one GPU; micro_batch: instead of
    BATCH_SIZE."""
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
    """Why the run will hardly fit the memory that GPU_MEMORY_GB tells; empty: it
    will, or there is no telling."""
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
    """While the weights are updated: gradients, but no activations."""
    spikes = FLOAT if s.optim.optimizer == "adamwspam" else 0
    sums = FLOAT if s.resources.ddp_gpus_per_job > 1 else 0  # over the ranks
    n = peak.weights // FLOAT
    temporaries = (spikes + sums) * n + TUNED[s.resources.compile_model].workspace
    return Memory(
        peak.weights, FLOAT * n, peak.optimizer, peak.pruning, 0, 0, temporaries
    )


def _is_mixed(s: Settings) -> bool:
    return s.optim.mixed_precision != "fp32"


def _compute(s: Settings) -> int:
    """Bytes of a number in matrix products."""
    return 2 if _is_mixed(s) else FLOAT


def _casts(s: Settings) -> int:
    """16-bit copies of weights, for the backward pass; what is used transposed, or
    is no parameter, is cast at each use. Compiled code casts again instead."""
    if not _is_mixed(s) or s.resources.compile_model:
        return 0
    x, again = s.mechanisms, 0
    if x.latent == "tied_transpose":
        again = s.model.n_layer - 1
    elif x.latent == "per_head_scalar":
        again = 2 * s.model.n_layer - 1
    exchange = s.model.mlp_width * x.latent_dim
    return 2 * (linear_weights(s) + again * exchange)


def _normed(s: Settings) -> int:
    """Bytes of a number that a norm keeps: without a compiler autocast gives it a
    copy in fp32, whatever the residual stream is kept in."""
    narrow = s.resources.compile_model and not s.optim.residual_fp32
    return _compute(s) if narrow else FLOAT


def optimizer_bytes(s: Settings) -> int:
    """What the optimizer keeps between updates; counters are not worth counting."""
    name, n = s.optim.optimizer, budget(s).parameters
    if name == "muon":  # momentum alone for the matrices inside the blocks
        return MOMENTS * n - FLOAT * linear_weights(s)
    if name == "sgd" and not s.optim.momentum:
        return 0
    return STATES.get(name, MOMENTS) * n


def pruning_bytes(s: Settings) -> int:
    """Masks; of methods that bring weights back also scores and the weights."""
    if s.pruning.prune_method == "none":
        return 0
    kind = method_kind(s.pruning.prune_method)
    if kind.is_structured:
        return BOOL * s.model.n_layer * s.model.n_head
    return (BOOL + (2 * FLOAT if kind.regrows else 0)) * linear_weights(s)


def _temporaries(s: Settings, tokens: int) -> int:
    """In the loss or at the start of the backward pass, whichever takes more."""
    m, tuned = s.model, TUNED[s.resources.compile_model]
    wide = -(-s.vocab_size // MULTIPLE) * MULTIPLE
    loss = tuned.logit * min(tokens, CHUNK) * wide + tuned.head * wide * m.n_embd
    width = max(m.mlp_width, m.n_head * m.head_dim, m.n_embd)
    backward = tuned.backward * _compute(s) * tokens * width
    if attention_backend(s) == "reference":
        backward += tuned.scores * FLOAT * tokens * m.block_size * m.n_head
    return int(max(loss, backward)) + tuned.workspace


# ---- what the backward pass needs of the forward pass --------------------------------


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
    """Bytes a token kept by one block but the first, by what it is.

    Per token, so that a matrix T x T of one sequence counts T.
    """
    m, x, c = s.model, s.mechanisms, _compute(s)
    kept = {
        "norms": 2 * (_normed(s) * m.n_embd + 2 * FLOAT),
        "their outputs": (_copies(s) + 1) * c * m.n_embd,
        "gelu": 2 * c * m.mlp_width,
        **_kept_by_attention(s),
        **kept_of_context(s),
    }
    if m.dropout:
        kept["dropout"] = 2 * BOOL * m.n_embd
    if x.output_gate:
        kept["output gate"] = 2 * c * m.n_head * m.head_dim
    if x.cross_token:
        kept["cross-token"] = _kept_by_cross_token(s)
    if x.latent == "per_head_scalar" and attention_backend(s) == "triton":
        kept["scaled key latent"] = c * x.latent_dim  # what reads it is trained
    return kept


def kept_of_context(s: Settings) -> dict[str, int]:
    """What a block keeps of what the one before handed to it."""
    m, x, c = s.model, s.mechanisms, _compute(s)
    kept = {}
    if x.mlp_gate:
        kept["gated by the MLP"] = c * m.n_head * (m.head_dim + 1)
    if x.exchanges_latent and s.resources.attention_backend != "reference":
        kept["key latent alone"] = c * x.latent_dim  # lies beside queries and values
    if x.latent == "per_head_scalar" and _is_mixed(s):  # scaled by fp32 numbers
        kept["key latent"] = FLOAT * x.latent_dim
    return kept


def kept_by_producer(s: Settings) -> dict[str, int]:
    """What a block keeps for making what it hands to the next."""
    m, x, c = s.model, s.mechanisms, _compute(s)
    kept = {}
    if x.mlp_gate:
        kept["gate"] = c * x.mlp_gate_dim + FLOAT * m.n_head
    if x.latent == "per_head_scalar":
        kept["latent down"] = c * x.latent_dim
    return kept


def _copies(s: Settings) -> int:
    """How often the attention's input is kept: without a compiler autocast makes a
    copy for each product that reads it."""
    x = s.mechanisms
    if s.resources.compile_model or not _is_mixed(s):
        return 1
    apart = s.resources.attention_backend == "reference"
    products = {"mha": 1, "mla": 3, "mla_rope": 4}[x.attention] if apart else 1
    return products + x.output_gate


def _kept_by_attention(s: Settings) -> dict[str, int]:
    m, x, c = s.model, s.mechanisms, _compute(s)
    inner = m.n_head * m.head_dim
    kept = {"latents": _kept_by_latents(s), "attention output": c * inner}
    if attention_backend(s) == "reference":
        kept["attention"] = _kept_by_reference(s)
    else:
        kept["attention"] = _queries_keys_values(s) + _kept_by_fused(s)
    if x.ract:
        gated = c * inner if x.ract_placement == "output" else 0
        kept["RA-CT"] = m.n_head * (FLOAT + (c if gated else FLOAT)) + gated
    return kept


def _kept_by_latents(s: Settings) -> int:
    """What keys and values are made from; a joint latent also for its norm."""
    x, c = s.mechanisms, _compute(s)
    if x.attention == "mla":
        return 2 * c * x.latent_dim
    if x.attention == "mla_rope":
        return (2 * FLOAT + c) * x.joint_latent_dim + FLOAT
    return 0


def _queries_keys_values(s: Settings) -> int:
    m, x, c = s.model, s.mechanisms, _compute(s)
    inner = m.n_head * m.head_dim
    if x.attention == "mla_rope":
        return c * (3 * inner + 2 * m.n_head * x.rope_dim)
    if x.attention == "mla":
        shared = (x.mla_shared_k, x.mla_shared_v)
        return c * (inner + sum(m.head_dim if one else inner for one in shared))
    return 3 * c * inner


def _kept_by_fused(s: Settings) -> int:
    """Besides queries, keys, values and output: numbers for each row, and what is
    put together for the call."""
    m, x, c = s.model, s.mechanisms, _compute(s)
    row, width = FLOAT * m.n_head, c * m.n_head * m.head_dim
    doubled = 4 * width if x.ra else 0
    match attention_backend(s):
        case "sdpa" | "cudnn":
            return row + doubled
        case "flex":  # a band is two calls
            return row + doubled + (row + width if _is_banded(s) else 0)
    if not x.ract:
        return row
    limits = x.ract_statistic in ("topk", "max")
    calls = 2 if x.ract_placement == "weights" else 1
    return row * (calls + 1 + limits)


def _kept_by_reference(s: Settings) -> int:
    """Queries, keys and values in fp32, and T x T weights for each head."""
    m, x, c = s.model, s.mechanisms, _compute(s)
    inner, square = m.n_head * m.head_dim, m.n_head * m.block_size
    rope = x.rope_dim if x.attention == "mla_rope" else 0
    kept = FLOAT * (3 * inner + 2 * m.n_head * rope + square)
    if x.ra:
        kept += 2 * c * inner + (c * square if x.ra_learned_alpha else 0)
    if x.ract:
        kept += {
            "topk": INT64 * m.n_head * x.ract_topk,
            "max": 0,
            "entropy": (2 * FLOAT + BOOL) * square,
            "rms": 0,
        }[x.ract_statistic]
        kept += FLOAT * m.n_head
        if x.ract_placement == "weights":
            kept += 2 * FLOAT * (inner + square)
    return kept


def _kept_by_cross_token(s: Settings) -> int:
    """Hidden states before and after, which the kernels' path does without; the chosen
    weights [T, T], of which those kernels keep a few of each row; and their sums."""
    m, x, c = s.model, s.mechanisms, _compute(s)
    if attention_backend(s) == "triton":
        averaged = x.ract and x.ract_head_average and x.ract_placement == "output"
        few = few_kept(x.cross_read, m.block_size, averaged)
        row = FLOAT if x.cross_renorm else 0
        if few:  # columns and values; divided, these and their sum are there twice
            row += row + few * (INT32 + FLOAT + row)
        return c * (2 * x.cross_rank + (0 if few else m.block_size)) + row
    matrices, row = c, 0
    if x.cross_select == "topk" and x.cross_topk < m.block_size:
        matrices += BOOL
    elif x.cross_select == "rms":
        matrices += 2 * FLOAT
        row += FLOAT
    if x.cross_renorm:
        matrices += FLOAT
        row += 2 * FLOAT
    return c * (m.mlp_width + 2 * x.cross_rank) + m.block_size * matrices + row


# ---- which path serves ---------------------------------------------------------------


def attention_backend(s: Settings) -> str:
    """The path of attention on a GPU, as far as it is known beforehand: `auto` is
    taken to choose SDPA where it serves and this project's kernels elsewhere."""
    x, backend = s.mechanisms, s.resources.attention_backend
    fused = backend in ("auto", "sdpa", "cudnn")
    if fused and not (x.ract or x.cross_token or _is_banded(s)):
        return "sdpa"
    if backend in ("auto", "triton"):
        return "reference" if s.model.dropout else "triton"
    return "reference" if fused else backend


def _is_banded(s: Settings) -> bool:
    x = s.mechanisms
    narrow = WHOLE_CONTEXT < x.ra_window < s.model.block_size - 1
    return x.ra and narrow
