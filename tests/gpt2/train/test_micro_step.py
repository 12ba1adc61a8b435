"""A recorded micro step does what an unrecorded one does."""

import subprocess
import sys

import pytest
import torch

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.train.micro_step import MicroStep, Recorded, record
from lib.gpu.device import select_device
from tests.gpt2.helpers import deviation, tiny_model, tokens_of
from tests.gpt2.tinydata import ROOT


def pairs(count: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings = tiny_model()
    every = (tokens_of(settings, 2, 9, seed=n).to(device) for n in range(count))
    return [(tokens, tokens.roll(-1, 1)) for tokens in every]


def build(device: str) -> tuple[GPT, MicroStep]:
    model = GPT(tiny_model())
    init_parameters(model, 3)
    model.to(device)
    info = select_device("cpu" if device == "cpu" else "auto")
    return model, MicroStep(model, info, "fp32", share=0.5)


def test_gradients_of_micro_steps_add_up():
    model, step = build("cpu")
    both = pairs(2, "cpu")
    losses = [step(*pair) for pair in both]
    found = [p.grad for p in model.parameters()]
    total = sum(0.5 * model(*pair) for pair in both)
    expected = torch.autograd.grad(total, list(model.parameters()))
    assert deviation(sum(losses), total) < 1e-6
    assert not any(loss.requires_grad for loss in losses)
    assert all(deviation(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("repeats", [False, True])
def test_a_graph_leaves_the_gradients_of_the_step_itself(repeats):
    model, step = build("cuda")
    parameters, data = list(model.parameters()), pairs(6, "cuda")
    graph, why = record(step, parameters, *data[0], repeats=repeats)
    assert isinstance(graph, Recorded), why
    assert all(p.grad is None for p in parameters)
    per_update = 2 if repeats else 1
    for start in range(0, len(data), per_update):
        mine = data[start : start + per_update]
        losses = []
        for work in (step, graph):
            for p in parameters:
                p.grad = None
            losses.append(sum(work(*pair).clone() for pair in mine))
            losses.append([p.grad.clone() for p in parameters])
        loss, slopes, replayed, again = losses
        assert deviation(replayed, loss) < 1e-5
        assert all(deviation(a, b) < 1e-4 for a, b in zip(again, slopes, strict=True))


def waits(loss):
    assert loss.item() > 0


def waits_while_recorded(loss):
    """Faults that no pass before the recording can show."""
    if torch.cuda.is_current_stream_capturing():
        waits(loss)


def goes_on_unrecorded(spoil):
    model, step = build("cuda")
    true = step.forward

    def spoilt(tokens, targets):
        loss = true(tokens, targets)
        spoil(loss)
        return loss

    step.forward = spoilt
    (pair,) = pairs(1, "cuda")
    stream = torch.cuda.current_stream()
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    found, why = record(step, list(model.parameters()), *pair, repeats=False)
    assert found is step and why
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert step(*pair).item() > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.gpu
def test_a_step_that_waits_goes_on_unrecorded():
    goes_on_unrecorded(waits)
    torch.cuda.empty_cache()  # an error after a recording that broke off


@pytest.mark.gpu
def test_a_recording_that_breaks_off_goes_on_unrecorded():
    name = "goes_on_unrecorded(waits_while_recorded)"
    # A process of its own: what it leaves of torch is not fit for other tests.
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import *; {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
