"""The trainer as a process: what it writes, how it ends, what changes nothing."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.plan.jobs import identity_of
from gpt2.train.batch_split import BatchSplit, split_batch
from gpt2.train.batches import eval_windows, gather, load_data
from gpt2.train.build_optimizer import make_optimizer, prunable
from gpt2.train.costs_and_scores import trained
from gpt2.train.failures import NonFinite
from gpt2.train.lr_schedule import learning_rate
from gpt2.train.progress import Progress
from gpt2.train.record import Recorder
from gpt2.train.run_context import RunContext
from gpt2.train.stopping import StopRequest
from gpt2.train.trainer import Trainer
from lib.atomic_files import read_jsonl
from lib.gpu.device import select_device
from lib.jobs.phases import PHASES, phases_of
from tests.gpt2.tinytraining import (
    STEPS,
    checkpoints,
    exported,
    finish,
    losses,
    manifest,
    records,
    status,
    tiny_job,
    train,
)

# ---- what a run leaves ----------------------------------------------------------


def test_it_learns(data_dir, tmp_path):
    job = tiny_job(data_dir, max_iters=40, learning_rate=1e-2, eval_interval=40)
    result = finish(job, tmp_path / "run")
    first, last = (record["val_loss"] for record in records(tmp_path / "run", "eval"))
    assert 5.0 < first < 6.0  # ln 257 = 5.55
    assert last < first - 1.5
    assert result["best_val_loss"] == result["val_loss"] == last


def test_records_come_at_their_intervals(job, done):
    trains, evals = records(done, "train"), records(done, "eval")
    assert [record["step"] for record in trains] == [2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in evals] == [0, 4, 8, 12]
    for record in trains:
        assert record["tokens"] == record["step"] * 8 * 32
        assert record["lr"] == learning_rate(record["step"], job.settings.optim)
        assert 0 < record["loss"] < 10 and record["grad_norm"] > 0
    for record in read_jsonl(done / "metrics.jsonl"):
        assert record.get("seconds", 0.0) >= 0


def test_the_result_has_every_column(done):
    found = status(done)
    result = found["result"]
    assert (found["status"], found["failure"]) == ("done", None)
    assert (found["step"], found["max_steps"]) == (STEPS, STEPS)
    last = records(done, "eval")[-1]
    assert result["val_loss"] == last["val_loss"]
    assert result["val_accuracy"] == last["val_accuracy"]
    assert result["val_perplexity"] == last["val_perplexity"]
    losses = [record["val_loss"] for record in records(done, "eval")]
    assert result["best_val_loss"] == min(losses)
    assert result["train_loss"] == records(done, "train")[-1]["loss"]
    assert result["tokens"] == STEPS * 8 * 32
    assert result["parameters"] == manifest(done)["parameters"]
    for name in ("seconds", "tokens_per_s", "peak_memory_bytes", "flops_per_token"):
        assert result[name] > 0
    assert result["kv_bytes_per_token"] == 2 * 32 * 2 * 4  # k and v, 2 layers, fp32
    # Bytes and an end of text a document: nearly one token a byte.
    assert result["bits_per_byte"] == pytest.approx(result["val_loss"] / 0.6931, 0.01)


def test_records_tell_training_and_evaluation_apart(done):
    """The sum behind each loss, and times that an audit can hold against each other."""
    every = read_jsonl(done / "metrics.jsonl")
    trains = [record for record in every if record["kind"] == "train"]
    assert sum(record["updates"] for record in trains) == STEPS
    for record in trains:
        assert record["loss"] == record["loss_sum"] / record["updates"]
    evaluating = sum(r["eval_seconds"] for r in every if r["kind"] == "eval")
    result = status(done)["result"]
    assert 0 < evaluating <= result["seconds"] - result["train_seconds"]
    assert result["tokens_per_s"] == result["tokens"] / result["train_seconds"]


def slow_records() -> None:
    """A disk that takes 50 ms for each evaluation."""
    write = Recorder.evaluation

    def slow(self, *given):
        time.sleep(0.05)
        write(self, *given)

    setattr(Recorder, "evaluation", slow)  # noqa: B010


def test_writing_an_evaluation_is_no_training(job, done, tmp_path):
    result = finish(job, tmp_path / "run", setup=slow_records)
    written = 0.05 * len(records(done, "eval"))
    assert written > 0.1
    assert result["seconds"] - result["train_seconds"] > written


def test_the_manifest_tells_where_the_numbers_come_from(job, done):
    found = manifest(done)
    assert found["hash"] == job.hash
    assert found["settings"] == job.settings.to_dict()
    assert found["origins"] == job.origins
    assert found["effective_batch"] == 8
    assert (found["micro_batch"], found["accumulation"]) == (4, 2)
    assert (found["world_size"], found["compile"]) == (1, False)
    assert found["attention_backend"] == "sdpa"
    assert found["mlp_backend"] == "torch"
    assert found["deterministic"]  # or a resumed run would not have the same bits
    assert found["resumed"] == found["out_of_memory"] == []
    assert found["verified"] is None
    assert len(found["data_fingerprint"]) == 16
    assert found["provenance"]["packages"]["torch"] == str(torch.__version__)
    assert found["device"]["backend"] == "cpu"
    model = GPT(job.settings)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_what_the_runner_proved_and_the_threads_asked_for_are_noted(data_dir, tmp_path):
    job = tiny_job(data_dir, max_iters=1, warmup_steps=1, threads=3)
    finish(job, tmp_path / "run", KABLATE_VERIFIED="all", KABLATE_ATTEMPT="7")
    assert manifest(tmp_path / "run")["verified"] == "all"
    assert manifest(tmp_path / "run")["threads"] == 3
    assert status(tmp_path / "run")["attempt"] == 7


def test_the_exported_model_scores_as_the_run_said(job, done):
    metadata, weights = exported(done)
    assert metadata["hash"] == job.hash
    assert metadata["step"] == str(STEPS)
    assert json.loads(metadata["settings"]) == job.settings.to_dict()
    model = GPT(job.settings)
    model.load_state_dict(weights)
    trainer = make_trainer(job, model)
    assert trainer.evaluator(model).loss == status(done)["result"]["val_loss"]


def test_the_loss_is_of_windows_of_the_validation_text(job, done):
    model = GPT(job.settings)
    model.load_state_dict(exported(done)[1])
    tokens = load_data(job.settings)[1].tokens
    windows = eval_windows(tokens.size, 32, job.settings.data.eval_samples)
    pair = gather(tokens, windows, 32)
    found = status(done)["result"]["val_loss"]
    assert model.eval()(*pair).item() == pytest.approx(found, rel=1e-5)


def test_the_log_introduces_the_run(job, done):
    text = (done.parent / "run.log").read_text()
    for part in (job.hash, "cpu", "fresh", "micro batch 4 x accumulation 2"):
        assert part in text
    assert f"{manifest(done)['parameters']:,}" in text
    assert "\r" not in text  # no progress bar in a file


def test_epochs_are_counted_timed_and_validated(data_dir, tmp_path):
    tokens = load_data(tiny_job(data_dir).settings)[0].tokens.size
    updates = -(-2 * tokens // (64 * 32)) + 1
    job = tiny_job(
        data_dir,
        max_iters=updates,
        batch_size=64,
        gradient_accumulation=1,
        eval_interval=2,
        eval_samples=2,
        checkpoint_interval=1000,
    )
    result = finish(job, tmp_path / "run")
    epochs = records(tmp_path / "run", "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2]
    for record in epochs:
        assert record["tokens"] - 64 * 32 < record["epoch"] * tokens
        assert record["tokens"] >= record["epoch"] * tokens
        assert record["val_step"] == record["step"]
        assert 0 <= record["val_accuracy"] <= 1
    assert result["epochs"] == updates * 64 * 32 / tokens
    assert result["mean_epoch_seconds"] * result["epochs"] == pytest.approx(
        result["seconds"]
    )
    # The extra evaluations stay out of the curve that arms are compared by.
    grid = {*range(0, updates, 2), updates}
    assert {r["step"] for r in records(tmp_path / "run", "eval")} == grid


def test_epochs_shorter_than_the_evaluation_interval_are_not_scored_anew(
    data_dir, tmp_path
):
    tokens = load_data(tiny_job(data_dir).settings)[0].tokens.size
    updates = tokens // (64 * 32) + 2
    job = tiny_job(
        data_dir,
        max_iters=updates,
        batch_size=64,
        gradient_accumulation=1,
        eval_interval=1000,
        eval_samples=2,
        checkpoint_interval=1000,
    )
    log = train(job, tmp_path / "run").log
    [epoch] = records(tmp_path / "run", "epoch")
    assert (epoch["step"], epoch["val_step"]) == (updates - 1, 0)
    line = rf"update 0: .*; epoch 1 ended at update {updates - 1}, after \d+\.\d s$"
    assert re.search(line, log, re.MULTILINE), log


def test_kv_bytes_follow_the_precision(job):
    progress = Progress(step=1, tokens=10, seconds=1.0, train_seconds=1.0)
    half = job.settings.replace(mixed_precision="bf16")
    assert trained(half, progress, 10)["kv_bytes_per_token"] == 2 * 32 * 2 * 2


# ---- what must change nothing ---------------------------------------------------


def test_evaluating_more_often_changes_no_training_loss(job, done, data_dir, tmp_path):
    often = tiny_job(data_dir, eval_interval=1, eval_samples=3)
    assert often.hash != job.hash
    finish(often, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(done)


def test_resources_change_neither_identity_nor_losses(job, done, data_dir, tmp_path):
    other = tiny_job(data_dir, checkpoint_interval=5, num_workers=1)
    assert other.hash == job.hash
    finish(other, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(done)


def make_trainer(job, model, micro_batch=None, run_dir=None):
    """A trainer on the data of the job, in this process."""
    run_dir = run_dir or Path(job.settings.resources.data_dir, "run")
    run_dir.mkdir(exist_ok=True)
    train_split, val_split = load_data(job.settings)
    split = split_batch(
        job.settings.effective_batch, micro_batch or job.settings.resources.batch_size
    )
    context = RunContext(
        device=select_device("cpu"), split=split, train=train_split, val=val_split
    )
    recorder = Recorder(run_dir, job.settings.optim.max_iters)
    return Trainer(job, model, context, recorder, StopRequest())


def gradients(job, micro_batch):
    model = GPT(job.settings)
    init_parameters(model, job.seed)
    model.train()
    trainer = make_trainer(job, model, micro_batch)
    loss = trainer.updater.accumulate(trainer.micro_batches())
    return loss, {name: p.grad for name, p in model.named_parameters()}


def test_a_seed_decides_weights_batches_and_dropout(data_dir, tmp_path):
    """Each by itself: replicas that share one of them vary less than they should."""
    found = []
    for seed in (1, 2):
        job = replace(tiny_job(data_dir, max_iters=1, warmup_steps=1), seed=seed)
        run_dir = tmp_path / f"run{seed}"
        finish(job, run_dir)
        state = torch.load(run_dir / "ckpt/step-000001/state.pt", weights_only=True)
        batch = next(make_trainer(job, GPT(job.settings)).micro_batches())[0]
        untrained = records(run_dir, "eval")[0]["val_loss"]
        found.append((untrained, batch.tolist(), state["rng"][0]["cpu"].tolist()))
    for what, one, other in zip(("weights", "batches", "dropout"), *found, strict=True):
        assert one != other, what


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_gradients_do_not_depend_on_the_cut(data_dir, micro_batch):
    job = tiny_job(data_dir, dropout=0.0)
    loss, whole = gradients(job, 8)
    cut_loss, cut = gradients(job, micro_batch)
    assert cut_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (cut[name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_training_and_validation_multiply_in_the_precision_asked_for(
    data_dir, precision, dtype
):
    job = tiny_job(data_dir, mixed_precision=precision)
    model = GPT(job.settings)
    trainer, seen = make_trainer(job, model), []
    model.layers()[0].attn.proj.register_forward_hook(
        lambda *x: seen.append(x[2].dtype)
    )
    trainer.updater.accumulate(trainer.micro_batches())
    trainer.evaluator(model)
    assert seen == 4 * [dtype]  # two micro steps, two batches of windows


def test_what_is_pruned_is_no_part_of_the_gradient_that_is_clipped(data_dir):
    """And movement is scored by the gradient before the clip."""
    ramp = {"prune_method": "movement", "prune_warmup": 1, "prune_interval": 1}
    job = tiny_job(data_dir, dropout=0.0, grad_clip=1e-3, **ramp)
    model = GPT(job.settings)
    init_parameters(model, job.seed)
    trainer = make_trainer(job, model)
    pruner, data = trainer.updater.pruner, trainer.micro_batches()
    trainer.update(data)
    trainer.update(data)
    assert 0 < pruner.sparsity() < 1
    name, weight = next(iter(pruner.weights.items()))
    score, dense = pruner.scores[name].clone(), weight + pruner.shadow[name]
    trainer.updater.accumulate(data)
    moved = -weight.grad * dense
    masks = {id(w): pruner.masks[n] for n, w in pruner.weights.items()}
    kept = [(p.grad * masks.get(id(p), 1.0)).flatten() for p in model.parameters()]
    wanted = torch.cat(kept).norm().item()
    assert trainer.updater._apply(3).item() == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(pruner.scores[name] - score, moved, rtol=1e-4, atol=1e-9)


def test_batches_are_loaded_by_as_many_workers_as_asked_for(data_dir):
    asked = {"num_workers": 2, "prefetch_factor": 5, "persistent_workers": True}
    trainer = make_trainer(
        tiny_job(data_dir, **asked), GPT(tiny_job(data_dir).settings)
    )
    trainer.micro_batches()
    loader = trainer.loader._loader
    assert {name: getattr(loader, name) for name in asked} == asked


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_an_update_is_clipped_at_the_norm_asked_for(data_dir, clip):
    """SGD moves by the rate times the gradient, of norm ``clip``; 0 clips nothing."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    plain |= {"learning_rate": 1.0, "warmup_steps": 0}  # moves far above rounding
    job = tiny_job(data_dir, dropout=0.0, grad_clip=clip, **plain)
    model = GPT(job.settings)
    init_parameters(model, job.seed)
    with torch.no_grad():
        model.wte.weight.mul_(50.0)  # gradients far above 1, the usual limit
    trainer = make_trainer(job, model)
    before = [p.detach().clone() for p in model.parameters()]
    trainer.update(trainer.micro_batches())
    moves = zip(model.parameters(), before, strict=True)
    moved = torch.cat([(p.detach() - old).flatten() for p, old in moves]).norm().item()
    norm = moved / learning_rate(1, job.settings.optim)
    assert norm == pytest.approx(clip, rel=1e-3) if clip else norm > 1.5


def test_a_cut_that_does_not_come_out_even_is_refused(job, tmp_path):
    training = train(job, tmp_path / "run", micro_batch=3)
    assert training.process.exitcode == 2
    assert "micro batch 3" in training.log and "effective batch of 8" in training.log


def test_a_folder_of_something_else_is_left_alone(job, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    training = train(job, tmp_path / "mine")
    assert training.process.exitcode == 2
    assert "it contains notes.txt, and no job.json" in training.log
    left = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {name for name in left if name[0] != "."} == {"notes.txt"}


def test_cuts_are_halved_down_to_one():
    split: BatchSplit | None = split_batch(24, 12)
    seen = []
    while split is not None:
        assert split.effective_batch == 24
        seen.append((split.micro_batch, split.accumulation))
        split = split.smaller()
    assert seen == [(12, 2), (6, 4), (3, 8), (1, 24)]


def test_no_checkpoint_is_kept_of_weights_that_burst(job, tmp_path):
    """The loss tells only one update later."""
    trainer = make_trainer(job, GPT(job.settings), run_dir=tmp_path)
    trainer.save()
    assert checkpoints(tmp_path) == ["step-000000"]
    trainer.progress.step = 1
    with torch.no_grad():
        trainer.model.wte.weight[3, 5] = torch.inf
    with pytest.raises(NonFinite, match="last good checkpoint: update 0"):
        trainer.save()
    assert checkpoints(tmp_path) == ["step-000000"]


# ---- optimizer and pruner -------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 5, 8, 9, 11, 30])
def test_decay_acts_on_every_matrix_once_and_on_nothing_else(data_dir, step):
    settings = tiny_job(data_dir, step, weight_decay=0.25).settings
    model = GPT(settings)
    optimizer = make_optimizer(model, settings.optim)
    decay = {
        id(p): group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2
        assert decay[id(parameter)] == (0.25 if is_matrix else 0.0), name
        assert is_matrix == (not name.endswith("bias") and "ln_" not in name) or (
            parameter.ndim == 1
        ), name


def test_pruned_weights_are_exact_zeros_in_the_exported_model(data_dir, tmp_path):
    job = tiny_job(
        data_dir,
        prune_method="magnitude",
        prune_sparsity=0.7,
        prune_warmup=2,
        prune_interval=2,
        prune_ramp_end=0.9,
    )
    result = finish(job, tmp_path / "run")
    _, weights = exported(tmp_path / "run")
    names = prunable(GPT(job.settings)).keys()
    assert "wte.weight" not in names and len(names) == 8
    total = sum(weights[name].numel() for name in names)
    zeros = sum(int((weights[name] == 0).sum()) for name in names)
    assert zeros == round(0.7 * total)
    assert result["sparsity"] == zeros / total
    assert int((weights["wte.weight"] == 0).sum()) == 0


def test_a_schedule_that_never_prunes_is_refused(data_dir, tmp_path):
    job = tiny_job(data_dir, prune_method="magnitude", prune_warmup=200)
    training = train(job, tmp_path / "run")
    assert training.process.exitcode == 2
    assert "no mask update fits" in status(tmp_path / "run")["message"]


def test_identity_has_no_resources_in_it(job):
    changed = job.settings.replace(threads=7, log_interval=99, device="cuda")
    assert identity_of(changed, 1) == identity_of(job.settings, 1)


def test_an_overflow_of_scaled_gradients_skips_the_update_and_goes_on(data_dir):
    """fp16's loss scaling, here on a CPU: the scale is halved until it fits."""
    job = tiny_job(data_dir, dropout=0.0, optimizer="sgd", grad_clip=0.0)
    model = GPT(job.settings)
    init_parameters(model, job.seed)
    trainer = make_trainer(job, model)
    with torch.no_grad():
        model.wte.weight.mul_(1e3)  # gradients far above 1
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    data, weight = trainer.micro_batches(), model.wte.weight.detach().clone()
    scales = []
    while torch.equal(model.wte.weight, weight) and trainer.progress.step < STEPS:
        trainer.update(data)
        scales.append(trainer.updater.scaler.get_scale())
    assert scales[0] == 2.0**126 and trainer.progress.step == len(scales) > 1
    assert all(torch.isfinite(p).all() for p in model.parameters())
    trainer.check_finite()  # skipped updates are not a failure
    assert trainer.progress.skipped_updates == len(scales) - 1
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=1e-6)
    with pytest.raises(NonFinite, match="every loss scale"):
        trainer.update(data)
        trainer.check_finite()


@pytest.mark.parametrize(
    "asked",
    [
        {"optimizer": "adamwprune", "prune_method": "state"},
        {"optimizer": "adamw", "prune_method": "heads"},
    ],
)
def test_first_updates_that_overflow_postpone_the_choice_of_masks(data_dir, asked):
    """In fp16 the optimizer has no state yet when the first masks are due."""
    pruning = {"prune_warmup": 0, "prune_interval": 1, "prune_ramp_end": 0.5}
    job = tiny_job(data_dir, prune_sparsity=0.5, **pruning, **asked)
    model = GPT(job.settings)
    init_parameters(model, job.seed)
    trainer = make_trainer(job, model)
    updater = trainer.updater
    updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with torch.no_grad():
        model.wte.weight.mul_(1e3)
    data, start = trainer.micro_batches(), model.wte.weight.detach().clone()
    trainer.update(data)
    assert torch.equal(model.wte.weight, start) and not updater.optimizer.state
    assert updater.pruner.pruned() == 0
    updater.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.update(data)
    wanted = sum(count for _, count in updater.pruner.targets(2))
    assert updater.pruner.pruned() == wanted > 0


def test_an_update_that_overflows_adds_nothing_to_the_scores_of_pruning(data_dir):
    pruning = {"prune_method": "movement", "prune_warmup": 2, "prune_interval": 2}
    job = tiny_job(data_dir, prune_sparsity=0.5, **pruning)
    trainer = make_trainer(job, GPT(job.settings))
    updater = trainer.updater
    updater.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    updater.accumulate(trainer.micro_batches())
    updater.parameters[0].grad[0, 0] = torch.inf  # of one weight alone
    assert updater._apply(1).item() == 0.0 and updater.take_skipped() == 1
    assert not any(score.any() for score in updater.pruner.scores.values())
    updater.accumulate(trainer.micro_batches())
    assert updater._apply(2).item() > 0.0 and updater.take_skipped() == 0
    assert all(score.any() for score in updater.pruner.scores.values())


def test_many_updates_that_overflow_raise_an_alarm(data_dir, tmp_path):
    job = tiny_job(data_dir, dropout=0.0)
    trainer = make_trainer(job, GPT(job.settings), run_dir=tmp_path)
    init_parameters(trainer.model, job.seed)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    trainer.updater.scaler = scaler
    with torch.no_grad():
        trainer.model.wte.weight.mul_(1e2)
    trainer.train()
    skipped = trainer.progress.skipped_updates
    (alarm,) = (r for r in read_jsonl(trainer.recorder.metrics) if "alarm" in r)
    assert 0 < skipped < STEPS and alarm["alarm"] == "skipped"
    assert f"{skipped} of {STEPS} updates overflowed in fp16" in alarm["message"]
    assert status(tmp_path)["alarms"][0]["message"] == alarm["message"]


def test_a_run_in_which_every_update_overflows_has_failed(data_dir):
    job = tiny_job(data_dir, max_iters=2, warmup_steps=1)
    trainer = make_trainer(job, GPT(job.settings))
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    data = trainer.micro_batches()
    with torch.no_grad():
        trainer.model.wte.weight.mul_(1e3)
    trainer.update(data)
    trainer.check_finite()
    trainer.update(data)
    with pytest.raises(NonFinite, match="in all updates"):
        trainer.check_finite()


# ---- phases ---------------------------------------------------------------------


def test_every_phase_is_on_record_in_order(done):
    found = phases_of(read_jsonl(done / "metrics.jsonl"))
    names, times = [name for name, _, _ in found], [at for _, at, _ in found]
    assert names == list(PHASES)
    assert times == sorted(times)
    assert {attempt for _, _, attempt in found} == {1}


def test_each_attempt_records_its_own_phases(job, tmp_path):
    run_dir = tmp_path / "run"
    train(job, run_dir, KABLATE_TEST_FAULTS="kill@5")
    finish(job, run_dir)
    found = phases_of(read_jsonl(run_dir / "metrics.jsonl"))
    first = [name for name, _, attempt in found if attempt == 1]
    second = [name for name, _, attempt in found if attempt == 2]
    assert (first[0], first[-1]) == ("started", "first_update")
    assert (second[0], second[-1]) == ("started", "ended")
