"""Validation: every token once and alike, however the windows are batched."""

import math

import pytest
import torch
from torch.nn import functional as F

from gpt2.data.token_files import DataError, request_of
from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.train import evaluate
from gpt2.train.batches import eval_windows, load_split
from gpt2.train.evaluate import Evaluation, Evaluator, compiles_evaluation
from lib.gpu.device import select_device
from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import tiny_job

DEVICE = select_device("cpu")
SAMPLES = 7


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    data_dir = prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))
    return tiny_job(data_dir, eval_samples=SAMPLES, dropout=0.5).settings


@pytest.fixture(scope="module")
def split(settings):
    data_dir = settings.resources.data_dir
    return load_split(data_dir, request_of(settings), "val")


@pytest.fixture(scope="module")
def model(settings):
    model = GPT(settings)
    init_parameters(model, 3)
    with torch.no_grad():  # sharp enough for some tokens to be right
        model.wte.weight.mul_(20.0)
    return model


def by_hand(model, split, block_size):
    """Mean loss and accuracy token by token, one window at a time, in float64."""
    losses, right = [], []
    tokens = torch.from_numpy(split.tokens.astype("int64"))
    model.eval()
    for start in eval_windows(len(tokens), block_size, SAMPLES):
        x = tokens[start : start + block_size]
        y = tokens[start + 1 : start + 1 + block_size]
        with torch.no_grad():
            logits = model.logits(x[None])[0].double()
        losses += F.cross_entropy(logits, y, reduction="none").tolist()
        right += (logits.argmax(-1) == y).tolist()
    return sum(losses) / len(losses), sum(right) / len(right)


def test_loss_and_accuracy_are_means_over_all_tokens(model, split, settings):
    found = Evaluator(split, settings, DEVICE, 4)(model)
    loss, accuracy = by_hand(model, split, settings.model.block_size)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == accuracy > 0
    assert found.tokens == SAMPLES * settings.model.block_size
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 7, 100])
def test_batches_do_not_change_it(model, split, settings, batch):
    """4 leaves a remainder of 3 windows, which must not weigh as much as 4."""
    whole = Evaluator(split, settings, DEVICE, SAMPLES)(model)
    found = Evaluator(split, settings, DEVICE, batch)(model)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.accuracy == whole.accuracy


def test_dropout_is_off_and_no_random_number_is_drawn(model, split, settings):
    evaluator = Evaluator(split, settings, DEVICE, 4)
    model.train()
    before = torch.get_rng_state()
    first = evaluator(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluator(model) == first
    assert all(p.grad is None for p in model.parameters())


def test_mode_is_restored_when_scoring_fails(model, split, settings):
    evaluator = Evaluator(split, settings, DEVICE, 4)
    evaluator.block_size = settings.model.block_size + 1
    model.train()
    with pytest.raises(AssertionError):
        evaluator(model)
    assert model.training


def test_too_few_windows_are_refused_with_numbers(split, settings):
    greedy = settings.replace(eval_samples=split.tokens.size)
    with pytest.raises(DataError, match="GPT2_EVAL_SAMPLES"):
        Evaluator(split, greedy, DEVICE, 4)


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert Evaluation(1e4, 0.0, 1).perplexity == math.inf


# ---- compiled ---------------------------------------------------------------------


def test_a_run_that_evaluates_much_compiles_it(settings):
    large = {"n_layer": 12, "n_embd": 768, "block_size": 1024, "compile_model": True}
    often = {"eval_samples": 256, "eval_interval": 500}
    few = settings.replace(**large, **often, max_iters=10_000)
    assert not compiles_evaluation(few), "21 evaluations"
    assert compiles_evaluation(few.replace(max_iters=40_000)), "81 evaluations"
    assert not compiles_evaluation(few.replace(max_iters=40_000, compile_model=False))


def test_only_whole_batches_are_compiled(model, split, settings, monkeypatch):
    shapes = []

    class Compiled(CompiledGPT):
        def score(self, x, y):
            shapes.append(tuple(x.shape))
            return self.model.score(x, y)

    monkeypatch.setattr(evaluate, "CompiledGPT", Compiled)
    plain = Evaluator(split, settings, DEVICE, 4)(model)
    evaluator = Evaluator(split, settings, DEVICE, 4)
    assert not evaluator.compiles, "on a CPU"
    evaluator.compiles = True
    evaluator.warm_up(model)
    whole = (4, settings.model.block_size)
    assert shapes == [whole] and len(evaluator.offsets) == SAMPLES
    assert evaluator(model) == plain
    assert shapes == [whole, whole], "7 windows are one batch of 4 and a rest"


@pytest.mark.slow
def test_compiled_evaluation_agrees(model, split, settings):
    plain = Evaluator(split, settings, DEVICE, 4)(model)
    evaluator = Evaluator(split, settings, DEVICE, 4)
    evaluator.compiles = True
    found = evaluator(model)
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.accuracy == plain.accuracy
