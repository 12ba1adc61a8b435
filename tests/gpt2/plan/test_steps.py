"""gpt2/plan/steps.py: its first steps are those of the design's table, and each step
that is added later obeys the same rules."""

from __future__ import annotations

import re
from dataclasses import fields
from fractions import Fraction

import pytest

from gpt2.plan.budget import budget
from gpt2.plan.planning import SOLVED_FIELDS, step_settings
from gpt2.plan.readers import READERS
from gpt2.plan.registry import Times
from gpt2.plan.steps import PLAIN, SHIPPED, STEPS
from gpt2.settings.checks import check
from gpt2.settings.schema import FIELDS, PART_OF
from tests.gpt2.helpers import full_size, tiny, tiny_step

# Comparison partners of steps 0 to 33, from the table of the design.
PARTNERS = [
    *(None, 0, 0, 2, 3, 0, 5, 6, 0, 8, 9, 9, 11, 0, 9, 11, 12, 13, 13),
    *(0, 0, 0, 0, 13, 13, 9, 9, 9, 8, 5, 5, 0, 0, 0),
]
# Mechanisms that are on, from the same table; the others are off.
ON: dict[str, set[int]] = {
    "ra": {5, 6, 7, 11, 12, 15, 16, 29, 30},
    "ra_learned_alpha": {30},
    "ract": {13, 14, 15, 16, 17, 18, 23, 24},
    "mlp_gate": {3, 4, 7, 10, 12, 16, 21},
    "cross_token": {4, 7, 10, 12, 16, 22},
    "output_gate": {19},
}
TABLE = range(len(PARTNERS))
MLA = {8, 9, 10, 11, 12, 14, 15, 16, 25, 26, 27}


def test_ids_and_partners_are_those_of_the_table() -> None:
    assert [STEPS[number].parent for number in TABLE] == PARTNERS
    assert list(STEPS) == [s.id for s in STEPS.values()] == list(range(len(STEPS)))
    assert len(STEPS) >= len(TABLE), "ids are stable for ever"


@pytest.mark.parametrize("number", TABLE)
def test_mechanisms_are_those_of_the_table(number: int) -> None:
    x = tiny_step(number).mechanisms
    for field, steps in ON.items():
        assert getattr(x, field) is (number in steps), field
    assert x.attention == (
        "mla" if number in MLA else "mla_rope" if number == 28 else "mha"
    )
    latents = {25: "tied_transpose", 26: "untied", 27: "per_head_scalar"}
    assert x.latent == latents.get(number, "none")
    if x.ract:
        kinds = {18: "entropy", 23: "max", 24: "rms"}
        assert x.ract_statistic == kinds.get(number, "topk")
        assert x.ract_placement == ("weights" if number == 17 else "output")


def test_values_of_the_table_are_the_defaults_at_124m() -> None:
    x = step_settings(full_size(), 5).mechanisms
    assert (x.ra_alpha, x.ra_window) == (0.3, 64)
    assert step_settings(full_size(), 8).mechanisms.latent_dim == 128
    assert step_settings(full_size(), 13).mechanisms.ract_mix == 0.2
    assert step_settings(full_size(), 30).mechanisms.ra_alpha == 0.0
    assert step_settings(full_size(), 29).mechanisms.ra_window == 0
    rope = step_settings(full_size(), 28).mechanisms
    assert (rope.joint_latent_dim, rope.rope_dim) == (256, 32)


def test_of_the_table_only_step_1_has_its_own_optimizer_and_pruning() -> None:
    base = tiny(optimizer="adam")
    for number in TABLE:
        settings = step_settings(base, number)
        own = (settings.optim.optimizer, settings.pruning.prune_method)
        assert own == (("adamwspam", "magnitude") if number == 1 else ("adam", "none"))
    assert step_settings(base, 1).pruning.prune_sparsity == 0.5


def test_names_are_unique_and_safe_in_paths() -> None:
    names = [s.name for s in STEPS.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    titles = [s.title for s in STEPS.values()]
    assert len(set(titles)) == len(titles)
    assert all(s.question.endswith(("?", ".")) for s in STEPS.values())


def test_changes_name_fields_of_the_model_or_the_training() -> None:
    for step in STEPS.values():
        assert set(step.changes) <= set(FIELDS), step.id
        parts = {PART_OF[field] for field in step.changes}
        assert parts <= {"model", "mechanisms", "optim", "pruning"}, step.id


def test_a_title_states_a_ratio_only_where_it_is_set() -> None:
    """Otherwise it is wrong with another latent, width or number of heads."""
    for number, step in STEPS.items():
        for ratio in re.findall(r"r=([\d.]+)", step.title):
            assert SHIPPED.changes_of(number)["mlp_ratio"][0] == float(ratio), number


@pytest.mark.parametrize(("number", "ratio"), [(31, 1.0), (32, 1.6), (33, 3.0)])
def test_ratios_that_follow_from_the_heads_are_near_their_titles(number, ratio) -> None:
    assert f"r near {ratio}" in STEPS[number].title
    assert abs(budget(step_settings(full_size(), number)).ratio - ratio) < 0.05


@pytest.mark.parametrize("number", [n for n in STEPS if n])
def test_a_step_differs_from_its_parent_in_its_changes(number: int) -> None:
    step, mine = STEPS[number], tiny_step(number).flat()
    parent = tiny_step(step.parent).flat()
    differing = {field for field in mine if mine[field] != parent[field]}
    assert differing - set(SOLVED_FIELDS) <= set(step.changes)
    # What a child states once more is allowed to repeat a default, never to be
    # nothing but repetition.
    assert differing & set(step.changes)


@pytest.mark.parametrize("number", STEPS)
def test_a_step_is_the_same_model_whatever_the_preset_switched_on(number: int) -> None:
    preset = tiny(
        attention="mla",
        ra=True,
        ra_learned_alpha=True,
        ract=True,
        mlp_gate=True,
        cross_token=True,
        latent="untied",
        output_gate=True,
        mlp_ratio=4.0,
        mechanism_share=0.3,
        match_step="9",
    )
    assert step_settings(preset, number) == tiny_step(number)


def test_the_root_states_every_switch() -> None:
    # A switch is a field of which some step has another value than step 0.
    root = tiny_step(0).mechanisms
    switches = set()
    for number in STEPS:
        x = tiny_step(number).mechanisms
        switches |= {
            f.name for f in fields(x) if getattr(x, f.name) != getattr(root, f.name)
        }
    # Values of a mechanism that is off in step 0 are not read there.
    off = [reader for reader in READERS if not reader.is_on(tiny_step(0))]
    values = {field for reader in off for field in reader.fields}
    assert switches - values - set(SOLVED_FIELDS) <= set(PLAIN)
    assert STEPS[0].changes == PLAIN


def test_lineages_end_at_the_root() -> None:
    assert [s.id for s in SHIPPED.lineage(16)] == [0, 8, 9, 11, 12, 16]
    for number in STEPS:
        line = [s.id for s in SHIPPED.lineage(number)]
        assert line[0] == 0 and line[-1] == number
    with pytest.raises(KeyError):
        list(SHIPPED.lineage(len(STEPS)))


def test_changes_name_the_step_that_made_them() -> None:
    changes = SHIPPED.changes_of(12)
    assert changes["ra"] == (True, 11)
    assert changes["attention"] == ("mla", 8)
    assert changes["mlp_ratio"] == (2.5, 9)
    assert changes["mechanism_share"] == (0.20, 12)
    assert changes["output_gate"] == (False, 0)
    assert SHIPPED.changes_of(4)["mechanism_share"] == (0.20, 4)


@pytest.mark.parametrize(
    ("ratio", "value", "expected"),
    [((18, 12), 12, 18), ((14, 12), 12, 14), ((9, 12), 12, 9), ((9, 12), 1, 1)],
)
def test_times_is_relative_and_at_least_one(
    ratio: tuple[int, int], value: int, expected: int
) -> None:
    assert Times(Fraction(*ratio)).of(value) == expected


@pytest.mark.parametrize("number", STEPS)
def test_every_step_makes_sense(number: int) -> None:
    check(tiny_step(number))
    check(step_settings(full_size(), number))
