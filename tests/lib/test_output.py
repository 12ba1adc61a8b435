"""What is printed and cannot be written: told in a line, and no success."""

import os
import re
import subprocess
import sys

import pytest

from tests.scratch import ROOT

ENVIRON = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


def ended(output, *words):
    """Exit code and what was said of a script that prints into an open file."""
    command = [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]]
    done = subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, env=ENVIRON
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("kconfig.py", "list-defconfigs"),
        ("report.py", "--help"),
        ("verify.py", "--help"),  # which ends as what imports torch does
    ],
    ids=lambda words: words[0],
)
def test_output_on_a_full_disk_is_told_in_one_line(words):
    with open("/dev/full", "w") as full:
        code, said = ended(full, *words)
    name = words[0].removesuffix(".py")
    assert (code, said) == (6, f"{name}: cannot write: No space left on device\n")


def test_output_that_nobody_reads_is_told_in_one_line():
    read, write = os.pipe()
    os.close(read)
    code, said = ended(write, "kconfig.py", "list-defconfigs")
    os.close(write)
    assert (code, said) == (6, "kconfig: cannot write: Broken pipe\n")


def test_every_script_ends_like_that():
    """But the one that has to run before there is an environment."""
    ways = r"sys\.exit\(main|SystemExit\(main"
    bare = [
        p for p in (ROOT / "scripts").glob("*.py") if re.search(ways, p.read_text())
    ]
    assert [path.name for path in bare] == ["setup_env.py"]
