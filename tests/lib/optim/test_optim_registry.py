"""Building optimizers: groups, what is refused, memory, specs without torch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.optim.certify import trial_config
from lib.optim.groups import decay_groups, set_learning_rate, state_bytes
from lib.optim.muon_adamw import MuonAdamW
from lib.optim.registry import OPTIMIZERS, build

CONFIG = trial_config("adamw")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 8)
        self.heads = nn.Parameter(torch.randn(2, 4, 4))
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


def groups(decay: float = 0.1):
    return decay_groups(Small().named_parameters(remove_duplicate=False), decay)


def one_update(optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_matrices_decay_and_a_tied_one_is_taken_once():
    decayed, plain = groups()
    assert decayed["param_names"] == ["heads", "embedding.weight", "hidden.weight"]
    assert decayed["weight_decay"] == 0.1
    assert plain["param_names"] == ["hidden.bias"]
    assert plain["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out():
    model = Small()
    model.hidden.weight.requires_grad_(False)
    names = [
        n for g in decay_groups(model.named_parameters(), 0.1) for n in g["param_names"]
    ]
    assert "hidden.weight" not in names
    assert "hidden.bias" in names


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_callers_groups_are_left_as_they_were(name):
    mine = groups()
    before = [set(group) for group in mine]
    optimizer = build(name, mine, trial_config(name), embeddings=["embedding.weight"])
    set_learning_rate(optimizer, 0.5)
    one_update(optimizer)
    assert [set(group) for group in mine] == before
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_muon_takes_hidden_matrices_only():
    optimizer = build("muon", groups(), CONFIG, embeddings=["embedding.weight"])
    assert isinstance(optimizer, MuonAdamW)
    of_muon = [n for g in optimizer.muon.param_groups for n in g["param_names"]]
    of_adamw = {
        n: g["weight_decay"]
        for g in optimizer.adamw.param_groups
        for n in g["param_names"]
    }
    assert of_muon == ["hidden.weight"]
    assert of_adamw == {"embedding.weight": 0.1, "heads": 0.1, "hidden.bias": 0.0}


@pytest.mark.parametrize(
    ("name", "per_weight"),
    [("sgd", 4), ("adam", 8), ("adamw", 8), ("adamwadv", 12), ("adamwspam", 8)],
)
def test_state_bytes_counts_the_moments(name, per_weight):
    optimizer = build(name, groups(), trial_config(name))
    assert state_bytes(optimizer) == 0
    one_update(optimizer)
    members = [p for group in optimizer.param_groups for p in group["params"]]
    counters = 0 if name == "sgd" else 4 * len(members)
    weights = sum(parameter.numel() for parameter in members)
    assert state_bytes(optimizer) == per_weight * weights + counters


def test_muon_keeps_one_buffer_for_a_hidden_matrix():
    optimizer = build("muon", groups(), CONFIG, embeddings=["embedding.weight"])
    one_update(optimizer)
    assert state_bytes(optimizer) == 4 * 32 + 8 * (24 + 32 + 8) + 4 * 3


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("lion", {}, ["'lion'", "adamwspam"]),
        ("adamwspam", {"spam_interval": 20}, ["spam_interval", "20", "> 20"]),
        ("adamwspam", {"spam_warmup": 500}, ["spam_warmup", "0 to 499"]),
        ("adamwspam", {"spam_threshold": 0.0}, ["spam_threshold", "> 0"]),
    ],
)
def test_what_cannot_be_honoured_is_refused(name, change, words):
    with pytest.raises(ValueError, match="allowed") as error:
        own = {**trial_config("adamwspam").own, **change}
        build(name, groups(), replace(CONFIG, own=own))
    assert all(word in str(error.value) for word in words)


def test_a_group_without_decay_is_refused():
    bare = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    with pytest.raises(ValueError, match="weight_decay"):
        build("adamw", bare, CONFIG)


def test_muon_refuses_embeddings_it_cannot_find():
    with pytest.raises(ValueError, match="wte"):
        build("muon", groups(), CONFIG, embeddings=["wte.weight"])
    with pytest.raises(ValueError, match="hidden matrices"):
        build(
            "muon", groups(), CONFIG, embeddings=["embedding.weight", "hidden.weight"]
        )
