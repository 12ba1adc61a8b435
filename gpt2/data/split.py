"""Selection of the text that is held out for validation. Torch-free.

The share is measured in bytes of text, so that every tokenizer holds out the same text,
and equal documents get the same split. The first of these that applies is used:

    many documents    each by its own hash, which gives the share on average
    whole documents   in the order of their hashes, up to the share, if their size is
                      between 1/2.5 and 2.5 times the share
    ends              the last part of each long document, cut after a blank line, or
                      else after a line
    few and uncut     whole documents whose size is nearest to the share
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gpt2.data.corpus import BOUNDARIES

# With more than both of these, each document is decided by its own hash. The share p of
# n equal documents then has a relative standard deviation of sqrt((1 - p) / (p n)), 5%
# for p = 1/20 and n = 8192.
MANY_DOCUMENTS = 8192
MANY_BYTES = 32 << 20
TOLERANCE = 2.5  # largest factor between the share and whole documents

Sizes = Sequence[tuple[bytes, int]]  # digest and bytes of each document


def is_held_out(digest: bytes, share: float) -> bool:
    """True if the hash of a document, one of many, assigns it to validation."""
    # The digest is a hash, so its first 8 bytes are uniform in [0, 2^64).
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def by_rank(documents: Sizes, target: float) -> set[bytes]:
    """Digests of whole documents for validation: in the order of their hashes, each
    that still fits into ``target`` bytes, plus one more if that is nearer to the
    target.

    documents: at least two different ones; not all of them are selected.
    """
    sizes: Counter[bytes] = Counter()
    for digest, size in documents:
        sizes[digest] += size
    chosen: set[bytes] = set()
    total = 0
    for digest in sorted(sizes):
        if total + sizes[digest] <= target:
            chosen.add(digest)
            total += sizes[digest]
    rest = sizes.keys() - chosen
    smallest = min(rest, key=lambda d: (sizes[d], d))
    if total < target / TOLERANCE and len(rest) > 1:
        if _is_nearer(total + sizes[smallest], total, target):
            chosen.add(smallest)
    return chosen


def _is_nearer(size: int, than: int, target: float) -> bool:
    """True if ``size`` is nearer to ``target``, as a factor; 0 is infinitely far."""
    if than == 0:
        return True
    return abs(math.log(size / target)) < abs(math.log(than / target))


def meets(size: float, target: float) -> bool:
    """True if ``size`` is near enough to the share."""
    return target / TOLERANCE <= size <= target * TOLERANCE


def by_tail(documents: Sizes, target: float) -> int:
    """Number of training passages of one text; the last ones that fit into ``target``,
    at least one, are for validation."""
    size, cut = 0, len(documents) - 1
    for index in range(len(documents) - 1, 0, -1):
        size += documents[index][1]
        if size > target:
            break
        cut = index
    return cut


def end_share(documents: Sizes, target: float) -> float:
    """Share of each document longer than ``target`` that adds up to it; 0: none."""
    long = sum(size for _, size in documents if size > target)
    return min(0.5, target / long) if long else 0.0


def cut_end(text: str, share: float) -> int:
    """Start of the last part of a text with about this share of its characters, after a
    blank line or else a line end; 0 if it cannot be cut."""
    wanted = len(text) * (1 - share)
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    for boundary in BOUNDARIES:
        ends = (match.end() for match in boundary.finditer(text))
        usable = [end for end in ends if first < end < last]
        if usable:
            nearest = min(usable, key=lambda end: abs(end - wanted))
            if meets(len(text) - nearest, len(text) * share):
                return nearest
    return 0
