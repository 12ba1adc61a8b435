"""MLA and its rotary form: caches, scales, positions; full rank is multi-head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.mechanisms.mla.layer import Up, at_once
from gpt2.mechanisms.mla_rope.layer import rope_angles
from gpt2.model.attention import make_projection as projection
from gpt2.model.block import RA_MLA_Block
from gpt2.model.context import DecodeCache
from gpt2.model.parts import Heads, Projection, split_heads
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import (
    deviation,
    gradients_of,
    normal,
    randomize,
    tiny_model,
)


def mla(**fields: Any) -> Settings:
    return tiny_model(**{"attention": "mla", **fields})


def random_projection(settings: Settings) -> Projection:
    module = projection(settings).double()
    randomize(module)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ra", [False, True])
def test_full_rank_mla_is_multi_head_attention(ra: bool, dtype: torch.dtype) -> None:
    # With L = E the latent can hold the input: c = x W_dk for any invertible W_dk,
    # and A_h = W_k^h W_dk^-1 gives back the key; the same for the values.
    width = {"n_head": 2, "head_dim": 5, "bias": False, "ra": ra, "ra_alpha": 0.4}
    plain = tiny_model(**width)
    latent = tiny_model(**width, attention="mla", latent_dim=10)
    ours, theirs = (RA_MLA_Block(s, 0).double() for s in (latent, plain))
    randomize(ours)
    randomize(theirs, seed=1)
    there, here = theirs.attn.projection, ours.attn.projection
    with torch.no_grad():
        w_q, w_k, w_v = there.qkv.weight.chunk(3)
        here.q.weight.copy_(w_q)
        here.up_k.up.weight.copy_(w_k @ torch.linalg.inv(here.down_k.weight))
        here.up_v.up.weight.copy_(w_v @ torch.linalg.inv(here.down_v.weight))
        shared = {
            n: p for n, p in theirs.state_dict().items() if ".projection." not in n
        }
        ours.load_state_dict(shared, strict=False)
    x = normal(3, 13, 10).detach().to(dtype)
    got, expected = (block.to(dtype)(x, ctx={})[0] for block in (ours, theirs))
    assert deviation(got, expected) <= (1e-5 if dtype == torch.float32 else 1e-10)
    with torch.no_grad():
        here.down_k.weight += 0.1
    assert deviation(ours(x, ctx={})[0], expected) > 1e-2


def test_the_scale_is_that_of_the_head_and_not_of_the_latent() -> None:
    assert projection(mla(head_dim=5)).scale == pytest.approx(5**-0.5)
    rope = mla(attention="mla_rope", head_dim=5, rope_dim=4)
    assert projection(rope).scale == pytest.approx(9**-0.5)


@pytest.mark.parametrize("shared", [False, True])
def test_absorbed_queries_give_the_same_scores(shared: bool) -> None:
    up = Up(6, 3, 5, shared).double()
    randomize(up)
    c = normal(2, 7, 6, seed=1)
    layer = nn.Linear(4, 15).double()  # to queries [3, 5] of its input
    rows, bias = up.absorbed(layer)
    x = normal(2, 7, 4, seed=2)
    q = split_heads(layer(x), 3)
    absorbed = split_heads(F.linear(x, rows.flatten(0, 1), bias.flatten()), 3)
    through_keys = q @ up(c).transpose(2, 3)
    through_queries = absorbed @ c.unsqueeze(1).transpose(2, 3)
    assert deviation(through_queries, through_keys) < 1e-13
    assert up.per_head().shape == (3, 5, 6)
    assert (up(c)[:, 0] == up(c)[:, 1]).all() == shared


def cached(module: Projection, x: Tensor, pieces: list[int]) -> tuple[Heads, int]:
    cache, at, heads = DecodeCache(1, x.shape[1]), 0, None
    for length in pieces:
        cache.advance(length)
        heads = module(x[:, at : at + length], cache=cache.layers[0])
        at += length
    assert heads is not None
    return heads, cache.numbers


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [({}, 2 * 6), ({"attention": "mla_rope"}, 7 + 4)],
)
def test_the_cache_holds_the_latents_alone(
    fields: dict[str, Any], numbers: int
) -> None:
    module = random_projection(mla(ra=True, **fields))  # which needs the rows' own
    x = normal(2, 9, 10).detach()
    heads, held = cached(module, x, [4, 3, 2])
    assert held == 2 * 9 * numbers
    whole = module(x)
    last = (heads.q @ heads.k.transpose(2, 3))[:, :, -1]
    assert deviation(last, (whole.q @ whole.k.transpose(2, 3))[:, :, -1]) < 1e-13
    assert deviation(heads.expand(heads.v.expand(-1, 4, -1, -1)), whole.v) < 1e-13
    assert deviation(heads.row_q, whole.row_q[:, :, -2:]) < 1e-13
    assert deviation(heads.row_k, whole.row_k[:, :, -2:]) < 1e-13
    plain, _ = cached(random_projection(mla(**fields)), x, [4, 3, 2])
    assert plain.row_q is None and plain.row_k is None, "made and not read"
    assert torch.equal(plain.q, heads.q)


def test_the_latent_of_the_mlp_is_added_to_the_keys_alone() -> None:
    module = random_projection(mla())
    x, e = normal(2, 5, 10).detach(), normal(2, 5, 6, seed=1).detach()
    without, with_it = module(x), module(x, latent=e)
    assert deviation(with_it.key_latent, without.key_latent + e) < 1e-14
    assert torch.equal(with_it.v, without.v)
    assert torch.equal(with_it.q, without.q)
    assert not torch.equal(with_it.k, without.k)


class Products(TorchDispatchMode):
    """Counts the products of matrices that have so many columns in or out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.count += any(self.width in x.shape[-2:] for x in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("attention", "layers"), [("mla", 3), ("mla_rope", 4)])
def test_one_product_makes_what_a_product_for_each_layer_makes(
    attention: str, layers: int, bias: bool
) -> None:
    fields = {"attention": attention, "bias": bias, "n_embd": 31}
    made, counts = [], []
    for backend in ("auto", "reference"):
        module = random_projection(mla(**fields, attention_backend=backend))
        x = normal(3, 7, 31)
        leaves = [x, *module.parameters()]
        with Products(31) as products:
            heads = module(x)
            outputs = [heads.q, heads.k, heads.v]
            slopes = gradients_of(outputs, leaves)
        counts.append(products.count)
        made.append([*outputs, *slopes])
    assert counts == [3, 3 * layers], "forward, slope of x, slope of the weights"
    assert all(x.abs().max() > 0 for x in made[0])
    for n, (ours, theirs) in enumerate(zip(*made, strict=True)):
        assert deviation(ours, theirs) < 1e-13, n


@pytest.mark.parametrize("bias", [True, False])
def test_spare_rows_of_one_product_change_nothing(bias: bool) -> None:
    layers = [nn.Linear(7, 5, bias).double(), nn.Linear(7, 4, False).double()]
    x = normal(2, 3, 7)
    leaves = [x, *(p for layer in layers for p in layer.parameters())]
    with Products(16) as products:
        ours = list(at_once(x, layers, even=16))
        slopes = gradients_of(ours, leaves)
    assert products.count == 3
    theirs = [layer(x) for layer in layers]
    for got, wanted in zip(ours, theirs, strict=True):
        assert deviation(got, wanted) < 1e-13
    for got, wanted in zip(slopes, gradients_of(theirs, leaves), strict=True):
        assert deviation(got, wanted) < 1e-13


# ---- DeepSeek-V2's form ------------------------------------------------------------


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    module = random_projection(mla(attention="mla_rope"))
    row = normal(1, 1, 10).detach()
    same = row.expand(1, 9, 10)
    heads = module(same)
    scores = heads.q @ heads.k.transpose(2, 3)
    for distance in range(8):
        diagonal = scores.diagonal(-distance, 2, 3)
        assert deviation(diagonal, diagonal[..., :1].expand_as(diagonal)) < 1e-5
    assert deviation(scores.diagonal(0, 2, 3)[..., 0], scores[..., 5, 0]) > 1e-3


def test_no_latent_is_ever_rotated() -> None:
    module = random_projection(mla(attention="mla_rope"))
    x = normal(1, 1, 10).detach()
    cache = DecodeCache(1, 8)
    for _ in range(8):
        cache.advance(1)
        module(x, cache=cache.layers[0])
    latent, key = cache.layers[0].tensors["c"].split([7, 4], -1)
    assert deviation(latent, latent[:, :1].expand_as(latent)) < 1e-13
    assert all(deviation(key[:, n], key[:, 0]) > 1e-3 for n in range(1, 8))


def test_the_cached_latent_is_normed() -> None:
    module = random_projection(mla(attention="mla_rope"))
    with torch.no_grad():
        module.norm.weight.fill_(1.0)
    cache = DecodeCache(1, 5)
    cache.advance(5)
    module(normal(2, 5, 10).detach() * 9, cache=cache.layers[0])
    latent = cache.layers[0].tensors["c"][..., :7]
    rms = latent.square().mean(-1).sqrt()
    assert deviation(rms, torch.ones_like(rms)) < 1e-5


def test_rope_angles_are_those_of_the_paper() -> None:
    angles = rope_angles(5, 6)
    assert angles.shape == (5, 3)
    assert torch.allclose(
        angles[1], torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    )
    assert torch.allclose(angles[4], 4 * angles[1])
