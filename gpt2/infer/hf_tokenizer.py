"""Tokenizer files for transformers: GPT-2's byte-pair encoding, or plain bytes."""

from __future__ import annotations

import json
from typing import Any

import tiktoken

from gpt2.data.tokenizer import END_OF_TEXT, vocabulary, vocabulary_files


def tokenizer_files(encoding: tiktoken.Encoding, context: int) -> dict[str, bytes]:
    """File name to content; context: the longest text in tokens.

    Raises gpt2.data.tokenizer.TokenizerUnavailable if GPT-2's files are nowhere.
    """
    found: dict[str, bytes] = {}
    if encoding.name == "gpt2":
        files = vocabulary_files()
        found = {"vocab.json": files["encoder.json"], "merges.txt": files["vocab.bpe"]}
        lines = files["vocab.bpe"].decode("utf-8").split("\n")[1:]
        merges = [tuple(line.split()) for line in lines if line]
    else:
        merges = []
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **ends,
    }
    text = _tokenizer_json(
        vocabulary(encoding.name), merges, is_bytes=encoding.name == "bytes"
    )
    return {
        **found,
        "tokenizer.json": text.encode("utf-8"),
        "tokenizer_config.json": json.dumps(config, indent=1).encode("utf-8"),
    }


def _tokenizer_json(
    tokens: dict[str, int], merges: list[Any], *, is_bytes: bool
) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not is_bytes
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return str(tokenizer.to_str())
