"""Commands on a terminal of a given width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def run_in_terminal(folder: Path, *words: str | Path, columns: int = 80) -> str:
    """All that a Python command prints on a terminal, without colours."""
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 40, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    found = b""
    try:
        while piece := _read(ours):
            found += piece
    finally:
        os.close(ours)
        process.wait()
    text = ESCAPES.sub("", found.decode(errors="replace"))
    return text.replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""
