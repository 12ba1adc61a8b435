"""Certificates of AdamWSPAM's phases: clipping, resets, warm-up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.optim.certify import (
    UPDATES,
    Make,
    Row,
    advance,
    check_reference,
    fresh_weights,
    gradient_table,
    groups_of,
    largest,
    make_default,
    rate_at,
    trial_config,
)
from lib.optim.config import OptimConfig
from lib.optim.optimizers.adamwspam import CLIP_AFTER
from lib.optim.spam import warmup_scale

NAME = "adamwspam"
CONFIG = trial_config(NAME)
PHASES = 1e-6  # error of a clipped gradient and of a step length, relative


@dataclass(frozen=True, slots=True)
class Seen:
    """One update of one weight: n, gradient as given, and what came of it."""

    update: int
    gradient: Tensor
    before: Tensor
    after: Tensor
    first: Tensor
    second: Tensor


def check_spam() -> dict[str, Row]:
    """Certificates of the phases; of the other threshold and counter as well."""
    own = {**CONFIG.own, "spam_threshold": 50.0, "spam_reset_counter": True}
    other = replace(CONFIG, own=own)
    trace = spam_trace()
    return {
        "theta 50": check_reference(NAME, config=other),
        "clip": check_clip(trace),
        "resets": check_reset(trace),
        "warm-up": check_warmup(trace),
    }


def spam_trace(
    make: Make = make_default,
    config: OptimConfig = CONFIG,
    updates: int = UPDATES,
) -> list[Seen]:
    """Every update of "wide.weight" under AdamWSPAM, without decay."""
    weights, table = fresh_weights(), gradient_table(updates)
    optimizer = make(NAME, groups_of(weights, 0.0), config)
    watched = weights["wide.weight"]
    trace = []
    for update in range(1, updates + 1):
        before = watched.detach().clone()
        advance(optimizer, weights, table, range(update, update + 1))
        state = optimizer.state[watched]
        seen = Seen(
            update,
            table["wide.weight"][update - 1],
            before,
            watched.detach().clone(),
            state["exp_avg"].clone(),
            state["exp_avg_sq"].clone(),
        )
        trace.append(seen)
    return trace


def _entered(now: Seen, first_before: Tensor) -> Tensor:
    """The gradient that entered the first moment at this update."""
    return (now.first - CONFIG.beta1 * first_before) / (1.0 - CONFIG.beta1)


def check_clip(trace: list[Seen], config: OptimConfig = CONFIG) -> Row:
    """Spikes enter the moments as sqrt(theta v), and only where they should."""
    fired, errors = 0, []
    for last, now in zip(trace, trace[1:], strict=False):
        n = now.update
        if n % config.own["spam_interval"] == 0:
            continue
        limit = (config.own["spam_threshold"] * last.second).sqrt()
        open_ = n % config.own["spam_interval"] >= CLIP_AFTER
        spike = (now.gradient.abs() > limit) & open_
        wanted = torch.where(spike, now.gradient.sign() * limit, now.gradient)
        entered = _entered(now, last.first)
        off = (entered - wanted).abs() / wanted.abs().clamp(min=1)
        errors.append(off.max().item())
        fired += int(spike.sum())
    error = largest(errors)
    passed = fired > 0 and error <= PHASES
    return Row("adamwspam: clip fires", passed, error, f"{fired} entries clipped")


def check_reset(trace: list[Seen], config: OptimConfig = CONFIG) -> Row:
    """The moments hold one gradient alone after updates n mod T == 0, only then."""
    wanted = [s.update for s in trace if s.update % config.own["spam_interval"] == 0]
    resets = [
        now.update
        for now in trace[1:]
        if torch.allclose(now.first, (1 - config.beta1) * now.gradient, rtol=1e-9)
        and torch.allclose(now.second, (1 - config.beta2) * now.gradient**2, rtol=1e-9)
    ]
    detail = f"at {resets}, wanted {wanted}"
    return Row("adamwspam: resets", resets == wanted, float(len(resets)), detail)


def check_warmup(trace: list[Seen], config: OptimConfig = CONFIG) -> Row:
    """Step length over Adam's, which is s: 0.01 at a reset, 1 from k = N on."""
    errors, lowest = [], 1.0
    for now in trace:
        n = now.update
        first = now.first / (1 - config.beta1**n)
        second = now.second / (1 - config.beta2**n)
        full = rate_at(n) * first / (second.sqrt() + config.eps)
        scale = ((now.before - now.after).norm() / full.norm()).item()
        wanted = warmup_scale(n, config.own["spam_interval"], config.own["spam_warmup"])
        errors.append(abs(scale - wanted))
        lowest = min(lowest, scale)
    error = largest(errors)
    passed = error <= PHASES and lowest < 0.02
    return Row("adamwspam: warm-up", passed, error, f"lowest scale seen {lowest:.4f}")
