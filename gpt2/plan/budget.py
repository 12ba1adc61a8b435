"""Analytic parameters, FLOPs and cache of a model, and the width solver.

Torch-free: listing a matrix and solving its widths must not import torch.
gpt2/verify/certify_steps.py compares these formulas with the model that is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2.mechanisms import added, enabled, projection_of
from gpt2.mechanisms.spec import Cost, sum_of, times
from gpt2.settings.schema import LARGEST_ARM, Settings


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
        """Ratio r of MLP to attention weights."""
        return self.mlp / self.attention

    @property
    def flops_training(self) -> int:
        """FLOPs of forward and backward pass: the backward pass costs two forward
        passes, except for parts without a gradient."""
        return 3 * self.flops_forward - self.flops_not_backward


def budget(settings: Settings, heads: Sequence[int] | None = None) -> Budget:
    """Costs of a model whose widths are resolved (see ``resolve_widths``).

    heads: remaining heads of each layer, if heads were removed from the model.
    """
    m = settings.model
    own = [m.n_head] * m.n_layer if heads is None else list(heads)

    def over(cost: Callable[[Settings], Cost], numbers: Sequence[int]) -> Cost:
        """The sum of a layer's cost over layers with these numbers of heads."""
        counted = Counter(numbers).items()
        return sum_of(
            *(times(count, cost(settings.replace(n_head=n))) for n, count in counted)
        )

    embeddings = (settings.vocab_size + m.block_size) * m.n_embd
    # Gates are of the next block's heads.
    total = sum_of(over(_block, own), over(_producer, own[1:]))
    body = total.parameters + _norm(settings)
    forward = total.multiply_adds + settings.vocab_size * m.n_embd
    attention = sum(attention_weights(settings.replace(n_head=n)) for n in own)
    return Budget(
        parameters=embeddings + body,
        parameters_without_embeddings=body,
        attention=attention,
        mlp=m.n_layer * 2 * m.n_embd * m.mlp_width,
        flops_forward=2 * forward,
        flops_not_backward=2 * total.flops_without_gradient,
        cache_per_token=total.cache,
        cache_constant=total.cache_constant,
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
    """Weights of one layer's attention matrices, excluding mechanisms."""
    output = s.model.n_head * s.model.head_dim * s.model.n_embd
    return projection_of(s).cost(s).weights + output


def linear_weights(s: Settings) -> int:
    """Weights of all linear layers, which autocast casts and pruning may prune."""
    layers = s.model.n_layer
    return layers * _block(s).weights + (layers - 1) * _producer(s).weights


def _block(s: Settings) -> Cost:
    """Cost of one block without the outputs for the next one."""
    m, projection = s.model, projection_of(s)
    inner = m.n_head * m.head_dim
    weights = attention_weights(s) + 2 * m.n_embd * m.mlp_width
    biases = 2 * m.n_embd + m.mlp_width if m.bias else 0
    scores = m.block_size * (m.n_head * projection.key_width(s) + inner)
    own = projection.cost(s)
    trunk = Cost(
        weights=weights,
        vectors=2 * _norm(s) + own.vectors + biases,
        flops=weights + scores,
        cache=own.cache,
        cache_constant=own.cache_constant,
    )
    return sum_of(trunk, *(mechanism.cost(s) for mechanism in added(s)))


def _producer(s: Settings) -> Cost:
    """Cost of the outputs of a block for the next one; the last block has none."""
    return sum_of(*(mechanism.producer_cost(s) for mechanism in enabled(s)))


def _granule(n_embd: int, finest: int, share: int) -> int:
    """The power of two that widths are multiples of, scaled with the model."""
    largest = max(1, min(finest, n_embd // share))
    return 1 << (largest.bit_length() - 1)


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
    """Move ``mechanism_share`` of the MLP's weights to mechanisms, in equal parts."""
    m, share = s.model, s.mechanisms.mechanism_share
    if not share:
        return s
    names = [mechanism.paid_width for mechanism in enabled(s) if mechanism.paid_width]
    spend = share * 2 * m.n_embd * m.mlp_width * m.n_layer / len(names)
    width = _nearest((1 - share) * m.mlp_width, wide)
    narrow = s.replace(mlp_width=width)

    def weights(name: str, value: int) -> int:
        return linear_weights(narrow.replace(**{name: value}))

    solved = {
        name: getattr(s.mechanisms, name)
        or _nearest(spend / (weights(name, 1) - weights(name, 0)), fine)
        for name in names
    }
    return s.replace(mlp_width=width, **solved)
