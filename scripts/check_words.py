"""Refuse the banned words of pyproject.toml in docs, Kconfig help and docstrings.

The words are `banned_words` of [tool.kablate.commit]. Markdown, Kconfig files and
defconfigs are searched whole, Python files in their docstrings only. Exit status:
0 none found, 1 some found, 2 bad usage.
"""

import _signal  # before all other imports, see lib/output.py

if __name__ == "__main__" and callable(_signal.getsignal(_signal.SIGINT)):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
from lib.output import begin, exit_code

if __name__ == "__main__":
    begin()

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.house_rules import (
    HouseRulesError,
    Violation,
    banned_in,
    docstring_spans,
    read_rules,
    shown,
    tracked_files,
)

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        words = read_rules(ROOT).banned_words
        files = options.files or [ROOT / name for name in tracked_files(ROOT)]
        findings = [found for path in files for found in search(path, words)]
    except (HouseRulesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    return 1 if findings else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="Without FILES: every file that git tracks.",
    )
    parser.add_argument("files", nargs="*", metavar="FILES", type=Path)
    return parser.parse_args(arguments)


def search(path: Path, words: Sequence[str]) -> list[Violation]:
    """Findings in what people read as documentation of a file."""
    python = path.suffix in (".py", ".pyi")
    if not python and not is_prose(path):
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    found = banned_in(shown(path), enumerate(text.split("\n"), 1), words)
    if python and found:  # else it need not be parsed, which takes by far the longest
        spans = list(docstring_spans(text))
        found = [one for one in found if any(i <= one.line <= j for i, j in spans)]
    return found


def is_prose(path: Path) -> bool:
    kconfig = path.name.startswith("Kconfig") or path.parent.name == "defconfigs"
    return kconfig or path.suffix in (".kconfig", ".md", ".rst")


if __name__ == "__main__":
    sys.exit(exit_code(main))
