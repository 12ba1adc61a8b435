"""Lines that fit a terminal: broken between words, never within a path or a command."""

from __future__ import annotations

import re

# A command after a colon is copied as a whole, without a remark in brackets that ends
# the line, and so is text between backticks.
COMMAND = re.compile(
    r"(?<=: )(?:make|python[\d.]*|\S*/python[\d.]*) .*?(?= \([^()]*\)$|$)"
)
UNIT = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")
DATA = re.compile(r"[{\[]|.*\S {2,}\S")  # JSON, and rows of tables: stay one line


def fold(line: str, width: int) -> str:
    """One line as lines of at most ``width`` characters, the later ones indented by two
    more; what cannot be broken may be longer."""
    if len(line) <= width or DATA.match(line):
        return line
    indent = line[: len(line) - len(line.lstrip(" "))]
    command = COMMAND.search(line)
    start, end = command.span() if command else (len(line), len(line))
    units = UNIT.findall(line[:start]) + [line[start:end]] * bool(command)
    units += UNIT.findall(line[end:])
    lines, current = [], indent
    for unit in units:
        joined = f"{current} {unit}" if current.strip() else current + unit
        if len(joined) > width and current.strip():
            lines.append(current)
            joined = f"{indent}  {unit}"
        current = joined
    return "\n".join([*lines, current])


def fold_text(text: str, width: int) -> str:
    """Text with all of its lines folded; as it is if it moves the cursor."""
    if width < 20 or "\x1b" in text or "\r" in text:
        return text
    return "\n".join(fold(line, width) for line in text.split("\n"))
