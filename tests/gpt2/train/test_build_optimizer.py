"""gpt2/train/build_optimizer.py: what is asked of optimizer and pruner reaches them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gpt2.settings.schema import Optim
from gpt2.train.build_optimizer import make_optimizer, make_pruner
from lib.optim.registry import OPTIMIZERS
from tests.gpt2.helpers import generic, tiny, tiny_model

BASE = {
    "learning_rate": 0.01,
    "eps": 1e-3,
    "spam_threshold": 2.0,
    "spam_interval": 25,  # clipping begins 20 updates after a reset
    "spam_warmup": 4,
}
OTHER = {
    "learning_rate": 0.02,
    "weight_decay": 0.3,
    "beta1": 0.8,
    "beta2": 0.9,
    "eps": 1e-2,
    "momentum": 0.5,
    "spam_threshold": 1.0,
    "spam_interval": 26,
    "spam_warmup": 5,
    "spam_reset_counter": True,
}


class Two(nn.Module):
    """A matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)
        nn.init.constant_(self.fc.weight, 0.5)
        nn.init.constant_(self.fc.bias, 0.5)


def trained(optim: Optim) -> Tensor:
    """All weights after 30 updates with the same noise as gradients."""
    model = Two()
    optimizer = make_optimizer(model, optim)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_hyperparameter_of_an_optimizer_acts_and_no_other(name: str) -> None:
    optim = tiny(optimizer=name, **BASE).optim
    before = trained(optim)
    changed = {
        field
        for field, value in OTHER.items()
        if not torch.equal(trained(replace(optim, **{field: value})), before)
    }
    spec = OPTIMIZERS[name]
    read = {*spec.reads, *(own.name for own in spec.own)}
    assert changed == read | {"learning_rate", "weight_decay"}


def test_the_decay_is_the_one_asked_for_and_of_matrices_alone() -> None:
    optim = tiny(weight_decay=0.25, **BASE).optim
    groups = make_optimizer(Two(), optim).param_groups
    assert [(g["weight_decay"], g["param_names"]) for g in groups] == [
        (0.25, ["fc.weight"]),
        (0.0, ["fc.bias"]),
    ]


PRUNE = {"prune_method": "magnitude", "max_iters": 40, "prune_interval": 5}
PRUNE |= {"prune_warmup": 5, "prune_ramp_end": 0.5, "prune_scope": "global"}
DIFFERENT = {
    "prune_sparsity": 0.75,
    "prune_interval": 3,
    "prune_warmup": 10,
    "prune_ramp_end": 0.9,
    "prune_scope": "layer",
    "prune_method": "movement",
    "max_iters": 60,
}


def masks(**fields: object) -> list[tuple[Tensor, ...]]:
    """Masks of a pruner after each of 40 updates."""
    settings = tiny_model(**{**PRUNE, "prune_sparsity": 0.5, **fields})
    model = generic(settings, dtype=torch.float32)
    optimizer = make_optimizer(model, settings.optim)
    pruner = make_pruner(model, optimizer, settings)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(1, 41):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        pruner.before_update(step)
        optimizer.step()
        pruner.after_update(step)
        found.append(tuple(p.detach() == 0 for p in model.parameters()))
    return found


def test_the_variant_that_scores_is_the_one_asked_for() -> None:
    asked = {"prune_method": "state", "optimizer": "adamwprune"}
    one, other = (
        masks(**asked, adamwprune_variant=variant) for variant in ("bitter1", "bitter7")
    )
    assert any(not torch.equal(a, b) for a, b in zip(one[-1], other[-1], strict=True))


def test_heads_are_chosen_in_the_scope_asked_for() -> None:
    one, other = (
        masks(prune_method="heads", prune_scope=scope) for scope in ("global", "layer")
    )
    assert any(not torch.equal(a, b) for a, b in zip(one[-1], other[-1], strict=True))


def test_every_setting_of_pruning_acts() -> None:
    before = masks()
    idle = [
        field
        for field, value in DIFFERENT.items()
        if all(
            torch.equal(a, b)
            for one, other in zip(masks(**{field: value}), before, strict=True)
            for a, b in zip(one, other, strict=True)
        )
    ]
    assert idle == []
