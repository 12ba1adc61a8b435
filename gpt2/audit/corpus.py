"""Prepared text of a run: its tokens, their bytes, and its windows.

Torch-free. Bytes are those of the decoded tokens, not the count in meta.json. Windows
and batches follow from their definitions: evenly spaced, and drawn with the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2.audit.finding import AuditLine, Tolerance, compare
from gpt2.data.token_files import SPLITS, dataset_folder, request_of, split_file
from gpt2.data.tokenizer import TokenizerUnavailable, get_encoding
from gpt2.settings.schema import VOCAB_SIZES, Settings
from lib.hashing import file_sha256, identity

Tokens = npt.NDArray[np.uint16]
Offsets = npt.NDArray[np.int64]

BATCHES = 0x6261746368  # "batch": the second word of the seed of every draw
BYTES = Tolerance(relative=1e-12, why="decoded tokens")


class NoText(ValueError):
    """The text of a run is not available; the message says what was found instead."""


@dataclass(frozen=True, slots=True)
class PreparedText:
    """Both splits; ``val_bytes`` is None if the tokenizer is not available."""

    train: Tokens
    val: Tokens
    val_bytes: int | None
    no_bytes: str = ""


def open_text(settings: Settings, data_dir: Path, fingerprint: str) -> PreparedText:
    """Find the text that a run was trained on by the hashes of its token files.

    fingerprint: as the run recorded it. Raises NoText if it is not in data_dir.
    """
    data = settings.data
    try:
        folder = dataset_folder(data_dir, request_of(settings))
        files = {split: split_file(folder, split) for split in SPLITS}
        sums = {split: _sum_of(path) for split, path in files.items()}
        train, val = (np.memmap(files[s], dtype="<u2", mode="r") for s in SPLITS)
    except OSError as error:
        place = error.filename or data_dir
        raise NoText(f"no prepared text in {place}: {error.strerror}") from None
    except ValueError as error:
        raise NoText(f"no prepared text in {data_dir}: {error}") from None
    found = identity({"tokenizer": data.tokenizer, "sha256": sums})
    if found != fingerprint:
        raise NoText(
            f"{folder} has other text (fingerprint {found}) than the run was "
            f"trained on ({fingerprint})"
        )
    if int(val.max()) >= VOCAB_SIZES[data.tokenizer]:
        raise NoText(f"{files['val']} has tokens that {data.tokenizer} does not have")
    try:
        return PreparedText(train, val, count_bytes(val, data.tokenizer))
    except TokenizerUnavailable as error:
        return PreparedText(train, val, None, str(error).splitlines()[0])


def _sum_of(path: Path) -> str:
    info = path.stat()
    return _sum_at(path, info.st_size, info.st_mtime_ns)


@cache
def _sum_at(path: Path, size: int, changed: int) -> str:
    """sha256 of a file, computed once for all runs that were trained on it."""
    return file_sha256(path)


def count_bytes(tokens: Tokens, tokenizer: str) -> int:
    """UTF-8 bytes of the decoded tokens; end-of-text tokens have none."""
    counts = np.bincount(tokens, minlength=VOCAB_SIZES[tokenizer])
    return int(counts @ _lengths(tokenizer))


@cache
def _lengths(tokenizer: str) -> npt.NDArray[np.int64]:
    """Bytes of each token, [vocabulary]."""
    encoding = get_encoding(tokenizer)
    size, end = VOCAB_SIZES[tokenizer], encoding.eot_token
    return np.array(
        [
            0 if token == end else len(encoding.decode_single_token_bytes(token))
            for token in range(size)
        ],
        dtype=np.int64,
    )


def meta_finding(text: PreparedText, meta_bytes: object) -> AuditLine:
    """Check the bytes of the validation text in meta.json against the decoded text."""
    return compare("bytes of the validation text", meta_bytes, text.val_bytes, BYTES)


def validation_offsets(n_tokens: int, block_size: int, samples: int) -> list[int]:
    """First token of each validation window: window i of n starts at i / (n - 1) of the
    last possible start, rounded down."""
    last = n_tokens - block_size - 1
    return [number * last // max(samples - 1, 1) for number in range(samples)]


def batch_offsets(
    seed: int, update: int, n_tokens: int, block_size: int, sequences: int
) -> Offsets:
    """First token of each window of update 1, 2, ...: drawn uniformly with the seed and
    the number of updates before it."""
    draw = np.random.default_rng([seed, BATCHES, update - 1])
    return draw.integers(0, n_tokens - block_size, size=sequences)


def window(tokens: Tokens, start: int, block_size: int) -> npt.NDArray[np.int64]:
    """block_size + 1 tokens from ``start``; each but the last predicts the next."""
    return tokens[start : start + block_size + 1].astype(np.int64)
