"""Python processes that tests of lib start, read from and end."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.scratch import ROOT


def start(code: str, *args: object) -> subprocess.Popen[str]:
    """A python process that can import lib and prints to a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()
