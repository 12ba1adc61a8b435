"""Checkpoints written while training goes on: a copy in host memory, and a thread.

A checkpoint of GPT-2 124M is 1.5 GB, which takes seconds to hash and to flush to disk;
its copy from a GPU to pinned memory takes tens of milliseconds. The host memory is that
of one checkpoint (12 bytes for each parameter with AdamW), used again for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from lib.gpu.device import DeviceInfo


def writes_behind(device: DeviceInfo) -> bool:
    """Whether checkpoints are written by a thread. On a CPU it would take the core that
    trains."""
    return device.is_gpu


class Writer:
    """Carries out writes in order, one at a time, in a thread if ``behind``."""

    def __init__(self, behind: bool) -> None:
        self.behind = behind
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[object] | None = None

    def write(self, job: Callable[[], object]) -> None:
        """Begin a write after the one before it; raises what that one raised."""
        self.wait()
        if not self.behind:
            job()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checkpoint-writer")
        self._last = self._pool.submit(job)

    def wait(self) -> None:
        """Wait until all is written; raises what the write raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Wait at the end of the block. An error of the block itself comes first."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.wait()
            raise
        self.wait()


class HostCopies:
    """Copies of nested values in host memory, which the next copies overwrite."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, value: Any) -> Any:
        """The value with copies of its tensors; dicts, lists and tuples are new."""
        copied = self._copy(value, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._buffer(value.detach(), place).copy_(value, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self._copy(x, (*place, key)) for key, x in value.items()}
        if isinstance(value, list | tuple):
            copied = (self._copy(x, (*place, i)) for i, x in enumerate(value))
            return type(value)(copied)
        return value

    def _buffer(self, like: Tensor, place: tuple[Any, ...]) -> Tensor:
        kept = self._buffers.get(place)
        if kept is None or (kept.shape, kept.dtype) != (like.shape, like.dtype):
            kept = self._buffers[place] = _empty(like)
        return kept


def _empty(like: Tensor) -> Tensor:
    try:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
    except RuntimeError:  # the system's limit on pinned memory
        return torch.empty(like.shape, dtype=like.dtype)
