"""The processes that train one run together: data parallel under torchrun.

Gradients are averaged over the ranks in an update's last micro step. Every rank
takes the same decisions, so whatever differs between them (a signal, a file) is
agreed on first. A run of one process is a single rank, which asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=30)  # rank 0 may write a large checkpoint meanwhile
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Who we are among how many. local: our place on this machine."""

    world_size: int = 1
    rank: int = 0
    local: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Ranks:
        """As torchrun tells it; a single rank without it."""
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
        """Meet the others. Raises RuntimeError if they do not come."""
        if self.is_single:
            return
        import torch.distributed as dist

        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)

    def leave(self) -> None:
        """Take leave in good order; after a failure simply end."""
        if not self.is_single:
            torch.distributed.destroy_process_group()

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with averaged gradients."""
        if self.is_single:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def alone(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around a micro step: gradients stay here, except in the last one."""
        if self.is_single or last:
            return nullcontext()
        context: AbstractContextManager[Any] = getattr(model, "no_sync")()  # noqa: B009
        return context

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks, on every rank."""
        if self.is_single:
            return value
        torch.distributed.all_reduce(value)
        return value / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so on any rank."""
        if self.is_single:
            return flag
        found = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(found)
        return bool(found.item() > 0)

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
