"""Certificates of scores, masks and selection, against naive formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.optim.certify import COMMON, Row, largest
from lib.pruning import reference
from lib.pruning.masks import keep_masks
from lib.pruning.reference import Array
from lib.pruning.registry import METHODS, SCOPES
from lib.pruning.spec import Inputs, Moments
from lib.pruning.watched import SCHEDULE, STEPS, Case, WatchedTraining, wanted_zeros

SCORES = 1e-5  # error of a score in float32, relative to the largest


def check_masks(case: Case) -> Row:
    """Each mask update, in both scopes, drops the lowest of the reference's scores.

    Those are computed from the weights, and from the optimizer's own state, as they
    are between the optimizer and the masks. The figure counts other choices.
    """
    wrong, first = 0, ""
    for scope in SCOPES:
        truth = _Truth(WatchedTraining(case, scope))
        for step in range(1, STEPS + 1):
            found = truth.wrong_after(step)
            if found and not first:
                first = f", first at update {step} of scope {scope}"
            wrong += found
    detail = f"{wrong} weights chosen against their scores{first}"
    return Row(
        f"{case.method}: masks = lowest scores", wrong == 0, float(wrong), detail
    )


class _Truth:
    """The scores that the masks of a run should follow, in float64."""

    def __init__(self, run: WatchedTraining) -> None:
        self.run, self.kind = run, run.pruner.kind
        shapes = {name: tuple(w.shape) for name, w in run.prunable.items()}
        self.sums = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.aside = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.dense: dict[str, Array] = {}

    def wrong_after(self, step: int) -> int:
        """Do one update; how many weights its new masks, if any, keep or drop against
        their scores."""
        run, pruner = self.run, self.run.pruner
        run.backward(step)
        for name, weight in run.prunable.items():
            assert weight.grad is not None
            if add := self.kind.sum_reference:
                dense = _array(weight) + self.aside[name]
                self.sums[name] = add(self.sums[name], _array(weight.grad), dense)
        pruner.before_update(step)
        run.step()
        scores = {name: self._score(name, step) for name in run.prunable}
        stepped = {name: _array(weight) for name, weight in run.prunable.items()}
        before = {name: mask.numpy() for name, mask in run.masks().items()}
        pruner.after_update(step)
        after = {name: mask.numpy() for name, mask in run.masks().items()}
        for name, old in before.items():
            self.dense[name] = np.where(old, stepped[name], self.aside[name])
            if self.kind.regrows:
                self.aside[name] = np.where(after[name], 0.0, self.dense[name])
        if not SCHEDULE.is_update(step):
            return 0
        by = pruner.variant in self.kind.by_depth
        return sum(
            reference.wrong_choices(
                [scores[n] for n in names],
                [after[n] for n in names],
                round(share * size),
            )
            for names, share, size in wanted_zeros(step, pruner.scope, by)
        )

    def _score(self, name: str, step: int) -> Array:
        """-inf where pruned is pruned for good."""
        pruner, weight = self.run.pruner, self.run.weights[name]
        values: dict[str, Any] = {"variant": pruner.variant, "sums": self.sums[name]}
        if self.kind.reads_moments:
            state = self.run.optimizer.state[weight]
            m, v = _array(state["exp_avg"]), _array(state["exp_avg_sq"])
            values |= {"m": m, "v": v, "n": step, "beta1": COMMON["beta1"]}
        assert self.kind.reference is not None
        score = self.kind.reference(_array(weight), values)
        kept = pruner.masks[name].numpy() | self.kind.regrows
        result: Array = np.where(kept, score, -np.inf)
        return result


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def check_sums(case: Case) -> Row:
    """Sums equal the naive ones in float64, g being of the forward with W * mask.

    The dense W is tracked here: the optimizer's result where the mask keeps a weight,
    the value at the time of pruning where it does not.
    """
    truth = _Truth(WatchedTraining(case))
    run = truth.run
    for step in range(1, STEPS + 1):
        truth.wrong_after(step)
        for name, weight in run.prunable.items():
            kept = run.pruner.masks[name].numpy()
            if not np.array_equal(truth.dense[name] * kept, _array(weight)):
                label = f"{case.method}: masked forward"
                return Row(label, False, float(step), "W * mask")
    figure = largest(
        float(abs(_array(run.pruner.scores[n]) - s).max() / abs(s).max())
        for n, s in truth.sums.items()
    )
    detail = f"relative to the largest score, after {STEPS} updates"
    return Row(f"{case.method}: sums = formula", figure <= SCORES, figure, detail)


def check_scores(method: str) -> Row:
    """Every variant against its float64 formula; the largest relative error."""
    spec = METHODS[method]
    assert spec.score is not None and spec.reference is not None
    generator = torch.Generator().manual_seed(4)
    weight, first = torch.randn((2, 64), generator=generator)
    second = torch.rand(64, generator=generator) * first**2 + 1e-6
    second[:3] = first[:3] = 0.0
    moments = Moments(first, second, 7, 0.9)
    w, m, v = (tensor.double().numpy() for tensor in (weight, first, second))
    worst, at = 0.0, ""
    for variant in spec.variants or ("",):
        score = spec.score(weight, Inputs(lambda: moments, variant=variant)).double()
        values = {"m": m, "v": v, "n": 7, "beta1": 0.9, "variant": variant}
        wanted = torch.as_tensor(spec.reference(w, values))
        error = largest([((score - wanted).abs().max() / wanted.abs().max()).item()])
        if error > worst:
            worst, at = error, variant or method
    detail = f"worst is {at}" if at else "none deviates"
    return Row(f"{method}: scores = formulas", worst <= SCORES, worst, detail)


def check_selection(
    select: Callable[[list[Tensor], int], list[Tensor]] = keep_masks,
) -> Row:
    """The same weights as a stable sort picks, ties included, for every k.

    The figure counts the k for which the masks differ.
    """
    generator = torch.Generator().manual_seed(5)
    rough = torch.randn((5, 6), generator=generator)
    tied = torch.randint(-2, 3, (4, 7), generator=generator).float()
    tied[0, :3] = -torch.inf
    wrong = 0
    for pruned in range(rough.numel() + tied.numel() + 1):
        masks = select([rough, tied], pruned)
        wanted = reference.keep_masks([rough.numpy(), tied.numpy()], pruned)
        wrong += any(
            not torch.equal(mask, torch.as_tensor(want))
            for mask, want in zip(masks, wanted, strict=True)
        )
    detail = "two tensors, one of small integers"
    return Row("selection = stable sort", wrong == 0, float(wrong), detail)
