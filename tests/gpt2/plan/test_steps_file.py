"""STEPS_FILE: a user's own steps in a plan, and the faults of broken files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from gpt2.plan.jobs import Plan
from gpt2.plan.planning import make_plan, registry_plan, step_settings
from gpt2.plan.registry import Times
from gpt2.plan.steps import SHIPPED, STEPS
from gpt2.plan.steps_file import NAMED_IDS, read_steps
from gpt2.plan.unused_settings import unused_settings
from tests.gpt2.helpers import TINY, make_config

OWN = """\
# two arms
[[step]]
id = 100
name = "narrow"
title = "RA in a band of 1, alpha 0.1"
question = "Does a narrow band suffice?"
parent = 5
changes = { ra_window = 1, RA_ALPHA = 0.1 }

[[step]]
name = "narrow-sgd"
title = "narrow with sgd at 0.01"
question = "Is it the optimizer?"
parent = "narrow"

[step.changes]
optimizer = "sgd"
CONFIG_LEARNING_RATE = 0.01
"""


def plan_of(path: Path, text: str, steps: str, **symbols: str) -> Plan:
    path.write_text(text)
    return make_plan(
        make_config(**TINY, STEPS=steps, STEPS_FILE=str(path), SEEDS="1", **symbols)
    )


def test_own_steps_are_planned_by_id_and_by_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "own.toml", OWN, "0,ra,100,narrow-sgd")
    assert [job.step for job in plan.jobs][:3] == [0, 5, 100]
    narrow, sgd = plan.jobs[2:]
    assert (narrow.parent, narrow.parent_name, narrow.ancestors) == (5, "ra", (5, 0))
    assert narrow.run_dir == "step100-narrow/seed1"
    assert narrow.settings.mechanisms.ra_window == 1
    assert narrow.origins["ra_alpha"] == "step 100"
    assert sgd.step in NAMED_IDS
    assert (sgd.parent, sgd.parent_name, sgd.ancestors) == (100, "narrow", (100, 5, 0))
    assert sgd.settings.optim.optimizer == "sgd"
    assert sgd.settings.optim.learning_rate == 0.01
    assert sgd.settings.mechanisms.ra_alpha == 0.1


def test_the_shipped_steps_are_the_same_beside_own_ones(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "own.toml", OWN, "0-33")
    plain = make_plan(make_config(**TINY, STEPS="0-33", SEEDS="1"))
    assert [job.hash for job in plan.jobs] == [job.hash for job in plain.jobs]
    assert set(SHIPPED.steps) == set(STEPS) == set(range(34))


def test_an_arm_that_is_added_before_others_changes_none_of_them(
    tmp_path: Path,
) -> None:
    first = "[[step]]" + OWN.split("[[step]]")[2].replace("narrow-sgd", "a-new-arm")
    old, new = (
        plan_of(tmp_path / "own.toml", text, "narrow,narrow-sgd").jobs
        for text in (OWN, first + "\n" + OWN)
    )
    assert [(j.step, j.hash) for j in old] == [(j.step, j.hash) for j in new]


def test_a_retitled_arm_is_the_same_run_and_a_changed_one_is_not(
    tmp_path: Path,
) -> None:
    before, retitled, changed = (
        plan_of(tmp_path / "own.toml", text, "100").jobs[0]
        for text in (OWN, OWN.replace("suffice", "do"), OWN.replace("w = 1", "w = 3"))
    )
    assert before.hash == retitled.hash != changed.hash


def test_sizes_relative_to_the_parent_and_matched_to_a_named_step() -> None:
    text = OWN.replace("ra_window = 1", 'n_head = { times = "1/2" }')
    text = text.replace('optimizer = "sgd"', 'match_step = "ra"')
    found = read_steps(text.encode(), "own.toml", {})
    first, second = (found[step] for step in found.own)
    assert first.changes["n_head"] == Times(Fraction(1, 2))
    assert second.changes["match_step"] == "5"
    base = make_plan(make_config(**TINY, SEEDS="1")).base
    assert step_settings(base, 100, found).model.n_head == 2


def test_verify_covers_own_steps_with_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    config = make_config(**TINY, STEPS_FILE=str(path), SEEDS="1")
    assert len(registry_plan(config).jobs) == len(STEPS) + 2
    notes = unused_settings(make_plan(config), config)
    assert any("STEPS names none of its steps" in note for note in notes)


def row(change: str = "ra = true", **keys: str) -> str:
    """A table of one step, with values as TOML."""
    fields = {"name": '"x"', "title": '"t"', "question": '"q"', "parent": "0", **keys}
    lines = [f"{key} = {value}" for key, value in fields.items() if value]
    return "\n".join(["[[step]]", *lines, "[step.changes]", change, ""])


BROKEN = {
    "not TOML": ("[[step]]\nid = \n", r":2: Invalid value"),
    "no end": ('[[step]]\nname = """a\n', r":3: "),
    "not text": (b"# a\n\xff\n", r":2: is not UTF-8"),
    "no step": ("", r":1: has no \[\[step\]\] table"),
    "another table": ("\n[other]\na = 1\n", r":2: 'other' is not known"),
    "a missing key": (row(question=""), r":1: step 'x': question is missing"),
    "an unknown key": (row(idd="3"), r":6: .*'idd' is not known; nearest: id"),
    "an id of ours": (row(id="7"), r":6: .*id = 7: must be .* from 100 to 999"),
    "an id as text": (row(id='"100"'), r":6: .*id = '100': must be"),
    "a name as path": (row(name='"../x"'), r":2: .*name = '../x': a name begins"),
    "a name of ours": (row(name='"ra"'), r":2: .*its name is that of step 5"),
    "two lines": (row(title='"a\\nb"'), r":3: .*must be one line"),
    "no parent": (row(parent="70"), r":5: .*parent: there is no step 70"),
    "its own parent": (row(parent='"x"'), r":5: .*depends on itself"),
    "a cycle": (
        row(id="100", parent='"y"') + row(id="101", name='"y"', parent="100"),
        r":5: step 'x': it depends on itself.*\n.*:13: step 'y': it depends on itself",
    ),
    "a cycle over sizes": (
        row('match_step = "y"') + row(name='"y"', parent='"x"'),
        r":5: step 'x': it depends on itself",
    ),
    "an id twice": (
        row(id="100") + row(id="100", name='"y"'),
        r":14: step 'y': its id 100 is that of step 'x'",
    ),
    "a name twice": (row() + row(), r":9: step 'x': its name is that of step 'x'"),
    "an unknown field": (
        row("ra_windw = 3"),
        r":7: .*not a setting; nearest: ra_window",
    ),
    "an unknown symbol": (row("RA_WINDW = 3"), r":7: .*nearest: .*RA_WINDOW"),
    "two spellings": (row("ra = true\nRA_MLA_RA = true"), r":8: .*is ra, .*set twice"),
    "a wrong type": (row("ra = 3"), r":7: .*ra: 3 is not y or n"),
    "a number as text": (row('ra_alpha = "0.1"'), r":7: .*write it without quotes"),
    "out of range": (row("ra_alpha = 11"), r":7: .*ra_alpha: 11.0 is not from -4 to 4"),
    "out of Kconfig's range": (row("n_layer = 0"), r":7: .*outside its range, 1 to"),
    "an unknown choice": (row('optimizer = "adm"'), r":7: .*'adm' must be one of"),
    "no ratio": (row('n_head = { times = "x" }'), r":7: .*must be a ratio"),
    "a ratio of a float": (row('ra_alpha = { times = "2" }'), r":7: .*only a whole"),
    "the data": (row('dataset = "x"'), r":7: .*a setting of data, which all"),
    "the machine": (row("BATCH_SIZE = 2"), r":7: .*a setting of resources, which all"),
    "the length": (row("MAX_ITERS = 2"), r":7: .*train on the same tokens"),
    "a table in a text": (
        row(title='"""\n[[step]]\n"""') + row(id="1", name='"y"'),
        r":3: .*must be one line.*\n.*:15: step 'y': id = 1",
    ),
}


@pytest.mark.parametrize("text, message", BROKEN.values(), ids=BROKEN)
def test_faults_are_reported_with_file_and_line(
    text: str | bytes, message: str
) -> None:
    ranges = {"GPT2_N_LAYER": (1, 256)}
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ValueError, match="^my.toml" + message):
        read_steps(data, "my.toml", ranges)


def test_files_that_cannot_be_read_and_unknown_names(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    with pytest.raises(ValueError, match="there is no such file"):
        make_plan(make_config(**TINY, STEPS_FILE=str(path)))
    with pytest.raises(ValueError, match="there is no step nine; .*100 .narrow."):
        plan_of(path, OWN, "0,nine")
    with pytest.raises(ValueError, match="command line: .*has a step twice"):
        plan_of(path, OWN, "narrow,100")
    with pytest.raises(ValueError, match=r"own.toml:7: .*n_layer: 0 is outside its"):
        plan_of(path, row("n_layer = 0"), "0")


def test_own_steps_are_swept_with_the_others(tmp_path: Path) -> None:
    sweep = {"SWEEP": "RA_WINDOW=2,3 WEIGHT_DECAY=0.1,0.2"}
    plan = plan_of(tmp_path / "own.toml", OWN, "ra,100", **sweep)
    at = "ra_window={},weight_decay={}"
    assert {job.cell: job.parent_name for job in plan.jobs} == {
        **{
            f"step05-ra/{at.format(w, d)}": "baseline"
            for w in (2, 3)
            for d in (0.1, 0.2)
        },
        # It sets the window itself: the configured one, 2, is its partner's.
        **{
            f"step100-narrow/weight_decay={d}": f"ra/{at.format(2, d)}"
            for d in (0.1, 0.2)
        },
    }
    assert plan.jobs[-1].ancestors == (5, 0)
