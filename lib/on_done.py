"""A command of the user that is run when long work has ended.

It comes from the command line alone, never from a file, and no shell reads it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Of make and of the present command: another make, started by it, has its own.
NOT_HANDED_ON = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS")
PREFIX = "KABLATE_"


def on_done_command(text: str) -> list[str]:
    """The words of a command; none for an empty text.

    Raises ValueError for unbalanced quotes, and for a program that is not there: better
    now than after the work.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"ON_DONE={text}: {error}") from None
    if words and shutil.which(words[0]) is None:
        raise ValueError(
            f"ON_DONE={text}: there is no program {words[0]!r}. No shell reads the "
            "command: for pipes and variables, name a script"
        )
    return words


def run_on_done(words: Sequence[str], summary: Mapping[str, str]) -> None:
    """Run the command, with ``summary`` in its environment as KABLATE_NAME, and wait.

    Its failure is printed and changes nothing.
    """
    if not words:
        return
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in NOT_HANDED_ON and not name.startswith(PREFIX)
    }
    environ |= {PREFIX + name: value for name, value in summary.items()}
    sys.stdout.flush()
    try:
        code = subprocess.run(words, env=environ, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        print(f"ON_DONE: {words[0]} did not start: {error.strerror}", file=sys.stderr)
        return
    if code:
        print(f"ON_DONE: {shlex.join(words)} ended with {code}", file=sys.stderr)
