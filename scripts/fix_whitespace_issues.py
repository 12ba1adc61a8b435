"""Find and fix whitespace faults in text files, and badly spaced defconfig lines.

Binary files and those not in UTF-8 are left untouched and named. Fixed are
trailing blanks, CRLF line ends, tabs in languages without them, and a missing or
extra newline at the end. Named but never fixed, since that would change what a
program or a configuration means: blanks and tabs inside string literals, and
`CONFIG_X = y`. Exit status: 0 clean or fixed, 1 something is left, 2 bad usage.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import io
import re
import stat
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.atomic_files import replacing
from lib.house_rules import (
    HouseRulesError,
    Violation,
    docstring_spans,
    shown,
    tracked_files,
)
from lib.output import exit_code

ROOT = Path(__file__).resolve().parents[1]

# Spaces only. Makefiles, Kconfig and shell here-documents need their tabs.
NO_TABS = frozenset(".css .html .js .json .md .py .pyi .toml .yaml .yml".split())
# A blank at the end of a line is content here: a context line, an empty column.
BLANKS_ARE_CONTENT = frozenset({".diff", ".patch", ".tsv"})
# Python's tokenizer uses tab stops of 8; 4 is usual elsewhere.
PYTHON_TAB, OTHER_TAB = 8, 4

ASSIGNMENT = re.compile(rb"([ \t]*)(CONFIG_\w+)([ \t]*)=([ \t]*)(.*)")


@dataclass
class Examined:
    """Faults of one file, and its bytes once they are fixed."""

    fixed: bytes
    fixable: list[Violation] = field(default_factory=list)
    by_hand: list[Violation] = field(default_factory=list)


@dataclass(frozen=True)
class Strings:
    """Line numbers of a Python file where whitespace belongs to a string."""

    ends_inside: frozenset[int] = frozenset()
    touched: frozenset[int] = frozenset()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        left = sum(treat(path, options.check) for path in chosen(options.files))
    except (HouseRulesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if left and options.check:
        print(f"{left} whitespace faults; to fix: scripts/fix_whitespace_issues.py")
    return 1 if left else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="Without FILES: every file that git tracks.",
    )
    parser.add_argument("--check", action="store_true", help="report, change nothing")
    parser.add_argument("files", nargs="*", metavar="FILES", type=Path)
    return parser.parse_args(arguments)


def chosen(given: Sequence[Path]) -> list[Path]:
    """Files to examine; a folder means the tracked files in it."""
    if not given:
        return [ROOT / name for name in tracked_files(ROOT)]
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += [path / name for name in tracked_files(path)]
        elif path.exists() or path.is_symlink():
            files.append(path)
        else:
            raise HouseRulesError(f"{path}: no such file")
    return files


def treat(path: Path, check: bool) -> int:
    """Report one file and fix it unless `check`; the number of faults left in it."""
    name = shown(path)
    if path.is_symlink():
        print(f"{name}: left unchanged: a symbolic link", file=sys.stderr)
        return 0
    data = path.read_bytes()
    reason = why_untouched(data)
    if reason:
        print(f"{name}: left unchanged: {reason}", file=sys.stderr)
        return 0
    result = examine(name, path, data)
    if check:
        findings = sorted(result.fixable + result.by_hand)
    else:
        findings = sorted(result.by_hand)
        if result.fixed != data:
            write_keeping_mode(path, result.fixed)
            print(f"{name}: fixed")
    for finding in findings:
        print(finding)
    return len(findings)


def why_untouched(data: bytes) -> str | None:
    if b"\0" in data:
        return "binary"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"not UTF-8 (line {line})"
    return None


def examine(name: str, path: Path, data: bytes) -> Examined:
    """Findings and the fixed bytes of a UTF-8 file."""
    found = Examined(data)
    lines = unix_lines(name, data, found)
    doubtful = path.suffix in (".py", ".pyi") and any(map(has_blanks, lines))
    try:
        strings = python_strings(lines) if doubtful else Strings()
    except (tokenize.TokenError, SyntaxError) as error:
        said = error.args[0]
        found.by_hand.append(Violation(name, error_line(error), f"not Python: {said}"))
        found.fixable.clear()
        return found
    if path.suffix not in BLANKS_ARE_CONTENT:
        lines = strip_blanks(name, lines, strings, found)
    if path.suffix in NO_TABS:
        lines = expand_tabs(name, path, lines, strings, found)
    if is_configuration(path):
        found.by_hand += badly_spaced(name, lines)
    found.fixed = end_once(name, lines, found)
    return found


def has_blanks(line: bytes) -> bool:
    """True if a line ends in a blank or contains a tab, as a string may, too."""
    return line[-1:] == b" " or b"\t" in line


def unix_lines(name: str, data: bytes, found: Examined) -> list[bytes]:
    lines = data.split(b"\n")
    crlf = [n for n, line in enumerate(lines, 1) if line.endswith(b"\r")]
    if crlf:
        count = f" ({len(crlf)} lines)" if len(crlf) > 1 else ""
        found.fixable.append(Violation(name, crlf[0], f"CRLF line end{count}"))
    return [line.rstrip(b"\r") if line.endswith(b"\r") else line for line in lines]


def strip_blanks(
    name: str, lines: list[bytes], strings: Strings, found: Examined
) -> list[bytes]:
    stripped = []
    for number, line in enumerate(lines, 1):
        bare = line.rstrip(b" \t")
        if bare != line and number in strings.ends_inside:
            message = r"trailing blank inside a string; write it as \x20 or \t"
            found.by_hand.append(Violation(name, number, message))
            bare = line
        elif bare != line:
            found.fixable.append(Violation(name, number, "trailing blank"))
        stripped.append(bare)
    return stripped


def expand_tabs(
    name: str, path: Path, lines: list[bytes], strings: Strings, found: Examined
) -> list[bytes]:
    width = PYTHON_TAB if path.suffix in (".py", ".pyi") else OTHER_TAB
    expanded = []
    for number, line in enumerate(lines, 1):
        if b"\t" in line and number in strings.touched:
            message = r"tab on a line with a string; write it as \t or as blanks"
            found.by_hand.append(Violation(name, number, message))
        elif b"\t" in line:
            found.fixable.append(Violation(name, number, "tab"))
            line = line.decode().expandtabs(width).encode()
        expanded.append(line)
    return expanded


def end_once(name: str, lines: list[bytes], found: Examined) -> bytes:
    """Join the lines, with exactly one newline at the end of a non-empty file."""
    last = len(lines)
    while last and not lines[last - 1]:
        last -= 1
    if lines[-1]:
        found.fixable.append(Violation(name, len(lines), "no newline at the end"))
    elif last < len(lines) - 1:
        found.fixable.append(Violation(name, last + 1, "extra blank line at the end"))
    return b"".join(line + b"\n" for line in lines[:last])


def is_configuration(path: Path) -> bool:
    """True for a defconfig, a fragment or a .config."""
    in_defconfigs = "defconfigs" in path.resolve().parts[:-1]
    return in_defconfigs or path.name == ".config" or path.suffix == ".config"


def badly_spaced(name: str, lines: Sequence[bytes]) -> Iterator[Violation]:
    """Findings for assignments with blanks, which Kconfig silently drops."""
    for number, line in enumerate(lines, 1):
        match = ASSIGNMENT.fullmatch(line)
        if match and (match[1] or match[3] or match[4]):
            line_meant = (match[2] + b"=" + match[5].rstrip()).decode()
            message = f"blank around an assignment; write {line_meant}"
            yield Violation(name, number, message)


def python_strings(lines: Sequence[bytes]) -> Strings:
    """Lines of the strings of a Python file, except docstrings, which may be fixed.

    Raises tokenize.TokenError or SyntaxError if the text is not Python.
    """
    text = b"\n".join(lines).decode()
    docstrings = {first for first, _ in docstring_spans(text)}
    ends_inside: set[int] = set()
    touched: set[int] = set()
    for first, last in string_spans(text):
        if first in docstrings:
            continue
        ends_inside.update(range(first, last))
        touched.update(range(first, last + 1))
    return Strings(frozenset(ends_inside), frozenset(touched))


def string_spans(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of every string token (an f-string is several in 3.12)."""
    starts: list[int] = []
    opens = getattr(tokenize, "FSTRING_START", None)
    closes = getattr(tokenize, "FSTRING_END", None)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == opens:
            starts.append(token.start[0])
        elif token.type == closes:
            yield starts.pop(), token.end[0]
        elif token.type == tokenize.STRING:
            yield token.start[0], token.end[0]


def error_line(error: Exception) -> int:
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    position = error.args[1] if len(error.args) > 1 else (1, 0)
    return int(position[0])


def write_keeping_mode(path: Path, data: bytes) -> None:
    """Replace the file atomically, keeping its mode."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))


if __name__ == "__main__":
    sys.exit(exit_code(main))
