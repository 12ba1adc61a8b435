"""FINISH: the last certificate, the last checkpoint, the export and the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt2.train.batches import gather
from gpt2.train.costs_and_scores import held, scored, trained
from gpt2.train.export import write_export
from gpt2.train.head_removal import TIMED_WINDOWS, Removal, log_line, remove_heads
from gpt2.train.trainer import Trainer
from lib.gpu import device as devices
from lib.jobs.run_files import EXPORT_FILE
from lib.pruning.heads import HeadPruner


def finish(trainer: Trainer, let_go: Callable[[], None]) -> dict[str, Any]:
    """Certify the gradients once more and write the model; the result for status.json.

    let_go: called once the next run may have the device. Removing heads is timed, so
    it has to come before. Raises NotAsTrained, NonFinite, lib.atomic_files.DiskFull.
    """
    times_more = isinstance(trainer.updater.pruner, HeadPruner)
    if not times_more:
        let_go()
    if trainer.has_trained:
        trainer.certify_again()
    if not times_more:
        trainer.free_activations()
    with trainer.checkpoints.writer.finished():
        trainer.save()
        found = result_of(trainer) | _export(trainer)
    if times_more:
        let_go()
    trainer.recorder.phase("written")
    return found


def result_of(trainer: Trainer) -> dict[str, Any]:
    """The numbers of a finished run, as status.json and the tables have them."""
    settings, progress, updater = trainer.settings, trainer.progress, trainer.updater
    fp16 = updater.scaler.is_enabled()
    costs = trained(settings, progress, trainer.epoch_tokens, trainer.peak_flops)
    return {
        **costs,
        **scored(progress, trainer.context.val.bytes_per_token),
        **held(updater.optimizer, updater.pruner),
        "parameters": sum(p.numel() for p in updater.parameters),
        "as_trained": progress.deviation,
        **({"skipped_updates": progress.skipped_updates} if fp16 else {}),
        "peak_memory_bytes": devices.peak_memory(trainer.device)[0],
        **devices.reserved_memory(trainer.device),
    }


def _export(trainer: Trainer) -> dict[str, Any]:
    """Write the trained model: pruned weights are exact zeros in it, pruned heads are
    not in it. For the result: what the removal of heads brought."""
    if not trainer.ranks.is_first:
        return {}
    model, heads, found = trainer.model, None, {}
    if isinstance(trainer.updater.pruner, HeadPruner):
        removal = _remove_heads(trainer, trainer.updater.pruner)
        model, heads, found = removal.model, removal.heads, removal.result
        trainer.recorder.say(log_line(removal))
    origin = {
        "hash": trainer.job.hash,
        "step": str(trainer.progress.step),
        "seed": str(trainer.job.seed),
    }
    path = trainer.recorder.run_dir / EXPORT_FILE
    write_export(path, model, trainer.settings, heads, **origin)
    return found


def _remove_heads(trainer: Trainer, pruner: HeadPruner) -> Removal:
    settings, offsets = trainer.settings, trainer.evaluator.offsets[:TIMED_WINDOWS]
    windows = gather(trainer.context.val.tokens, offsets, settings.model.block_size)
    return remove_heads(trainer.model, settings, pruner, *windows, trainer.device)
