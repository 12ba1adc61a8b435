"""Requirements of mechanisms on the attention call besides its output. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

WHOLE_CONTEXT = 0  # a window: no band, the transposed score everywhere
MOST_KEPT = 16  # mean weights of a row that kernels give as numbers, not a matrix


@dataclass(frozen=True, slots=True)
class Statistic:
    """Number for each row of attention weights, computed over its visible keys."""

    kind: str
    topk: int
    head_average: bool


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """Combined requirements of a model's mechanisms on the attention call.

    window: of a transposed score, in tokens (None: there is none; WHOLE_CONTEXT: no
        band). learned: its weight is a parameter.
    statistic: of each row of weights; at_weights: it is needed before the call, for
        factors on the logits of the rows, and not with the output.
    mean: the weights averaged over heads; kept: so many of a row are read (0: all).
    """

    window: int | None = None
    learned: bool = False
    statistic: Statistic | None = None
    at_weights: bool = False
    mean: bool = False
    kept: int = 0

    def is_banded(self, length: int) -> bool:
        """True if a transposed score leaves out some visible key of ``length``."""
        return self.window is not None and WHOLE_CONTEXT < self.window < length - 1

    @property
    def averages_heads(self) -> bool:
        """True if a statistic of the heads' mean weights is required with the output,
        which needs all of them."""
        found = self.statistic is not None and self.statistic.head_average
        return found and not self.at_weights


def few_kept(read: int, columns: int, averaged: bool) -> int:
    """How many mean weights of a row the kernels give as numbers, if so many are read
    (0: all); 0: they give the matrix, which a statistic of the heads' average needs."""
    return 0 if averaged or read > MOST_KEPT else min(read, columns)
