"""Validation: every token once and alike, however the windows are batched."""

import dataclasses
import math
import time

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from gpt2.data.token_files import DataError, request_of
from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.train.batches import eval_windows, gather, load_split
from gpt2.train.evaluate import Evaluation, Evaluator
from gpt2.train.micro_step import MicroStep
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
    return made(settings)


def made(settings):
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
    began = time.perf_counter()
    found = Evaluator(split, settings, DEVICE, 4)(model)
    assert 0.0 < found.seconds <= time.perf_counter() - began
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


class Noting(CompiledGPT):
    """Scores as the model, and notes the shapes."""

    def __init__(self, model):
        super().__init__(model)
        self.shapes = []

    def score(self, tokens, targets):
        self.shapes.append(tuple(tokens.shape))
        return self.model.score(tokens, targets)


def test_the_code_that_trains_scores_whole_batches_on_a_gpu(split, settings):
    alike = settings.replace(dropout=0.0)
    gpu = dataclasses.replace(DEVICE, backend="cuda")  # torch's device is the CPU
    model = made(alike)
    plain = Evaluator(split, alike, DEVICE, 4)(model)
    compiled = Noting(model)
    evaluator = Evaluator(split, alike, gpu, 4, compiled)
    evaluator.warm_up(model)
    whole = (4, settings.model.block_size)
    assert compiled.shapes == [whole] and len(evaluator.offsets) == SAMPLES
    assert evaluator(model) == plain
    assert compiled.shapes == [whole, whole], "7 windows are a batch of 4 and a rest"
    for given, device in ((alike, DEVICE), (settings, gpu)):  # a CPU; with dropout
        Evaluator(split, given, device, 4, compiled)(made(given))
    assert len(compiled.shapes) == 2


def test_the_mode_of_a_model_without_dropout_is_left(model, split, settings):
    """Code is compiled for a mode."""
    model.train()
    seen, block = [], model.layers()[0]
    handle = block.ln_1.register_forward_hook(lambda m, *_: seen.append(m.training))
    for dropout in (0.0, 0.5):
        evaluator = Evaluator(split, settings.replace(dropout=dropout), DEVICE, SAMPLES)
        evaluator(model)
    handle.remove()
    assert seen == [True, False] and model.training


@pytest.mark.gpu
@pytest.mark.parametrize("step", [0, 5, 8, 16])
def test_a_gpu_compiles_nothing_but_a_head_to_score(tmp_path, step):
    """Prints the seconds that 64 windows take; see them with -rP."""
    wide = {"n_layer": 12, "n_head": 12, "n_embd": 768, "head_dim": 64}
    given = {"block_size": 1024, "eval_samples": 64, "mixed_precision": "bf16"}
    data = {"dropout": 0.0, "device": "cuda:0", "mlp_width": 3072}
    job = tiny_job(prepare_texts(tmp_path, texts(60)), step, **wide, **given, **data)
    settings, device = job.settings, select_device("cuda:0")
    split = load_split(settings.resources.data_dir, request_of(settings), "val")
    model = GPT(settings)
    init_parameters(model, 3)
    model.to(device.torch_device).train()
    compiled, batch = CompiledGPT(model), 16
    trains = MicroStep(compiled, device, "bf16")
    windows = eval_windows(len(split.tokens), settings.model.block_size, batch)
    pair = gather(split.tokens, windows, settings.model.block_size)
    tokens, targets = (one.to(device.torch_device) for one in pair)
    torch.cuda.reset_peak_memory_stats()
    trains(tokens, targets)
    peak = torch.cuda.max_memory_allocated()
    trained = counters["stats"]["unique_graphs"]
    evaluator = Evaluator(split, settings, device, batch, compiled)
    torch.cuda.reset_peak_memory_stats()
    evaluator.warm_up(model)
    assert torch.cuda.max_memory_allocated() <= peak
    # None, if an earlier test has compiled this head.
    assert counters["stats"]["unique_graphs"] <= trained + 1
    plain = Evaluator(split, settings, device, batch)
    plain.warm_up(model)
    found, expected = evaluator(model), plain(model)
    print(
        f"step {step}: {found.seconds:.3f} s, plain {expected.seconds:.3f} s,", end=" "
    )
    print(f"{found.loss:.6f} and {expected.loss:.6f} nats per token")
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=2e-3)
