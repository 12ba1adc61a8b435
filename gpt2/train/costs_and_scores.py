"""Costs and scores of a finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt2.plan.budget import budget, kv_bytes
from gpt2.settings.schema import Settings
from gpt2.train.evaluate import Evaluation
from gpt2.train.progress import Progress
from lib.gpu.device import DeviceInfo
from lib.gpu.peaks import peak_flops
from lib.optim.groups import OptimizerLike, state_bytes
from lib.pruning.heads import HeadPruner
from lib.pruning.pruner import Pruner


def trained(
    settings: Settings,
    progress: Progress,
    epoch_tokens: int,
    peak: float | None = None,
) -> dict[str, Any]:
    """Time and costs. peak: FLOP/s of all devices together; without it there is no
    mfu."""
    costs = budget(settings)
    epochs = progress.tokens / epoch_tokens
    rate = progress.tokens / progress.train_seconds
    return {
        "train_loss": progress.train_loss,
        "flops_per_token": costs.flops_training,
        "kv_bytes_per_token": kv_bytes(settings),
        "tokens": progress.tokens,
        "tokens_per_s": rate,
        **utilisation(costs.flops_training, rate, peak),
        **progress.times(),
        "data_wait_share": progress.wait_seconds / progress.train_seconds,
        "step_seconds": progress.train_seconds / progress.step,
        "epochs": epochs,
        "mean_epoch_seconds": progress.seconds / epochs,
    }


def peak_of_run(settings: Settings, device: DeviceInfo, ranks: int) -> float | None:
    """FLOP/s of all ranks' devices, taken to be alike; None: not known."""
    precision = settings.optim.mixed_precision
    one = peak_flops(device.name, device.compute_units, precision)
    return None if one is None else one * ranks


def utilisation(flops: float, rate: float, peak: float | None) -> dict[str, float]:
    """MFU as PaLM counts it (arXiv 2204.02311, appendix B): the FLOPs of the model
    at ``rate`` tokens/s over the peak. Empty where the peak is not known."""
    return {} if peak is None else {"mfu": flops * rate / peak}


def scored(progress: Progress, bytes_per_token: float) -> dict[str, Any]:
    """The last evaluation and the best; bits per byte (base 2) of the text."""
    assert progress.last is not None, "a finished run was evaluated"
    loss = progress.last["val_loss"]
    return {
        "val_loss": loss,
        "val_perplexity": progress.last["val_perplexity"],
        "val_accuracy": progress.last["val_accuracy"],
        "best_val_loss": progress.best_val_loss,
        "bits_per_byte": bits_per_byte(loss, bytes_per_token),
    }


def evaluation_record(
    progress: Progress, found: Evaluation, bytes_per_token: float
) -> dict[str, Any]:
    """Record of a validation at the present update."""
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "val_loss": found.loss,
        "val_perplexity": found.perplexity,
        "val_accuracy": found.accuracy,
        "bits_per_byte": bits_per_byte(found.loss, bytes_per_token),
        "eval_seconds": found.seconds,
        **progress.times(),
        **found.attention,
    }


def epoch_record(
    progress: Progress, found: Mapping[str, Any], epoch_tokens: int
) -> dict[str, Any]:
    """Record of an epoch that has ended, with the scores of a validation."""
    return {
        **found,
        "step": progress.step,
        "tokens": progress.tokens,
        "epoch": progress.tokens // epoch_tokens,
        "epoch_seconds": progress.seconds - progress.epoch_began,
        "val_step": found["step"],
        **progress.times(),
    }


def training_record(
    progress: Progress,
    *,
    loss_sum: float,
    learning_rate: float,
    grad_norm: float,
    speed: Mapping[str, float],
) -> dict[str, Any]:
    """Record of the updates since the last such record, with their speed."""
    shares = progress.budget_shares
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": progress.train_loss,
        "loss_sum": loss_sum,
        "updates": progress.updates_summed,
        "lr": learning_rate,
        "grad_norm": grad_norm,
        **speed,
        **progress.times(),
        **({"budget_shares": shares} if shares else {}),
    }


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits per byte of text, from a loss in nats per token; for any tokenizer."""
    return loss / math.log(2.0) / bytes_per_token


def held(optimizer: OptimizerLike, pruner: Pruner | HeadPruner) -> dict[str, Any]:
    """Bytes of optimizer state and, of pruned models, share and number of the zeros
    among the weights that may be pruned."""
    found: dict[str, Any] = {"optimizer_state_bytes": state_bytes(optimizer)}
    if pruner.masks:
        found["sparsity"] = pruner.sparsity()
        found["zeros"] = pruner.zeros()[0]
    return found
