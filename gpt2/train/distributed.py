"""Data-parallel ranks of one run, started by torchrun.

Each rank adds up the gradients of its micro steps, which are recorded and compiled as
those of a single process, and the sums are added over the ranks once an update, after
the last micro step. torch's DistributedDataParallel overlaps that with the backward
pass, but a compiled backward pass is one autograd node unless it is split at each
bucket, and no graph can be recorded around it: two H200s reached 1.58 times one.

All ranks take the same decisions, so anything that may differ between them (a signal, a
file) is agreed on first. A run of one process is a single rank and does not
communicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)  # rank 0 may write a large checkpoint meanwhile
BUCKET = 2**26  # numbers in a message, 256 MB in fp32: enough for a link's full speed
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size of a number
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Rank of this process and number of ranks. local: rank on this machine."""

    world_size: int = 1
    rank: int = 0
    local: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Ranks:
        """Ranks from torchrun's environment variables; a single rank without them."""
        names = {"world_size": "WORLD_SIZE", "rank": "RANK", "local": "LOCAL_RANK"}
        if any(name not in environ for name in names.values()):
            return cls()
        return cls(**{field: int(environ[name]) for field, name in names.items()})

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    def join(self, backend: str, device: torch.device) -> None:
        """Initialise the process group. Raises RuntimeError if other ranks do not
        join."""
        if self.is_single:
            return
        import torch.distributed as dist

        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)

    def leave(self) -> None:
        """Destroy the process group; after a failure do nothing."""
        if not self.is_single:
            torch.distributed.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all ranks; each ``.grad`` becomes a view of the sum.

        The tensors that were ``.grad`` are left as they are: a recorded graph writes
        to them again.
        """
        if self.is_single:
            return
        sums, pending = [], []
        for bucket in buckets([p for p in parameters if p.grad is not None]):
            flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
            pending.append(torch.distributed.all_reduce(flat, async_op=True))
            sums.append((bucket, flat))
        for work in pending:
            work.wait()
        for bucket, flat in sums:
            parts = flat.split([p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def check_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raise RuntimeError unless all ranks hold the same weights, bit for bit.

        They start from the same seed and apply the same gradients, and nothing else
        keeps them equal.
        """
        if self.is_single:
            return
        mine = torch.stack([_bits(p.detach()) for p in parameters]).tolist()
        ranks = self.gather(mine)
        if differing := [n for n, other in enumerate(ranks) if other != ranks[0]]:
            raise RuntimeError(f"ranks {differing} hold other weights than rank 0")

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""
        if not self.is_single:
            torch.distributed.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks, on every rank."""
        return value if self.is_single else self.sum(value) / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """True if ``flag`` is set on any rank."""
        if self.is_single:
            return flag
        return self.sum(torch.tensor(float(flag), device=device)).item() > 0

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.is_single:
            return value
        box: list[Any] = [value if self.is_first else None]
        torch.distributed.broadcast_object_list(box)
        found: T = box[0]
        return found

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.is_single:
            return [value]
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found


def buckets(
    parameters: Sequence[nn.Parameter], most: int = BUCKET
) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, in groups of at most that many numbers or of one."""
    group: list[nn.Parameter] = []
    for parameter in parameters:
        if group and sum(p.numel() for p in group) + parameter.numel() > most:
            yield group
            group = []
        group.append(parameter)
    if group:
        yield group


def _bits(weight: Tensor) -> Tensor:
    """The sum of a weight's numbers read as integers, modulo 2**64: it changes with
    any bit, and its order of addition does not matter."""
    return weight.contiguous().view(WORDS[weight.element_size()]).sum(dtype=torch.int64)
