"""Check commit messages against the house rules of CONTRIBUTING.md.

The form is a subject `path: what changed`, an empty line, and a body in prose that
says why. Trailers, forbidden patterns and banned words come from pyproject.toml,
[tool.kablate.commit]. Exit status: 0 none refused, 1 a message is refused, 2 bad usage.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lib.house_rules import (
    CommitRules,
    HouseRulesError,
    Violation,
    banned_in,
    git,
    habits_in,
    read_rules,
)
from lib.output import exit_code
from lib.suggestions import hint

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 72

SUBJECT = re.compile(r"(?P<paths>[^\s:][^:]*): (?P<what>\S.*)")
REVERT = re.compile(r'(?:Revert|Reapply) "(?P<inner>.+)"')
FIXUP = re.compile(r"(?:fixup|squash|amend)! .+")
SCISSORS = re.compile(r"-+ >8 -+")
QUOTED = re.compile(r">| {4}|\t")
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
BULLET = re.compile(
    r" {0,3}(?:[-*+\u2022\u2023\u25e6\u2043\u2013\u2014]|\d{1,2}[.)]|[A-Za-z]\))\s+\S"
)
TRAILER = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9-]*): *(?P<value>\S.*)?")
# Trailers without a hyphen in their name, which would else read as prose.
PLAIN_TRAILERS = frozenset({"bug", "cc", "closes", "fixes", "link", "refs"})


@dataclass(frozen=True)
class Message:
    """A commit message: its source, its numbered lines, the names it may use."""

    source: str
    lines: tuple[tuple[int, str], ...]
    names: frozenset[str]
    merge: bool = False
    shared: bool = False

    @property
    def subject(self) -> str:
        return self.lines[0][1]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        rules = read_rules(ROOT)
        if options.range is None:
            messages = [message_in_file(options.file)]
        else:
            messages = list(messages_in_range(options.range))
    except (HouseRulesError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = [found for message in messages for found in check(message, rules)]
    for finding in findings:
        print(finding)
    if not findings and options.range is not None:
        print(f"{len(messages)} commit messages checked, none refused")
    return 1 if findings else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--range", metavar="A..B", help="check the commits of a range")
    parser.add_argument("file", nargs="?", metavar="FILE", type=Path)
    options = parser.parse_args(arguments)
    if (options.range is None) == (options.file is None):
        parser.error("give either --range A..B or one FILE")
    return options


def message_in_file(path: Path) -> Message:
    """The message as git will keep it: the editor's comments and scissors left out."""
    text = path.read_text(encoding="utf-8")
    listed = git(ROOT, "ls-files", "-z").split("\0")
    return Message(
        source=str(path),
        lines=kept_lines(text, comment_mark()),
        names=names_of([*listed, *paths_in_head()]),
        merge=(
            ROOT / git(ROOT, "rev-parse", "--git-path", "MERGE_HEAD").strip()
        ).exists(),
    )


def kept_lines(text: str, mark: str) -> tuple[tuple[int, str], ...]:
    """Numbered lines without comments, what follows the scissors, and empty edges."""
    kept: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if mark and line.startswith(mark):
            if SCISSORS.fullmatch(line[len(mark) :].strip()):
                break
            continue
        if kept or line.strip():
            kept.append((number, line.rstrip()))
    while kept and not kept[-1][1]:
        kept.pop()
    return tuple(kept)


def comment_mark() -> str:
    try:
        mark = git(ROOT, "config", "--get", "core.commentChar").strip()
    except HouseRulesError:
        return "#"
    return "#" if mark == "auto" else mark


def paths_in_head() -> list[str]:
    """Paths of the last commit, so that a deletion can be named; none before it."""
    try:
        return git(ROOT, "ls-tree", "-r", "--name-only", "-z", "HEAD").split("\0")
    except HouseRulesError:
        return []


def messages_in_range(revisions: str) -> Iterator[Message]:
    """The commits of the range, oldest first, each with the names in its tree."""
    listed = git(ROOT, "rev-list", "--reverse", "--end-of-options", revisions, "--")
    for commit in listed.split():
        shown = git(ROOT, "show", "-s", "--format=%P%n%B", commit)
        parents, _, text = shown.partition("\n")
        tree = git(ROOT, "ls-tree", "-r", "--name-only", "-z", commit)
        yield Message(
            source=commit[:12],
            lines=kept_lines(text, mark=""),
            names=names_of((tree + deleted_by(commit)).split("\0")),
            merge=len(parents.split()) > 1,
            shared=True,
        )


def deleted_by(commit: str) -> str:
    options = ("-r", "-z", "--no-commit-id", "--name-only", "--diff-filter=D")
    return git(ROOT, "diff-tree", *options, "--root", commit)


def names_of(paths: Iterable[str]) -> frozenset[str]:
    """Every path with its folders, and each file's, stem's and folder's bare name."""
    names: set[str] = set()
    for path in map(PurePosixPath, filter(None, paths)):
        folders = [folder for folder in path.parents if folder.name]
        names.update(str(part) for part in (path, *folders))
        names.update(part.name for part in (path, *folders))
        names.add(path.stem)
    return frozenset(names)


def check(message: Message, rules: CommitRules) -> list[Violation]:
    """All that is wrong with one message, in the order of its lines."""
    if not message.lines:
        return [Violation(message.source, 1, "empty message")]
    findings = wording(message, rules)
    if message.merge:
        return sorted(findings)
    if FIXUP.fullmatch(message.subject):
        if message.shared:
            said = "fold this commit into the one it fixes: git rebase --autosquash"
            findings.append(Violation(message.source, message.lines[0][0], said))
        return sorted(findings)
    findings += subject_findings(message)
    findings += body_findings(message, rules)
    findings += trailer_findings(message, rules)
    return sorted(findings)


def wording(message: Message, rules: CommitRules) -> list[Violation]:
    """Banned words and forbidden patterns, checked for every kind of commit."""
    findings = banned_in(message.source, message.lines, rules.banned_words)
    for number, line in message.lines:
        findings += habits_in(message.source, number, line, rules.words)
    findings += [
        Violation(message.source, number, f"forbidden here: {found.group().strip()!r}")
        for number, line in message.lines
        for pattern in rules.forbidden_patterns
        if (found := pattern.search(line))
    ]
    return findings


def subject_findings(message: Message) -> list[Violation]:
    number, subject = message.lines[0]
    revert = REVERT.fullmatch(subject)
    subject = revert["inner"] if revert else subject
    findings = []
    if len(subject) > COLUMNS:
        said = f"the subject has {len(subject)} columns, at most {COLUMNS} are allowed"
        findings.append(Violation(message.source, number, said))
    match = SUBJECT.fullmatch(subject)
    if match is None:
        said = "the subject must read 'path: what changed'"
        return [*findings, Violation(message.source, number, said)]
    for path in match["paths"].split(","):
        if path.strip().rstrip("/") not in message.names:
            said = f"'{path.strip()}' is neither a path nor a name in the tree"
            said += hint(path.strip(), message.names)
            findings.append(Violation(message.source, number, said))
    return findings


def body_findings(message: Message, rules: CommitRules) -> list[Violation]:
    body = message.lines[1:]
    prose = body[: len(body) - len(trailer_block(message, rules))]
    if not any(line and not QUOTED.match(line) for _, line in prose):
        said = "no body; say in prose why the change is made"
        return [Violation(message.source, message.lines[-1][0], said)]
    findings = []
    if body[0][1]:
        said = "an empty line must follow the subject"
        findings.append(Violation(message.source, body[0][0], said))
    for number, line in prose:
        if QUOTED.match(line):
            continue
        if BULLET.match(line):
            said = "a list; write the body in prose"
            findings.append(Violation(message.source, number, said))
        if len(URL.sub("", line)) > COLUMNS:
            said = f"{len(line)} columns, at most {COLUMNS} are allowed in the body"
            findings.append(Violation(message.source, number, said))
    return findings


def trailer_block(
    message: Message, rules: CommitRules
) -> Sequence[tuple[int, str, str]]:
    """(line, name, value) of the last paragraph where it is all trailers, else empty.

    One entry per line: a folded value counts to the name above it.
    """
    last = [number for number, line in message.lines if not line]
    if not last:
        return []
    known = {name.lower() for name in rules.required_trailers} | PLAIN_TRAILERS
    block: list[tuple[int, str, str]] = []
    for number, line in message.lines:
        if number <= last[-1]:
            continue
        match = TRAILER.fullmatch(line)
        if match and ("-" in match["name"] or match["name"].lower() in known):
            block.append((number, match["name"], match["value"] or ""))
        elif block and line[0] in " \t":
            block.append((number, block[-1][1], line.strip()))
        else:
            return []
    return block


def trailer_findings(message: Message, rules: CommitRules) -> list[Violation]:
    present = {
        name.lower() for _, name, value in trailer_block(message, rules) if value
    }
    return [
        Violation(
            message.source, message.lines[-1][0], f"the trailer '{name}:' is missing"
        )
        for name in rules.required_trailers
        if name.lower() not in present
    ]


if __name__ == "__main__":
    sys.exit(exit_code(main))
