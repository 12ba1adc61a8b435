"""gpt2/model/init.py: initial weights are a function of seed and name, and of no
more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.model.gpt import GPT
from gpt2.model.init import generator_for, init_parameters
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import deviation, tiny, tiny_model, tiny_step


def initial(settings: Settings, seed: int = 0, noise: int = 0) -> dict[str, Tensor]:
    """Parameters and buffers at the start; ``noise`` seeds torch's own generator."""
    torch.manual_seed(noise)
    model = GPT(settings)
    init_parameters(model, seed)
    return model.state_dict()


@pytest.mark.parametrize("number", STEPS)
def test_steps_start_from_the_same_numbers(number: int) -> None:
    base, step = initial(tiny_step(0)), initial(tiny_step(number), noise=5)
    shared = [n for n in step if n in base and step[n].shape == base[n].shape]
    assert "wte.weight" in shared and "blocks.2.ln_1.weight" in shared
    for name in shared:
        assert torch.equal(step[name], base[name]), name
    parent = STEPS[number].parent
    if parent is not None:
        before = initial(tiny_step(parent))
        for name in step:
            if name in before and step[name].shape == before[name].shape:
                assert torch.equal(step[name], before[name]), name


@pytest.mark.parametrize("number", STEPS)
def test_torchs_own_generator_has_no_say(number: int) -> None:
    first, second = (initial(tiny_step(number), noise=n) for n in (1, 2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_drawing_leaves_torchs_own_generator_alone() -> None:
    model = GPT(tiny_step(16))
    before = torch.get_rng_state()
    init_parameters(model, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_queries_of_mla_are_those_of_gpt2() -> None:
    plain, latent = initial(tiny_step(0)), initial(tiny_step(8))
    for layer in range(3):
        where = f"blocks.{layer}.attn.projection"
        q = plain[f"{where}.qkv.weight"].chunk(3)[0]
        assert torch.equal(q, latent[f"{where}.q.weight"])


def test_each_name_has_its_own_numbers() -> None:
    matrices = [w for w in initial(tiny_step(16)).values() if w.ndim == 2]
    matrices += initial(tiny_step(0))["blocks.0.attn.projection.qkv.weight"].chunk(3)[
        1:
    ]
    signs = {tuple((m.flatten()[:60] > 0).tolist()) for m in matrices}
    assert len(signs) == len(matrices)


def test_another_seed_draws_every_matrix_anew() -> None:
    first, second = initial(tiny_step(16), 1), initial(tiny_step(16), 2)
    for name, value in first.items():
        if value.ndim >= 2:
            assert not torch.equal(value, second[name]), name
        else:
            assert torch.equal(value, second[name]), name


def test_the_spread_is_gpt2s() -> None:
    settings = tiny(n_layer=8, n_embd=64, head_dim=16, mlp_width=256)
    for name, value in initial(settings).items():
        if value.ndim >= 2:
            narrow = name.endswith(("attn.proj.weight", "mlp.proj.weight"))
            expected = 0.02 / 4 if narrow else 0.02  # 4 = sqrt(2 x 8 layers)
            assert float(value.std()) == pytest.approx(expected, rel=0.06), name
            assert abs(float(value.mean())) < expected / 10, name
        elif name.endswith(".bias"):
            assert not value.any(), name
        else:
            assert torch.equal(value, torch.ones_like(value)), name


def test_vectors_of_mechanisms_keep_what_their_module_set() -> None:
    weights = initial(tiny_step(16))
    assert torch.equal(weights["blocks.0.mlp.gate.bias"], torch.full((4,), 2.0))
    assert torch.equal(weights["blocks.0.attn.ract.bias"], torch.full((4,), 2.0))
    assert torch.equal(weights["blocks.0.attn.ract.scale"], torch.ones(4))
    learned = initial(tiny_step(30))["blocks.1.attn.reciprocity.alpha"]
    assert torch.equal(learned, torch.zeros(4))


def test_the_fixed_projection_is_orthonormal_and_seeded() -> None:
    settings = tiny_model(attention="mla", latent="per_head_scalar")
    name = "blocks.0.mlp.exchange.basis"
    basis, again, other = (initial(settings, s)[name] for s in (1, 1, 2))
    assert basis.shape == (11, 6)
    assert deviation(basis.T @ basis, torch.eye(6)) < 1e-5
    assert torch.equal(basis, again)
    assert not torch.equal(basis, other)
    assert not torch.equal(basis, torch.eye(11, 6))


def test_a_generator_depends_on_seed_and_name() -> None:
    numbers = {
        (seed, name): torch.randint(2**62, (1,), generator=generator_for(seed, name))
        for seed in (0, 1, 11)
        for name in ("a", "b", "1:a")
    }
    assert len({int(n) for n in numbers.values()}) == len(numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_do_not_depend_on_the_precision(dtype: torch.dtype) -> None:
    model = GPT(tiny_step(0)).to(dtype)
    init_parameters(model, 0)
    full = initial(tiny_step(0))
    for name, value in model.state_dict().items():
        assert torch.allclose(value.float(), full[name], rtol=1e-2), name


def test_numbers_do_not_depend_on_the_layout_in_memory() -> None:
    model, true = GPT(tiny_step(0)), initial(tiny_step(0))
    for parameter in model.parameters():
        parameter.data = parameter.data.t().contiguous().t()
    init_parameters(model, 0)
    assert all(torch.equal(x, true[name]) for name, x in model.state_dict().items())
    keys = true["blocks.1.attn.projection.qkv.weight"].chunk(3)[1]
    drawn = generator_for(0, "blocks.1.attn.projection.k.weight")
    assert torch.equal(keys, torch.randn(keys.shape, generator=drawn) * 0.02)
