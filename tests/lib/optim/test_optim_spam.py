"""AdamWSPAM's phases, update by update."""

import math

import pytest
import torch
from torch import nn

from lib.optim.spam import AdamWSPAM, warmup_scale
from tests.card import DEVICES


def spam(weight, *, beta2=0.999, decay=0.1, interval=500, warmup=150, **options):
    group = {"params": [weight], "weight_decay": decay}
    return AdamWSPAM(
        [group],
        lr=1e-2,
        betas=(0.9, beta2),
        eps=1e-8,
        threshold=options.get("threshold", 5000.0),
        interval=interval,
        warmup=warmup,
        reset_counter=options.get("reset_counter", False),
        fused=options.get("fused"),
    )


def update(optimizer, weight, gradient):
    weight.grad = gradient.clone()
    optimizer.step()


def test_without_spikes_it_is_adamw_until_the_first_reset():
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(500, 3, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = spam(ours)
    adamw = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for n in range(1, 501):
        update(mine, ours, gradients[n - 1])
        update(adamw, theirs, gradients[n - 1])
        assert torch.equal(ours, theirs) == (n < 500)


@pytest.mark.parametrize(
    ("n", "scale"),
    [
        (1, 1.0),
        (499, 1.0),
        (500, 0.01),
        (575, 1 - 0.99 * (1 + math.cos(math.pi * 75 / 151)) / 2),
        (649, 1 - 0.99 * (1 + math.cos(math.pi * 149 / 151)) / 2),
        (650, 1.0),
        (999, 1.0),
        (1000, 0.01),
    ],
)
def test_warmup_scale(n, scale):
    assert warmup_scale(n, 500, 150) == pytest.approx(scale, abs=1e-12)


@pytest.mark.parametrize(("reset_counter", "ratio"), [(False, 10**0.5), (True, 1.0)])
def test_first_ratio_after_a_late_reset(reset_counter, ratio):
    weight = nn.Parameter(torch.zeros(4))
    optimizer = spam(
        weight, decay=0.0, interval=6000, warmup=150, reset_counter=reset_counter
    )
    optimizer.param_groups[0]["spam_updates"] = 5998
    update(optimizer, weight, torch.ones(4))
    optimizer.state[weight]["step"].fill_(5999.0)
    before = weight.detach().clone()
    update(optimizer, weight, torch.ones(4))
    step = (before - weight.detach()) / (1e-2 * 0.01)
    assert step.mean().item() == pytest.approx(ratio, rel=2e-3)


def test_theta_sets_what_a_spike_is():
    for threshold, largest in ((5000.0, 60.0), (50.0, 50**0.5)):
        weight = nn.Parameter(torch.zeros(4))
        optimizer = spam(weight, beta2=0.5, threshold=threshold)
        for _ in range(30):
            update(optimizer, weight, torch.ones(4))
        update(optimizer, weight, torch.full((4,), -60.0))
        assert weight.grad.tolist() == pytest.approx([-largest] * 4, rel=1e-6)


@pytest.mark.parametrize("since_reset", [1, 19, 20, 39])
@pytest.mark.parametrize("reset", [0, 40])
def test_clipping_waits_for_20_updates_of_history(reset, since_reset):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = spam(weight, interval=40, warmup=5, threshold=50.0)
    for _ in range(reset + since_reset - 1):
        update(optimizer, weight, torch.ones(1))
    update(optimizer, weight, torch.full((1,), 1000.0))
    assert (weight.grad.item() < 1000.0) == (since_reset >= 20)


def test_an_entry_without_history_waits_for_the_next_reset():
    weight = nn.Parameter(torch.ones(2))
    optimizer = spam(weight, decay=0.0, interval=40, warmup=5)
    for n in range(1, 45):
        gradient = torch.tensor([1.0, 0.0 if n < 25 else 1.0])
        update(optimizer, weight, gradient)
        assert (weight[1].item() == 1.0) == (n < 40)


def test_a_parameter_without_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    group = {"params": [used, unused], "weight_decay": 0.1}
    optimizer = AdamWSPAM(
        [group],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        threshold=50.0,
        interval=30,
        warmup=10,
        reset_counter=False,
    )
    for _ in range(65):
        update(optimizer, used, torch.ones(2, 2))
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))


def test_rates_and_decays_are_put_back_after_a_scaled_update():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = spam(weight, interval=30, warmup=10)
    for _ in range(32):
        update(optimizer, weight, torch.ones(2, 2))
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_that_overflows_in_fp16_is_none_of_its_updates(device):
    """torch's scaler calls step() of a fused optimizer all the same."""
    weight = nn.Parameter(torch.ones(4, device=device))
    optimizer = spam(weight, fused=True)
    scaler = torch.amp.GradScaler(device, init_scale=1.0)
    scaler.scale(torch.ones((), device=device))  # begins it
    for gradient, updates in ((1.0, 1), (math.inf, 1), (1.0, 2)):
        weight.grad = torch.full((4,), gradient, device=device)
        before = weight.detach().clone()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.updates == updates
        assert torch.equal(weight, before) == math.isinf(gradient)
