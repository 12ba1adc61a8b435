"""Certificates of the pruner of single weights, on a small model in training.

Those of pruned heads need a whole model and are in gpt2/verify/certify_heads.py. As in
lib/optim/certify.py, each check is given what it checks (`Case.make`, a class with
Pruner's signature), so that tests can pass a faulty one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.optim.certify import Row, reloaded
from lib.pruning.certify_scores import (
    check_masks,
    check_scores,
    check_selection,
    check_sums,
)
from lib.pruning.registry import SCOPES
from lib.pruning.watched import SCHEDULE, STEPS, Case, WatchedTraining, wanted_zeros


def certify_pruning(case: Case) -> dict[str, Row]:
    """All certificates of a possible pair, by short names."""
    both = (check_schedule(case, scope) for scope in SCOPES)
    is_summed = case.kind.accumulate is not None
    return {
        "schedule": max(both, key=lambda row: (not row.passed, row.figure)),
        "gradients": check_gradients(case),
        "for good": check_permanence(case),
        "masks": check_masks(case),
        "resume": check_resume(case),
        "selection": check_selection(),
        "scores": check_sums(case) if is_summed else check_scores(case.method),
    }


def check_schedule(case: Case, scope: str = "global") -> Row:
    """True zeros within one weight of the schedule after every single update.

    Counted in the weights after decay and momentum had their say; the figure
    is the largest deviation, in weights.
    """
    run = WatchedTraining(case, scope)
    worst, at = 0.0, 0
    for step in range(1, STEPS + 1):
        run.update(step)
        for names, share, size in wanted_zeros(step, scope, case.is_by_depth):
            zeros = sum(int((run.weights[name] == 0).sum()) for name in names)
            deviation = abs(zeros - share * size)
            if deviation > worst:
                worst, at = deviation, step
    reached = run.pruner.sparsity()
    label = f"{case.optimizer}, {case.method}"
    label += f" {case.variant}" if case.kind.variants else ""
    detail = f"worst at update {at}, final sparsity {reached:.3f}"
    passed = worst <= 1.0 and reached > 0.5
    return Row(f"{label}, {scope}: on schedule", passed, worst, detail)


def check_gradients(case: Case) -> Row:
    """Gradients of pruned weights reach the optimizer as 0, those kept whole.

    Where pruning is for good the optimizer's state of them is 0 as well. The
    figure counts entries that are not as they should be.
    """
    run = WatchedTraining(case)
    wrong = 0
    for step in range(1, STEPS + 1):
        run.backward(step)
        given = {
            n: w.grad.clone() for n, w in run.prunable.items() if w.grad is not None
        }
        run.pruner.before_update(step)
        for name, weight in run.prunable.items():
            assert weight.grad is not None
            dead = (weight == 0) if step > SCHEDULE.start else torch.zeros_like(weight)
            wanted = given[name].masked_fill(dead.bool(), 0.0)
            wrong += int((weight.grad != wanted).sum())
        run.step()
        run.pruner.after_update(step)
        if not case.kind.regrows:
            wrong += _live_state(run)
    detail = f"{STEPS} updates, {run.pruner.zeros()[0]} weights pruned"
    passed = wrong == 0 and run.pruner.zeros()[0] > 0
    return Row(f"{case.method}: gradients of the pruned", passed, float(wrong), detail)


def _live_state(run: WatchedTraining) -> int:
    """Optimizer state entries of pruned weights that are not 0."""
    return sum(
        int(((value != 0) & (weight == 0)).sum())
        for weight in run.prunable.values()
        for value in run.optimizer.state[weight].values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    )


def check_permanence(case: Case) -> Row:
    """Pruned stays pruned; under movement some come back, as they had been.

    The figure is the number of weights that came back.
    """
    run = WatchedTraining(case)
    aside = {name: torch.zeros_like(w) for name, w in run.prunable.items()}
    back, changed = 0, 0
    for step in range(1, STEPS + 1):
        run.backward(step)
        run.pruner.before_update(step)
        run.step()
        stepped = {name: w.detach().clone() for name, w in run.prunable.items()}
        before = run.masks()
        run.pruner.after_update(step)
        for name, weight in run.prunable.items():
            mask, old = run.pruner.masks[name], before[name]
            grown = mask & ~old
            back += int(grown.sum())
            changed += int((weight != aside[name])[grown].sum())
            aside[name] = torch.where(old & ~mask, stepped[name], aside[name])
    passed = changed == 0 and (back > 0) == case.kind.regrows
    passed &= run.pruner.zeros()[0] > 0
    detail = f"{back} came back, {changed} of them with another value"
    return Row(
        f"{case.method}: pruned stays pruned or returns", passed, float(back), detail
    )


def check_resume(case: Case) -> Row:
    """Stop in mid ramp, save, load, go on: equal bit for bit, zeros included."""
    stop = SCHEDULE.start + 3 * SCHEDULE.interval + 1
    whole = WatchedTraining(case)
    for step in range(1, stop + 1):
        whole.update(step)
    model = {name: weight.detach() for name, weight in whole.weights.items()}
    states = whole.optimizer.state_dict(), whole.pruner.state_dict()
    loaded = reloaded({"model": model, "optimizer": states[0], "pruner": states[1]})
    for step in range(stop + 1, STEPS + 1):
        whole.update(step)

    parts = WatchedTraining(case)
    with torch.no_grad():
        for name, weight in parts.weights.items():
            weight.copy_(loaded["model"][name])
    parts.optimizer.load_state_dict(loaded["optimizer"])
    parts.pruner.load_state_dict(loaded["pruner"])
    zeros, exported = 0, True
    for names, share, size in wanted_zeros(stop, "global", case.is_by_depth):
        found = sum(int((loaded["model"][name] == 0).sum()) for name in names)
        exported &= abs(found - share * size) <= 1.0
        zeros += found
    for step in range(stop + 1, STEPS + 1):
        parts.update(step)
    figure = max(
        (whole.weights[k] - w).abs().max().item() for k, w in parts.weights.items()
    )
    equal = all(torch.equal(whole.weights[k], w) for k, w in parts.weights.items())
    masks = all(torch.equal(m, parts.pruner.masks[k]) for k, m in whole.masks().items())
    detail = f"stopped at {stop} with {zeros} zeros saved, compared at {STEPS}"
    label = f"{case.optimizer}, {case.method}: resume is exact"
    return Row(label, exported and equal and masks, figure, detail)
