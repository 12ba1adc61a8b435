"""The GPT-2 that runs start from: whether its folder fits the settings. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2.data.tokenizer import TokenizerUnavailable, vocabulary
from gpt2.settings.schema import Settings
from lib.hashing import file_sha256
from lib.safe_json import Unusable, as_dict, read_foreign_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
# What our model does where GPT-2's configuration leaves a choice, and its defaults.
CHOICES = {
    "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
    "layer_norm_epsilon": (1e-5, (1e-5,)),
    "scale_attn_weights": (True, (True,)),
    "scale_attn_by_inverse_layer_idx": (False, (False,)),
    "add_cross_attention": (False, (False,)),
}


def resolve_source(
    settings: Settings, origins: dict[str, str]
) -> tuple[Settings, dict[str, str]]:
    """The settings with the SHA-256 of the weights in INIT_FROM, and origins.

    Raises ValueError if the folder does not fit the settings.
    """
    place, pinned = settings.resources.init_from, settings.data.init_sha256
    if not place:
        if pinned:
            raise ValueError(
                f"INIT_SHA256={pinned}: it is of INIT_FROM, which is empty"
            )
        return settings, origins
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"INIT_FROM={place}: there is no such folder. It takes an export of step 0 "
            f"(make export RUN=0:1337 OUT={place}) or GPT-2 itself (hf download "
            "openai-community/gpt2 config.json model.safetensors tokenizer.json "
            f"--local-dir {place})"
        )
    config = as_dict(_read(folder, CONFIG_FILE))
    for problem in (_misfit(config, settings), _other_tokens(folder, settings)):
        if problem:
            raise ValueError(f"INIT_FROM={place}: {problem}")
    sha256 = weights_sha256(settings)
    if pinned and pinned != sha256:
        raise ValueError(
            f"INIT_FROM={place}: its {WEIGHTS_FILE} has SHA-256 {sha256}, not "
            f"INIT_SHA256={pinned}"
        )
    return settings.replace(init_sha256=sha256), {**origins, "init_sha256": "INIT_FROM"}


def weights_sha256(settings: Settings) -> str:
    """SHA-256 of the weights in INIT_FROM; ValueError if they cannot be read."""
    path = weights_path(settings)
    try:
        return file_sha256(path)
    except OSError as error:
        raise ValueError(f"INIT_FROM: {path}: {error.strerror}") from None


def weights_path(settings: Settings) -> Path:
    """The file of the weights in INIT_FROM."""
    return Path(settings.resources.init_from).expanduser() / WEIGHTS_FILE


def _read(folder: Path, name: str) -> Any:
    try:
        return read_foreign_json(folder / name)
    except Unusable as error:
        raise ValueError(f"INIT_FROM={folder}: {name}: {error}") from None


def _misfit(config: dict[str, Any], settings: Settings) -> str:
    """The difference between the source and a GPT-2 of these settings; "" if none."""
    m = settings.model
    if config.get("model_type") != "gpt2":
        return f"{CONFIG_FILE} is of a {config.get('model_type')!r}, not of a gpt2"
    shape = {
        "GPT2_N_LAYER": ("n_layer", m.n_layer),
        "GPT2_N_HEAD": ("n_head", m.n_head),
        "GPT2_N_EMBD": ("n_embd", m.n_embd),
        "GPT2_TOKENIZER": ("vocab_size", settings.vocab_size),
    }
    for symbol, (name, ours) in shape.items():
        if config.get(name) != ours:
            return f"its {name} is {config.get(name)}, but {symbol} asks for {ours}"
    positions = config.get("n_positions")
    if type(positions) is not int or positions < m.block_size:
        return f"its context is {positions}, but GPT2_BLOCK_SIZE={m.block_size}"
    if not m.bias:
        return "a GPT-2 has biases, but GPT2_BIAS=n"
    for name, (default, allowed) in CHOICES.items():
        if config.get(name, default) not in allowed:
            return f"its {name} is {config[name]!r}, which kablate does not have"
    return ""


def _other_tokens(folder: Path, settings: Settings) -> str:
    """Whether its tokenizer has other tokens than ours; empty if they are the same."""
    name = settings.data.tokenizer
    files = [f for f in ("tokenizer.json", "vocab.json") if (folder / f).is_file()]
    if not files:
        return "it has no tokenizer.json or vocab.json to compare GPT2_TOKENIZER with"
    found = as_dict(_read(folder, files[0]))
    if files[0] == "tokenizer.json":
        added = found.get("added_tokens")
        extra = [as_dict(one) for one in added] if isinstance(added, list) else []
        named = {str(one.get("content")): one.get("id") for one in extra}
        found = {**as_dict(as_dict(found.get("model")).get("vocab")), **named}
    try:
        same = found == vocabulary(name)
    except TokenizerUnavailable as error:
        return f"its tokens cannot be compared: {error}"
    return "" if same else f"its {files[0]} is not of GPT2_TOKENIZER={name!r}"
