"""Certificates of the unstructured pruner: a tiny model is pruned and watched.

Those of pruned heads are in gpt2/proofs/heads.py, since a head is part of a model.

As in lib.optim.certify, every check takes what it checks (`make`, a function
or class with Pruner's signature), so that a faulty one can take its place.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.optim.certify import CONFIG, Row
from lib.optim.groups import OptimizerLike, decay_groups, set_learning_rate
from lib.optim.registry import build
from lib.pruning import reference
from lib.pruning.masks import keep_masks
from lib.pruning.names import METHODS, SCOPES, VARIANTS
from lib.pruning.pruner import Pruner
from lib.pruning.schedules import ramp
from lib.pruning.scores import LAYER_CAP, Moments, state_score

STEPS = 50
SCHEDULE = ramp(sparsity=0.6, warmup_steps=8, interval=4, ramp_end=0.8, steps=STEPS)
DEPTHS = {"first.weight": 0.0, "second.weight": 1.0}
SHAPES = {"first.weight": (7, 5), "second.weight": (3, 7), "bias": (7,)}
# Layers of different size, so that global and per-layer thresholds differ.
SCALES = {"first.weight": 1.0, "second.weight": 0.4, "bias": 1.0}

RATES = {"sgd": 0.3}  # else its weights hardly move, and no score ever rises
ANY_SCORE = "bitter7"  # where the score does not matter

MakePruner = Callable[..., Pruner]


class Run:
    """A small model in training with a pruner; decay 0.1, SGD-like noise."""

    def __init__(
        self,
        optimizer: str,
        method: str,
        make: MakePruner = Pruner,
        scope: str = "global",
        variant: str = ANY_SCORE,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = {
            name: nn.Parameter(
                (scale * torch.randn(SHAPES[name], generator=generator)).to(device)
            )
            for name, scale in SCALES.items()
        }
        self.inputs = torch.randn((STEPS, 16, 5), generator=generator).to(device)
        self.targets = torch.randn((STEPS, 16, 3), generator=generator).to(device)
        self.rate = RATES.get(optimizer, 0.03)
        groups = decay_groups(list(self.weights.items()), 0.1)
        self.optimizer: OptimizerLike = build(optimizer, groups, CONFIG)
        self.pruner = make(
            self.prunable,
            self.optimizer,
            method=method,
            schedule=SCHEDULE,
            scope=scope,
            variant=variant,
            depth_of=DEPTHS,
        )

    @property
    def prunable(self) -> dict[str, nn.Parameter]:
        return {name: self.weights[name] for name in DEPTHS}

    def backward(self, step: int) -> None:
        for weight in self.weights.values():
            weight.grad = None
        hidden = self.inputs[step - 1] @ self.weights["first.weight"].T
        out = (
            torch.tanh(hidden + self.weights["bias"]) @ self.weights["second.weight"].T
        )
        loss = ((out - self.targets[step - 1]) ** 2).mean()
        torch.autograd.backward(loss)

    def update(self, step: int) -> None:
        self.backward(step)
        self.pruner.before_step(step)
        self.step()
        self.pruner.after_step(step)

    def step(self) -> None:
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.step()

    def masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.pruner.masks.items()}


def certify_pruning(
    optimizer: str,
    method: str,
    variant: str = ANY_SCORE,
    make: MakePruner = Pruner,
    device: str = "cpu",
) -> dict[str, Row]:
    """All certificates of one possible pair, by short names."""
    both = (
        check_schedule(optimizer, method, make, scope, variant, device)
        for scope in SCOPES
    )
    rows = {
        "schedule": max(both, key=lambda row: (not row.passed, row.figure)),
        "gradients": check_gradients(optimizer, method, make, variant, device),
        "for good": check_permanence(optimizer, method, make, variant, device),
        "resume": check_resume(optimizer, method, make, variant, device),
        "selection": check_selection(),
    }
    if METHODS[method].needs_state:
        rows["scores"] = check_scores()
    if METHODS[method].regrows:
        rows["scores"] = check_movement(make, optimizer, device)
    return rows


def _by_depth(method: str, variant: str) -> bool:
    return method == "state" and variant == "bitter4"


def wanted_zeros(
    step: int, scope: str, by_depth: bool
) -> list[tuple[list[str], float, float]]:
    """(names, share, size): the schedule's own words, apart from the pruner's."""
    sizes = {name: float(torch.Size(SHAPES[name]).numel()) for name in DEPTHS}
    share = SCHEDULE.sparsity(step)
    if by_depth:
        shares = {n: min(LAYER_CAP, share * (0.7 + 0.6 * d)) for n, d in DEPTHS.items()}
        return [([name], shares[name], sizes[name]) for name in DEPTHS]
    if scope == "layer":
        return [([name], share, sizes[name]) for name in DEPTHS]
    return [(list(DEPTHS), share, sum(sizes.values()))]


def check_schedule(
    optimizer: str,
    method: str,
    make: MakePruner = Pruner,
    scope: str = "global",
    variant: str = ANY_SCORE,
    device: str = "cpu",
) -> Row:
    """True zeros within one weight of the schedule after every single update.

    Counted in the weights after decay and momentum had their say; the figure
    is the largest deviation, in weights.
    """
    run = Run(optimizer, method, make, scope, variant, device)
    by_depth = _by_depth(method, variant)
    worst, at = 0.0, 0
    for step in range(1, STEPS + 1):
        run.update(step)
        for names, share, size in wanted_zeros(step, scope, by_depth):
            zeros = sum(int((run.weights[name] == 0).sum()) for name in names)
            deviation = abs(zeros - share * size)
            if deviation > worst:
                worst, at = deviation, step
    reached = run.pruner.sparsity()
    label = f"{optimizer}, {method}"
    label += f" {variant}" if method == "state" else ""
    detail = f"worst at update {at}, final sparsity {reached:.3f}"
    passed = worst <= 1.0 and reached > 0.5
    return Row(f"{label}, {scope}: on schedule", passed, worst, detail)


def check_gradients(
    optimizer: str,
    method: str,
    make: MakePruner = Pruner,
    variant: str = ANY_SCORE,
    device: str = "cpu",
) -> Row:
    """Gradients of pruned weights reach the optimizer as 0, those kept whole.

    Where pruning is for good the optimizer's state of them is 0 as well. The
    figure counts entries that are not as they should be.
    """
    run = Run(optimizer, method, make, variant=variant, device=device)
    wrong = 0
    for step in range(1, STEPS + 1):
        run.backward(step)
        given = {
            n: w.grad.clone() for n, w in run.prunable.items() if w.grad is not None
        }
        run.pruner.before_step(step)
        for name, weight in run.prunable.items():
            assert weight.grad is not None
            dead = (weight == 0) if step > SCHEDULE.start else torch.zeros_like(weight)
            wanted = given[name].masked_fill(dead.bool(), 0.0)
            wrong += int((weight.grad != wanted).sum())
        run.step()
        run.pruner.after_step(step)
        if not METHODS[method].regrows:
            wrong += _live_state(run)
    detail = f"{STEPS} updates, {run.pruner.zeros()[0]} weights pruned"
    passed = wrong == 0 and run.pruner.zeros()[0] > 0
    return Row(f"{method}: gradients of the pruned", passed, float(wrong), detail)


def _live_state(run: Run) -> int:
    """Optimizer state entries of pruned weights that are not 0."""
    return sum(
        int(((value != 0) & (weight == 0)).sum())
        for weight in run.prunable.values()
        for value in run.optimizer.state[weight].values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    )


def check_permanence(
    optimizer: str,
    method: str,
    make: MakePruner = Pruner,
    variant: str = ANY_SCORE,
    device: str = "cpu",
) -> Row:
    """Pruned stays pruned; under movement some come back, as they had been.

    The figure is the number of weights that came back.
    """
    run = Run(optimizer, method, make, variant=variant, device=device)
    aside = {name: torch.zeros_like(w) for name, w in run.prunable.items()}
    back, changed = 0, 0
    for step in range(1, STEPS + 1):
        run.backward(step)
        run.pruner.before_step(step)
        run.step()
        stepped = {name: w.detach().clone() for name, w in run.prunable.items()}
        before = run.masks()
        run.pruner.after_step(step)
        for name, weight in run.prunable.items():
            mask, old = run.pruner.masks[name], before[name]
            grown = mask & ~old
            back += int(grown.sum())
            changed += int((weight != aside[name])[grown].sum())
            aside[name] = torch.where(old & ~mask, stepped[name], aside[name])
    passed = changed == 0 and (back > 0) == METHODS[method].regrows
    detail = f"{back} came back, {changed} of them with another value"
    return Row(f"{method}: pruned stays pruned or returns", passed, float(back), detail)


def check_resume(
    optimizer: str,
    method: str,
    make: MakePruner = Pruner,
    variant: str = ANY_SCORE,
    device: str = "cpu",
) -> Row:
    """Stop in mid ramp, save, load, go on: equal bit for bit, zeros included."""
    stop = SCHEDULE.start + 3 * SCHEDULE.interval + 1
    whole = Run(optimizer, method, make, variant=variant, device=device)
    for step in range(1, stop + 1):
        whole.update(step)
    saved = io.BytesIO()
    state = {
        "model": {name: weight.detach() for name, weight in whole.weights.items()},
        "optimizer": whole.optimizer.state_dict(),
        "pruner": whole.pruner.state_dict(),
    }
    torch.save(state, saved)
    for step in range(stop + 1, STEPS + 1):
        whole.update(step)

    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    parts = Run(optimizer, method, make, variant=variant, device=device)
    with torch.no_grad():
        for name, weight in parts.weights.items():
            weight.copy_(loaded["model"][name])
    parts.optimizer.load_state_dict(loaded["optimizer"])
    parts.pruner.load_state_dict(loaded["pruner"])
    zeros, exported = 0, True
    for names, share, size in wanted_zeros(stop, "global", _by_depth(method, variant)):
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
    label = f"{optimizer}, {method}: resume is exact"
    return Row(label, exported and equal and masks, figure, detail)


def check_movement(
    make: MakePruner = Pruner, optimizer: str = "adamw", device: str = "cpu"
) -> Row:
    """Scores equal -sum g w in float64, g of the forward with W * mask.

    The dense W is followed here by itself: what the optimizer left where the
    mask keeps, what stood there at pruning where it does not.
    """
    run = Run(optimizer, "movement", make, device=device)
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
