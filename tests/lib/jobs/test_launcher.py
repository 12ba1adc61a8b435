"""lib/jobs/launcher.py: it ends as the rank did that ended the others."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from lib.jobs.launcher import cause
from tests.scratch import ROOT

RANKS = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def test_it_dies_as_its_rank_died(tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(RANKS)
    command = [
        sys.executable,
        str(ROOT / "lib" / "jobs" / "launcher.py"),
        "2",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


class End(NamedTuple):
    exitcode: int
    timestamp: int = 100


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([End(1), End(-9)], -9),  # the first lost its peer before torchrun looked
        ([End(-15), End(4)], 4),  # asked to end
        ([End(3), End(5)], 5),
        ([End(-9, 131), End(1)], 1),  # did not end when asked to
        ([End(3), End(3)], 3),
        ([End(-15), End(3)], -15),
    ],
)
def test_what_follows_from_another_end_is_not_the_cause(
    ends: list[End], expected: int
) -> None:
    assert cause(ends) == expected
