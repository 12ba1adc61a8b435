"""Fingerprints of what the runs of a seed share: batches and initial weights.

Each run records them in its manifest, where the report compares those of paired runs;
gpt2/verify/pairing.py compares them before the first run starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gpt2.train.checkpoint import weights_of

SAMPLE = 4096  # numbers of a weight that its fingerprint is made of, at most
_WORD = 1 << 64

# ---- windows of tokens ----------------------------------------------------------


def is_recorded(update: int, last: int) -> bool:
    """Whether the batch of an update gets a fingerprint: those of 1, 2, 4, 8, ... and
    of the last, of which runs of unequal lengths have some in common."""
    return update == last or update & (update - 1) == 0


def windows_sum(pair: Tensor) -> int:
    """A sum, below 2**64, over the windows of tokens and targets [2, B, T] on the CPU.

    The sums of micro batches and of ranks add up, modulo 2**64, to that of the batch,
    however it was cut.
    """
    rows = np.ascontiguousarray(pair.transpose(0, 1).numpy())
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return sum(int.from_bytes(digest, "big") for digest in digests) % _WORD


def fingerprint(sums: Iterable[int]) -> str:
    """Fingerprint of windows, in 16 hex digits, from their sums."""
    return f"{sum(sums) % _WORD:016x}"


def batch_fingerprints(ranks: Iterable[Mapping[int, int]]) -> dict[str, str]:
    """Fingerprints by update, from the sums of the windows that each rank was given."""
    shares = list(ranks)
    updates = sorted(set.intersection(*(set(share) for share in shares)))
    return {str(n): fingerprint(share[n] for share in shares) for n in updates}


# ---- weights --------------------------------------------------------------------


def weight_fingerprints(model: nn.Module) -> dict[str, list[float]]:
    """[length, direction] of each weight by name and shape, as in "wte.weight 257x32".

    Of a sample of its numbers: the norm, and the cosine of the angle to a fixed
    pattern. The report allows for rounding, since torch draws normal numbers that
    differ in their last digits on unlike processors.
    """
    return {
        f"{name} {'x'.join(map(str, weight.shape))}": _length_and_direction(weight)
        for name, weight in weights_of(model).items()
    }


def _length_and_direction(weight: Tensor) -> list[float]:
    flat = weight.flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].double().cpu()
    steps = torch.arange(1, len(sample) + 1, dtype=torch.float64)
    pattern = (steps * 0.6180339887498949).frac() - 0.5
    length = float(sample.norm())
    cosine = float(sample @ pattern) / (length * float(pattern.norm()) or 1.0)
    return [length, cosine]
