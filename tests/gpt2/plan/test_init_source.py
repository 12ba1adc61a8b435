"""gpt2/plan/init_source.py: which folders runs of some settings may start from."""

import json
from pathlib import Path

import pytest

from gpt2.data.tokenizer import vocabulary
from gpt2.plan.init_source import resolve_source
from lib.hashing import file_sha256
from tests.gpt2.helpers import tiny

SHAPE = {"n_layer": 3, "n_head": 4, "n_embd": 12, "head_dim": 3}
CONFIG = {
    **{"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 12},
    **{"vocab_size": 257, "n_positions": 64},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary("bytes")))
    return tmp_path


def write(folder: Path, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def resolved(folder: Path, **fields):
    settings = tiny(**{**SHAPE, "init_from": str(folder), **fields})
    return resolve_source(settings, {})


def test_the_content_of_the_weights_becomes_a_setting(folder: Path) -> None:
    settings, origins = resolved(folder)
    expected = file_sha256(folder / "model.safetensors")
    assert settings.data.init_sha256 == expected
    assert origins == {"init_sha256": "INIT_FROM"}
    assert resolved(folder, init_sha256=expected)[0] == settings
    assert resolve_source(tiny(), {}) == (tiny(), {})


@pytest.mark.parametrize(
    ("config", "fields", "hint"),
    [
        ({"model_type": "llama"}, {}, "is of a 'llama', not of a gpt2"),
        ({"n_layer": 4}, {}, "its n_layer is 4, but GPT2_N_LAYER asks for 3"),
        ({"n_head": 3}, {}, "GPT2_N_HEAD asks for 4"),
        ({"n_embd": 16}, {}, "GPT2_N_EMBD asks for 12"),
        ({"vocab_size": 50257}, {}, "GPT2_TOKENIZER asks for 257"),
        ({"n_positions": 8}, {}, "its context is 8, but GPT2_BLOCK_SIZE=16"),
        ({"activation_function": "relu"}, {}, "its activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, {}, "its layer_norm_epsilon is 1e-06"),
        ({}, {"bias": False}, "a GPT-2 has biases, but GPT2_BIAS=n"),
        ({}, {"init_sha256": "0" * 64}, "not INIT_SHA256=0000"),
        ({}, {"init_from": "", "init_sha256": "0" * 64}, "INIT_FROM, which is empty"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, config, fields, hint) -> None:
    write(folder, {**CONFIG, **config})
    with pytest.raises(ValueError) as error:
        resolved(folder, **fields)
    assert hint in str(error.value)


def test_another_tokenizer_of_the_same_size_is_refused(folder: Path) -> None:
    tokens = vocabulary("bytes")
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    (folder / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match="vocab.json is not of GPT2_TOKENIZER='bytes'"):
        resolved(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json or vocab.json"):
        resolved(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    if name == ".":
        folder = folder / "nowhere"
    else:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"INIT_FROM.*(json|safetensors)"):
        resolved(folder)
