"""lib/hashing.py: one hash for what is the same, and how two values differ."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lib.hashing import diff_fields, identity
from tests.scratch import ROOT


def test_identity_ignores_order_and_sees_values_and_types() -> None:
    one = {"a": 1, "b": {"c": [1, 2]}}
    same = json.loads('{"b": {"c": [1, 2]}, "a": 1}')
    assert identity(one) == identity(same)
    assert len(identity(one)) == 16
    others = [{**one, "a": 2}, {**one, "a": 1.0}, {**one, "a": True}, {"a": 1}]
    assert len({identity(x) for x in [one, *others]}) == 5
    with pytest.raises(ValueError):
        identity({"a": float("nan")})


def test_identity_is_the_same_in_another_process() -> None:
    code = "from lib.hashing import identity; print(identity({'x': 'é'}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == identity({"x": "é"})


def test_diff_fields_names_each_difference() -> None:
    old = {"model": {"width": 8, "bias": True}, "lr": 1e-3, "gone": 1, "same": [1]}
    new = {"model": {"width": 9, "bias": 1}, "lr": 1e-3, "new": "x", "same": [1]}
    assert diff_fields(old, new) == [
        ("gone", 1, None),
        ("model.bias", True, 1),
        ("model.width", 8, 9),
        ("new", None, "x"),
    ]
    assert diff_fields(old, json.loads(json.dumps(old))) == []
    rounded = {"min_lr": 3e-5}, {"min_lr": 0.1 * 3e-4}
    assert diff_fields(*rounded) == []
    assert diff_fields(*rounded, exact=True) == [("min_lr", 3e-5, 0.1 * 3e-4)]
    assert diff_fields({"min_lr": 3e-5}, {"min_lr": 3.0000001e-5}) != []
    assert diff_fields({"min_lr": 0.0}, {"min_lr": 1e-300}) != []
