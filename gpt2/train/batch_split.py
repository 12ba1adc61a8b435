"""Split of an effective batch into micro batch x accumulation x ranks.

A resource, not part of a run's identity: the split may change between attempts, but the
batch of an update does not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSplit:
    """Sizes count sequences; accumulation counts micro steps of one rank."""

    micro_batch: int
    accumulation: int
    world_size: int = 1
    rank: int = 0

    @property
    def effective_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    def with_micro_batch(self, micro_batch: int) -> BatchSplit:
        """The same batch in other micro batches; ValueError as split_batch."""
        return split_batch(
            self.effective_batch, micro_batch, self.world_size, self.rank
        )

    def smaller(self) -> BatchSplit | None:
        """Next split that needs less memory: half the micro batch, or the largest
        divisor below that; None for a micro batch of 1."""
        return self._first_of(range(self.micro_batch // 2, 0, -1))

    def larger(self) -> BatchSplit | None:
        """Next split that makes fewer passes: twice the micro batch, or the smallest
        divisor above that; None if there is only one pass."""
        share = self.micro_batch * self.accumulation
        return self._first_of(range(2 * self.micro_batch, share + 1))

    def _first_of(self, sizes: range) -> BatchSplit | None:
        share = self.micro_batch * self.accumulation
        fitting = (size for size in sizes if share % size == 0)
        found = next(fitting, None)
        return None if found is None else self.with_micro_batch(found)


def split_batch(
    effective_batch: int, micro_batch: int, world_size: int = 1, rank: int = 0
) -> BatchSplit:
    """Split with this micro batch; ValueError if the batch is not divisible."""
    together = micro_batch * world_size
    if micro_batch < 1 or effective_batch % together:
        raise ValueError(
            f"micro batch {micro_batch} x {world_size} ranks does not divide the "
            f"effective batch of {effective_batch} sequences (BATCH_SIZE x "
            "GPT2_GRADIENT_ACCUMULATION): choose a divisor of it"
        )
    return BatchSplit(
        micro_batch=micro_batch,
        accumulation=effective_batch // together,
        world_size=world_size,
        rank=rank,
    )
