"""Run pip, and read requirements and pinned versions. Standard library only."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

_START = time.monotonic()


def are_pinned(
    names: Iterable[str], constraints: str, there: Mapping[str, str]
) -> bool:
    """Whether all are there in just the versions that a constraints file pins."""
    pins = pins_in(constraints)
    return all(there.get(name_of(n), "no") == pins.get(name_of(n)) for n in names)


def pins_in(constraints: str) -> dict[str, str]:
    """Version by name in the text of a constraints file."""
    lines = [line for line in constraints.splitlines() if "==" in line]
    return {name_of(line): line.partition("==")[2].strip() for line in lines}


def name_of(requirement: str) -> str:
    """The normalised name in a requirement: "Torch>=2" is about "torch"."""
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def install(python: Path, *arguments: str) -> bool:
    """Whether `pip install` succeeds: with its own output on a terminal, else with a
    line for each of its steps that can take long."""
    command = [str(python), *"-m pip install --disable-pip-version-check".split()]
    if sys.stdout.isatty():
        return succeeds(*command, *arguments, show=True)
    command += ["--progress-bar=off", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if step := pip_step(line):
                report(step)
    return process.returncode == 0


def pip_step(line: str) -> str:
    """The step that a line of pip's output begins, if it can take long; "" if not."""
    large = r"\s*Downloading (?:\S*/)?([^-\s]+-[^-\s]+)\S* (\([\d.]+ [MG]B\))"
    if found := re.match(large, line):
        return f"downloading {found[1]} {found[2]}"
    if found := re.match(r"Installing collected packages: (.*)", line):
        packages = found[1].count(",") + 1
        return f"installing {packages} package{'s' * (packages > 1)}"
    return ""


def report(step: str) -> None:
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - _START:5.0f} s: {step}", flush=True)


def succeeds(*command: str | Path, show: bool = False) -> bool:
    """Whether a command succeeds; its output is shown or dropped."""
    out = None if show else subprocess.DEVNULL
    return subprocess.run(command, stdout=out, stderr=out).returncode == 0
