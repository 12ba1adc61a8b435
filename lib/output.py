"""What is said to a user who may be gone: a closed terminal or pipe ends no work."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let no write to stdout or stderr fail: what nobody can read is lost.

    Children inherit that, once it was noticed here.
    """
    out, err = _Lasting(sys.stdout), _Lasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


class _Lasting(io.TextIOBase):
    """A text stream that outlives its reader."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._going_on():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            self._stream.flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a disk that is full may have room again
            if error.errno in _NOBODY_READS:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding
