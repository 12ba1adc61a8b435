"""The names that a message offers for an unknown one."""

import pytest

from lib.suggestions import hint

KNOWN = ("batch_size", "batch_sizes", "block_size", "dropout")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_siz", "; nearest: batch_size, batch_sizes"),
        ("drop", "; nearest: dropout"),
        ("learning", ""),
        ("", ""),
    ],
)
def test_near_names_all_or_the_best_or_none(name: str, said: str) -> None:
    assert hint(name, KNOWN) == said


def test_each_name_is_written_as_the_user_would() -> None:
    assert hint("batch_siz", KNOWN, "--") == "; nearest: --batch_size, --batch_sizes"
