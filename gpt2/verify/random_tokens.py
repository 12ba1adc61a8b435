"""Random tokens on disk, for certificates that train or draw batches without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2.train.batches import TokenSplit, open_tokens
from lib.hashing import file_sha256


def stand_in(
    folder: Path, *, train: int, val: int, vocab: int
) -> tuple[TokenSplit, TokenSplit]:
    """A training and a validation split of so many tokens below ``vocab``, written to
    a folder; the same for the same numbers."""
    counts = {"train": train, "val": val}
    for split, count in counts.items():
        tokens = np.random.default_rng([vocab, count]).integers(0, vocab, count)
        tokens.astype("<u2").tofile(folder / f"{split}.bin")
    meta = {
        "tokenizer": "random",
        "vocab_size": vocab,
        "splits": {
            split: {
                "tokens": count,
                "bytes": count,
                "sha256": file_sha256(folder / f"{split}.bin"),
            }
            for split, count in counts.items()
        },
    }
    one, other = (
        TokenSplit(
            open_tokens(folder / f"{split}.bin"), folder / f"{split}.bin", split, meta
        )
        for split in counts
    )
    return one, other
