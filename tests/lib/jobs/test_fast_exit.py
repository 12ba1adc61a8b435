"""lib/jobs/fast_exit.py: a quick end leaves nothing out that anybody waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import atexit, sys, threading, time
from lib.jobs.fast_exit import run_to_end

class Module:
    def __del__(self):
        print("taken apart")

module = Module()

def late():
    time.sleep(0.2)
    print("a thread")

def main():
    atexit.register(print, "at exit")
    print("main")
    threading.Thread(target=late).start()
    {end}

run_to_end(main)
"""


def ended(end: str) -> tuple[int, list[str], str]:
    """Exit code, lines and errors of the program with this end of main."""
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_threads_and_exit_functions_and_output_are_waited_for() -> None:
    assert ended("return 5") == (5, ["main", "a thread", "at exit"], "")


def test_a_process_that_leaves_waits_for_nothing() -> None:
    assert ended("from lib.jobs.fast_exit import leave; leave(5)") == (5, ["main"], "")


def test_an_exception_ends_it_as_ever() -> None:
    code, lines, errors = ended("raise ValueError('why')")
    assert code == 1 and "ValueError: why" in errors
    assert lines == ["main", "a thread", "at exit", "taken apart"]
