"""Which text is held out for validation. No torch here.

The share is one of the bytes of text, so that every tokenizer holds out the same, and
equal documents get the same split. By the first of these that applies:

    many documents    each by its own hash: a share of them, on average
    whole documents   in the order of their hashes, those that make up the share, if
                      they come to between 1/2.5 of it and 2.5 times of it
    ends              of each long document its last part, cut behind a blank line, or
                      else behind a line
    few and uncut     whole documents that come nearest to the share
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gpt2.data.corpus import BOUNDARIES

MANY_DOCUMENTS = 8192  # with more than both of these, hashes alone decide
MANY_BYTES = 32 << 20
TOLERANCE = 2.5  # how far from the share, as a factor, whole documents may be

Sizes = Sequence[tuple[bytes, int]]  # digest and bytes of each document


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether the hash of a document, one among many, puts it into validation."""
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def by_rank(documents: Sizes, target: float) -> set[bytes]:
    """Whole documents for validation, by digest: in the order of their hashes each
    that still fits into target bytes. If these are too few, one more that is nearer.

    documents: with at least two different ones; not all of them are chosen.
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
    """Compared as factors: nothing at all is as far as can be."""
    if than == 0:
        return True
    return abs(math.log(size / target)) < abs(math.log(than / target))


def meets(size: float, target: float) -> bool:
    """Whether so many bytes are near enough to the share."""
    return target / TOLERANCE <= size <= target * TOLERANCE


def by_tail(documents: Sizes, target: float) -> int:
    """For passages of one text: how many come before validation, which is the last
    ones that fit the target, at least one."""
    size, cut = 0, len(documents) - 1
    for index in range(len(documents) - 1, 0, -1):
        size += documents[index][1]
        if size > target:
            break
        cut = index
    return cut


def end_share(documents: Sizes, target: float) -> float:
    """The part of each long document, one of more than target bytes, that makes up
    the target; 0 where there is none."""
    long = sum(size for _, size in documents if size > target)
    return min(0.5, target / long) if long else 0.0


def cut_end(text: str, share: float) -> int:
    """Where the last part of a text begins: of about this share of its characters,
    behind a blank line, or else a line end; 0 where it cannot be cut."""
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
