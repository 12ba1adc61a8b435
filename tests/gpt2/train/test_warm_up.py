"""Warming up leaves no trace; waiting for data and what torch uses are recorded."""

import torch

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.train.warm_up import warm_up
from lib.gpu.device import seed_everything
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import finish, manifest, tiny_job
from tests.gpt2.train.test_trainer import make_trainer


def test_warming_up_changes_neither_weights_nor_random_numbers(tmp_path):
    job = tiny_job(prepare_texts(tmp_path), device="cpu", dropout=0.3)
    losses = []
    for times in (0, 3):
        seed_everything(job.seed)
        model = GPT(job.settings)
        init_parameters(model, job.seed)
        trainer = make_trainer(job, model)
        model.train()
        before = [p.detach().clone() for p in model.parameters()]
        passes: list[int] = []
        model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        warm_up(trainer, times)
        assert len(passes) == times
        assert all(p.grad is None for p in model.parameters())
        after = list(model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        data = trainer.micro_batches()
        losses.append([trainer.updater.accumulate(data).item() for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_run_tells_what_it_used_and_how_long_it_waited(tmp_path):
    job = tiny_job(prepare_texts(tmp_path), num_workers=1)
    result = finish(job, tmp_path / "run")
    assert 0 < result["data_wait_share"] < 1
    device = manifest(tmp_path / "run")["device"]
    assert device["backend"] == "cpu" and device["sdpa"] in device["usable"]
    assert device["allocator"] == "torch's default"


def test_the_first_evaluation_finds_its_code_ready(tmp_path):
    """One batch of windows is scored before, without dropout and without a trace."""
    job = tiny_job(prepare_texts(tmp_path), device="cpu", dropout=0.3)
    model = GPT(job.settings)
    trainer, scored = make_trainer(job, model), []
    model.train()
    score = model.score

    def noting(tokens, targets):
        scored.append((len(tokens), model.training))
        return score(tokens, targets)

    model.score = noting  # type: ignore[method-assign]
    warm_up(trainer, 0)
    assert scored == [(job.settings.resources.batch_size, False)] and model.training
