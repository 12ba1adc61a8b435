"""gpt2/model/low_rank_hidden.py: the factored form against the hidden state itself."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.low_rank_hidden import Factored, Hidden, added, read
from tests.gpt2.helpers import assert_agree, normal


def seen(
    hidden: Hidden, readers: dict[str, Tensor], terms: list[Tensor]
) -> list[Tensor]:
    """One reads before anything is added, one in between, two at the end."""
    low, up, more, wide = terms
    first = read(hidden, "first", readers["first"])
    hidden = added(hidden, low, up, 0.3)
    second = read(hidden, "second", readers["second"])
    hidden = added(hidden, more + first.sum(-1, keepdim=True), wide, 0.7)
    last = [read(hidden, name, readers[name]) for name in ("third", "fourth")]
    return [first, second, *last]


def test_readers_see_what_was_added_before_they_read() -> None:
    base = normal(2, 5, 11)
    names = ("first", "second", "third", "fourth")
    readers = {name: normal(n + 2, 11, seed=n + 7) for n, name in enumerate(names)}
    terms = [
        normal(2, 5, 2, seed=3),
        normal(11, 2, seed=4),
        normal(2, 5, 3, seed=5),
        normal(11, 3, seed=6),
    ]
    leaves = [base, *readers.values(), *terms]
    factored = Factored(readers, lambda rows: F.linear(base, rows))
    ours = seen(factored, readers, terms)
    assert_agree(ours, leaves, seen(base, readers, terms), leaves, 1e-12)


def test_a_reader_out_of_turn_is_refused() -> None:
    readers = {name: normal(2, 4) for name in ("cross", "proj")}
    with pytest.raises(AssertionError, match="cross reads before proj"):
        Factored(readers, lambda rows: normal(1, 2, len(rows))).read("proj")
