"""Progress of a run: updates, tokens, seconds, epochs. Plain data that checkpoints
keep, so that a resumed run continues the counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Progress:
    """Times are of all attempts, less what was spent on updates that had to be
    done again. An epoch has as many tokens as the training split; windows are
    drawn at random, so it is a count and not a pass."""

    step: int = 0  # optimizer updates done
    tokens: int = 0
    seconds: float = 0.0  # in the loop, evaluations and checkpoints included
    train_seconds: float = 0.0  # in updates alone
    epoch_began: float = 0.0  # ``seconds`` when the present epoch began
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    wait_seconds: float = 0.0  # of those, waiting for data
    # Shares of a time budget spent before each update up to the first record of the
    # loss: with them an audit can repeat these updates.
    budget_shares: list[float] = field(default_factory=list)
    updates_summed: int = 0  # since the last record of the training loss
    timed_tokens: int = 0  # since then, and the seconds they took
    timed_seconds: float = 0.0
    train_loss: float | None = None
    best_val_loss: float | None = None
    last: dict[str, Any] | None = None  # the last evaluation's record
    skipped_updates: int = 0  # of ``step``, left out since fp16 overflowed
    deviation: float | None = None  # largest from the formulas (as_trained.py)

    def count(self, tokens: int) -> None:
        """One more update over so many tokens."""
        self.step += 1
        self.tokens += tokens
        self.timed_tokens += tokens
        self.updates_summed += 1

    def book(self, seconds: float, *, training: bool) -> None:
        """Time spent on updates, or on evaluations and checkpoints."""
        self.seconds += seconds
        if training:
            self.train_seconds += seconds
            self.timed_seconds += seconds

    def note_share(self, share: float) -> None:
        """The share of a time budget spent before the next update."""
        if self.train_loss is None:
            self.budget_shares.append(share)

    def times(self) -> dict[str, float]:
        """Both times under the names of the records."""
        return {"seconds": self.seconds, "train_seconds": self.train_seconds}

    def start_interval(self) -> None:
        """Reset the sums between two records of the loss."""
        self.updates_summed = self.timed_tokens = 0
        self.timed_seconds = 0.0
        self.budget_shares = []

    def note_evaluation(self, record: dict[str, Any]) -> None:
        """Keep the record, and its loss if it is the best so far."""
        loss, best = record["val_loss"], self.best_val_loss
        self.best_val_loss = loss if best is None else min(best, loss)
        self.last = record

    def ended_epochs(self, tokens: int, epoch_tokens: int) -> bool:
        """Whether the last update, over ``tokens`` tokens, ended an epoch."""
        before = self.tokens - tokens
        return self.tokens // epoch_tokens > before // epoch_tokens


class Clock:
    """Seconds between two calls of lap()."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def peek(self) -> float:
        """Seconds since the last lap, which goes on."""
        return time.perf_counter() - self._last

    def lap(self) -> float:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent
