"""The table of the mechanisms names every field once, and values that exist."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from gpt2.plan.mechanism_specs import MECHANISMS, OFF, WIDTH_REQUESTS, Mechanism
from gpt2.plan.steps import PLAIN
from gpt2.settings.schema import FIELD_TYPES, FIELDS, Mechanisms
from tests.gpt2.helpers import tiny


def test_every_field_of_the_schema_is_named_once() -> None:
    named = Counter(list(WIDTH_REQUESTS))
    for mechanism in MECHANISMS:
        named.update(list(mechanism.off))
        for reads in mechanism.reads:
            named.update(reads.fields)
    assert named == Counter(f.name for f in dataclasses.fields(Mechanisms))


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: m.name)
def test_values_are_such_as_the_schema_allows(mechanism: Mechanism) -> None:
    given = [mechanism.off, mechanism.neutral, mechanism.needs]
    given += [reads.where for reads in mechanism.reads]
    for name, value in (item for values in given for item in values.items()):
        assert type(value) is FIELD_TYPES[name]
        allowed = FIELDS[name].metadata["allowed"]
        assert allowed is None or value in allowed


def test_step_0_has_every_mechanism_off() -> None:
    assert PLAIN.items() >= OFF.items()
    plain = tiny(**PLAIN).mechanisms
    assert not any(m.is_on(plain) for m in MECHANISMS)


def test_a_field_is_read_where_its_mechanism_and_its_condition_hold() -> None:
    (ract,) = [m for m in MECHANISMS if m.name == "ract"]
    always, topk = ract.reads
    on = tiny(ract=True, ract_statistic="max").mechanisms
    assert ract.reads_on(on, always) and not ract.reads_on(on, topk)
    assert ract.reads_on(tiny(ract=True, ract_statistic="topk").mechanisms, topk)
    assert not ract.reads_on(tiny(ract_statistic="topk").mechanisms, topk)
