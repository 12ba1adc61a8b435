"""Guards that are loosened are noticed: tolerances, and what voids cached findings.

Each fault is a few times as large as its certificate lets pass, so that a tolerance
cannot grow to 1e-2, or by any factor that matters, without a test that fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpt2.model import gpt, mlp
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import plan_settings
from gpt2.verify import certify_steps
from gpt2.verify.certificates import (
    at_size,
    budgets,
    causal,
    decode,
    formula,
    stateless,
)
from gpt2.verify.certify_steps import certify_plan, subjects
from gpt2.verify.features import acting, identity
from gpt2.verify.subject import Finding, Subject
from tests.gpt2.helpers import full_size
from tests.scratch import copy_files, project_files


def plan_of(step: int) -> Plan:
    small = {"n_layer": 3, "n_embd": 48, "block_size": 30}
    asked = full_size().replace(mode="ablation", steps=(step,), seeds=(1,), **small)
    return plan_settings(asked, {})


@cache
def subject(step: int = 0) -> Subject:
    (found,) = subjects(plan_of(step)).values()
    return found


HIDDEN, LOGITS, DECODE = gpt.GPT.hidden, gpt.GPT.logits, gpt.GPT.decode
MLP = mlp.MLP.forward


# ---- tolerances -------------------------------------------------------------------


def seeing_ahead(self, x, cache=None):
    return HIDDEN(self, x, cache) + 1e-8 * x.flip(1)


def with_slope_from_ahead(self, x, cache=None):
    ahead = 1e-8 * x.flip(1)
    return HIDDEN(self, x, cache) + (ahead - ahead.detach())


def off_by_little(self, tokens):
    logits = LOGITS(self, tokens)
    return logits + 1e-8 if logits.dtype == torch.float64 else logits


def with_slope_off_by_little(self, tokens):
    logits = LOGITS(self, tokens)
    return logits + 1e-9 * (logits - logits.detach())


def aging(self, x, cache=None):
    self.age = getattr(self, "age", 0) + 1
    return HIDDEN(self, x, cache) * (1 + 1e-5 * self.age)


def decoding_off_by_little(self, tokens, cache):
    return DECODE(self, tokens, cache) * (1 + 5e-5)


def with_more_products(self, x, **others):
    F.linear(x, self.fc.weight[:18])  # 2% of the model's operations
    return MLP(self, x, **others)


Certificate = Callable[[Subject], Finding]
FAULTS: list[tuple[Certificate, type, str, Callable[..., object], str]] = [
    (causal, gpt.GPT, "hidden", seeing_ahead, "moves earlier logits by"),
    (causal, gpt.GPT, "hidden", with_slope_from_ahead, "the gradient moves"),
    (formula, gpt.GPT, "logits", off_by_little, "the logits deviates by 1e-08"),
    (formula, gpt.GPT, "logits", with_slope_off_by_little, "the gradient of"),
    (at_size, gpt.GPT, "logits", off_by_little, "the logits deviates by 1e-08"),
    (stateless, gpt.GPT, "hidden", aging, "logits in training are"),
    (decode, gpt.GPT, "decode", decoding_off_by_little, "decoding deviates by 5"),
    (budgets, mlp.MLP, "forward", with_more_products, "FLOPs are 1.02"),
]


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda f: f"{f[0].__name__}-{f[3].__name__}"
)
def test_a_fault_just_above_the_tolerance_is_seen(monkeypatch, fault) -> None:
    certificate, place, name, wrong, text = fault
    assert certificate(subject()).passed
    monkeypatch.setattr(place, name, wrong)
    finding = certificate(subject())
    assert not finding.passed and text in finding.detail, finding


@pytest.mark.parametrize(
    ("certificate", "factor", "text"),
    [
        (acting, lambda gate, mix: 1 - 1e-7 * gate, "mlp_gate changes nothing"),
        (identity, lambda gate, mix: 1 - 2e-7 - mix + mix * gate, "neutral mlp_gate"),
    ],
)
def test_a_gate_that_hardly_acts_or_is_hardly_neutral_is_seen(
    monkeypatch, certificate, factor, text
) -> None:
    assert certificate(subject(3)).passed
    monkeypatch.setattr("gpt2.mechanisms.mlp_gate.layer.mixed", factor)
    finding = certificate(subject(3))
    assert not finding.passed and text in finding.detail, finding


# ---- cached findings --------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what findings depend on, for the hash to look at."""
    copy_files(tmp_path, ["Kconfig", "scripts/verify.py", "gpt2", "lib"])
    monkeypatch.setattr(certify_steps, "ROOT", tmp_path)
    return tmp_path


def one_of_each_kind() -> Iterator[str]:
    """A file for each folder and kind of name under gpt2 and lib."""
    kinds: dict[tuple[Path, str], str] = {}
    for name in project_files(["gpt2", "lib"]):
        path = Path(name)
        kinds.setdefault((path.parent, path.suffix), name)
    return iter(kinds.values())


def test_every_file_of_ours_voids_findings(tree: Path) -> None:
    before = certify_steps.code_hash()
    assert before == certify_steps.code_hash()
    names = ["Kconfig", "scripts/verify.py", *one_of_each_kind()]
    assert {Path(name).suffix for name in names} > {"", ".py", ".json"}
    for name in names:
        path = tree / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert certify_steps.code_hash() != before, name
        path.write_bytes(content)
    assert certify_steps.code_hash() == before
    (tree / "lib" / "new.py").touch()
    assert certify_steps.code_hash() != before


def test_what_python_compiled_voids_nothing(tree: Path) -> None:
    before = certify_steps.code_hash()
    compiled = tree / "lib" / "__pycache__" / "identity.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"compiled")
    assert certify_steps.code_hash() == before


def test_a_change_of_lib_is_certified_again(tree: Path) -> None:
    cache = tree / "certificates.json"
    plan = plan_of(5)

    def figures() -> set[str]:
        (cell,) = certify_plan(plan, cache)
        return {finding.figure for finding in cell.findings.values()}

    true = figures()
    stored = json.loads(cache.read_text())
    for findings in stored["findings"].values():
        for finding in findings.values():
            finding["figure"] = "cached"
    cache.write_text(json.dumps(stored))
    assert figures() == {"cached"}, "changes and distinct too"
    with (tree / "lib" / "hashing.py").open("a") as file:
        file.write("# another line\n")
    assert figures() == true


def test_a_certificate_that_failed_is_checked_again(tree: Path) -> None:
    cache = tree / "certificates.json"
    (first,) = certify_plan(plan_of(5), cache)
    stored = json.loads(cache.read_text())
    for findings in stored["findings"].values():
        for finding in findings.values():
            finding |= {"passed": False, "figure": "cached"}
    cache.write_text(json.dumps(stored))
    (again,) = certify_plan(plan_of(5), cache)
    assert again == first and again.ok
