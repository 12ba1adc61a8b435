"""JSON answers of commands, for the programs that drive them (docs/json.md).

With --json a command prints one document on standard output and nothing else, whether
it succeeds or fails; what it and its child processes print otherwise goes to standard
error.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar, cast

from lib.atomic_files import DiskFull, finite
from lib.output import EXIT_CTRL_C, EXIT_DISK, EXIT_FAILED, EXIT_USAGE, print_exact

SCHEMA = 1  # increased when a field changes its meaning or goes; new ones may come
OPTION = "--json"
STDOUT, STDERR = 1, 2
Main = TypeVar("Main", bound=Callable[..., int])

_answers: list[dict[str, Any]] = []  # of the commands in progress that print JSON


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json, which `answers_json` reads."""
    words = "print one JSON document instead (docs/json.md)"
    parser.add_argument(OPTION, action="store_true", help=words)


def is_json() -> bool:
    """True while a command with --json runs: fields are worth computing."""
    return bool(_answers)


def answer(**fields: Any) -> None:
    """Add fields to the answer; without --json nothing happens."""
    if _answers:
        _answers[-1].update(fields)


def fail(error: object, code: int) -> int:
    """Report an error of the user on standard error and in the answer; the code."""
    print(error, file=sys.stderr)
    answer(error=str(error))
    return code


def refuse(command: str, error: Exception) -> int:
    """Report what a command cannot do for the user; the code, also for a full disk."""
    code = EXIT_DISK if isinstance(error, DiskFull) else EXIT_USAGE
    return fail(f"{command}: {error}", code)


def answers_json(command: str) -> Callable[[Main], Main]:
    """Decorator of a command's main: with --json it prints the answer at the end.

    The answer has the fields schema, command, exit_code and error, and those that the
    command gave to ``answer``. An exception of main is in it, too, and is raised again.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(arguments: Sequence[str] | None = None) -> int:
            if not _asks_for_json(sys.argv[1:] if arguments is None else arguments):
                return main(arguments)
            found: dict[str, Any] = {"schema": SCHEMA, "command": command}
            found |= {"exit_code": 0, "error": None}
            _answers.append(found)
            try:
                with _on_stderr():
                    found["exit_code"] = main(arguments)
            except BaseException as error:
                found |= _ending(error, found)
                raise
            finally:
                _answers.pop()
                print_exact(json.dumps(finite(found), indent=1, allow_nan=False) + "\n")
                sys.stdout.flush()
            return int(found["exit_code"])

        return cast(Main, wrapped)

    return decorate


def _asks_for_json(words: Sequence[str]) -> bool:
    """True for --json before a "--", also abbreviated, as argparse accepts it."""
    words = list(words)
    options = words[: words.index("--")] if "--" in words else words
    return any(len(word) > 2 and OPTION.startswith(word) for word in options)


def _ending(error: BaseException, found: dict[str, Any]) -> dict[str, Any]:
    """Exit code and error of a command that ended by an exception."""
    if isinstance(error, SystemExit):  # argparse has printed its help or its error
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
        said = "the command line is invalid, see standard error" if code else None
        return {"exit_code": code, "error": found["error"] or said}
    if isinstance(error, KeyboardInterrupt):
        return {"exit_code": EXIT_CTRL_C, "error": "interrupted"}
    return {"exit_code": EXIT_FAILED, "error": f"{type(error).__name__}: {error}"}


@contextmanager
def _on_stderr() -> Iterator[None]:
    """Standard output goes to standard error, that of child processes, too."""
    if not _is_descriptor(sys.stdout, STDOUT):  # collected by a test
        with redirect_stdout(sys.stderr):
            yield
        return
    sys.stdout.flush()
    kept = os.dup(STDOUT)  # which no child inherits
    os.dup2(STDERR, STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, STDOUT)
        os.close(kept)


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (OSError, AttributeError, ValueError):  # io.UnsupportedOperation is both
        return False
