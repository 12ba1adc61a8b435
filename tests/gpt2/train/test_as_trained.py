"""The certificate "as trained": what trains is compared with the plain formulas."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpt2.model import mlp
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.model.reference import formulas
from gpt2.plan.steps import STEPS
from gpt2.train import as_trained, update
from gpt2.train.as_trained import GradientComparison, compare
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import load_data
from gpt2.train.run_context import RunContext
from gpt2.train.update import Updater
from gpt2.verify.subject import scramble
from lib.gpu.device import random_state, select_device
from lib.output import EXIT_USAGE
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import (
    checkpoints,
    finish,
    manifest,
    records,
    status,
    tiny_job,
    train,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("data"))


class Subject:
    """A step at tiny size, ready to train on a CPU."""

    def __init__(self, data: Path, step: int | None = None, **fields: Any) -> None:
        self.settings = tiny_job(data, step, **fields).settings
        train, val = load_data(self.settings)
        resources = self.settings.resources
        split = split_batch(self.settings.effective_batch, resources.batch_size, 1, 0)
        device = select_device("cpu")
        self.context = RunContext(device=device, split=split, train=train, val=val)
        self.model = GPT(self.settings).train()
        init_parameters(self.model, 1)
        scramble(self.model, 1)
        self.updater = Updater(self.model, self.settings, self.context)

    def compare(self, step: int = 0) -> GradientComparison:
        return compare(self.updater, self.model, self.settings, self.context, step)


def test_torch_has_as_many_threads_as_tests_ask_for() -> None:
    """Also if this folder is named, with a conftest that imports torch at once."""
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("step", STEPS)
def test_every_step_trains_as_its_formulas_say(data: Path, step: int) -> None:
    found = Subject(data, step, dropout=0.0, prune_method="none").compare()
    assert found.passed, found.describe()
    assert found.worst[1] < 1e-4 and found.loss < 1e-6


@pytest.mark.parametrize("fields", [{"dropout": 0.1}, {"mixed_precision": "bf16"}])
def test_it_leaves_no_trace(data: Path, fields: dict[str, Any]) -> None:
    subject = Subject(data, **fields)
    before = random_state(subject.context.device)["cpu"]
    weights = [p.detach().clone() for p in subject.model.parameters()]
    found = subject.compare(3)
    assert found.passed, found.describe()
    assert torch.equal(before, random_state(subject.context.device)["cpu"])
    pairs = zip(weights, subject.model.parameters(), strict=True)
    assert all(torch.equal(a, b) and b.grad is None for a, b in pairs)
    assert subject.model.dropout.p == fields.get("dropout", 0.1)
    assert ("without dropout" in found.note) == (subject.model.dropout.p > 0)


def test_a_large_model_recomputes_blocks_to_the_same_bits(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Subject(data, 16, dropout=0.0).compare()
    monkeypatch.setattr(formulas, "KEPT", 0)
    assert Subject(data, 16, dropout=0.0).compare().record()["deviations"] == (
        held.record()["deviations"]
    )


def without_compiler() -> None:
    """Makes each import of torch's compiler an error."""
    sys.modules["torch._dynamo"] = None  # type: ignore[assignment]


def test_a_run_on_a_cpu_does_not_import_the_compiler(
    data: Path, tmp_path: Path
) -> None:
    finish(tiny_job(data, 5), tmp_path / "run", setup=without_compiler)


# ---- planted faults --------------------------------------------------------------


def unscaled_accumulation(patch: Callable[..., None]) -> None:
    """Micro steps that add up whole losses and not shares of one."""

    class Whole(update.MicroStep):
        def __call__(self, tokens, targets):
            self.share = 1.0
            return super().__call__(tokens, targets) / 2

    patch(update, "MicroStep", Whole)


def stale_tokens(patch: Callable[..., None]) -> None:
    """Each micro step of an update reads the tokens of the first."""

    class Stale(update.MicroStep):
        pair = None

        def __call__(self, tokens, targets):
            self.pair = self.pair or (tokens, targets)
            return super().__call__(*self.pair)

    patch(update, "MicroStep", Stale)


def wrong_slope(patch: Callable[..., None]) -> None:
    """GELU's derivative is 2% too small: the loss is right and the model learns."""

    class Gelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.gelu(x, approximate="tanh")

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            gelu_backward = torch.ops.aten.gelu_backward
            return 0.98 * gelu_backward(slope, x, approximate="tanh")

    functional = type("F", (), {**vars(F), "gelu": lambda x, **_: Gelu.apply(x)})
    patch(mlp, "F", functional)


def wrong_order(patch: Callable[..., None]) -> None:
    """Targets of one sequence are given to another."""

    class Rolled(update.MicroStep):
        def __call__(self, tokens, targets):
            return super().__call__(tokens, targets.roll(1, 0))

    patch(update, "MicroStep", Rolled)


PLANTED = (unscaled_accumulation, stale_tokens, wrong_slope, wrong_order)


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_seen(data: Path, fault, monkeypatch) -> None:
    fault(monkeypatch.setattr)
    found = Subject(data, dropout=0.0).compare()
    assert not found.passed
    assert "NOT AS THE FORMULAS" in found.describe()


def test_deviations_just_above_the_tolerance_are_seen(data: Path, monkeypatch) -> None:
    """The tolerance of the certificate itself: widening it fails this."""
    subject = Subject(data, dropout=0.0)
    accumulate = subject.updater.accumulate

    def slightly_off(data: Any) -> torch.Tensor:
        loss = accumulate(data)
        subject.updater.parameters[0].grad.mul_(1 + 2e-4)
        return loss

    monkeypatch.setattr(subject.updater, "accumulate", slightly_off)
    found = subject.compare()
    assert not found.passed and found.worst[0] == "wte.weight"
    assert found.worst[1] == pytest.approx(2e-4, rel=0.05)
    bf16 = replace(
        found, gradients={"a": 0.061}, tolerance=as_trained.TOLERANCE["bf16"]
    )
    assert not bf16.passed, "four times what rounding makes at 124M"


def test_a_training_that_has_fallen_apart_is_not_judged(data: Path) -> None:
    """Weights far too large: rounding decides about gradients."""
    subject = Subject(data, dropout=0.0)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(30)
    found = subject.compare(5)
    assert found.worst[1] > as_trained.TOLERANCE["cpu"]
    assert found.passed and "not judged" in found.describe()
    assert not subject.compare(0).passed, "no training begins so"


def test_what_rounding_does_to_the_formulas_is_allowed(data: Path, monkeypatch) -> None:
    subject = Subject(data, dropout=0.0)
    monkeypatch.setitem(as_trained.TOLERANCE, "cpu", 1e-8)
    found = subject.compare()
    assert found.rounding and found.passed, found.describe()
    name, _ = found.worst
    alone = found.record()["rounding"][name]
    assert 0 < alone < 3.9 * alone < found.allowed(name)
    assert f"as rounding alone makes {alone:.1e}" in found.describe()
    wrong_slope(monkeypatch.setattr)
    assert not Subject(data, dropout=0.0).compare().passed


def test_rounding_is_that_of_a_parameter_or_of_all_layers(data: Path) -> None:
    """0 by chance in one layer allows no less than the others' root mean square."""
    rounding = {"blocks.0.alpha": 0.0, "blocks.1.alpha": 0.1, "ln_f.bias": 0.3}
    found = replace(
        Subject(data, dropout=0.0).compare(), rounding=rounding, tolerance=0.06
    )
    allowed = [found.allowed(name) for name in (*rounding, "wte.weight")]
    assert allowed == pytest.approx([4 * 0.1 / 2**0.5, 4 * 0.1, 1.0, 0.06])


def test_gradients_that_are_not_finite_are_seen(data: Path, monkeypatch) -> None:
    subject = Subject(data, dropout=0.0)
    accumulate = subject.updater.accumulate

    def broken(data: Any) -> torch.Tensor:
        loss = accumulate(data)
        subject.updater.parameters[3].grad[0] = torch.nan
        return loss

    monkeypatch.setattr(subject.updater, "accumulate", broken)
    found = subject.compare()
    assert not found.passed and found.worst[1] == as_trained.WRONG


# ---- whole runs ------------------------------------------------------------------


def test_a_run_records_what_was_compared(data: Path, tmp_path: Path) -> None:
    job = tiny_job(data, max_iters=22, dropout=0.0)
    result = finish(job, tmp_path / "run")
    found = records(tmp_path / "run", "as_trained")
    assert [record["step"] for record in found] == [0, 20, 22]
    assert all(record["passed"] for record in found)
    recorded = manifest(tmp_path / "run")["as_trained"]
    assert [check["step"] for check in recorded["checks"]] == [0, 20, 22]
    assert len(recorded["deviations"]) == len(found[0]["deviations"]) == 28
    worst = max(record["worst"] for record in found)
    assert (
        result["as_trained"]
        == worst
        == pytest.approx(max(recorded["deviations"].values()), rel=0.01)
    )


def test_a_resumed_run_is_compared_again(data: Path, tmp_path: Path) -> None:
    job = tiny_job(data, max_iters=6)
    killed = train(job, tmp_path / "run", KABLATE_TEST_FAULTS="kill@4")
    assert killed.process.exitcode == -9, killed.log
    finish(job, tmp_path / "run")
    steps = [
        check["step"] for check in manifest(tmp_path / "run")["as_trained"]["checks"]
    ]
    assert steps == [0, 3, 6]


def test_it_can_be_left_out(data: Path, tmp_path: Path) -> None:
    result = finish(tiny_job(data, as_trained=False, max_iters=3), tmp_path / "run")
    assert result["as_trained"] is None
    assert records(tmp_path / "run", "as_trained") == []
    assert manifest(tmp_path / "run")["as_trained"] is None


def wrong_from_the_start() -> None:
    wrong_slope(setattr)


def wrong_after_update_5() -> None:
    step = update.Updater._apply

    def apply(self, number: int):
        found = step(self, number)
        if number == 5:
            for parameter in self.parameters:
                parameter.register_hook(lambda slope: 0.9 * slope)
        return found

    vars(update)["Updater"]._apply = apply


def test_wrong_gradients_are_refused_before_the_first_update(
    data: Path, tmp_path: Path
) -> None:
    done = train(tiny_job(data), tmp_path / "run", setup=wrong_from_the_start)
    assert done.process.exitcode == EXIT_USAGE, done.log
    recorded = status(tmp_path / "run")
    assert recorded["status"] == "failed" and recorded["step"] == 0
    assert "NOT AS THE FORMULAS" in recorded["message"]
    assert "RA_MLA_ATTENTION_BACKEND_REFERENCE" in recorded["message"]


def test_gradients_that_become_wrong_end_the_run(data: Path, tmp_path: Path) -> None:
    done = train(tiny_job(data), tmp_path / "run", setup=wrong_after_update_5)
    assert done.process.exitcode == 7, done.log
    recorded = status(tmp_path / "run")
    assert (recorded["status"], recorded["failure"]) == ("failed", "gradients")
    assert checkpoints(tmp_path / "run") == [], "any of them may be of wrong updates"
