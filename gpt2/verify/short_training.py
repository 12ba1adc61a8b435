"""A few updates of a tiny model by the code that trains: optimizer, schedule, pruning.

Cadences, batch and precision are brought down to what a moment of a CPU allows. One
update has a far larger gradient than the others, so that limits on gradients act.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.model.init import generator_for
from gpt2.plan.run_length import seconds_of
from gpt2.settings.schema import Settings
from gpt2.train.batch_split import BatchSplit
from gpt2.train.batches import Batch, BatchPlan, TokenSplit, gather
from gpt2.train.lr_schedule import learning_rate
from gpt2.train.run_context import RunContext
from gpt2.train.update import Updater
from gpt2.verify.subject import Subject
from lib.gpu.device import select_device
from lib.optim.registry import OPTIMIZERS

UPDATES = 26
LAYERS = 2
# What settings are brought down to.
CAPS = {
    "warmup_steps": 3,
    "prune_interval": 2,
    "prune_warmup": 3,
    "batch_size": 2,
    "gradient_accumulation": 2,
    **{own.name: own.cap for s in OPTIMIZERS.values() for own in s.own if own.cap},
}
# Settings are raised to the first value, or some would prune nothing in so few updates
# of so few heads; of two that differ below it the larger gets the second.
RAISED = {"prune_ramp_end": (0.5, 0.75), "prune_sparsity": (0.3, 0.6)}
QUIET, SPIKE, SPIKE_AT = 1e-3, 100.0, 21  # factors on the loss, and the update
TOKENS = 2048
Pair = tuple[float, float]


def brought_down(one: Settings, other: Settings) -> tuple[Settings, Settings]:
    """Both settings with short cadences; a field in which they differ still differs."""
    first, second = one.flat(), other.flat()
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, cap in CAPS.items():
        old = first[name], second[name]
        new = min(old[0], cap), min(old[1], cap)
        pairs[name] = _still_apart(old, new, (cap - 1, cap))
    for name, (least, more) in RAISED.items():
        old = first[name], second[name]
        new = max(old[0], least), max(old[1], least)
        pairs[name] = _still_apart(old, new, (least, more))
    pairs["mixed_precision"] = _on_a_cpu(
        first["mixed_precision"], second["mixed_precision"]
    )
    shorter = first["max_iters"] - second["max_iters"]  # none may end too early to act
    pairs["max_iters"] = UPDATES + 4 * (shorter > 0), UPDATES + 4 * (shorter < 0)
    return (
        one.replace(**{name: pair[0] for name, pair in pairs.items()}),
        other.replace(**{name: pair[1] for name, pair in pairs.items()}),
    )


def _still_apart(old: Pair, new: Pair, apart: Pair) -> Pair:
    """The new numbers or, if only the old ones differ, ``apart`` in their order."""
    if old[0] == old[1] or new[0] != new[1]:
        return new
    return apart if old[0] < old[1] else apart[::-1]


def _on_a_cpu(one: str, other: str) -> tuple[str, str]:
    """Precisions that a CPU has in place of fp16."""
    small = [name.replace("fp16", "bf16") for name in (one, other)]
    if one != other and small[0] == small[1]:
        small[(one, other).index("fp16")] = "fp32"
    return small[0], small[1]


def trained(
    subject: Subject, settings: Settings, seconds: float = 1.0
) -> dict[str, Tensor]:
    """Parameters by name after the updates, from the subject's generic point.

    settings: brought down; fp32 ones are computed in float64.
    seconds: what an update counts against a time budget.
    """
    settings = settings.replace(n_layer=min(LAYERS, settings.model.n_layer))
    optim, resources = settings.optim, settings.resources
    dtype = torch.float64 if optim.mixed_precision == "fp32" else torch.float32
    model = subject.model(settings).to(dtype).train()
    text = _text(subject, settings)
    split = BatchSplit(
        micro_batch=resources.batch_size, accumulation=resources.gradient_accumulation
    )
    context = RunContext(device=select_device("cpu"), split=split, train=text, val=text)
    factor = QUIET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        updater = Updater(model, settings, context)
        model.register_forward_hook(lambda _, __, loss: loss * factor)
        data = _batches(text, settings, split, subject.seed)
        budget = seconds_of(optim.time_budget)
        for update in range(1, UPDATES + 1):
            factor = SPIKE if update == SPIKE_AT else QUIET
            share = (update - 1) * seconds / budget if budget else None
            updater(data, update, learning_rate(update, optim, share))
    return {name: p.detach() for name, p in model.named_parameters()}


def _text(subject: Subject, settings: Settings) -> TokenSplit:
    generator = generator_for(subject.seed, "text")
    tokens = torch.randint(settings.vocab_size, (TOKENS,), generator=generator)
    return TokenSplit(tokens.numpy().astype("<u2"), Path(), "train", {})


def _batches(
    text: TokenSplit, settings: Settings, split: BatchSplit, seed: int
) -> Iterator[Batch]:
    """The micro batches of each update, as a run of this seed draws them."""
    plan = BatchPlan(TOKENS, settings.model.block_size, split, seed)
    for step in range(UPDATES):
        for micro in range(split.accumulation):
            yield gather(text.tokens, plan.offsets(step, micro), plan.block_size)
