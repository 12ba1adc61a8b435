"""lib/kernels/choices.py: one process times, all others take what it found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lib.kernels import choices

SECONDS = {1: 3.0, 2: 1.0, 3: float("inf")}


@pytest.fixture(autouse=True)
def nothing_chosen() -> Iterator[None]:
    choices.forget()
    yield
    choices.forget()


def choose(key: str = "product", options: tuple[int, ...] = (3, 1, 2)) -> int:
    return choices.choose(
        key, options, SECONDS.__getitem__, lambda option: SECONDS[option] < 9
    )


def test_the_fastest_is_chosen_only_while_timing() -> None:
    assert choose() == 1, "the first that runs"
    assert choices.by_default() == ["product"]
    assert choices.found() == {}, "nothing that a later process should take"
    with choices.timing():
        assert choose() == 1, "kept: two calls of one process never differ"
        assert choose("other") == 2
    assert choices.found() == {"other": 2}


def test_a_known_choice_is_taken_without_a_trial() -> None:
    def trial(option: int) -> float:
        raise AssertionError("no trial")

    choices.load({"product": 2, "elsewhere": 1})
    found = choices.choose("product", (1, 2), trial, trial)
    assert (found, choices.by_default()) == (2, [])
    assert choices.found() == {"product": 2}


def test_a_known_choice_that_is_no_option_any_more_is_ignored() -> None:
    choices.load({"product": 9})
    assert choose() == 1
    assert choices.by_default() == ["product"]


def test_tiles_pass_through_json() -> None:
    with choices.timing():
        choices.choose("tile", ((64, 64),), lambda tile: 0.0, lambda tile: True)
    assert choices.found() == {"tile": [64, 64]}
    choices.forget()
    choices.load({"tile": [64, 64]})
    tile = choices.choose(
        "tile", ((32, 32), (64, 64)), lambda tile: 0.0, lambda tile: True
    )
    assert tile == (64, 64)


def test_without_an_option_that_runs_the_key_is_named() -> None:
    with pytest.raises(RuntimeError, match="no kernel runs for product"):
        choose(options=(3,) * 2)
    with choices.timing(), pytest.raises(RuntimeError, match="product"):
        choose(options=(3,))


def test_what_was_not_timed_is_chosen_again() -> None:
    """A pass that compiles takes first options; the one that is timed then chooses."""
    choices.load({"known": 2})
    assert (choose("known"), choose()) == (2, 1)
    choices.reconsider()
    assert choices.by_default() == []
    with choices.timing():
        assert choose() == 2
    assert choices.found() == {"known": 2, "product": 2}
