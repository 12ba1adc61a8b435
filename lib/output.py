"""What is said to a user who may be gone: a closed terminal or pipe ends no work.

Where the output is all that there is to the work, losing it is told.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_LOST = 6  # as of a full disk


def exit_code(main: Callable[[], int]) -> int:
    """What main returns, or EXIT_LOST and one line on stderr if what it printed
    could not be written, to the last of it."""
    try:
        try:
            code = main()
        except SystemExit:  # argparse has said its help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except OSError as error:
        if error.filename is not None or error.errno not in (*_NOBODY_READS, *_FULL):
            raise
        _to_nobody(1)  # or the interpreter would try once more, and complain
        name = Path(sys.argv[0]).stem
        with suppress(OSError):
            print(f"{name}: cannot write: {error.strerror}", file=sys.stderr)
        return EXIT_LOST


def _to_nobody(descriptor: int) -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, descriptor)
    os.close(nobody)


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
                _to_nobody(self.fileno())

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding
