"""Warm-up of a trainer: compile, tune and record its micro step before it trains."""

from __future__ import annotations

from gpt2.model.autotune import attention, mlp
from gpt2.train.batches import eval_windows, gather
from gpt2.train.trainer import Trainer
from lib.gpu import device as devices
from lib.gpu.compile_cache import graphs_compiled
from lib.kernels import choices


def warm_up(trainer: Trainer, times: int) -> None:
    """Forward and backward so many times, leaving no trace but compiled code, tuned
    kernels, a recorded graph and a warm GPU: weights and random numbers stay."""
    block_size = trainer.settings.model.block_size
    text, batch = trainer.context.train.tokens, trainer.split.micro_batch
    windows = eval_windows(text.size, block_size, batch)
    pair = gather(text, windows, block_size)
    tokens, targets = (one.to(trainer.device.torch_device) for one in pair)
    random = devices.random_state(trainer.device)
    trainer.updater.warm_up(tokens, targets, times)
    if trainer.device.is_gpu and trainer.resources.cuda_graphs:
        state = trainer.updater.record(tokens, targets)
        trainer.manifest.note(cuda_graph=state)
        trainer.recorder.say(f"CUDA graph of a micro step: {state}")
    trainer.evaluator.warm_up(trainer.model)
    _note_kernels(trainer)
    devices.set_random_state(trainer.device, random)


def _note_kernels(trainer: Trainer) -> None:
    """Record tiles and algorithms, and which of them were not timed before."""
    built, batch = trainer.built, trainer.split.micro_batch
    untimed = choices.by_default()
    graphs = graphs_compiled() if trainer.resources.compile_model else None
    if graphs:
        new, kept = graphs["compiled"], graphs["cached"]
        trainer.recorder.say(f"compiled graphs: {kept} from the cache, {new} new")
    if untimed:
        trainer.recorder.say(
            f"warning: {len(untimed)} kernels run with their first choice, which "
            "was not timed; the manifest names them"
        )
    chosen = {
        attention.key(built, batch): built.resources.attention_backend,
        mlp.key(built, batch): built.resources.mlp_backend,
        **choices.found(),
    }
    trainer.manifest.note(kernels=chosen, untimed_kernels=untimed, graphs=graphs)
