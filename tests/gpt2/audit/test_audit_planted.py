"""Faults of recording planted in the real trainer: the audit of the run names each.

A plant changes the code in the process that trains; the audit sees the files alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from gpt2.data.tokenizer import bytes_encoding
from gpt2.train import evaluate, trainer
from gpt2.train import finish as finishing
from gpt2.train.batches import BatchPlan, TokenSplit, open_tokens, split_file
from gpt2.train.evaluate import Evaluator
from gpt2.train.progress import Progress
from gpt2.train.record import Recorder
from gpt2.train.resume import Checkpoints
from gpt2.train.trainer import Trainer
from gpt2.train.update import Updater
from tests.gpt2.audit.runs import audit, audited_job, differing, problems
from tests.gpt2.tinytraining import finish, status, train

LOG_INTERVAL = 5
Record = dict[str, Any]


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put a faulty function in the place of one."""
    setattr(owner, name, make(getattr(owner, name)))


def in_records(kind: str, change: Callable[[Record], Mapping[str, Any]]) -> None:
    """Let the recorder write records of a kind ("train", "evaluation") changed."""

    def make(write: Any) -> Any:
        if kind == "train":
            return lambda self, record: write(self, {**record, **change({**record})})
        return lambda self, kind, record: write(
            self, kind, {**record, **change({**record})}
        )

    wrap(Recorder, kind, make)


def in_result(change: Callable[[Record], Mapping[str, Any]]) -> None:
    """Let the result of a run be changed."""

    def make(result: Any) -> Any:
        def changed(trainer: Trainer) -> Record:
            found = result(trainer)
            return {**found, **change(found)}

        return changed

    wrap(finishing, "result_of", make)


# ---- training loss ----------------------------------------------------------------


def loss_divided_by_the_interval() -> None:
    in_records("train", lambda r: {"loss": r["loss"] / LOG_INTERVAL})


def sum_divided_by_the_interval() -> None:
    """Wrong in the last record only, which is of fewer updates."""
    in_records("train", lambda r: {"loss": r["loss_sum"] / LOG_INTERVAL})


def every_loss_divided() -> None:
    """Before the sum, which is of no more use then."""

    def make(call: Any) -> Any:
        def divided(self: Updater, *given: Any) -> Any:
            loss, norm = call(self, *given)
            return loss / LOG_INTERVAL, norm

        return divided

    wrap(Updater, "__call__", make)


def batches_used_twice() -> None:
    wrap(BatchPlan, "step_offsets", lambda draw: lambda self, n: draw(self, n // 2))


def rate_of_the_update_before() -> None:
    wrap(
        trainer,
        "learning_rate",
        lambda rate: lambda update, *rest: rate(max(1, update - 1), *rest),
    )


# ---- validation -------------------------------------------------------------------


def best_for_last() -> None:
    in_result(lambda r: {"val_loss": r["best_val_loss"]})


def last_for_best() -> None:
    in_result(lambda r: {"best_val_loss": r["val_loss"]})


def bytes_of_the_other_split() -> None:
    def ratio(self: TokenSplit) -> float:
        record = self.meta["splits"]["train"]
        return float(record["bytes"] / record["tokens"])

    TokenSplit.bytes_per_token = property(ratio)  # type: ignore[assignment]


def characters_for_bytes() -> None:
    def ratio(self: TokenSplit) -> float:
        tokens = open_tokens(split_file(self.path.parent, self.split)).tolist()
        text = bytes_encoding().decode([t for t in tokens if t < 256])
        return len(text) / len(tokens)

    TokenSplit.bytes_per_token = property(ratio)  # type: ignore[assignment]


def other_windows() -> None:
    wrap(evaluate, "eval_windows", lambda make: lambda *given: make(*given) // 2)


def perplexity_to_base_two() -> None:
    in_records("evaluation", lambda r: {"val_perplexity": 2 ** r["val_loss"]})


def accuracy_of_other_tokens() -> None:

    def make(call: Any) -> Any:
        def wrong_share(self: Evaluator, model: Any) -> Any:
            from dataclasses import replace

            found = call(self, model)
            return replace(found, accuracy=found.accuracy + 0.1)

        return wrong_share

    wrap(Evaluator, "__call__", make)


def export_of_other_weights() -> None:
    """As one that is written before the last update."""

    def make(write: Any) -> Any:
        def moved(path: Any, model: Any, *given: Any, **more: Any) -> None:
            model.wte.weight.data.mul_(1.01)
            write(path, model, *given, **more)

        return moved

    wrap(finishing, "write_export", make)


# ---- times ------------------------------------------------------------------------


def evaluations_booked_as_training() -> None:
    wrap(
        Progress,
        "book",
        lambda book: lambda self, s, training: book(self, s, training=True),
    )


def result_over_all_seconds() -> None:
    in_result(lambda r: {"tokens_per_s": r["tokens"] / r["seconds"]})


def update_time_over_all_seconds() -> None:
    in_result(
        lambda r: {
            "step_seconds": r["step_seconds"] * r["seconds"] / r["train_seconds"]
        }
    )


def records_over_all_seconds() -> None:
    in_records("train", lambda r: {"tokens_per_s": r["tokens"] / r["seconds"]})


# ---- costs ------------------------------------------------------------------------


def tokens_of_one_micro_step() -> None:
    wrap(Progress, "count", lambda count: lambda self, tokens: count(self, tokens // 2))


def half_of_the_parameters() -> None:
    in_result(lambda r: {"parameters": r["parameters"] // 2})


EXPECTED = {
    loss_divided_by_the_interval: {"training loss = sum / updates"},
    sum_divided_by_the_interval: {"training loss = sum / updates"},
    every_loss_divided: {"first training loss"},
    batches_used_twice: {"first training loss"},
    rate_of_the_update_before: {"learning rates"},
    best_for_last: {"val_loss", "validation loss of the export"},
    last_for_best: {"best_val_loss"},
    bytes_of_the_other_split: {"bits per byte of each evaluation"},
    characters_for_bytes: {"bits per byte of each evaluation"},
    other_windows: {"validation loss of the export", "validation loss at update 0"},
    perplexity_to_base_two: {"perplexity = exp(validation loss)", "val_perplexity"},
    accuracy_of_other_tokens: {"accuracy of the export"},
    export_of_other_weights: {"validation loss of the export"},
    evaluations_booked_as_training: {"train_seconds"},
    result_over_all_seconds: {"tokens_per_s"},
    update_time_over_all_seconds: {"step_seconds"},
    records_over_all_seconds: {"tokens per second of each record"},
    tokens_of_one_micro_step: {"tokens", "tokens of each record"},
    half_of_the_parameters: {"parameters"},
}
# Planted together where each shows in figures of its own, as a training takes time.
TOGETHER = (
    (
        *(loss_divided_by_the_interval, perplexity_to_base_two),
        *(records_over_all_seconds, half_of_the_parameters, bytes_of_the_other_split),
        *(update_time_over_all_seconds, last_for_best),
    ),
    (
        *(sum_divided_by_the_interval, accuracy_of_other_tokens, characters_for_bytes),
        *(result_over_all_seconds, batches_used_twice),
    ),
    (
        *(every_loss_divided, evaluations_booked_as_training),
        *(export_of_other_weights, rate_of_the_update_before),
    ),
    (best_for_last, tokens_of_one_micro_step),
    (other_windows,),
)


def plant_all(plants: tuple[Callable[[], None], ...]) -> None:
    for plant in plants:
        plant()


def test_every_plant_is_planted():
    assert {plant for plants in TOGETHER for plant in plants} == set(EXPECTED)


@pytest.mark.parametrize("plants", TOGETHER, ids=lambda plants: plants[0].__name__)
def test_planted_faults_of_recording_are_named(job, tmp_path, plants):
    finish(job, tmp_path / "run", setup=partial(plant_all, plants))
    found = audit(tmp_path / "run")
    expected = {figure for plant in plants for figure in EXPECTED[plant]}
    assert differing(found.findings) >= expected, problems(found)


# ---- on resume --------------------------------------------------------------------


def on_resume(change: Callable[[Progress], None]) -> None:
    def make(restore: Any) -> Any:
        def changed(self: Checkpoints, found: Any) -> Progress:
            progress = restore(self, found)
            change(progress)
            return progress

        return changed

    wrap(Checkpoints, "_restore", make)


def lose_best() -> None:
    on_resume(lambda p: setattr(p, "best_val_loss", None))


def take_last_for_best() -> None:
    on_resume(lambda p: setattr(p, "best_val_loss", p.last["val_loss"]))


def lose_the_sum() -> None:
    def forget(p: Progress) -> None:
        p.sums, p.updates_summed = [0.0, 0.0], 0

    on_resume(forget)


def lose_the_count() -> None:
    on_resume(lambda p: setattr(p, "updates_summed", 0))


def lose_the_tokens() -> None:
    on_resume(lambda p: setattr(p, "tokens", 0))


def lose_the_seconds() -> None:
    on_resume(lambda p: setattr(p, "seconds", 0.0))


RESUMED = (
    ((lose_best, lose_the_count, lose_the_seconds), {"order of times"}),
    ((take_last_for_best, lose_the_sum, lose_the_tokens), {"tokens"}),
)


@pytest.mark.parametrize(("plants", "expected"), RESUMED)
def test_what_is_lost_on_resume_is_named(job, tmp_path, plants, expected):
    """Checkpoints are of every third update, and the best evaluation is before the
    one that is gone on from."""
    killed = train(job, tmp_path / "run", KABLATE_TEST_FAULTS="kill@12")
    assert killed.process.exitcode == -signal.SIGKILL
    finish(job, tmp_path / "run", setup=partial(plant_all, plants))
    found = audit(tmp_path / "run")
    expected = {"best_val_loss", "updates behind each training loss", *expected}
    assert differing(found.findings) >= expected, problems(found)


# ---- pruning and time -------------------------------------------------------------


def export_without_masks() -> None:
    """A pruned weight that is not zero, in the export alone."""

    def make(write: Any) -> Any:
        def dense(path: Any, model: Any, *given: Any, **more: Any) -> None:
            for parameter in model.parameters():
                parameter.data[parameter.data == 0] = 1e-30
            write(path, model, *given, **more)

        return dense

    wrap(finishing, "write_export", make)


def test_an_export_without_its_masks_is_named(data_dir, tmp_path):
    ramp = {"prune_warmup": 2, "prune_interval": 2, "prune_ramp_end": 0.9}
    job = audited_job(data_dir, prune_method="magnitude", **ramp)
    finish(job, tmp_path / "run", setup=export_without_masks)
    found = audit(tmp_path / "run")
    expected = {"zeros", "sparsity", "zeros of the schedule", "masks"}
    assert differing(found.findings) >= expected, problems(found)


def budget_of_all_seconds() -> None:
    """A time budget that evaluations are counted in."""

    def share(self: Trainer) -> float | None:
        spent = self.progress.seconds + self._clock.peek()
        return spent / self._time_budget if self._time_budget else None

    Trainer._time_share = share  # type: ignore[method-assign]


def slow_start() -> None:
    """More than the budget before the first update, as where much is compiled, and a
    half of it in the second one, as on a machine that is busy."""

    def resume_late(resume: Any) -> Any:
        def late(self: Trainer) -> int | None:
            time.sleep(1.1)
            return resume(self)

        return late

    def update_late(update: Any) -> Any:
        def late(self: Trainer, batch: Any) -> Any:
            time.sleep(0.5 * (self.progress.step == 1))
            return update(self, batch)

        return late

    wrap(Trainer, "resume", resume_late)
    wrap(Trainer, "update", update_late)


def times_of_another_run() -> None:
    """Times of the first updates that end before they began."""

    def backwards(record: Record) -> Mapping[str, Any]:
        shares = record.get("budget_shares")
        return {"budget_shares": shares[::-1]} if shares else {}

    in_records("train", backwards)


def without_times() -> None:
    in_records("train", lambda record: {"budget_shares": None})


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (slow_start, set()),
        (budget_of_all_seconds, {"time budget"}),
        (times_of_another_run, {"learning rates"}),
    ],
)
def test_a_time_budget_is_of_updates_alone(data_dir, tmp_path, plant, expected):
    fields = {"time_budget": "1s", "max_iters": 100_000_000, "warmup_steps": 3}
    fields |= {"eval_samples": 64, "eval_interval": 4, "checkpoint_interval": 1000}
    job = audited_job(data_dir, **fields)
    result = finish(job, tmp_path / "run", setup=plant)
    assert result["seconds"] - result["train_seconds"] > 0.1
    found = audit(tmp_path / "run")
    assert differing(found.findings) >= expected, problems(found)
    assert bool(differing(found.findings)) == bool(expected), problems(found)
    assert not any("by the clock" in line.tolerance for line in found.findings)
    assert status(tmp_path / "run")["status"] == "done"


def test_a_time_budget_of_older_records_is_repeated_at_even_times(data_dir, tmp_path):
    fields = {"time_budget": "1h", "max_iters": 12, "warmup_steps": 3}
    job = audited_job(data_dir, eval_samples=64, eval_interval=4, **fields)
    finish(job, tmp_path / "run", setup=without_times)
    found = {line.figure: line for line in audit(tmp_path / "run").findings}
    assert "by the clock" in found["first training loss"].tolerance
    assert found["first training loss"].state == "ok"
