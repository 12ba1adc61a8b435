"""lib/safe_json.py: files and values that may be anything."""

import math
import os

import pytest

from lib.safe_json import (
    Unusable,
    as_dict,
    clean,
    number,
    read_foreign_json,
    read_records,
    text,
    whole,
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"a": 1,\n}', "line 2"),
        (b"\xff", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(tmp_path, content, reason):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Unusable, match=reason):
        read_foreign_json(tmp_path / "x")


def test_only_plain_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "big").write_text("[" + "1," * 600_000 + "1]")
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unusable, match="larger than 1 MiB"):
        read_foreign_json(tmp_path / "big", limit=1 << 20)
    for name in ("link", "pipe", "."):
        with pytest.raises(Unusable, match="not a plain file"):
            read_foreign_json(tmp_path / name)
    with pytest.raises(Unusable, match="missing"):
        read_foreign_json(tmp_path / "absent")


def test_records_survive_bad_lines_and_a_torn_end(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\nbad\n[1]\n{"a": 2}\n{"a": 3, "b')
    assert read_records(path) == ([{"a": 1}, {"a": 2}], [3, 4])


def test_numbers_are_finite_and_no_bools():
    assert [number(x) for x in (1, 2.5, True, "1", None, math.nan, math.inf)] == [
        1, 2.5, None, None, None, None, None,
    ]  # fmt: skip
    assert [number(x) for x in (1e101, -1.8e308, -1e100)] == [None, None, -1e100]
    assert number(10**30) is None and whole(2.0) is None and whole(3) == 3


def test_texts_lose_controls_and_length():
    assert clean("a\x1b[31m\tb\r\n c\u202e") == "a[31m b c"
    assert clean("x" * 50, limit=10) == "x" * 9 + "…"
    assert clean(("a", 1)) == "('a', 1)"
    assert text(7) is None and text("\x00") is None and text(" a ") == "a"
    assert as_dict([1]) == {} and as_dict({"a": 1}) == {"a": 1}
