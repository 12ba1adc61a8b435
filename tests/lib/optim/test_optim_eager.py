"""torch's optimizers without its compiler: the same updates, and a shorter start."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib.optim import eager, spam
from lib.optim.certify import (
    advance,
    fresh_weights,
    gradient_table,
    groups_of,
    make_default,
    rate_at,
    reloaded,
    trial_config,
)
from lib.optim.groups import OptimizerLike
from tests.card import DEVICES

KINDS = ["SGD", "Adam", "AdamW", "Muon"]


def train(kind: Any, resumed: bool = False) -> tuple[Tensor, dict[str, Any]]:
    """A matrix after ten updates, of which a second optimizer may do the latter."""
    start = torch.linspace(-1, 1, 12).reshape(3, 4)
    weight = start.clone().requires_grad_()
    optimizer = kind([weight], lr=0.1, weight_decay=0.1)
    for number in range(10):
        if resumed and number == 5:
            state = optimizer.state_dict()
            optimizer = kind([weight], lr=0.3)
            optimizer.load_state_dict(state)
        (weight.exp() @ start.T).sum().backward()
        optimizer.step()
        assert weight.requires_grad and weight.grad is not None
        optimizer.zero_grad()
        assert weight.grad is None
    return weight.detach(), optimizer.state_dict()


@pytest.mark.parametrize("name", KINDS)
def test_the_bits_are_those_of_torchs_own(name: str) -> None:
    theirs, state = train(getattr(torch.optim, name))
    for resumed in (False, True):
        ours, mine = train(eager.uncompiled(name), resumed)
        assert torch.equal(ours, theirs)
        assert mine.keys() == state.keys()
        assert mine["param_groups"] == state["param_groups"]
        for key, value in state["state"].get(0, {}).items():
            assert torch.equal(torch.as_tensor(mine["state"][0][key]), value)


def test_what_torch_does_not_have_fused_serves_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "fused_options", lambda groups: {"fused": True})
    groups = [{"params": [torch.ones(5).requires_grad_()], "weight_decay": 0.1}]
    for name, is_fused in (("NAdam", False), ("Adagrad", True)):
        optimizer = eager.fused(name, groups, lr=0.1)
        assert bool(optimizer.param_groups[0].get("fused")) == is_fused


@pytest.mark.parametrize("name", ["adam", "adamw", "adamwspam", "sgd", "muon"])
def test_a_resumed_run_keeps_the_options_of_its_own_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a CPU to a GPU, where updates are fused, and back."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(eager, "fused_options", lambda groups: dict(options))
    monkeypatch.setattr(spam, "fused_options", lambda groups: dict(options))

    def made() -> tuple[OptimizerLike, Any]:
        weights = fresh_weights(torch.float32)
        groups = groups_of(weights)
        return make_default(name, groups, trial_config(name)), weights

    for before, now in ((None, True), (True, None)):
        options["fused"] = before
        old, weights = made()
        advance(old, weights, gradient_table(3), range(1, 4))
        options["fused"] = now
        new, weights = made()
        own = [group.get("fused") for group in new.param_groups]
        assert (True in own) == (now is True)
        new.load_state_dict(reloaded(old.state_dict()))
        assert [group.get("fused") for group in new.param_groups] == own
        # What belongs to the training is the checkpoint's.
        assert new.param_groups[0]["lr"] == old.param_groups[0]["lr"] == rate_at(3)
        counts = {float(s["step"]) for s in new.state.values() if "step" in s}
        assert counts <= {3.0}
        advance(new, weights, gradient_table(5), range(4, 6))


@pytest.mark.gpu
@pytest.mark.parametrize("places", [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("name", ["adam", "adamw", "adamwspam", "sgd", "muon"])
def test_a_checkpoint_goes_on_elsewhere(name: str, places: tuple[str, str]) -> None:
    def made(weights: Any, device: str) -> tuple[OptimizerLike, Any]:
        here = {
            k: nn.Parameter(w.detach().to(device, copy=True))
            for k, w in weights.items()
        }
        return make_default(name, groups_of(here), trial_config(name)), here

    before, now = places
    table = gradient_table(5)
    old, weights = made(fresh_weights(torch.float32), before)
    advance(old, weights, table, range(1, 4))
    new, here = made(weights, now)
    new.load_state_dict(reloaded(old.state_dict()))
    for optimizer, members in ((old, weights), (new, here)):
        advance(optimizer, members, table, range(4, 6))
    for key, weight in here.items():
        assert torch.allclose(weight.cpu(), weights[key].cpu(), rtol=1e-5, atol=1e-4)
    for group in new.param_groups:
        for weight in group["params"] if "fused" in group else ():
            count = new.state[weight].get("step", torch.tensor(0.0))
            assert name == "sgd" or count.device.type == now


PROGRAM = """
import sys
from tests.lib.optim.test_optim_eager import KINDS, eager, train
for name in KINDS:
    train(eager.uncompiled(name), resumed=True)
raise SystemExit("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_not_imported() -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM]).returncode == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {})]
)
def test_a_first_update_that_overflows_in_fp16_leaves_nothing(
    name: str, options: dict[str, Any], device: str
) -> None:
    """Fused, as on a GPU: torch's SGD would go on from uninitialised memory."""
    found = []
    for gradients in ([float("inf"), 1.0, 1.0], [1.0, 1.0]):
        weight = torch.ones(5, device=device).requires_grad_()
        groups = [{"params": [weight], "weight_decay": 0.1}]
        dirty = [torch.full((5,), 7e8, device=device) for _ in range(50)]
        optimizer = eager.fused(name, groups, lr=0.1, fused=True, **options)
        del dirty
        scaler = torch.amp.GradScaler(device, init_scale=1.0, growth_interval=1000)
        scaler.scale(torch.ones((), device=device))  # begins it
        for gradient in gradients:
            weight.grad = torch.full((5,), gradient, device=device)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update(1.0)
        found.append(weight.detach())
    assert torch.equal(*found)
