"""Errors that end a run early, and how each is reported.

Each has one exit code, one status and one class of failure, on which the runner and the
report act.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.atomic_files import DiskFull
from lib.output import (
    EXIT_DEVICE,
    EXIT_DISK,
    EXIT_FAILED,
    EXIT_GRADIENTS,
    EXIT_INTERRUPTED,
    EXIT_NAN,
    EXIT_OOM,
    EXIT_USAGE,
    FULL_DISK,
)

_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
)
# Errors of a GPU, its driver and their libraries; those among them that a program
# causes on any GPU, and NCCL's, with which a rank ends after another one.
_DEVICE_SIGNS = (
    "CUDA error",
    "HIP error",
    "Triton Error [",
    "driver initialization",
    "CUBLAS_STATUS_",
    "HIPBLAS_STATUS_",
    "CUDNN_STATUS_",
    "miopenStatus",
    "cudaGetDeviceCount",
    "hipGetDeviceCount",
    "No CUDA GPUs",
    "No HIP GPUs",
)
_CODE_SIGNS = (
    "device-side assert",
    "no kernel image",
    "invalid device function",
    "invalid configuration argument",
    "_STATUS_NOT_SUPPORTED",
    "_STATUS_BAD_PARAM",
    "_STATUS_INVALID_VALUE",
    "out of resource",
    "NCCL",
)


class Refused(ValueError):
    """The user has to change something; the message says what."""


class Interrupted(Exception):
    """The run was asked to end; its checkpoint is on disk."""


class OutOfMemory(MemoryError):
    """Memory ran out and no smaller micro batch is left to try."""


class LessMemory(MemoryError):
    """Memory ran out; the next attempt must use less of it."""


class DeviceFailed(RuntimeError):
    """The GPU that was set aside for the run cannot be used."""


class FolderGone(RuntimeError):
    """The run directory was removed or moved while the run trained."""


class NonFinite(ArithmeticError):
    """A loss, a gradient norm or a weight is NaN or infinite."""


class NotAsTrained(ArithmeticError):
    """The code that trains does not compute the gradients of the formulas."""


@dataclass(frozen=True, slots=True)
class End:
    """End of a run, for status.json and the exit code."""

    exit_code: int
    status: str
    failure: str | None
    message: str


def end_of(error: BaseException) -> End:
    """End of a run, from the exception that ended it."""
    text = _first_line(error)
    if isinstance(error, Interrupted):
        return End(EXIT_INTERRUPTED, "interrupted", None, text)
    if isinstance(error, NonFinite):
        return End(EXIT_NAN, "failed", "nan", text)
    if isinstance(error, NotAsTrained):
        return End(EXIT_GRADIENTS, "failed", "gradients", text)
    if isinstance(error, LessMemory):
        return End(EXIT_OOM, "failed", "oom", text)
    if is_out_of_memory(error):
        return End(EXIT_OOM, "oom", "oom", text)
    if is_disk_full(error):
        return End(EXIT_DISK, "failed", "disk", text)
    if isinstance(error, FolderGone):
        return End(EXIT_FAILED, "failed", "crash", text)
    if isinstance(error, Refused):
        return End(EXIT_USAGE, "failed", "crash", str(error))
    if is_device_failure(error):
        return End(EXIT_DEVICE, "failed", "device", f"{type(error).__name__}: {text}")
    return End(EXIT_FAILED, "failed", "crash", f"{type(error).__name__}: {text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or the host ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in _MEMORY_SIGNS
    )


def is_device_failure(error: BaseException) -> bool:
    """Whether the GPU or its driver failed, which another GPU may not."""
    if isinstance(error, DeviceFailed):
        return True
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and any(sign in text for sign in _DEVICE_SIGNS)
        and not any(sign in text for sign in _CODE_SIGNS)
    )


def is_disk_full(error: BaseException) -> bool:
    """No space, quota or allowed file size left.

    safetensors has the number in its text only, and torch.save raises another error
    while it handles the true one.
    """
    seen: BaseException | None = error
    passed: list[BaseException] = []  # a chain may lead back to itself
    while seen is not None and seen not in passed:
        if isinstance(seen, OSError) and seen.errno in FULL_DISK:
            return True
        if any(f"(os error {number})" in str(seen) for number in FULL_DISK):
            return True
        passed.append(seen)
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def disk_full_at(path: Path, rest: str) -> Iterator[None]:
    """Raise DiskFull, about ``path``, for whatever a library makes of a full disk;
    rest: what became of the content."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise DiskFull.of(path, rest) from error
        raise


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error).strip().partition("\n")[0] or type(error).__name__
