"""Certificates of what is pruned: scores, masks and selection against plain formulas.

As in lib/pruning/certify.py, every check takes what it checks, so that a faulty one
can take its place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lib.optim.certify import CONFIG, Row
from lib.pruning import reference
from lib.pruning.masks import keep_masks
from lib.pruning.names import SCOPES, VARIANTS
from lib.pruning.pruner import Pruner
from lib.pruning.reference import Array
from lib.pruning.scores import Moments, state_score
from lib.pruning.watched import (
    ANY_SCORE,
    SCHEDULE,
    STEPS,
    MakePruner,
    WatchedTraining,
    by_depth,
    wanted_zeros,
)


def check_masks(
    optimizer: str,
    method: str,
    make: MakePruner = Pruner,
    variant: str = ANY_SCORE,
    device: str = "cpu",
) -> Row:
    """Each mask update, in both scopes, drops the lowest of the reference's scores.

    Those are computed from the weights, and from the optimizer's own state, as they
    are between the optimizer and the masks. The figure counts other choices.
    """
    wrong, first = 0, ""
    for scope in SCOPES:
        truth = _Truth(WatchedTraining(optimizer, method, make, scope, variant, device))
        for step in range(1, STEPS + 1):
            found = truth.wrong_after(step)
            if found and not first:
                first = f", first at update {step} of scope {scope}"
            wrong += found
    detail = f"{wrong} weights chosen against their scores{first}"
    return Row(f"{method}: masks = lowest scores", wrong == 0, float(wrong), detail)


class _Truth:
    """The scores that the masks of a run ought to follow, in float64."""

    def __init__(self, run: WatchedTraining) -> None:
        self.run = run
        shapes = {name: tuple(w.shape) for name, w in run.prunable.items()}
        self.movement = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.aside = {name: np.zeros(shape) for name, shape in shapes.items()}

    def wrong_after(self, step: int) -> int:
        """Make an update of the run; how many weights its new masks, if there are
        any, keep or drop against their scores."""
        run, pruner = self.run, self.run.pruner
        run.backward(step)
        for name, weight in run.prunable.items():
            assert weight.grad is not None
            dense = _array(weight) + self.aside[name]
            self.movement[name] -= _array(weight.grad) * dense
        pruner.before_step(step)
        run.step()
        scores = {name: self._score(name, step) for name in run.prunable}
        stepped = {name: _array(weight) for name, weight in run.prunable.items()}
        before = {name: mask.cpu().numpy() for name, mask in run.masks().items()}
        pruner.after_step(step)
        after = {name: mask.cpu().numpy() for name, mask in run.masks().items()}
        for name, old in before.items():
            dense = np.where(old, stepped[name], self.aside[name])
            self.aside[name] = np.where(after[name], 0.0, dense)
        if not SCHEDULE.is_update(step):
            return 0
        by = by_depth(pruner.kind.name, str(pruner.variant))
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
        run, kind = self.run, self.run.pruner.kind
        if kind.regrows:
            return self.movement[name]
        weight = _array(run.weights[name])
        score = np.abs(weight)
        if kind.needs_state:
            state, variant = run.optimizer.state[run.weights[name]], run.pruner.variant
            first, second = _array(state["exp_avg"]), _array(state["exp_avg_sq"])
            score = reference.score(
                str(variant), weight, first, second, step, CONFIG.beta1
            )
        kept = run.pruner.masks[name].cpu().numpy()
        result: Array = np.where(kept, score, -np.inf)
        return result


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy().copy()


def check_movement(
    make: MakePruner = Pruner, optimizer: str = "adamw", device: str = "cpu"
) -> Row:
    """Scores equal -sum g w in float64, g of the forward with W * mask.

    The dense W is followed here by itself: what the optimizer left where the
    mask keeps, what stood there at pruning where it does not.
    """
    run = WatchedTraining(optimizer, "movement", make, device=device)
    dense = {n: w.detach().double().clone() for n, w in run.prunable.items()}
    score = {n: torch.zeros_like(w) for n, w in dense.items()}
    for step in range(1, STEPS + 1):
        run.backward(step)
        for name, weight in run.prunable.items():
            assert weight.grad is not None
            score[name] -= weight.grad.double() * dense[name]
        run.pruner.before_step(step)
        before = run.masks()
        run.step()
        for name, weight in run.prunable.items():
            dense[name] = torch.where(
                before[name], weight.detach().double(), dense[name]
            )
        run.pruner.after_step(step)
        for name, weight in run.prunable.items():
            shown = dense[name] * run.pruner.masks[name]
            assert shown.shape == weight.shape
            if not torch.equal(shown.float(), weight.detach()):
                return Row("movement: masked forward", False, float(step), "W * mask")
    figure = max(
        ((run.pruner.scores[n].double() - s).abs().max() / s.abs().max()).item()
        for n, s in score.items()
    )
    detail = f"relative to the largest score, after {STEPS} updates"
    return Row("movement: score = -sum g w", figure <= 1e-5, figure, detail)


def check_scores() -> Row:
    """Every variant against its float64 formula; the largest relative error."""
    generator = torch.Generator().manual_seed(4)
    weight, first = torch.randn((2, 64), generator=generator)
    second = torch.rand(64, generator=generator) * first**2 + 1e-6
    second[:3] = first[:3] = 0.0
    worst, at = 0.0, ""
    for variant in VARIANTS:
        score = state_score(variant, weight, Moments(first, second, 7, 0.9))
        w, m, v = (tensor.double().numpy() for tensor in (weight, first, second))
        wanted = torch.as_tensor(reference.score(variant, w, m, v, 7, 0.9))
        error = ((score.double() - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= worst:
            worst, at = error, variant
    return Row("state scores = formulas", worst <= 1e-5, worst, f"worst is {at}")


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
