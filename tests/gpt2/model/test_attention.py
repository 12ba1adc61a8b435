"""gpt2/model/attention.py and every attention backend against the formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt2.mechanisms import module_of
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.mechanisms.ract.naive import row_statistics
from gpt2.model.backends.call import AttentionCall, Statistic, Transposed
from gpt2.model.backends.reference import row_statistic
from gpt2.model.backends.registry import BACKENDS, attend
from gpt2.model.gpt import GPT
from gpt2.model.reference.formula import softmax
from tests.gpt2.helpers import (
    assert_agree,
    deviation,
    generic,
    gradients_of,
    normal,
    tiny_model,
    tokens_of,
)

SIZES = [(3, 1, 7, 5, 3), (1, 2, 13, 3, 4), (2, 3, 7, 4, 4)]  # B, H, T, D, Dv
NO_RA: dict[str, Any] = {"alpha": None, "window": 0}


@dataclass
class Inputs:
    """Leaves of one attention: asymmetric, as real projections are."""

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: Tensor

    @classmethod
    def make(cls, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Inputs:
        b, h, t, d, dv = size
        return cls(
            normal(b, h, t, d, seed=1, dtype=dtype),
            normal(b, h, t, d, seed=2, dtype=dtype),
            normal(b, h, t, dv, seed=3, dtype=dtype),
            normal(h, seed=4, dtype=dtype),
        )

    def transposed(self, alpha: float | str | None, window: int) -> Transposed | None:
        if alpha is None:
            return None
        weight = self.alpha if alpha == "learned" else alpha
        return Transposed(self.k, self.q, weight, window)

    def logits(self, alpha: float | str | None, window: int, scale: float) -> Tensor:
        """[B, H, T, T] by the formula, keys ahead included."""
        learned = alpha == "learned"
        fields = {"ra_window": window, "ra_learned_alpha": learned}
        settings = tiny_model(**fields, ra_alpha=0.0 if learned else alpha or 0.0)
        weights = {"blocks.1.attn.reciprocity.alpha": self.alpha}
        formula = module_of("ra", "naive").FORMULA(weights, settings, 1)
        pairs = list(zip(self.q, self.k, strict=True))
        if alpha is None:
            return torch.stack([q @ k.mT for q, k in pairs]) * scale
        return torch.stack([formula.scores(q @ k.mT, q, k) for q, k in pairs]) * scale

    def leaves(self, learned: bool) -> list[Tensor]:
        return [self.q, self.k, self.v, *([self.alpha] if learned else [])]


RA = [
    pytest.param(NO_RA, id="plain"),
    pytest.param({"alpha": 0.3, "window": 1}, id="band-1"),
    pytest.param({"alpha": -0.7, "window": 4}, id="band-4-negative"),
    pytest.param({"alpha": 0.3, "window": 5}, id="band-5"),
    pytest.param({"alpha": 0.3, "window": 6}, id="band-6"),
    pytest.param({"alpha": 0.3, "window": 64}, id="band-wider-than-text"),
    pytest.param({"alpha": 0.3, "window": WHOLE_CONTEXT}, id="whole"),
    pytest.param({"alpha": "learned", "window": 3}, id="learned-band"),
    pytest.param({"alpha": "learned", "window": WHOLE_CONTEXT}, id="learned-whole"),
]


@pytest.mark.parametrize("ra", RA)
@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [
        *((size, torch.float64, 1e-10) for size in SIZES),
        (SIZES[2], torch.float32, 1e-5),
    ],
)
def test_attention_equals_the_formulas_on_every_backend(
    ra: dict[str, Any], size: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x, scale = Inputs.make(size, dtype), 0.37
    expected = [softmax(x.logits(scale=scale, **ra)) @ x.v]
    leaves = x.leaves(ra["alpha"] == "learned")
    slopes = gradients_of(expected, leaves)
    for backend in ("auto", *BACKENDS):
        got = attend(
            AttentionCall(x.q, x.k, x.v, scale=scale, transposed=x.transposed(**ra)),
            backend,
        )
        assert_agree([got.output], leaves, expected, leaves, tolerance, slopes)


@pytest.mark.parametrize("ra", RA)
def test_row_factors_act_on_the_logits(ra: dict[str, Any]) -> None:
    x, scale = Inputs.make(SIZES[0]), 0.6
    factors = normal(*x.q.shape[:3], seed=5)
    expected = softmax(x.logits(scale=scale, **ra) * factors.unsqueeze(-1)) @ x.v
    leaves = [*x.leaves(ra["alpha"] == "learned"), factors]
    slopes = gradients_of([expected], leaves)
    for backend in ("auto", *BACKENDS):
        got = attend(
            AttentionCall(
                x.q,
                x.k,
                x.v,
                scale=scale,
                transposed=x.transposed(**ra),
                row_scale=factors,
            ),
            backend,
        )
        assert_agree([got.output], leaves, [expected], leaves, 1e-10, slopes)


@pytest.mark.parametrize("head_average", [False, True])
@pytest.mark.parametrize("kind", ["topk", "max", "entropy", "rms"])
@pytest.mark.parametrize("ra", [RA[0], RA[2], RA[6]])
def test_statistic_and_mean_weights_come_with_the_output(
    ra: dict[str, Any], kind: str, head_average: bool
) -> None:
    x, scale = Inputs.make(SIZES[2]), 0.5
    p = softmax(x.logits(scale=scale, **ra))
    rows = p.mean(1, keepdim=True) if head_average else p
    theirs = [p @ x.v, row_statistics(rows, kind, 3), p.mean(1)]
    leaves = x.leaves(False)
    slopes = gradients_of(theirs, leaves)
    for backend in ("auto", *BACKENDS):
        got = attend(
            AttentionCall(
                x.q,
                x.k,
                x.v,
                scale=scale,
                transposed=x.transposed(**ra),
                statistic=Statistic(kind, 3, head_average),
                mean=True,
            ),
            backend,
        )
        assert_agree(list(got[:3]), leaves, theirs, leaves, 1e-10, slopes)


def test_reciprocal_scores_are_no_product_of_sums() -> None:
    # What one wrong letter in an einsum makes of the transposed score: a term of
    # rank one, the same for all keys up to a factor of the row.
    x = Inputs.make(SIZES[0])
    right = attend(
        AttentionCall(
            x.q, x.k, x.v, scale=0.5, transposed=x.transposed(0.3, WHOLE_CONTEXT)
        )
    )
    wrong_term = torch.einsum("bhid,bhje->bhij", x.k, x.q)
    plain = torch.einsum("bhid,bhjd->bhij", x.q, x.k)
    hidden = torch.ones(x.q.shape[2], x.q.shape[2]).triu(1).bool()
    logits = ((plain + 0.3 * wrong_term) * 0.5).masked_fill(hidden, float("-inf"))
    assert deviation(logits.softmax(-1) @ x.v, right.output) > 0.05


def test_reciprocity_is_more_than_a_relabelling() -> None:
    # With alpha 1 everywhere, exchanging queries and keys changes nothing. With any
    # other alpha it does, and so would a test that cannot tell the roles apart.
    x = Inputs.make(SIZES[0])
    swapped = Inputs(x.k, x.q, x.v, x.alpha)
    for alpha, same in ((1.0, True), (0.3, False), (0.0, False)):
        outputs = [
            attend(
                AttentionCall(
                    y.q,
                    y.k,
                    y.v,
                    scale=0.5,
                    transposed=y.transposed(alpha, WHOLE_CONTEXT),
                )
            ).output
            for y in (x, swapped)
        ]
        assert (deviation(*outputs) < 1e-12) is same, alpha


def test_the_band_ends_at_the_window() -> None:
    x = Inputs.make(SIZES[1])
    later = Inputs.make(SIZES[1])
    with torch.no_grad():
        later.q[:, :, 0] += 1.0  # seen as q_j by rows up to the window alone
    differences = [
        attend(
            AttentionCall(y.q, y.k, y.v, scale=0.5, transposed=y.transposed(0.3, 4))
        ).output
        for y in (x, later)
    ]
    changed = (differences[0] - differences[1]).abs().amax((0, 1, 3)) > 0
    # Row 0 has one key only, whose weight is 1 whatever its score.
    assert changed.tolist() == [False] + [True] * 4 + [False] * 8


@pytest.mark.parametrize("window", [1, 4, WHOLE_CONTEXT])
@pytest.mark.parametrize("learned", [False, True])
def test_alpha_zero_is_plain_attention_bit_for_bit(window: int, learned: bool) -> None:
    x = Inputs.make(SIZES[1])
    alpha = torch.zeros_like(x.alpha) if learned else 0.0
    plain = attend(AttentionCall(x.q, x.k, x.v, scale=0.5), "reference")
    zero = attend(
        AttentionCall(
            x.q, x.k, x.v, scale=0.5, transposed=Transposed(x.k, x.q, alpha, window)
        ),
        "reference",
    )
    assert torch.equal(plain.output, zero.output)


# ---- which path runs --------------------------------------------------------------


class Calls(TorchFunctionMode):
    """Counts the calls of torch's fused attention."""

    fused = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.fused += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def test_the_fused_path_runs_where_it_is_meant_to() -> None:
    x = Inputs.make(SIZES[0], torch.float32)

    for window, backend, expected in (
        (None, "auto", 1),
        (None, "sdpa", 1),
        (None, "reference", 0),
        (WHOLE_CONTEXT, "auto", 1),
        (WHOLE_CONTEXT, "reference", 0),
    ):
        term = None if window is None else x.transposed(0.3, window)
        with Calls() as calls:
            attend(AttentionCall(x.q, x.k, x.v, scale=0.5, transposed=term), backend)
        assert calls.fused == expected, (window, backend)


# ---- statistics -------------------------------------------------------------------


def causal_weights(t: int) -> Tensor:
    hidden = torch.ones(t, t).triu(1).bool()
    logits = normal(3, 2, t, t).detach() * 2
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


@pytest.mark.parametrize("kind", ["topk", "max", "entropy", "rms"])
def test_a_statistic_ignores_the_length_after_its_row(kind: str) -> None:
    weights = causal_weights(13)
    whole = row_statistic(weights, Statistic(kind, 3, False))
    for t in (1, 5, 12):
        part = row_statistic(weights[:, :, :t, :t], Statistic(kind, 3, False))
        assert deviation(part, whole[:, :, :t]) < 1e-14


def test_statistics_of_rows_that_are_known() -> None:
    even = torch.tril(torch.ones(5, 5, dtype=torch.float64))
    even = (even / even.sum(-1, keepdim=True)).view(1, 1, 5, 5)
    count = torch.arange(1, 6, dtype=torch.float64)

    def of(kind: str) -> Tensor:
        return row_statistic(even, Statistic(kind, 2, False)).flatten()

    assert torch.allclose(of("entropy"), torch.tensor([0.0, 1, 1, 1, 1]).double())
    assert torch.allclose(of("max"), 1 / count)
    assert torch.allclose(of("topk"), (2 / count).clamp_max(1.0))
    assert torch.allclose(of("rms"), 1 / count)


def test_a_key_that_gets_no_weight_leaves_the_gradient_finite() -> None:
    logits = torch.tensor([[0.0, -1e4], [0.0, -1e4]]).requires_grad_()
    weights = logits.softmax(-1).view(1, 1, 2, 2)
    for kind in ("topk", "max", "entropy", "rms"):
        stat = row_statistic(weights, Statistic(kind, 1, False))
        (gradient,) = torch.autograd.grad(stat.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all(), kind


# ---- the module -------------------------------------------------------------------


def attention_of(model: GPT, layer: int) -> Callable[..., Any]:
    return model.get_submodule(f"blocks.{layer}.attn")


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"mlp_gate": True}, "mlp_gate"),
        ({"attention": "mla", "latent": "untied"}, "mlp_latent"),
    ],
)
def test_a_consumer_names_its_missing_producer(
    fields: dict[str, Any], missing: str
) -> None:
    model = generic(tiny_model(**fields))
    x = normal(1, 5, 10).detach()
    attention_of(model, 0)(x, ctx={})
    with pytest.raises(
        AssertionError, match=f"block 1 reads {missing}, which block 0 did not produce"
    ):
        attention_of(model, 1)(x, ctx={})


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_dropout_acts_on_the_weights_in_training_alone(backend: str) -> None:
    model = generic(tiny_model(dropout=0.5, attention_backend=backend))
    tokens = tokens_of(tiny_model(), 2, 9)
    still = [model.logits(tokens) for _ in range(2)]
    assert torch.equal(*still)
    attention = model.train().get_submodule("blocks.0.attn")
    attention.dropout.p = 0.0
    x = normal(2, 9, 10).detach()
    first, second = (attention(x, ctx={})[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_statistic_and_mean_weights_are_those_before_dropout() -> None:
    q, k, v = (normal(2, 3, 9, 4, seed=seed).detach() for seed in range(3))
    asked: dict[str, Any] = {"statistic": Statistic("topk", 3, False), "mean": True}
    whole = attend(AttentionCall(q, k, v, scale=0.5, **asked))
    dropped = attend(AttentionCall(q, k, v, scale=0.5, dropout=0.5, **asked))
    assert not torch.equal(whole.output, dropped.output)
    assert torch.equal(whole.statistic, dropped.statistic)
    assert torch.equal(whole.mean, dropped.mean)


def test_the_scale_is_the_root_of_the_head_width() -> None:
    for heads in (1, 2, 3):
        model = generic(tiny_model(n_head=heads, head_dim=5))
        projection = model.get_submodule("blocks.0.attn.projection")
        assert projection.scale == pytest.approx(5**-0.5)


@pytest.mark.parametrize(("backend", "per_layer"), [("reference", 0), ("sdpa", 1)])
def test_a_model_attends_by_the_backend_asked_for(backend: str, per_layer: int) -> None:
    settings = tiny_model(attention_backend=backend)
    with Calls() as calls:
        generic(settings, dtype=torch.float32).logits(tokens_of(settings, 1, 9))
    assert calls.fused == per_layer * settings.model.n_layer
