"""Wordings to avoid: each habit is found, ordinary English is not."""

from pathlib import Path

import pytest

from lib.house_rules import HouseRulesError, WordRules, habits_in, read_rules
from scripts import check_words
from scripts.check_commit import Message, wording
from tests.scratch import ROOT

RULES = read_rules(ROOT)


def found(text: str) -> list[str]:
    return [str(one) for one in habits_in("x", 1, text, RULES.words)]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("which the user is told", "told"),
        ("told = run(tree)", "told"),
        ("compiles it anew", "anew"),
        ("make format mends it", "mends"),
        ("Nobody tries it again", "Nobody"),
        ("whoever reads it", "whoever"),
        ("nothing is amiss", "amiss"),
        ("no two runs shall share it", "shall"),
        ("dropped without a word", "without a word"),
        ("'x' is no number", "is no"),
        ("they are no replicas", "are no"),
        ("a thread beside it", "beside"),
        ("which the code is held to the formula by", "held to the"),
        ("a run that is gone on with", "gone on with"),
        ("0.5 nats a token", "nats a token"),
        ("two bytes a parameter", "bytes a parameter"),
        ("500 tokens a second", "tokens a second"),
        ('    """What a run is made of."""', "What"),
        ('"""Whose folder it is."""', "Whose"),
        ('"""How it ends."""', "How"),
    ],
)
def test_a_habit_is_found_with_what_to_write_instead(text: str, word: str) -> None:
    (line,) = found("one\n" + text)
    assert line.startswith(f"x:2: {word!r}: ")


@pytest.mark.parametrize(
    "text",
    [
        "there is no file, and there are no runs",
        "it is no longer needed and is no more than 1% slower",
        "recommended, amended, besides, untold, a manewver",
        "held together; hold to 2 decimals",
        "nats per token, bytes per parameter, 500 tokens per second",
        "a second run, a token of the text, two bytes are a token id",
        'x = """What is printed"""'.replace('"""', '"'),
        '"""How to start a run."""',
        '"""Number of updates. What follows is optional."""',
        "it goes on until the end",
    ],
)
def test_ordinary_english_is_not_found(text: str) -> None:
    assert found(text) == []


def test_commit_messages_are_checked_too() -> None:
    lines = ((1, "lib: a fix"), (2, ""), (3, "The user is told of it."))
    (one,) = wording(Message("MESSAGE", lines, frozenset()), RULES)
    assert str(one).startswith("MESSAGE:3: 'told': ")


def test_files_are_named_with_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.py", "b.md", "Makefile", "Kconfig.x", "page.html"):
        (tmp_path / name).write_text("first\n# compiles it anew\n")
    (tmp_path / "data.json").write_text('"anew"\n')
    assert check_words.main([str(path) for path in sorted(tmp_path.iterdir())]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(":2: 'anew': again" in line for line in lines)


def test_exempt_files_are_not_checked() -> None:
    words = WordRules(exempt=("a/b.py", "lib"))
    for name, excepted in {
        "a/b.py": True,
        "lib/x/y.py": True,
        "library/x.py": False,
        "a/c.py": False,
    }.items():
        assert check_words.is_excepted(ROOT / name, words) == excepted, name
    assert not check_words.is_excepted(Path("/elsewhere/lib/x.py"), words)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("habit = []", "no key 'habit'"),
        ("habits = ['x']", "pairs"),
        ("habits = [['(', 'x']]", "regular expression"),
        ("exempt = 'lib'", "must be a list of strings"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: str, says: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.kablate.words]\n{table}\n")
    with pytest.raises(HouseRulesError, match=says):
        read_rules(tmp_path)


def test_the_listed_files_exist() -> None:
    exempt = RULES.words.exempt
    assert [name for name in exempt if not (ROOT / name).exists()] == []
