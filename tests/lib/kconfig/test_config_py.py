"""config.py is typed literals, read as data: nothing in it is ever executed."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.kconfig.config_py import (
    Config,
    ConfigError,
    is_enabled,
    parse_config,
    read_config,
    render_config,
)

HOSTILE = [
    "'",
    '"',
    "\"\"\"'''",
    "\\",
    "\\'",
    "a\nCONFIG_B = 1",
    "\r\n\t\0\x1b[2J",
    "\u2028\u202e\ufeff\udc80",
    "naïve 試験 🙂",
    "__import__('os').system('touch pwned')",
    "' + __import__('os').system('touch pwned') + '",
    '"\n__import__("os").system("touch pwned")\nCONFIG_X = "',
    "${HOME} `touch pwned` $(touch pwned) {0}",
    "#",
    "'''\n# comment",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_stay_strings(text: str, tmp_path: Path) -> None:
    config = Config({"S": text, "N": 1}, {"S": text})
    path = tmp_path / "config.py"
    path.write_text(render_config(config), encoding="utf-8")
    assert read_config(path) == config
    # Even one who does run the file gets the string and nothing else.
    run = "import runpy; v = runpy.run_path('config.py'); print(ascii(v['CONFIG_S']))"
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == ascii(text) + "\n", done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == [
        "config.py"
    ]


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.text()))
def test_any_configuration_reads_back_with_its_types(
    values: dict[str, bool | int | float | str], origins: dict[str, str]
) -> None:
    read = parse_config(render_config(Config(values, origins)), "config.py")
    assert read == Config(values, origins)
    assert [type(v) for v in read.values.values()] == [type(v) for v in values.values()]


def test_strings_are_typed_where_the_field_is() -> None:
    config = Config({"LR": "6e-4", "NAME": "6e-4"}, {"LR": ".config:3"})
    text = render_config(config, {"LR": float})
    assert "CONFIG_LR = 0.0006\n" in text
    assert "CONFIG_NAME = '6e-4'\n" in text
    with pytest.raises(ConfigError, match=r"^\.config:3: CONFIG_LR='six'"):
        render_config(Config({"LR": "six"}, config.origins), {"LR": float})


def test_a_value_that_was_edited_by_hand_comes_from_its_line() -> None:
    config = Config({"N": 1, "ON": True, "S": "a"}, {"N": ".config:3", "ON": "one:1"})
    text = render_config(config)
    edited = text.replace("CONFIG_N = 1\n", "CONFIG_N = 2\n")
    read = parse_config(edited.replace("ON = True\n", "ON = 1\n"), "config.py")
    assert read.origins == {"N": read.places["N"], "ON": read.places["ON"]}
    assert edited.split("\n")[int(read.origin("N").split(":")[1]) - 1] == "CONFIG_N = 2"
    # Written once more, as in a results folder, the value and its origin stay.
    again = parse_config(render_config(read), "results/config.py")
    assert again.origins == read.origins


def test_an_older_file_notes_origins_alone() -> None:
    text = "CONFIG_N = 1\n\nORIGINS = {'N': '.config:3'}\n"
    assert parse_config(text, "config.py").origin("N") == ".config:3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\n", "config.py:1: only"),
        ("CONFIG_A = 1\n\nprint(1)\n", "config.py:3: only"),
        ("CONFIG_A = __import__('os')\n", "config.py:1: CONFIG_A is not a literal"),
        ("CONFIG_A = 'a' 'b' + open('x').read()\n", "not a literal"),
        ("CONFIG_A = f'{1}'\n", "not a literal"),
        ("CONFIG_A = None\n", "must be a bool"),
        ("CONFIG_A = [1]\n", "must be a bool"),
        ("CONFIG_A = b'x'\n", "must be a bool"),
        ("CONFIG_A = 1e999\n", "a finite number"),
        ("CONFIG_A = 1\nCONFIG_A = 2\n", "config.py:2: CONFIG_A is set twice"),
        ("A = 1\n", "A is not a CONFIG_NAME"),
        ("CONFIG_A = CONFIG_B = 1\n", "only"),
        ("CONFIG_A, CONFIG_B = 1, 2\n", "only"),
        ("CONFIG_A: int = 1\n", "only"),
        ("CONFIG_A += 1\n", "only"),
        ("ORIGINS = {'A': 1}\n", "ORIGINS must map"),
        ("ORIGINS = []\n", "ORIGINS must map"),
        ("ORIGINS = {'A': ()}\n", "ORIGINS must map"),
        ("ORIGINS = {'A': (1, 'x')}\n", "ORIGINS must map"),
        ("CONFIG_A = (\n", "config.py:1: "),
        ("CONFIG_A = " + "-" * 100_000 + "1\n", "config.py:"),
        ("CONFIG_A = " + "(" * 5_000 + "1" + ")" * 5_000, "config.py:"),
        ("CONFIG_A = 1\0\n", "config.py"),
    ],
)
def test_anything_else_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(text, "config.py")
    assert said in str(refusal.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_bytes(b"CONFIG_A = 1\r\nCONFIG_B = '\xff'\n")
    with pytest.raises(ConfigError, match=r"config\.py:2: not UTF-8"):
        read_config(path)


@pytest.mark.parametrize(
    ("value", "on"), [(True, True), ("y", True), (False, False), ("n", False)]
)
def test_is_enabled_knows_both_spellings(value: object, on: bool) -> None:
    assert is_enabled(value) is on


def test_is_enabled_takes_absence_for_off_and_nothing_else() -> None:
    assert not is_enabled("") and not is_enabled(None)
    for value in ("True", "yes", "Y", 1, 0, 0.0):
        with pytest.raises(ValueError, match="neither on"):
            is_enabled(value)
