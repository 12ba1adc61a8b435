"""gpt2/model/loss.py against torch's cross-entropy of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.loss import linear_cross_entropy, summed_score
from tests.gpt2.helpers import deviation, generic, normal, tiny_model, tokens_of

WORDS = 131  # padded to 256


def problem(dtype: torch.dtype, rows: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    x = normal(1, rows, 7, seed=1, dtype=dtype)
    weight = normal(WORDS, 7, seed=2, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    return x, weight, torch.randint(WORDS, (1, rows), generator=generator)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)]
)
def test_loss_and_gradients_equal_torchs(
    chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight, targets = problem(dtype)
    ours = linear_cross_entropy(x, weight, targets, chunk)
    theirs = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten())
    assert deviation(ours, theirs) <= tolerance
    scaled = 3.5  # as a loss scale or a share of the accumulation
    for a, b in zip(
        torch.autograd.grad(ours * scaled, (x, weight)),
        torch.autograd.grad(theirs * scaled, (x, weight)),
        strict=True,
    ):
        assert b.abs().max() > 0
        assert a.dtype == b.dtype
        assert deviation(a, b) <= tolerance


def test_loss_under_autocast_is_that_of_rounded_products() -> None:
    x, weight, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    exact = F.cross_entropy((x @ weight.t()).flatten(0, 1), targets.flatten())
    assert loss.dtype == torch.float32
    assert 0 < deviation(loss, exact) < 2e-2
    slope, true = (torch.autograd.grad(y, weight)[0] for y in (loss, exact))
    assert slope.dtype == torch.float32
    assert (slope - true).norm() / true.norm() < 2e-2


@pytest.mark.parametrize("gap", [60.0, 1e4])
def test_a_hopeless_goal_gives_finite_numbers(gap: float) -> None:
    """Up to 75 nats the loss is exact; beyond that it only stays finite."""
    x, weight = torch.ones(1, 1, 1), torch.zeros(WORDS, 1)
    weight[5] = gap
    weight.requires_grad_()
    targets = torch.zeros(1, 1, dtype=torch.int64)
    loss = linear_cross_entropy(x, weight, targets)
    exact = F.cross_entropy((x @ weight.t())[0], targets[0])
    (slope,) = torch.autograd.grad(loss, weight)
    assert torch.isfinite(slope).all()
    assert slope[5].item() == pytest.approx(1.0) and slope[0] < 0
    assert loss.item() == pytest.approx(min(exact.item(), 75.0), rel=1e-6)


def test_a_certain_word_keeps_its_small_gradient_in_bf16() -> None:
    """p - 1 is not computed as a difference of rounded numbers."""
    x, weight = torch.ones(1, 1, 1), torch.zeros(WORDS, 1)
    weight[0] = 16.0
    weight.requires_grad_()
    targets = torch.zeros(1, 1, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        (slope,) = torch.autograd.grad(linear_cross_entropy(x, weight, targets), weight)
    missed = (WORDS - 1) * torch.tensor(-16.0).exp()
    assert slope[0].item() == pytest.approx(-missed.item(), rel=1e-2)


@pytest.mark.parametrize("chunk", [5, 100])
def test_scores_equal_torchs(chunk: int) -> None:
    x, weight, targets = problem(torch.float64)
    logits = (x @ weight.t()).flatten(0, 1)
    loss, right = summed_score(x, weight, targets, chunk)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    assert deviation(loss, expected) < 1e-12
    assert right.item() == (logits.argmax(-1) == targets.flatten()).sum().item()


def test_the_tied_embedding_gets_both_gradients() -> None:
    settings = tiny_model()
    model, tokens = generic(settings), tokens_of(settings, 2, 9)
    hidden = model.hidden(model.embed(tokens))
    weight = model.wte.weight
    ours = linear_cross_entropy(hidden, weight, tokens.roll(-1, 1), chunk=4)
    theirs = model(tokens, tokens.roll(-1, 1))
    assert deviation(ours, theirs) < 1e-6
    a, b = (
        torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (ours, theirs)
    )
    assert deviation(a, b) < 1e-6


@pytest.mark.slow  # compiles
def test_a_compiler_keeps_the_logits_of_one_chunk_at_a_time() -> None:
    rows, words, chunk = 4096, 8192, 256
    x = normal(rows, 8, seed=1, dtype=torch.float32)
    weight = normal(words, 8, seed=2, dtype=torch.float32)
    targets = torch.arange(rows)
    compiled = torch.compile(linear_cross_entropy, dynamic=False)
    compiled(x, weight, targets, chunk)
    with torch.profiler.profile(profile_memory=True) as profile:
        compiled(x, weight, targets, chunk)
    events = profile.profiler.kineto_results.events()
    taken = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(taken, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    one = 4 * words * chunk
    assert one < peak < 4 * one  # of 16 chunks


@pytest.mark.gpu
def test_a_gpu_trains_on_the_same_loss() -> None:
    settings = tiny_model()
    model, tokens = generic(settings, dtype=torch.float32), tokens_of(settings, 2, 9)
    expected = model(tokens, tokens.roll(-1, 1))
    (slope,) = torch.autograd.grad(expected, model.wte.weight)
    model.cuda()
    there = tokens.cuda()
    loss = model(there, there.roll(-1, 1))
    assert deviation(loss.cpu(), expected) < 1e-4
    (found,) = torch.autograd.grad(loss, model.wte.weight)
    assert deviation(found.cpu(), slope) < 1e-4
