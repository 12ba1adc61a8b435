"""Commands in the Markdown files, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.S)


def blocks(path: Path, language: str) -> list[str]:
    """Text of the blocks in one language, in order."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def commands(path: Path) -> Iterator[str]:
    """Commands of all shell blocks: lines without comments, continuations joined."""
    for text in blocks(path, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            bare = re.sub(r"\s+#\s.*", "", line).strip()
            yield from (part.strip() for part in bare.split("&&") if part.strip())


@dataclass(frozen=True)
class MakeCommand:
    """Goals and variables of a call of make; redirections are left out."""

    goals: tuple[str, ...]
    variables: Mapping[str, str]

    @classmethod
    def of(cls, command: str) -> MakeCommand | None:
        """None for a command of another program."""
        words = shlex.split(re.split(r"[>|]", command)[0])
        if not words or words[0] != "make":
            return None
        found = [ASSIGNMENT.fullmatch(word) for word in words[1:]]
        return cls(
            tuple(w for w, f in zip(words[1:], found, strict=True) if not f),
            {f[1]: f[2] for f in found if f},
        )
