"""Scripts run in the interpreter of the tests, which has loaded the libraries already.

For what a script says and writes. How one starts, is ended and gets its environment is
seen in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

from tests.scratch import ROOT


def run_script(name: str, *words: object, cwd: Path) -> CompletedProcess[str]:
    """scripts/NAME with words in a folder, as `python` would run it.

    An exception that the script lets through fails the test.
    """
    out, err = io.StringIO(), io.StringIO()
    command = [str(ROOT / "scripts" / name), *map(str, words)]
    code = 0
    with (
        contextlib.chdir(cwd),
        _arguments(command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            code = _status(end.code)
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())


def _status(code: str | int | None) -> int:
    """The exit status for what was given to sys.exit, a message included."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code or 0


@contextlib.contextmanager
def _arguments(command: list[str]) -> Iterator[None]:
    """sys.argv is the command, and sys.path[0] the folder of its script; both are
    restored."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
