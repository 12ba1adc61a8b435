"""Parameters, FLOPs and cache of a model, analytic, and the width solver.

Torch-free: listing a matrix and solving its widths must not import torch.
gpt2/verify/certify_steps.py holds these formulas against the model that is really
built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2.settings.schema import LARGEST_ARM, WHOLE_CONTEXT, Settings


@dataclass(frozen=True, slots=True)
class Budget:
    """Costs of one model; FLOPs are per token, a multiply-add counts two.

    ``flops_forward`` counts matrix products, attention over the full T x T as
    torch's FlopCounter and PaLM's MFU (arXiv 2204.02311, appendix B) do.
    ``cache_per_token`` and ``cache_constant`` are numbers, not bytes, of the
    decode cache over all layers.
    """

    parameters: int
    parameters_without_embeddings: int
    attention: int
    mlp: int
    flops_forward: int
    flops_not_backward: int
    cache_per_token: int
    cache_constant: int

    @property
    def ratio(self) -> float:
        """r: MLP weights over attention weights."""
        return self.mlp / self.attention

    @property
    def flops_training(self) -> int:
        """Forward and backward: a backward pass costs two forwards, less what has
        no gradient."""
        return 3 * self.flops_forward - self.flops_not_backward


def budget(settings: Settings, heads: Sequence[int] | None = None) -> Budget:
    """Costs of a model whose widths are resolved (see ``resolve_widths``).

    heads: how many each layer has, where heads were removed from the model.
    """
    m = settings.model
    own = [m.n_head] * m.n_layer if heads is None else list(heads)

    def over(cost: Callable[[Settings], int], numbers: Sequence[int]) -> int:
        """The sum of a layer's cost over layers with these numbers of heads."""
        return sum(
            count * cost(settings.replace(n_head=number))
            for number, count in Counter(numbers).items()
        )

    embeddings = (settings.vocab_size + m.block_size) * m.n_embd
    body = over(_block_parameters, own) + _norm(settings)
    body += over(_producer_parameters, own[1:])  # gates are of the next block's heads
    forward = over(_block_flops, own) + over(_producer_flops, own[1:])
    forward += settings.vocab_size * m.n_embd
    return Budget(
        parameters=embeddings + body,
        parameters_without_embeddings=body,
        attention=over(attention_weights, own),
        mlp=m.n_layer * 2 * m.n_embd * m.mlp_width,
        flops_forward=2 * forward,
        flops_not_backward=_flops_not_backward(settings),
        cache_per_token=over(_cache_per_token, own),
        cache_constant=over(_band_cache, own) + _gate_cache(settings),
    )


def kv_bytes(settings: Settings, heads: Sequence[int] | None = None) -> float:
    """Decode cache in bytes per token of a full context, in the precision of training.

    What is cached once, as RA's queries within its band, is spread over the context.
    heads: as for budget().
    """
    costs = budget(settings, heads)
    cached = costs.cache_per_token + costs.cache_constant / settings.model.block_size
    return cached * (4 if settings.optim.mixed_precision == "fp32" else 2)


def _norm(s: Settings) -> int:
    return s.model.n_embd * (2 if s.model.bias else 1)


def attention_weights(s: Settings) -> int:
    """Weights of one layer's attention matrices, mechanisms not counted."""
    m, x = s.model, s.mechanisms
    e, inner = m.n_embd, m.n_head * m.head_dim
    if x.attention == "mha":
        return 4 * e * inner
    if x.attention == "mla":
        up_k = x.latent_dim * (m.head_dim if x.mla_shared_k else inner)
        up_v = x.latent_dim * (m.head_dim if x.mla_shared_v else inner)
        return 2 * e * inner + 2 * e * x.latent_dim + up_k + up_v
    rope = (m.n_head + 1) * x.rope_dim * e
    return 2 * e * inner + rope + x.joint_latent_dim * (e + 2 * inner)


def linear_weights(s: Settings) -> int:
    """Weights of all linear layers: what is cast under autocast, and may be pruned."""
    m, x = s.model, s.mechanisms
    block = attention_weights(s) + 2 * m.n_embd * m.mlp_width
    block += m.n_embd * m.n_head * m.head_dim if x.output_gate else 0
    block += 2 * m.mlp_width * x.cross_rank if x.cross_token else 0
    exchange = m.mlp_width * x.latent_dim
    block += exchange if x.latent in ("tied_transpose", "untied") else 0
    producer = x.mlp_gate_dim * (m.mlp_width + m.n_head) if x.mlp_gate else 0
    producer += exchange if x.latent == "untied" else 0
    return m.n_layer * block + (m.n_layer - 1) * producer


def _attention_biases(s: Settings) -> int:
    m, x = s.model, s.mechanisms
    norm = x.joint_latent_dim if x.attention == "mla_rope" else 0
    if not m.bias:
        return norm
    inner = m.n_head * m.head_dim
    query = {
        "mha": 3 * inner,
        "mla": inner,
        "mla_rope": inner + m.n_head * x.rope_dim,
    }
    return norm + query[x.attention] + m.n_embd


def _block_parameters(s: Settings) -> int:
    """One block without what it hands to the next (``_producer_parameters``)."""
    m, x = s.model, s.mechanisms
    e, h, width = m.n_embd, m.n_head, m.mlp_width
    total = 2 * _norm(s) + attention_weights(s) + _attention_biases(s)
    total += 2 * e * width + (width + e if m.bias else 0)
    total += h if x.ra and x.ra_learned_alpha else 0
    total += 2 * h if x.ract else 0
    total += e * h * m.head_dim if x.output_gate else 0
    total += 2 * width * x.cross_rank if x.cross_token else 0
    up = {"none": 0, "per_head_scalar": h}
    return total + up.get(x.latent, width * x.latent_dim)


def _producer_parameters(s: Settings) -> int:
    """What every block but the last owns to feed its successor."""
    m, x = s.model, s.mechanisms
    gate = x.mlp_gate_dim * (m.mlp_width + m.n_head) + m.n_head if x.mlp_gate else 0
    down = {"untied": m.mlp_width * x.latent_dim, "per_head_scalar": m.n_head}
    return gate + down.get(x.latent, 0)


def _block_flops(s: Settings) -> int:
    """Multiply-adds a token of one layer, without what it hands to the next."""
    m, x = s.model, s.mechanisms
    inner, t, width = m.n_head * m.head_dim, m.block_size, m.mlp_width
    key_dim = inner + (m.n_head * x.rope_dim if x.attention == "mla_rope" else 0)
    block = attention_weights(s) + 2 * m.n_embd * width + t * (key_dim + inner)
    block += band(s) * key_dim if x.ra else 0
    block += _second_scores(s)
    block += m.n_embd * inner if x.output_gate else 0
    block += x.cross_rank * (2 * width + t) if x.cross_token else 0
    return block + (width * x.latent_dim if x.exchanges_latent else 0)


def _producer_flops(s: Settings) -> int:
    """Multiply-adds of what every block but the last hands to its successor."""
    m, x = s.model, s.mechanisms
    producer = x.mlp_gate_dim * (m.mlp_width + m.n_head) if x.mlp_gate else 0
    return producer + (m.mlp_width * x.latent_dim if x.exchanges_latent else 0)


def _second_scores(s: Settings) -> int:
    """Scores once more a layer, for a gate at the weights."""
    m, x = s.model, s.mechanisms
    if not (x.ract and x.ract_placement == "weights"):
        return 0
    return (m.block_size + (band(s) if x.ra else 0)) * _query(s)


def _flops_not_backward(s: Settings) -> int:
    """Of two forwards: the weight gradient of a fixed projection, and both
    gradients of scores whose statistic is detached."""
    m, x = s.model, s.mechanisms
    fixed = (2 * m.n_layer - 1) * m.mlp_width * x.latent_dim
    total = fixed if x.latent == "per_head_scalar" else 0
    return 2 * (total + (2 * m.n_layer * _second_scores(s) if x.ract_detach else 0))


def band(s: Settings) -> int:
    """Keys whose transposed score one query sees: the window and itself."""
    window, t = s.mechanisms.ra_window, s.model.block_size
    return t if window == WHOLE_CONTEXT else min(window + 1, t)


def _cache_per_token(s: Settings) -> int:
    m, x = s.model, s.mechanisms
    inner = m.n_head * m.head_dim
    numbers = {
        "mha": 2 * inner,
        "mla": 2 * x.latent_dim,
        "mla_rope": x.joint_latent_dim + x.rope_dim,
    }[x.attention]
    numbers += _query(s) if x.ra and x.ra_window == WHOLE_CONTEXT else 0
    return numbers + (x.cross_rank if x.cross_token else 0)


def _query(s: Settings) -> int:
    extra = s.mechanisms.rope_dim if s.mechanisms.attention == "mla_rope" else 0
    return s.model.n_head * (s.model.head_dim + extra)


def _band_cache(s: Settings) -> int:
    """Of one layer: the queries that a band still reaches."""
    window = s.mechanisms.ra and s.mechanisms.ra_window != WHOLE_CONTEXT
    return min(s.mechanisms.ra_window, s.model.block_size) * _query(s) if window else 0


def _gate_cache(s: Settings) -> int:
    """Of all layers: running sums of pooled gates."""
    m, x = s.model, s.mechanisms
    pooled = x.mlp_gate and x.mlp_gate_pool == "prefix_mean"
    return (m.n_layer - 1) * x.mlp_gate_dim if pooled else 0


def _granule(n_embd: int, finest: int, share: int) -> int:
    """The power of two that widths are multiples of, scaled with the model."""
    size = 1
    while size * 2 <= min(finest, n_embd // share):
        size *= 2
    return size


def _nearest(value: float, granule: int) -> int:
    return max(granule, round(value / granule) * granule)


def derive_widths(s: Settings) -> Settings:
    """Replace the zeros that mean "as GPT-2": head dimension and MLP width."""
    m = s.model
    return s.replace(
        head_dim=m.head_dim or m.n_embd // m.n_head,
        mlp_width=m.mlp_width or 4 * m.n_embd,
    )


def resolve_widths(s: Settings, parameters_of: Callable[[str], int]) -> Settings:
    """Solve MLP, gate and cross-token widths for the stated budgets.

    ``parameters_of(step)`` gives the parameters of another step of the same
    base, or of the largest arm. At width 768 MLP widths are multiples of 64,
    or of 32 where parameters are matched (64 would leave up to 0.5% of
    deviation), and mechanism widths of 8; of smaller powers of two in smaller
    models.
    """
    e = s.model.n_embd
    wide, matched, fine = _granule(e, 64, 12), _granule(e, 32, 24), _granule(e, 8, 96)
    if s.mechanisms.mlp_ratio:
        width = s.mechanisms.mlp_ratio * attention_weights(s) / (2 * e)
        s = s.replace(mlp_width=_nearest(width, wide))
    s = _spend_share(s, wide, fine)
    if s.mechanisms.match_step:
        s = _match(s, parameters_of(s.mechanisms.match_step), matched)
    return s


def _match(s: Settings, target: int, granule: int) -> Settings:
    """The MLP width nearest to ``target`` parameters.

    The control for the largest arm gets the next width above, so that it never
    coincides with that arm.
    """
    zero = budget(s.replace(mlp_width=0)).parameters
    slope = budget(s.replace(mlp_width=1)).parameters - zero
    width = (target - zero) / slope
    if s.mechanisms.match_step == LARGEST_ARM:
        return s.replace(mlp_width=(int(width // granule) + 1) * granule)
    return s.replace(mlp_width=_nearest(width, granule))


def _spend_share(s: Settings, wide: int, fine: int) -> Settings:
    """Move ``mechanism_share`` of the MLP's weights to gate and cross-token."""
    m, x = s.model, s.mechanisms
    if not x.mechanism_share:
        return s
    spend = x.mechanism_share * 2 * m.n_embd * m.mlp_width * m.n_layer
    spend /= x.mlp_gate + x.cross_token
    width = _nearest((1 - x.mechanism_share) * m.mlp_width, wide)
    gate = spend / ((m.n_layer - 1) * (width + m.n_head)) if x.mlp_gate else 0
    cross = spend / (2 * width * m.n_layer) if x.cross_token else 0
    return s.replace(
        mlp_width=width,
        mlp_gate_dim=x.mlp_gate_dim or (_nearest(gate, fine) if gate else 0),
        cross_rank=x.cross_rank or (_nearest(cross, fine) if cross else 0),
    )
