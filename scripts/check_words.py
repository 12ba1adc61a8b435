"""Refuse the banned words and the wordings to avoid that pyproject.toml lists.

`banned_words` of [tool.kablate.commit] apply to Markdown, Kconfig files, defconfigs and
the docstrings of Python. `habits` of [tool.kablate.words] apply to these, the Makefile,
HTML and the whole text of Python, except for the files that the table lists. Exit
status: 0 none found, 1 some found, 2 bad usage.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.house_rules import (
    CommitRules,
    HouseRulesError,
    Violation,
    WordRules,
    banned_in,
    docstring_spans,
    habits_in,
    read_rules,
    shown,
    tracked_files,
)
from lib.output import exit_code

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        rules = read_rules(ROOT)
        files = options.files or [ROOT / name for name in tracked_files(ROOT)]
        findings = [found for path in files for found in search(path, rules)]
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


def search(path: Path, rules: CommitRules) -> list[Violation]:
    """Findings in one file, in the order of its lines."""
    python = path.suffix in (".py", ".pyi")
    if not python and not is_prose(path) and not is_page(path):
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    found = []
    if not is_page(path):
        lines = enumerate(text.split("\n"), 1)
        found = banned_in(shown(path), lines, rules.banned_words)
    if python and found:  # parsing takes by far the longest, so only where needed
        spans = list(docstring_spans(text))
        found = [one for one in found if any(i <= one.line <= j for i, j in spans)]
    if not is_excepted(path, rules.words):
        found += habits_in(shown(path), 1, text, rules.words)
    return sorted(found)


def is_prose(path: Path) -> bool:
    kconfig = path.name.startswith("Kconfig") or path.parent.name == "defconfigs"
    return kconfig or path.suffix in (".kconfig", ".md", ".rst")


def is_page(path: Path) -> bool:
    """True for files with text for users that are neither prose nor Python."""
    return path.name == "Makefile" or path.suffix in (".html", ".js")


def is_excepted(path: Path, words: WordRules) -> bool:
    """True if a file, or a folder that contains it, is exempt."""
    path = Path(os.path.abspath(path))
    if not path.is_relative_to(ROOT):
        return False
    name = path.relative_to(ROOT)
    return any(name.is_relative_to(one) for one in words.exempt)


if __name__ == "__main__":
    sys.exit(exit_code(main))
