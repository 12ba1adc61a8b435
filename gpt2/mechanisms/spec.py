"""Base classes of the mechanisms' specs: settings, rules and costs. Torch-free.

A spec is one object, ``SPEC``, in gpt2/mechanisms/NAME/spec.py. Everything that differs
between mechanisms and needs no torch is asked of it: settings, menus, certificates,
budget, memory estimate and docs. Methods take resolved settings, of one layer where
layers differ in their heads.

Letters: E width, H heads, D head width, T context, M MLP width, L latent width.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.mechanisms.needs import AttentionNeeds

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings

FLOAT = 4  # bytes of an fp32 number
GPT2_ATTENTION = "mha"


def setting(
    symbol: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    allowed: tuple[str, ...] | None = None,
    before: Any = None,
) -> Any:
    """A field fed by CONFIG_<symbol>; bounds are inclusive except ``above``.

    before: of a setting that is newer than recorded runs and part of their identity,
    the value that trains what they trained (gpt2/settings/records.py); None: every
    record has the setting.
    """
    return dataclasses.field(
        metadata={
            "symbol": symbol,
            "low": low,
            "high": high,
            "above": above,
            "allowed": allowed,
            "before": before,
        }
    )


@dataclass(frozen=True, slots=True)
class Reads:
    """Fields that are read where the mechanism is on and ``where`` holds.

    what: the same in words, as the end of "no job ...".
    where: the values that other fields must have.
    """

    what: str
    fields: tuple[str, ...]
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs that a mechanism adds to one block.

    weights: numbers in matrices. vectors: all other parameters.
    flops: multiply-adds per token; None: one for each weight.
    flops_without_gradient: those that cost one forward less in the backward pass.
    cache: numbers of the decode cache per token; cache_constant: at any length.
    """

    weights: int = 0
    vectors: int = 0
    flops: int | None = None
    flops_without_gradient: int = 0
    cache: int = 0
    cache_constant: int = 0

    @property
    def parameters(self) -> int:
        return self.weights + self.vectors

    @property
    def multiply_adds(self) -> int:
        return self.weights if self.flops is None else self.flops


NOTHING = Cost()


def times(count: int, cost: Cost) -> Cost:
    """Cost of ``count`` equal blocks."""
    numbers = {f.name: count * getattr(cost, f.name) for f in NUMBERS}
    return Cost(flops=count * cost.multiply_adds, **numbers)


def sum_of(*costs: Cost) -> Cost:
    numbers = {f.name: sum(getattr(c, f.name) for c in costs) for f in NUMBERS}
    return Cost(flops=sum(c.multiply_adds for c in costs), **numbers)


NUMBERS = [f for f in dataclasses.fields(Cost) if f.name != "flops"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Formats of tensors kept for the backward pass.

    number: bytes of a number in matrix products, 2 under autocast.
    path: of attention, as far as it is known before a run.
    needs: what all mechanisms ask of the attention call.
    """

    number: int
    path: str
    needs: AttentionNeeds

    @property
    def is_mixed(self) -> bool:
        return self.number < FLOAT


@dataclass(frozen=True, slots=True)
class Tiny:
    """Reduction of settings to the size of certificates.

    scale: of every width. heads, block_size: the numbers there.
    """

    scale: float
    heads: int
    block_size: int

    def width(self, value: int, least: int = 1) -> int:
        """Width scaled like all others; 0, which means "derive it", is kept."""
        return max(least, round(value * self.scale)) if value else 0

    def length(self, value: int) -> int:
        """Number of tokens that leaves out some of the context."""
        return min(value, self.block_size // 6)


class Mechanism:
    """One mechanism of a model; subclasses say what differs.

    title, formula, shapes, known, sources: for docs/mechanisms.md. formula may have
        several lines; shapes are of its letters; known says what is known of its
        effect, by which of the sources, which are papers and their like.
    Fields: its settings, annotated like a dataclass with ``setting``.
    order: mechanisms act, and own parameters, in this order.
    off: its switch, and the value at which it is off.
    plain: values besides that GPT-2 itself, the root of all steps, has.
    needs: what settings of other mechanisms must be.
    neutral: settings at which it is on and does nothing; neutral_weights: parameters of
        each block, by name, and the number at which they do nothing.
    short: what a model has with it, as the end of "no job has ...".
    reads: those of its fields that are read only where another has some value.
    replaces: whether it takes the place of a part of GPT-2, so that a model without it
        cannot be made of the same weights.
    hands_on: the name under which a block hands a tensor to the next one.
    paid_width: its width field, 0 where RA_MLA_MECHANISM_SHARE pays for it.
    widths: dimensions that matrix units want in multiples of 64, when it is on.
    lengths: fields that count tokens, which short contexts cut off.
    whole: settings at which reference code does the work that ``cost`` counts.
    own_of_heads, next_heads: parameters of a block, by name, cut into equal rows for
        its heads or for those of the next block, with the number of times that the
        rows of all heads follow each other. None: it is not known how its heads are
        cut, and head pruning is refused.
    input_products: matrix products that read the attention's input.
    """

    name: str  # of its folder, set by gpt2.mechanisms
    title: ClassVar[str]
    formula: ClassVar[str]
    shapes: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[str] = ""
    sources: ClassVar[tuple[str, ...]] = ()

    class Fields:
        """No settings."""

    order: ClassVar[int] = 100
    off: Mapping[str, Any]
    plain: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[Mapping[str, Any]] = {}
    neutral: ClassVar[Mapping[str, Any]] = {}
    neutral_weights: ClassVar[Mapping[str, float]] = {}
    short: ClassVar[str]
    reads: ClassVar[tuple[Reads, ...]] = ()
    replaces: ClassVar[bool] = False
    hands_on: ClassVar[str] = ""
    paid_width: ClassVar[str] = ""
    widths: ClassVar[tuple[str, ...]] = ()
    lengths: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[Mapping[str, Any]] = {}
    own_of_heads: ClassVar[Mapping[str, int] | None] = None
    next_heads: ClassVar[Mapping[str, int]] = {}
    input_products: ClassVar[int] = 0

    def is_on(self, x: Any) -> bool:
        """True if the mechanism settings switch it on."""
        return any(getattr(x, name) != value for name, value in self.off.items())

    def readers(self) -> list[Reads]:
        """Conditions under which its fields, except its switch, are read."""
        named = {*self.off, *(name for reads in self.reads for name in reads.fields)}
        rest = [name for name, _, _ in annotated(self.Fields) if name not in named]
        always = [Reads(f"has {self.short}", tuple(rest))] if rest else []
        return [*always, *self.reads]

    def reads_on(self, x: Any, reads: Reads) -> bool:
        """True if the fields of ``reads`` have an effect."""
        return self.is_on(x) and all(
            getattr(x, name) == value for name, value in reads.where.items()
        )

    # ---- rules, if it is on ---------------------------------------------------------

    def problems(self, s: Settings) -> Iterator[tuple[bool, str]]:
        """(True if it applies, refusal) for invalid combinations; widths may still be
        0."""
        yield from ()

    def heads_refusal(self, s: Settings) -> str:
        """Reason why single heads cannot be removed with this mechanism; "" if they
        can."""
        if self.own_of_heads is None:
            return f"{self.name} does not say which of its numbers a head owns"
        return ""

    def tiny(self, x: Any, model: Any, to: Tiny) -> Mapping[str, Any]:
        """Settings at the size of certificates."""
        return {}

    # ---- costs, if it is on ---------------------------------------------------------

    def attention(self, s: Settings) -> Mapping[str, Any]:
        """Fields of AttentionNeeds that it sets."""
        return {}

    def cost(self, s: Settings) -> Cost:
        """Cost of one block, without its outputs for the next one."""
        return NOTHING

    def producer_cost(self, s: Settings) -> Cost:
        """Cost of a block's outputs for the next one; the last block has none."""
        return NOTHING

    def kept(self, s: Settings, by: Kept) -> Mapping[str, int]:
        """Bytes per token that one block keeps for the backward pass."""
        return {}

    def kept_of_context(self, s: Settings, by: Kept) -> Mapping[str, int]:
        """Bytes per token that a block keeps of its inputs from the previous block."""
        return {}

    def kept_by_producer(self, s: Settings, by: Kept) -> Mapping[str, int]:
        """Bytes per token that a block keeps to compute its outputs for the next
        one."""
        return {}

    def cast_again(self, s: Settings) -> int:
        """Weights, over all layers, that autocast casts more often than once."""
        return 0


class Projection(Mechanism):
    """Projection of the block's input to queries, keys and values: by default GPT-2's.

    kind: the value of the setting ``attention`` that chooses it.
    products: matrix products that read the input.
    """

    title = "Multi-head attention"
    formula = """\
s_ij = q_i.k_j / sqrt(D)  for j <= i
p_i  = softmax of s_ij over j <= i
o_i  = sum_j p_ij v_j"""
    shapes: ClassVar[tuple[str, ...]] = (
        "q, k, v, o: [B, H, T, D]",
        "s, p: [B, H, T, T]",
    )
    kind: ClassVar[str] = GPT2_ATTENTION
    off: Mapping[str, Any] = {"attention": GPT2_ATTENTION}
    own_of_heads: ClassVar[Mapping[str, int] | None] = {
        "attn.projection.qkv.weight": 3,
        "attn.projection.qkv.bias": 3,
    }
    replaces = True
    order = 0
    products: ClassVar[int] = 1

    def is_on(self, x: Any) -> bool:
        return bool(x.attention == self.kind)

    def key_width(self, s: Settings) -> int:
        """Numbers of one head's query."""
        return s.model.head_dim

    def cost(self, s: Settings) -> Cost:
        """Cost of one layer's projections, except that of the output."""
        inner = s.model.n_head * s.model.head_dim
        return Cost(
            weights=3 * s.model.n_embd * inner,
            vectors=3 * inner if s.model.bias else 0,
            cache=2 * inner,
        )

    def kept_latents(self, s: Settings, by: Kept) -> int:
        """Bytes of the tensors that keys and values are computed from."""
        return 0

    def kept_queries_keys_values(self, s: Settings, by: Kept) -> int:
        return 3 * by.number * s.model.n_head * s.model.head_dim


MULTI_HEAD = Projection()


def annotated(fields: type) -> list[tuple[str, Any, Any]]:
    """(name, type, dataclass field) of each setting of a class ``Fields``."""
    hints = typing.get_type_hints(fields)
    return [(name, hint, getattr(fields, name)) for name, hint in hints.items()]
