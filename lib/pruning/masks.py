"""Exact selection of the k lowest scores over several tensors.

Nothing is concatenated or sorted: the k-th lowest value is found by bisection
over the float32 numbers themselves, 32 counts over the scores where they lie.
Apart from the scores, that needs one bool per weight of a layer; a sort of
all of them would need several copies with 64-bit indices.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

_INFINITY = 0x7F800000  # bits of float32 +inf


def _number(key: int) -> float:
    """The float32 of rank `key`: sign and magnitude bits as one integer."""
    size: float = struct.unpack("<f", struct.pack("<I", abs(key)))[0]
    return -size if key < 0 else size


def kth_lowest(scores: Sequence[Tensor], k: int) -> float:
    """The k-th lowest (k from 1) of all float32 `scores`; none may be NaN.

    One host synchronisation per bisection step, 32 in all.
    """
    assert 1 <= k <= sum(score.numel() for score in scores), k
    low, high = -_INFINITY, _INFINITY
    while low < high:
        middle = (low + high) // 2
        bound = _number(middle)
        counts = torch.stack([(score <= bound).sum() for score in scores])
        if int(counts.sum()) >= k:
            high = middle
        else:
            low = middle + 1
    return _number(low)


def keep_masks(scores: Sequence[Tensor], pruned: int) -> list[Tensor]:
    """Bool masks that drop exactly the `pruned` lowest scores, False = pruned.

    Of equal scores at the threshold those that come first, by position in
    `scores` and then row by row, are dropped: never more, never fewer.
    """
    if pruned == 0:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    threshold = kth_lowest(scores, pruned)
    masks = [score >= threshold for score in scores]
    ties = pruned - sum(int((~mask).sum()) for mask in masks)
    for score, mask in zip(scores, masks, strict=True):
        if ties == 0:
            break
        equal = (score == threshold).flatten().nonzero().flatten()[:ties]
        dropped = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        dropped[equal] = True
        mask &= ~dropped.view(score.shape)
        ties -= equal.numel()
    return masks
