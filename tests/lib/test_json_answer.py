"""Standard output of a command with --json: one document, however it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scratch import ROOT

COMMAND = """\
import sys
from lib.output import begin, exit_code
begin()
import argparse, subprocess
from lib.json_answer import add_json, answer, answers_json, fail, is_json

@answers_json("probe")
def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("how")
    add_json(parser)
    how = parser.parse_args(arguments).how
    answer(number=float("nan"), text="ä", asked=is_json())
    print("table")
    subprocess.run([sys.executable, "-c", "print('child')"])
    if how == "user":
        return fail("SEEDS is empty", 2)
    if how == "crash":
        raise RuntimeError("lost")
    if how == "stopped":
        raise KeyboardInterrupt
    return 3

sys.exit(exit_code(main))
"""


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("how", "code", "error"),
    [
        ("fine", 3, None),
        ("user", 2, "SEEDS is empty"),
        ("crash", 1, "RuntimeError: lost"),
        ("stopped", 130, "interrupted"),
    ],
)
def test_the_answer_is_all_of_standard_output(
    how: str, code: int, error: str | None
) -> None:
    done = command(how, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == {
        **{"schema": 1, "command": "probe", "exit_code": code, "error": error},
        **{"number": None, "text": "ä", "asked": True},
    }
    assert done.returncode == code
    assert "table" in done.stderr and "child" in done.stderr


def test_without_it_nothing_changes() -> None:
    done = command("user", "--", "--json")  # a word, and not the option
    assert done.returncode == 2 and done.stdout == ""
    done = command("user")
    assert done.stdout.split() == ["table", "child"] or "table" in done.stdout
    assert done.stderr == "SEEDS is empty\n"


@pytest.mark.parametrize("words", [("--json",), ("fine", "--bogus", "--js")])
def test_an_invalid_command_line_is_answered_too(words: tuple[str, ...]) -> None:
    done = command(*words)
    found = json.loads(done.stdout)
    assert (found["exit_code"], done.returncode) == (2, 2)
    assert "standard error" in found["error"] and "usage:" in done.stderr


def test_a_full_disk_under_the_answer_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.replace("return 3", "return 0"), "x"]
            + ["--json"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 6 and "No space left" in done.stderr
