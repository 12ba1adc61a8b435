"""The edges of a command: standard streams, Ctrl-C, exit codes, interpreter options.

The first statements of a command (of scripts: scripts/_bootstrap.py) give Ctrl-C the
action of the system, to end without a traceback. They call begin() before the other
imports, which can take a second. A command ends with exit_code(main). In between no
write to stdout or stderr fails: not because the reader has gone, not on a full disk,
and not for want of a character in the encoding.
"""

from __future__ import annotations

# The interpreter has loaded all of these: signal would import enum, typing much more.
import _signal as signal
import codecs
import errno
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TextIO

_READER_IS_GONE = (errno.EPIPE, errno.EIO)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OPTIMIZE = "PYTHONOPTIMIZE"

# Exit codes of all commands.
EXIT_OK = 0
EXIT_FAILED = 1  # something was tried and failed; also any crash
EXIT_USAGE = 2  # nothing was started: an option, a setting, data or a device is wrong
EXIT_INTERRUPTED = 3  # stopped before the end; run the command again to continue
EXIT_OOM = 4  # out of memory
EXIT_NAN = 5  # a loss or a gradient is not finite
EXIT_DISK = 6  # the disk is full
EXIT_GRADIENTS = 7  # the gradients differ from those of the model's formulas
EXIT_DEVICE = 8  # a GPU failed
EXIT_CTRL_C = 128 + 2  # what shells report for SIGINT

FEWEST_COLUMNS = 20  # shorter texts fit every terminal

# ASCII for the signs of our tables, where the encoding has none for them.
PLAIN = {
    "−": "-",
    "±": "+-",
    "·": ".",
    "≈": "~",
    "–": "-",
    "≠": "!",
    "▲": "^",
    "▼": "v",
    "✕": "x",
    "…": "~",
}


def begin() -> None:
    """Prepare the process of a command; call it before its other imports.

    A standard stream that the caller has closed is /dev/null from here on, for
    children too. A parent may start the command with SIGINT blocked: one that came
    since then ends the process here. Exits with EXIT_USAGE under `python -O`; where
    PYTHONOPTIMIZE asks for that, the command is started again without it.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _null_stream(number))
    if sys.flags.optimize:
        _restart_with_assertions()
    for name in ("stdout", "stderr"):
        setattr(sys, name, _lasting(getattr(sys, name)))


def exit_code(main: Callable[[], int]) -> int:
    """The exit status of a command: what main returns, if its output was written.

    EXIT_DISK, with a line on stderr, if main succeeded but the disk under stdout was
    full. A reader that left early, as `head` does, changes nothing. EXIT_CTRL_C for a
    KeyboardInterrupt that main lets through.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt:
        _say("interrupted")
        code = EXIT_CTRL_C
    except SystemExit:  # argparse has printed its help or its error
        if lost := _lost():
            raise SystemExit(lost) from None
        raise
    return code or _lost()


def print_exact(text: str) -> None:
    """Print what another program reads, a path or a script: nothing is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text))
    else:  # a test that collects it
        sys.stdout.write(text)


def _lost() -> int:
    """EXIT_DISK and a line on stderr if a full disk has swallowed output, else 0."""
    error = None
    try:
        sys.stdout.flush()
    except OSError as raised:  # a stream that begin() has not prepared
        error = raised
    file = getattr(sys.stdout, "buffer", None)  # with python -u the raw file itself
    error = error or getattr(getattr(file, "raw", file), "lost", None)
    if error is None:
        return 0
    _say(f"cannot write: {error.strerror}")
    return EXIT_DISK


def _say(text: str) -> None:
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    print(f"{name}: {text}", file=sys.stderr)


def _restart_with_assertions() -> NoReturn:
    """Assertions are part of what certificates and saved files are checked by."""
    if OPTIMIZE not in os.environ:
        _say("python -O removes assertions that results depend on: leave out -O")
        raise SystemExit(EXIT_USAGE)
    _say(f"{OPTIMIZE} is ignored: results depend on assertions, which it removes")
    sys.stderr.flush()
    environ = {k: v for k, v in os.environ.items() if k != OPTIMIZE}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


# ---- streams --------------------------------------------------------------------


def _point_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def _null_stream(number: int) -> TextIO:
    """/dev/null as standard stream, so that no other file gets its number."""
    _point_to_null(number)
    return open(number, "w" if number else "r", encoding="utf-8", closefd=False)


def _lasting(stream: TextIO) -> TextIO:
    """The same text stream, on which no write fails; one without a file as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _LastingFile(stream.fileno(), "w", closefd=False)
    raw.name = stream.name
    unbuffered = stream.write_through  # python -u
    kind = _Terminal if stream.isatty() else io.TextIOWrapper
    return kind(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="escaped",
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


class _Terminal(io.TextIOWrapper):
    """Text stream to a terminal, which would break long lines within words."""

    _column = 0  # where the next character goes, as far as one write can tell

    def write(self, text: str) -> int:
        shown = text
        if not self._column and len(text) > FEWEST_COLUMNS:
            from lib.folding import fold_text

            shown = fold_text(text, self._columns())
        super().write(shown)
        self._column = len(text) - text.rfind("\n") - 1
        return len(text)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.fileno()).columns
        except (OSError, ValueError):  # it is closed or has gone
            return 0


class _LastingFile(io.FileIO):
    """A file that is written to as long as there is a reader and room for it.

    lost: the last error for want of space, None if there was none.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """All of it, however little the file takes at a time; its size in bytes."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # it does not block by itself
                    import select

                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            if error.errno in _READER_IS_GONE:
                _point_to_null(self.fileno())
            elif error.errno in FULL_DISK:
                self.lost = error
            else:
                raise
        return size


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Plain signs for those of PLAIN, bytes of file names as they are, \\xe4 for ä."""
    assert isinstance(error, UnicodeEncodeError)
    sign = error.object[error.start]
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # as os.fsdecode() made them
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    escape = sign.encode("ascii", "backslashreplace").decode("ascii")
    return PLAIN.get(sign, escape), error.start + 1


codecs.register_error("escaped", _escaped)
