"""gpt2/model/init_source.py: what is copied from a GPT-2, and that it is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt2.model.gpt import GPT
from gpt2.model.gpt2_weights import from_gpt2, to_gpt2
from gpt2.model.init import start_parameters
from gpt2.settings.schema import Settings
from lib.hashing import file_sha256
from tests.gpt2.helpers import generic, tiny_step, tokens_of

SHAPE = {"n_embd": 12, "n_head": 4, "head_dim": 3}


@pytest.fixture
def source(tmp_path: Path) -> GPT:
    """A GPT-2 at a generic point, as a folder too, of twice the context."""
    model = generic(tiny_step(0, **SHAPE, block_size=32), dtype=torch.float32)
    tensors = to_gpt2(model.state_dict(), 3)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)  # as of old files
    save_file(tensors, tmp_path / "model.safetensors")
    return model


def settings_for(tmp_path: Path, step: int, **fields: object) -> Settings:
    sha256 = file_sha256(tmp_path / "model.safetensors")
    where = {"init_from": str(tmp_path), "init_sha256": sha256}
    return tiny_step(step, **SHAPE, **where, **fields)


def test_step_0_is_the_source_bit_for_bit_and_goes_back(source, tmp_path) -> None:
    settings = settings_for(tmp_path, 0)
    model = GPT(settings)
    start = start_parameters(model, settings, 1)
    assert (start.own, start.deviation) == ((), 0.0)
    assert "40 tensors of 40 are copied" in start.line
    tokens = tokens_of(settings, 2, 16)
    assert torch.equal(model.logits(tokens), source.logits(tokens))
    back = from_gpt2(to_gpt2(model.state_dict(), 3), 3)
    assert all(torch.equal(back[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("step", [5, 13, 18, 21, 22, 29, 30])
def test_arms_share_its_weights_and_equal_it_at_neutral_values(
    source, tmp_path, step
) -> None:
    settings = settings_for(tmp_path, step, mlp_width=48)
    if settings.model.mlp_width != 48:
        settings = settings.replace(mlp_width=48)
    model, drawn = GPT(settings), GPT(settings)
    start = start_parameters(model, settings, 1)
    start_parameters(drawn, settings.replace(init_sha256=""), 1)
    assert start.deviation is not None and start.deviation <= 1e-6
    theirs, fresh = source.state_dict(), drawn.state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith("reciprocity.alpha"):
            assert not tensor.any()
        elif name in start.own:
            assert torch.equal(tensor, fresh[name])
        else:
            assert torch.equal(tensor, theirs[name][: len(tensor)])


def test_what_has_no_neutral_value_says_so(source, tmp_path) -> None:
    for step, why in {8: "another shape|mla has no", 19: "output_gate has no"}.items():
        settings = settings_for(tmp_path, step)
        settings = settings.replace(mlp_width=48)
        start = start_parameters(GPT(settings), settings, 1)
        assert start.deviation is None
        assert any(part in start.line for part in why.split("|")), start.line
    wider = settings_for(tmp_path, 0).replace(mlp_width=50)
    start = start_parameters(GPT(wider), wider, 1)
    assert "9 of GPT-2's tensors have another shape, first blocks.0.mlp" in start.line


def test_weights_that_changed_or_are_not_a_gpt2_are_refused(source, tmp_path) -> None:
    settings = settings_for(tmp_path, 0)
    path = tmp_path / "model.safetensors"
    tensors = to_gpt2(source.state_dict(), 3)
    tensors["transformer.wpe.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match="the file has changed"):
        start_parameters(GPT(settings), settings, 1)
    untied = {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] * 2}
    without = {n: t for n, t in tensors.items() if "h.1.mlp" not in n}
    for wrong, hint in ((untied, "lm_head.weight is not tied"), (without, "not a GPT")):
        save_file(wrong, path)
        settings = settings_for(tmp_path, 0)
        with pytest.raises(ValueError, match=hint):
            start_parameters(GPT(settings), settings, 1)
    path.write_bytes(b"no tensors")
    settings = settings_for(tmp_path, 0)
    with pytest.raises(ValueError, match="INIT_FROM: .*model.safetensors"):
        start_parameters(GPT(settings), settings, 1)
