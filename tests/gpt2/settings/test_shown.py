"""gpt2/settings/shown.py: one name for a setting in all that users read."""

import pytest

from gpt2.settings.shown import difference_lines, shown_name, shown_value


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ra_window", "RA_MLA_RA_WINDOW"),
        ("mechanisms.ra_window", "RA_MLA_RA_WINDOW"),
        ("model.n_head", "GPT2_N_HEAD"),
        ("data.n_head", "data.n_head"),  # of another version
        *((name, name) for name in ("seed", "size", "optim.gone", "A/A control")),
    ],
)
def test_settings_are_shown_by_symbol_and_all_else_as_it_is(name, shown):
    assert shown_name(name) == shown


def test_values_are_those_of_kconfig():
    values = (True, False, 16, 6e-4, "", "mha", None)
    assert [*map(shown_value, values)] == "y n 16 0.0006 '' mha None".split()


def test_a_line_for_each_difference():
    old = {"mechanisms": {"ra": False, "ra_window": 16}, "seed": 1}
    new = {"mechanisms": {"ra": True, "ra_window": 16}, "seed": 2}
    assert difference_lines(old, new, "there", "here").split("\n") == [
        "  RA_MLA_RA: n there, y here",
        "  seed: 1 there, 2 here",
    ]
