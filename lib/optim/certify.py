"""Certificates of the optimizers, in float64 on the CPU.

Every check takes the thing to check (a `make` function that returns an optimizer over
given groups), so that a faulty one can be put in its place. What is allowed where is
stated here, never by the optimizer: it may only say that it computes in bfloat16.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.optim import reference
from lib.optim.config import OptimConfig
from lib.optim.groups import (
    Group,
    OptimizerLike,
    decay_groups,
    set_learning_rate,
    state_bytes,
)
from lib.optim.registry import build, optimizer_spec

UPDATES = 1000
EXACT = 1e-9  # relative error of float64 against float64
PEAK_RATE = 1e-2
EMBEDDINGS = ("wte.weight",)
SHAPES = {
    "wte.weight": (5, 4),
    "wide.weight": (3, 6),
    "tall.weight": (6, 3),
    "bias": (6,),
}
# Inside the first 20 updates and those after a reset no clip may fire.
SPIKES = (10, 100, 300, 505, 560, 700)
COMMON = {
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "momentum": 0.9,
}
# Other values. Each must change the weights if and only if the setting is read.
CHANGED = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-2, "momentum": 0.5}
# An orthogonalisation in bfloat16 amplifies its rounding by five steps of slope 3.4
# (1% to 4% seen); all else computes in its weights' type.
BFLOAT16 = 0.1

Make = Callable[[str, list[Group], OptimConfig], OptimizerLike]
Weights = dict[str, nn.Parameter]


class Row(NamedTuple):
    """Result of one check: its name, whether it passed, its figure and details."""

    name: str
    passed: bool
    figure: float
    detail: str


def make_default(name: str, groups: list[Group], config: OptimConfig) -> OptimizerLike:
    """The optimizer of this name, as every run gets it."""
    return build(name, groups, config, embeddings=EMBEDDINGS)


def certify_optimizer(name: str) -> dict[str, Row]:
    """All certificates of one optimizer, by short names."""
    spec = optimizer_spec(name)
    rows = {
        "groups": check_groups(),
        "reference": check_reference(name),
        "decay": check_decay(name),
        "resume": check_resume(name),
        "state": check_state(name),
        "settings": check_settings(name),
    }
    return rows | (spec.certificates() if spec.certificates else {})


def trial_config(name: str, *, short: bool = False) -> OptimConfig:
    """The values of these checks, of the optimizer's own settings too."""
    own = {o.name: o.short if short else o.trial for o in optimizer_spec(name).own}
    return OptimConfig(**COMMON, own=own)


def fresh_weights(dtype: torch.dtype = torch.float64) -> Weights:
    """The small model of these checks, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def gradient_table(updates: int) -> dict[str, Tensor]:
    """Gradients [updates, ...] around 1 with spikes of 1,000 in a few entries."""
    generator = torch.Generator().manual_seed(2)
    table = {}
    for name, shape in SHAPES.items():
        noise = torch.randn((updates, *shape), generator=generator).double() + 0.3
        flat = noise.view(updates, -1)
        for spike in SPIKES:
            if spike <= updates:
                flat[spike - 1, :3] *= 1000.0
        table[name] = noise
    return table


def rate_at(update: int) -> float:
    """A learning-rate schedule: warm-up of 50 updates, then a cosine."""
    progress = update / UPDATES
    return PEAK_RATE * min(update / 50, 1.0) * (0.55 + 0.45 * math.cos(3.1 * progress))


def groups_of(weights: Weights, decay: float = 0.1) -> list[Group]:
    return decay_groups(list(weights.items()), decay)


def advance(
    optimizer: OptimizerLike,
    weights: Weights,
    table: Mapping[str, Tensor],
    updates: range,
) -> None:
    """Do the numbered updates with the table's gradients."""
    for update in updates:
        for name, weight in weights.items():
            weight.grad = table[name][update - 1].to(weight, copy=True)
        set_learning_rate(optimizer, rate_at(update))
        optimizer.step()


def check_reference(
    name: str,
    make: Make = make_default,
    config: OptimConfig | None = None,
    dtype: torch.dtype = torch.float64,
    updates: int = UPDATES,
) -> Row:
    """1,000 updates with spikes; the largest error, over the distance moved."""
    spec, config = optimizer_spec(name), config or trial_config(name)
    weights, table = fresh_weights(dtype), gradient_table(updates)
    start = {key: w.detach().double().clone() for key, w in weights.items()}
    expected = reference.run(
        spec.formula,
        {key: value.numpy() for key, value in start.items()},
        lambda n: {key: value[n - 1].numpy() for key, value in table.items()},
        rate_at,
        _settings(config),
        updates,
    )
    optimizer = make(name, groups_of(weights), config)
    history: dict[str, list[Tensor]] = {key: [] for key in weights}
    for update in range(1, updates + 1):
        advance(optimizer, weights, table, range(update, update + 1))
        for key, weight in weights.items():
            history[key].append(weight.detach().clone())
    worst, at = 0.0, 0
    for key, path in history.items():
        wanted = torch.stack([torch.as_tensor(then[key]) for then in expected])
        errors = _relative_errors(torch.stack(path).double(), wanted, start[key])
        if not errors.max().item() <= worst:
            worst, at = errors.max().item(), int(errors.argmax()) + 1
    allowed = EXACT if dtype is torch.float64 else 1e-3
    allowed = BFLOAT16 if spec.is_bfloat16 else allowed
    own = {o.name: config.own[o.name] for o in spec.own}
    others = [f", {o.name} {own[o.name]:g}" for o in spec.own if o.trial != own[o.name]]
    label = f"{name} = float64 reference{''.join(others)}"
    detail = f"{updates} updates, worst at {at}, allowed {allowed:g}"
    return Row(label, worst <= allowed, worst, detail)


def _relative_errors(path: Tensor, wanted: Tensor, start: Tensor) -> Tensor:
    """Error of each update over the distance from the start; NaN counts as inf."""
    error = (path - wanted).flatten(1).norm(dim=1)
    moved = (wanted - start).flatten(1).norm(dim=1).clamp(min=1e-12)
    ratio: Tensor = error / moved
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf)


def _settings(config: OptimConfig) -> dict[str, dict[str, Any]]:
    """Each weight's settings for the reference, written out by hand."""
    return {
        name: {
            **config.flat(),
            "decay": 0.1 if len(shape) >= 2 else 0.0,
            "embedding": name in EMBEDDINGS,
        }
        for name, shape in SHAPES.items()
    }


def largest(errors: Iterable[float]) -> float:
    """The largest of some errors; inf if one is NaN, which max() may pass over."""
    return max((math.inf if math.isnan(e) else e for e in errors), default=0.0)


def check_decay(name: str, make: Make = make_default) -> Row:
    """Zero gradients: only decay moves the weights, along a closed form.

    That of the optimizer's L2 penalty, or w (1 - lr decay)^n. Biases do not move. The
    figure is the largest error over lr * decay.
    """
    spec, config, decay = optimizer_spec(name), trial_config(name), 0.1
    weights = fresh_weights()
    start = {key: w.detach().numpy().copy() for key, w in weights.items()}
    optimizer = make(name, groups_of(weights, decay), config)
    updates = spec.decay_updates if spec.decayed else 20
    for _ in range(updates):
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        set_learning_rate(optimizer, PEAK_RATE)
        optimizer.step()
    errors = []
    for key, weight in weights.items():
        before, asked = start[key], decay if weight.ndim >= 2 else 0.0
        wanted = before * (1.0 - PEAK_RATE * asked) ** updates
        if spec.decayed:
            wanted = spec.decayed(before, PEAK_RATE, asked, updates, config)
        errors.append(float(abs(weight.detach().numpy() - wanted).max()))
    figure = largest(errors) / (PEAK_RATE * decay)
    detail = f"{updates} updates at zero gradient, decay {decay:g}"
    return Row(f"{name}: decay as asked", figure <= EXACT, figure, detail)


def check_resume(name: str, make: Make = make_default) -> Row:
    """Saving, loading and continuing gives the same bits as an uninterrupted run."""
    config, (stop, end) = trial_config(name), optimizer_spec(name).resume_at
    table = gradient_table(end)
    whole = fresh_weights(torch.float32)
    optimizer = make(name, groups_of(whole), config)
    advance(optimizer, whole, table, range(1, stop + 1))
    model = {key: weight.detach() for key, weight in whole.items()}
    loaded = reloaded({"model": model, "optimizer": optimizer.state_dict()})
    advance(optimizer, whole, table, range(stop + 1, end + 1))

    parts = {key: nn.Parameter(value) for key, value in loaded["model"].items()}
    resumed = make(name, groups_of(parts), config)
    resumed.load_state_dict(loaded["optimizer"])
    advance(resumed, parts, table, range(stop + 1, end + 1))
    figure = max((whole[k] - parts[k]).abs().max().item() for k in whole)
    passed = all(torch.equal(whole[key], parts[key]) for key in whole)
    detail = f"stopped at {stop}, compared at {end}"
    return Row(f"{name}: resume is exact", passed, figure, detail)


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint gives it back: saved, and read as data."""
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    found: dict[str, Any] = torch.load(saved, map_location="cpu", weights_only=True)
    return found


def check_state(name: str, make: Make = make_default) -> Row:
    """The optimizer keeps as many numbers as the memory estimate assumes, and counters.

    The figure is the number of those that are too many or too few.
    """
    spec, config = optimizer_spec(name), trial_config(name)
    wrong = 0
    kinds: list[dict[str, Any]] = [{}, {spec.kept_if: 0.0}] if spec.kept_if else [{}]
    for changes in kinds:
        weights = fresh_weights()
        changed = replace(config, **changes)
        optimizer = make(name, groups_of(weights), changed)
        advance(optimizer, weights, gradient_table(3), range(1, 4))
        found = state_bytes(optimizer) // 8
        kept = sum(
            spec.kept_by(key not in EMBEDDINGS and w.ndim == 2, changed.flat())
            * w.numel()
            for key, w in weights.items()
        )
        wrong += abs(found - kept) if not 0 <= found - kept <= len(weights) else 0
    detail = f"{spec.kept} per weight claimed"
    return Row(f"{name}: state as claimed", wrong == 0, float(wrong), detail)


def check_settings(name: str, make: Make = make_default) -> Row:
    """A setting changes the weights if and only if the optimizer claims to read it."""
    spec, config = optimizer_spec(name), trial_config(name, short=True)
    updates = spec.training_updates + 2

    def trained(config: OptimConfig) -> list[Tensor]:
        weights = fresh_weights()
        optimizer = make(name, groups_of(weights), config)
        advance(optimizer, weights, gradient_table(updates), range(1, updates + 1))
        return [weight.detach() for weight in weights.values()]

    before, wrong = trained(config), []
    for field, other in _one_setting_changed(config):
        pairs = zip(before, trained(other), strict=True)
        acts = any(not torch.equal(one, two) for one, two in pairs)
        if acts != (field in spec.reads or field in config.own):
            wrong.append(f"{field} {'acts' if acts else 'does not act'}")
    detail = "; ".join(wrong) or "each acts if and only if it is read"
    return Row(f"{name}: settings act", not wrong, float(len(wrong)), detail)


def _one_setting_changed(config: OptimConfig) -> Iterator[tuple[str, OptimConfig]]:
    for field, value in CHANGED.items():
        change: dict[str, Any] = {field: value}
        yield field, replace(config, **change)
    for field, value in config.own.items():
        other = not value if isinstance(value, bool) else value + 1
        other = value / 2 if isinstance(value, float) else other
        yield field, replace(config, own={**config.own, field: other})


def check_groups(
    grouping: Callable[[list[tuple[str, nn.Parameter]], float], list[Group]] = (
        decay_groups
    ),
) -> Row:
    """Every parameter once (a tied one too), decay on matrices only."""
    weights = fresh_weights()
    named = [*weights.items(), ("head.weight", weights["wte.weight"])]
    groups = grouping(named, 0.1)
    return check_grouping(groups, list(weights.items()), 0.1)


def check_grouping(
    groups: list[Group], named: list[tuple[str, nn.Parameter]], decay: float
) -> Row:
    """As check_groups, for the groups of any model; the figure counts what is wrong."""
    members = [(p, group["weight_decay"]) for group in groups for p in group["params"]]
    found = [id(parameter) for parameter, _ in members]
    wrong = [name for name, parameter in named if found.count(id(parameter)) != 1]
    strangers = len(set(found) - {id(parameter) for _, parameter in named})
    misdecayed = sum(d != (decay if p.ndim >= 2 else 0.0) for p, d in members)
    figure = len(wrong) + strangers + misdecayed
    detail = f"not exactly once: {wrong or 'none'}; wrong decay: {misdecayed}"
    detail += f"; not of the model: {strangers}" if strangers else ""
    return Row("groups: each parameter once", figure == 0, float(figure), detail)
