"""Specs of the mechanisms: found by folder, with fields and values that exist."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

import gpt2.mechanisms
from gpt2.mechanisms import enabled, mechanisms
from gpt2.mechanisms.output_gate.spec import OutputGate
from gpt2.mechanisms.spec import Mechanism
from gpt2.plan.steps import PLAIN
from gpt2.settings.checks import check
from gpt2.settings.schema import (
    FIELD_TYPES,
    FIELDS,
    NO_WIDTH_REQUESTS,
    Mechanisms,
)
from tests.gpt2.helpers import tiny

FOLDER = Path(gpt2.mechanisms.__file__).parent


def test_every_folder_is_found_and_has_all_its_parts() -> None:
    folders = [path for path in FOLDER.iterdir() if (path / "__init__.py").exists()]
    assert sorted(m.name for m in mechanisms()) == sorted(p.name for p in folders)
    for folder in folders:
        names = {path.name for path in folder.iterdir() if path.is_file()}
        parts = {"spec.py", "layer.py", "naive.py", "Kconfig"}
        assert names >= {"__init__.py", *parts}


def test_every_field_is_named_once() -> None:
    named = Counter([*NO_WIDTH_REQUESTS, "attention"])
    for mechanism in mechanisms():
        if not mechanism.replaces:
            named.update(list(mechanism.off))
        for reads in mechanism.readers():
            named.update(reads.fields)
    assert named == Counter(f.name for f in dataclasses.fields(Mechanisms))


@pytest.mark.parametrize("mechanism", mechanisms(), ids=lambda m: m.name)
def test_values_are_such_as_the_schema_allows(mechanism: Mechanism) -> None:
    given = [mechanism.off, mechanism.neutral, mechanism.needs]
    given += [reads.where for reads in mechanism.readers()]
    for name, value in (item for values in given for item in values.items()):
        assert type(value) is FIELD_TYPES[name]
        allowed = FIELDS[name].metadata["allowed"]
        assert allowed is None or value in allowed


def test_step_0_has_every_mechanism_off() -> None:
    assert enabled(tiny(**PLAIN)) == []


def test_a_field_is_read_where_its_mechanism_and_its_condition_hold() -> None:
    (ract,) = [m for m in mechanisms() if m.name == "ract"]
    always, topk = ract.readers()
    on = tiny(ract=True, ract_statistic="max").mechanisms
    assert ract.reads_on(on, always) and not ract.reads_on(on, topk)
    assert ract.reads_on(tiny(ract=True, ract_statistic="topk").mechanisms, topk)
    assert not ract.reads_on(tiny(ract_statistic="topk").mechanisms, topk)


def test_two_mechanisms_that_ask_for_the_same_of_attention_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = tiny(ra=True, output_gate=True)
    check(both)
    monkeypatch.setattr(OutputGate, "attention", lambda self, s: {"window": 1})
    with pytest.raises(ValueError, match="ra and output_gate use the same part"):
        check(both)


def test_head_pruning_is_refused_where_it_is_not_said_what_heads_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruned = tiny(output_gate=True, prune_method="heads")
    check(pruned)
    monkeypatch.setattr(OutputGate, "own_of_heads", None)
    with pytest.raises(ValueError, match="output_gate does not say which"):
        check(pruned)
