"""Replay the first updates of a run from its seed and its text.

Losses and gradients come from the plain formulas of gpt2/model/reference/formulas.py,
batches and learning rates from their definitions; the optimizer is the run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt2.audit.corpus import PreparedText, Tokens, batch_offsets
from gpt2.audit.evidence import RunFiles, value
from gpt2.audit.finding import AuditLine, Tolerance, compare, left_out, not_checked
from gpt2.audit.losses import Format, cross_entropy, format_of, pair
from gpt2.audit.options import AuditOptions
from gpt2.audit.records import budget_shares, rate_at
from gpt2.model.gpt import GPT
from gpt2.model.init import start_parameters
from gpt2.model.reference.formulas import whole_trace
from gpt2.plan.budget import budget
from gpt2.plan.run_length import seconds_of
from gpt2.settings.schema import Settings
from gpt2.train.build_optimizer import make_optimizer, make_pruner
from lib.optim.groups import set_learning_rate
from lib.safe_json import whole

FIRST_LOSS, FIRST_NORM = "first training loss", "first gradient norm"
# Maximum FLOPs of a replay: some tens of seconds.
MOST_FLOPS = {"cpu": 5e11, "cuda": 1e15}
# Of a loss, and of a gradient's norm, if learning rates depend on the time of each
# update and older records lack it: on a busy machine these times are unequal.
LOSS_BY_CLOCK, NORM_BY_CLOCK = 0.01, 0.05
GROWTH = 10.0  # times the effect of one rounding, if a replay disagrees


def replay_findings(
    evidence: RunFiles, text: PreparedText, options: AuditOptions
) -> Iterator[AuditLine]:
    """Check the first record of the training loss by repeating its updates."""
    if not evidence.trains:
        yield not_checked(FIRST_LOSS, "it is not recorded")
        return
    first = evidence.trains[0]
    updates = whole(first.get("step")) or 0
    if why := _no_replay(evidence, updates, options):
        yield left_out(FIRST_LOSS, why, first.get("loss"))
        return
    device = torch.device(options.device)
    options.say(f"{evidence.run_dir}: the first {updates} updates")
    once = replay(evidence, text.train, updates, device)
    yield from _replayed(
        evidence,
        once,
        lambda jitter: replay(evidence, text.train, updates, device, jitter),
    )


def _replayed(
    evidence: RunFiles, once: Replayed, again: Callable[[float], Replayed]
) -> Iterator[AuditLine]:
    """Compare the first record with its replay.

    If they disagree, the replay is repeated from weights that differ by a rounding. At
    a high learning rate a few updates amplify it, and that difference is allowed.
    """
    first, form = evidence.trains[0], format_of(evidence)
    dropout = evidence.settings.model.dropout
    if dropout:  # as if its rounding were this coarse
        form = Format(0.1 * dropout, 1.0, 1.0, dropout, f"without dropout {dropout:g}")
    loss = Tolerance(absolute=form.loss, why=form.why)
    norm = Tolerance(relative=form.norm, why=form.why)
    if evidence.settings.optim.time_budget and budget_shares(evidence) is None:
        why = "learning rates by the clock"
        loss = Tolerance(relative=LOSS_BY_CLOCK, why=why)
        norm = Tolerance(relative=max(form.norm, NORM_BY_CLOCK), why=why)
    reported = value(first, "loss"), value(first, "grad_norm")
    pairs = ((reported[0], once.loss, loss), (reported[1], once.norm, norm))
    if not all(x is None or allowed.admits(x, y) for x, y, allowed in pairs):
        other = again(form.unit)
        loss = _with_growth(loss, once.loss, other.loss)
        norm = _with_growth(norm, once.norm, other.norm)
    yield compare(FIRST_LOSS, reported[0], once.loss, loss, once.what)
    yield compare(FIRST_NORM, reported[1], once.norm, norm, "before the clip")


def _with_growth(allowed: Tolerance, one: float, other: float) -> Tolerance:
    """Tolerance widened by the effect of a rounding."""
    grown = GROWTH * abs(one - other)
    why = f"{allowed.why}, {GROWTH:g} x the effect of one rounding of the weights"
    return replace(allowed, absolute=allowed.absolute + grown, why=why)


def _no_replay(evidence: RunFiles, updates: int, options: AuditOptions) -> str:
    """Reason why the first updates cannot be repeated, or ""."""
    settings = evidence.settings
    flops = budget(settings).flops_training * settings.tokens_per_update * updates
    most = MOST_FLOPS.get(torch.device(options.device).type, MOST_FLOPS["cpu"])
    if not 0 < updates:
        return "its step is not recorded"
    if flops > most:
        return f"{updates} updates take {flops:.1e} FLOPs, above {most:.0e} here"
    if settings.optim.mixed_precision == "fp16":
        return "fp16 skips updates that overflow"
    return ""


@dataclass(frozen=True, slots=True)
class Replayed:
    """Mean loss of the first updates, and norm of the last gradient."""

    loss: float
    norm: float
    what: str


def replay(
    evidence: RunFiles,
    tokens: Tokens,
    updates: int,
    device: torch.device,
    jitter: float = 0.0,
) -> Replayed:
    """Repeat the first updates, from the seed.

    Gradients come from the formulas, accumulated over the batch window by window.
    jitter: relative noise on the initial weights.
    """
    job, settings = evidence.job, evidence.settings
    model = GPT(settings)
    start_parameters(model, settings, job.seed)
    _jitter(model, jitter)
    model.to(device)
    optimizer = make_optimizer(model, settings.optim)
    pruner = make_pruner(model, optimizer, settings)
    parameters = list(model.parameters())
    losses, norm = [], 0.0
    for update, rate in enumerate(_rates(evidence, updates), 1):
        offsets = batch_offsets(
            job.seed,
            update,
            len(tokens),
            settings.model.block_size,
            settings.effective_batch,
        )
        losses.append(_gradients(model, settings, tokens, offsets.tolist(), device))
        pruner.before_update(update)
        norm = math.sqrt(sum(_squares(p) for p in parameters))
        _clip(parameters, norm, settings.optim.grad_clip)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        pruner.after_update(update)
        optimizer.zero_grad(set_to_none=True)
    mean = math.fsum(losses) / len(losses)
    return Replayed(mean, norm, f"mean of updates 1 to {updates}, from seed and text")


@torch.no_grad()
def _jitter(model: GPT, size: float) -> None:
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.mul_(1 + size * torch.randn(parameter.shape, generator=noise))


def _rates(evidence: RunFiles, updates: int) -> list[float]:
    """Learning rates of the first updates; with a time budget, at the recorded time of
    each, or as if all updates took equally long."""
    optim, first = evidence.settings.optim, evidence.trains[0]
    if not optim.time_budget:
        return [rate_at(update, optim) for update in range(1, updates + 1)]
    seconds = value(first, "train_seconds") or 0.0
    budget = seconds_of(optim.time_budget)
    even = [seconds * before / updates / budget for before in range(updates)]
    shares = budget_shares(evidence) or even
    return [rate_at(update, optim, share) for update, share in enumerate(shares, 1)]


def _gradients(
    model: GPT,
    settings: Settings,
    tokens: Tokens,
    offsets: list[int],
    device: torch.device,
) -> float:
    """Compute the gradients of the mean loss over all windows, and return that loss."""
    weights = dict(model.state_dict(keep_vars=True))
    losses = []
    for start in offsets:
        x, y = pair(tokens, start, settings.model.block_size, device)
        logits = whole_trace(weights, settings, x)["the logits"]
        loss = cross_entropy(logits, y).mean()
        (loss / len(offsets)).backward()
        losses.append(loss.item())
    return math.fsum(losses) / len(losses)


def _squares(parameter: Tensor) -> float:
    gradient = parameter.grad
    return 0.0 if gradient is None else float(gradient.double().pow(2).sum())


def _clip(parameters: Sequence[Tensor], norm: float, limit: float) -> None:
    """Scale all gradients so that their norm is at most the limit (0: no limit)."""
    if limit and norm > limit:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(limit / norm)
