"""gpt2/model/gpt.py: all steps against the formulas; causality, decoding, text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.gpt import GPT
from gpt2.plan.budget import budget
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import (
    assert_agree,
    deviation,
    generic,
    gradients_of,
    leaves_of,
    naive_logits,
    tiny,
    tiny_model,
    tiny_step,
    tokens_of,
)
from tests.gpt2.model.reference.test_formulas import FORMS, named
from tests.gpt2.model.test_block import COMBINATIONS
from tests.scripts.inprocess import run_script

ALL = [pytest.param(n, id=f"step{n}") for n in STEPS]


def step_settings(number: int, **fields: Any) -> Settings:
    """A step with mixes large enough to be seen."""
    mixes = {"ract_mix": 0.6, "mlp_gate_mix": 0.7, "cross_mix": 0.5, "latent_mix": 0.4}
    return tiny_step(number, **{**mixes, **fields})


def with_backend(model: GPT, settings: Settings, backend: str) -> GPT:
    """The same weights served by another path."""
    other = generic(settings.replace(attention_backend=backend))
    other.load_state_dict(model.state_dict())
    return other


def assert_equals_the_formulas(settings: Settings, batch: int, length: int) -> None:
    model, tokens = generic(settings), tokens_of(settings, batch, length)
    leaves = leaves_of(model)
    expected = naive_logits(leaves, settings, tokens)
    theirs = [leaves[name] for name, _ in model.named_parameters()]
    # The rotary tables are fp32, whatever the model's weights are.
    tolerance = 1e-5 if settings.mechanisms.attention == "mla_rope" else 1e-10
    slopes = gradients_of([expected], theirs)
    for backend in ("auto", "reference"):
        served = with_backend(model, settings, backend)
        logits, ours = served.logits(tokens), list(served.parameters())
        assert_agree([logits], ours, [expected], theirs, tolerance, slopes)


@pytest.mark.parametrize("number", ALL)
def test_every_step_equals_the_formulas(number: int) -> None:
    assert_equals_the_formulas(step_settings(number, n_layer=2), batch=1, length=7)


@pytest.mark.parametrize("form", [*COMBINATIONS.values(), *FORMS], ids=named)
def test_forms_that_are_no_step_equal_the_formulas(form: dict[str, Any]) -> None:
    settings = tiny_model(**{"n_head": 2, "n_layer": 3, **form})
    assert_equals_the_formulas(settings, batch=2, length=6)


@pytest.mark.parametrize("number", [0, 5, 12, 16, 17, 28, 29])
def test_steps_equal_the_formulas_in_fp32(number: int) -> None:
    settings = step_settings(number, n_layer=2)
    model = generic(settings, dtype=torch.float32)
    tokens = tokens_of(settings, 1, 7)
    with torch.no_grad():
        expected = naive_logits(model.state_dict(), settings, tokens)
        assert deviation(model.logits(tokens), expected) < 1e-5


# ---- causal, stateless ------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("number", ALL)
@torch.no_grad()
def test_no_step_sees_the_future(number: int, backend: str) -> None:
    settings = step_settings(number, attention_backend=backend)
    model, tokens = generic(settings), tokens_of(settings, 3, 13)
    whole = model.logits(tokens)
    for cut in (1, 4, 9, 12):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 7) % settings.vocab_size
        suffix = model.logits(changed)
        assert deviation(suffix[:, :cut], whole[:, :cut]) < 1e-12, "suffix seen"
        assert (suffix[:, cut:] != whole[:, cut:]).any(-1).all(), "suffix ignored"
        prefix = model.logits(tokens[:, :cut])
        assert deviation(prefix, whole[:, :cut]) < 1e-12, "the length matters"


@pytest.mark.parametrize("number", ALL)
@torch.no_grad()
def test_no_step_remembers_a_batch(number: int) -> None:
    settings = step_settings(number)
    model, tokens = generic(settings), tokens_of(settings, 2, 9)
    first = model.logits(tokens)
    assert torch.equal(model.logits(tokens), first)
    model.logits(tokens_of(settings, 3, 5, seed=1))
    assert torch.equal(model.logits(tokens), first)
    alone = model.logits(tokens[1:])
    assert deviation(alone, first[1:]) < 1e-13, "rows of a batch are mixed"


# ---- neutral values ---------------------------------------------------------------


NEUTRAL: dict[int, dict[str, float]] = {
    3: {"mlp_gate_mix": 0.0},
    5: {"ra_alpha": 0.0},
    6: {"ra_alpha": 0.0},
    11: {"ra_alpha": 0.0},
    13: {"ract_mix": 0.0},
    14: {"ract_mix": 0.0},
    15: {"ract_mix": 0.0},
    16: {"ract_mix": 0.0},
    17: {"ract_mix": 0.0},
    18: {"ract_mix": 0.0},
    21: {"mlp_gate_mix": 0.0},
    22: {"cross_mix": 0.0},
    23: {"ract_mix": 0.0},
    24: {"ract_mix": 0.0},
    25: {"latent_mix": 0.0},
    26: {"latent_mix": 0.0},
    27: {"latent_mix": 0.0},
    29: {"ra_alpha": 0.0},
    30: {"ra_alpha": 0.0},
}
OFF = {
    "ra_alpha": {"ra": False, "ra_learned_alpha": False},
    "ract_mix": {"ract": False},
    "mlp_gate_mix": {"mlp_gate": False},
    "cross_mix": {"cross_token": False},
    "latent_mix": {"latent": "none"},
}


@pytest.mark.parametrize("number", NEUTRAL)
@torch.no_grad()
def test_the_neutral_value_is_the_model_without_it_bit_for_bit(number: int) -> None:
    neutral = step_settings(number, attention_backend="reference").replace(
        **NEUTRAL[number]
    )
    (field,) = NEUTRAL[number]
    model = generic(neutral)
    if neutral.mechanisms.ra_learned_alpha:
        for block in model.layers():
            block.attn.reciprocity.alpha.zero_()
    without = generic(neutral.replace(**OFF[field]))
    without.load_state_dict(model.state_dict(), strict=False)
    tokens = tokens_of(neutral, 2, 13)
    assert torch.equal(model.logits(tokens), without.logits(tokens))
    acting = generic(neutral.replace(**{field: 0.5}))
    acting.load_state_dict(model.state_dict())
    if neutral.mechanisms.ra_learned_alpha:
        for block in acting.layers():
            block.attn.reciprocity.alpha.fill_(0.5)
    assert deviation(acting.logits(tokens), without.logits(tokens)) > 1e-4


# ---- decoding ---------------------------------------------------------------------


def decoded(model: GPT, tokens: Tensor, pieces: list[int]) -> tuple[Tensor, int]:
    cache, parts, at = model.new_cache(tokens.shape[1]), [], 0
    for length in pieces:
        parts.append(model.decode(tokens[:, at : at + length], cache))
        at += length
    return torch.cat(parts, 1), cache.numbers


@pytest.mark.parametrize("number", ALL)
@torch.no_grad()
def test_decoding_equals_the_full_forward(number: int) -> None:
    settings = step_settings(number)
    model = generic(settings, dtype=torch.float32)
    context = settings.model.block_size  # no window of cached queries is longer
    tokens = tokens_of(settings, 2, context)
    whole, costs = model.logits(tokens), budget(settings)
    for pieces in ([5, 1, 1, context - 7], [context]):
        logits, numbers = decoded(model, tokens, pieces)
        assert deviation(logits, whole) < 1e-5, pieces
        assert numbers == 2 * (context * costs.cache_per_token + costs.cache_constant)


@pytest.mark.parametrize("name", COMBINATIONS)
@torch.no_grad()
def test_decoding_equals_the_full_forward_in_combinations(name: str) -> None:
    settings = tiny_model(n_head=2, **COMBINATIONS[name])
    model, tokens = generic(settings), tokens_of(settings, 2, 11)
    logits, numbers = decoded(model, tokens, [3, 1, 1, 1, 5])
    assert deviation(logits, model.logits(tokens)) < 1e-12
    costs = budget(settings)
    assert numbers == 2 * (11 * costs.cache_per_token + costs.cache_constant)


def test_more_than_the_context_is_refused() -> None:
    settings = step_settings(0)
    with pytest.raises(AssertionError, match="17 tokens do not fit"):
        generic(settings).logits(tokens_of(settings, 1, 17))


# ---- loss and score ---------------------------------------------------------------


def test_the_loss_is_the_mean_over_tokens_in_nats() -> None:
    settings = step_settings(4)
    model = generic(settings)
    tokens, targets = tokens_of(settings, 3, 7), tokens_of(settings, 3, 7, seed=1)
    with torch.no_grad():
        logs = model.logits(tokens).log_softmax(-1)
        picked = [float(logs[b, t, targets[b, t]]) for b in range(3) for t in range(7)]
        loss, right = model.score(tokens, targets)
        assert float(model(tokens, targets)) == pytest.approx(-sum(picked) / 21)
        assert float(loss) == pytest.approx(-sum(picked))
        best = model.logits(tokens).argmax(-1)
        assert int(model.score(tokens, best)[1]) == 21
        assert int(right) == int((best == targets).sum())


# ---- HF transformers --------------------------------------------------------------


def test_step_0_equals_the_gpt2_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    settings = tiny(n_embd=12, n_head=3, head_dim=4, n_layer=3, mlp_width=48)
    config = transformers.GPT2Config(
        vocab_size=257,
        n_positions=16,
        n_embd=12,
        n_layer=3,
        n_head=3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = generic(settings, dtype=torch.float32)
    theirs.load_state_dict(hugging_face_names(ours), strict=False)
    tokens = tokens_of(settings, 3, 13)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert deviation(ours.logits(tokens), expected) < 1e-4
        loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert float(ours(tokens[:, :-1], tokens[:, 1:])) == pytest.approx(
            float(loss), abs=1e-4
        )


def test_it_is_timed_beside_step_0(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "bench.json"
    small = "MODEL=CUSTOM N_LAYER=1 N_EMBD=24 BLOCK_SIZE=16"
    words = ("--parts", "cpu", "--repeats", "1", "--settings", small, "--out", path)
    result = run_script("bench.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours, theirs = json.loads(path.read_text())["rows"]
    assert theirs["what"] == "HF transformers GPT-2"
    ratio = ours["tokens/s"] / theirs["tokens/s"]
    assert ours["of transformers"] == pytest.approx(ratio)


def hugging_face_names(model: GPT) -> dict[str, Tensor]:
    """Weights as transformers names them; its Conv1D holds the transposed matrix."""
    names = {
        "attn.projection.qkv": "attn.c_attn",
        "attn.proj": "attn.c_proj",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
    }
    found = {}
    for name, value in model.state_dict().items():
        their = f"transformer.{name}".replace("blocks", "h")
        for ours, theirs in names.items():
            their = their.replace(ours, theirs)
        linear = value.ndim == 2 and ".h." in their
        found[their] = value.T.contiguous() if linear else value
    return {**found, "lm_head.weight": model.wte.weight}


@pytest.mark.parametrize("fp32", [False, True])
def test_the_residual_stream_has_the_type_asked_for(fp32: bool) -> None:
    settings = tiny_model().replace(mixed_precision="bf16", residual_fp32=fp32)
    model = generic(settings, dtype=torch.float32)
    seen = []
    model.ln_f.register_forward_pre_hook(lambda module, x: seen.append(x[0].dtype))
    tokens = tokens_of(settings, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, tokens.roll(-1, 1))
    model(tokens, tokens.roll(-1, 1))
    kept = torch.float32 if fp32 else torch.bfloat16
    assert seen == [kept, torch.float32]
