"""lib/number_option.py: what a wrong value of a variable is answered with."""

from __future__ import annotations

import argparse

import pytest

from lib.number_option import (
    COUNT,
    COUNT_OR_0,
    LOSS,
    SHARE,
    Allowed,
    add_name,
    add_number,
    number,
)


@pytest.mark.parametrize(
    ("allowed", "text", "value"),
    [
        (LOSS, "3e-3", 0.003),
        (SHARE, "0.5", 0.5),
        (COUNT, " 2", 2),
        (COUNT_OR_0, "0", 0),
    ],
)
def test_numbers_are_read(allowed: Allowed, text: str, value: float) -> None:
    found = number("X", text, allowed)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("allowed", "texts"),
    [
        (LOSS, ["abc", "0", "-1", "inf", "nan", " "]),
        (SHARE, ["0", "1", "80%"]),
        (COUNT, ["0", "1.5", "inf"]),
        (COUNT_OR_0, ["-1", "x"]),
    ],
)
def test_others_are_refused_by_the_name_of_the_variable(
    allowed: Allowed, texts: list[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_number(parser, "DELTA", allowed, default=7)
    assert parser.parse_args([]).delta == 7
    for text in texts:
        with pytest.raises(ValueError) as raised:
            parser.parse_args([f"--delta={text}"])
        assert str(raised.value) == f"DELTA={text} must be {allowed.words}"


def test_a_name_is_one_of_those_allowed() -> None:
    parser = argparse.ArgumentParser()
    add_name(parser, "FAMILY", ("together", "apart"))
    assert parser.parse_args(["--family=apart"]).family == "apart"
    with pytest.raises(ValueError, match="^FAMILY= must be together or apart$"):
        parser.parse_args(["--family="])


def test_a_number_that_torch_cannot_take_is_refused() -> None:
    assert number("SEED", str(2**63 - 1), COUNT_OR_0) == 2**63 - 1
    with pytest.raises(
        ValueError, match=f"SEED={2**63} is too large: at most {2**63 - 1}"
    ):
        number("SEED", str(2**63), COUNT_OR_0)
