"""Certificates of the optimizers: each is run and watched, on any device.

Every check takes the thing to check (a `make` function that returns an
optimizer over given groups), so that a faulty one can be put in its place.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.optim import reference
from lib.optim.config import OptimConfig
from lib.optim.groups import Group, OptimizerLike, decay_groups, set_learning_rate
from lib.optim.registry import build
from lib.optim.spam import CLIP_AFTER, warmup_scale

UPDATES = 1000
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
CONFIG = OptimConfig(
    learning_rate=PEAK_RATE,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    momentum=0.9,
    spam_threshold=5000.0,
    spam_interval=500,
    spam_warmup=150,
    spam_reset_counter=False,
)
# Muon orthogonalises in bfloat16, whose rounding its five steps of slope 3.4
# amplify (1% to 4% seen); the others compute in their weights' type.
TOLERANCE = {"muon": 0.1}

Make = Callable[[str, list[Group], OptimConfig], OptimizerLike]
Weights = dict[str, nn.Parameter]


class Row(NamedTuple):
    """One line of the table: what was checked, the verdict, its number."""

    name: str
    passed: bool
    figure: float
    detail: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One update of one weight: n, gradient as given, and what came of it."""

    update: int
    gradient: Tensor
    before: Tensor
    after: Tensor
    first: Tensor
    second: Tensor


def make_default(name: str, groups: list[Group], config: OptimConfig) -> OptimizerLike:
    """The optimizer that ships."""
    return build(name, groups, config, embeddings=EMBEDDINGS)


def certify_optimizer(
    name: str, make: Make = make_default, device: str = "cpu"
) -> dict[str, Row]:
    """All certificates of one optimizer, by short names."""
    rows = {
        "groups": check_groups(),
        "reference": check_reference(name, make, device=device),
        "decay": check_decay(name, make, device=device),
        "resume": check_resume(name, make, device),
    }
    return rows | (check_spam(make, device) if name == "adamwspam" else {})


def check_spam(make: Make = make_default, device: str = "cpu") -> dict[str, Row]:
    """What only AdamWSPAM has; its other threshold and counter as well."""
    other = replace(CONFIG, spam_threshold=50.0, spam_reset_counter=True)
    trace = spam_trace(make, device=device)
    return {
        "theta 50": check_reference("adamwspam", make, other, device=device),
        "clip": check_clip(trace),
        "resets": check_reset(trace),
        "warm-up": check_warmup(trace),
    }


def fresh_weights(dtype: torch.dtype = torch.float64, device: str = "cpu") -> Weights:
    """The small model of these checks, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
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
    """A schedule from outside: warm-up of 50 updates, then a cosine."""
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
    config: OptimConfig = CONFIG,
    dtype: torch.dtype = torch.float64,
    updates: int = UPDATES,
    device: str = "cpu",
) -> Row:
    """1,000 updates with spikes; the largest error, over the distance moved."""
    weights, table = fresh_weights(dtype, device), gradient_table(updates)
    start = {key: w.detach().double().cpu().clone() for key, w in weights.items()}
    expected = reference.run(
        name,
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
        seen = torch.stack(path).double().cpu()
        errors = _relative_errors(seen, wanted, start[key])
        if not errors.max().item() <= worst:
            worst, at = errors.max().item(), int(errors.argmax()) + 1
    allowed = TOLERANCE.get(name, 1e-9 if dtype is torch.float64 else 1e-3)
    label = f"{name} = float64 reference"
    if name == "adamwspam":
        label += f", theta {config.spam_threshold:g}"
        label += ", counter reset" if config.spam_reset_counter else ""
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
    common = {field: getattr(config, field) for field in config.__slots__}
    return {
        name: {
            **common,
            "decay": 0.1 if len(shape) >= 2 else 0.0,
            "embedding": name in EMBEDDINGS,
        }
        for name, shape in SHAPES.items()
    }


def check_decay(
    name: str, make: Make = make_default, decay: float = 0.1, device: str = "cpu"
) -> Row:
    """Zero gradients: only decay moves the weights, along a closed form.

    Decoupled: w (1 - lr decay)^n. SGD's L2 with momentum mu: the linear
    recurrence b <- mu b + decay w, w <- w - lr b, solved by a matrix power.
    Adam's L2: one update from w is w - lr decay w / (|decay w| + eps).
    Biases do not move. The figure is the largest error over lr * decay.
    """
    weights = fresh_weights(device=device)
    start = {key: weight.detach().clone() for key, weight in weights.items()}
    optimizer = make(name, groups_of(weights, decay), CONFIG)
    updates = 1 if name == "adam" else 20
    for _ in range(updates):
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        set_learning_rate(optimizer, PEAK_RATE)
        optimizer.step()
    error = 0.0
    for key, weight in weights.items():
        wanted = _decayed(name, start[key], decay if weight.ndim >= 2 else 0.0, updates)
        error = max(error, (weight.detach() - wanted).abs().max().item())
    figure = error / (PEAK_RATE * decay)
    detail = f"{updates} updates at zero gradient, decay {decay:g}"
    return Row(f"{name}: decay as asked", figure <= 1e-9, figure, detail)


def _decayed(name: str, start: Tensor, decay: float, updates: int) -> Tensor:
    if name == "adam":
        penalty = decay * start
        return start - PEAK_RATE * penalty / (penalty.abs() + CONFIG.eps)
    if name != "sgd":
        return start * (1.0 - PEAK_RATE * decay) ** updates
    # (w, b) after one update is this matrix times (w, b) before it.
    mu = CONFIG.momentum
    once = torch.tensor(
        [[1.0 - PEAK_RATE * decay, -PEAK_RATE * mu], [decay, mu]], dtype=torch.float64
    )
    left: float = torch.linalg.matrix_power(once, updates)[0, 0].item()
    return start * left


def check_resume(name: str, make: Make = make_default, device: str = "cpu") -> Row:
    """Stop, save, load, go on: equal bit for bit to never having stopped.

    SPAM is stopped in the middle of a warm-up; the others have no phases.
    """
    stop, end = (560, 600) if name == "adamwspam" else (30, 70)
    table = gradient_table(end)
    whole = fresh_weights(torch.float32, device)
    optimizer = make(name, groups_of(whole), CONFIG)
    advance(optimizer, whole, table, range(1, stop + 1))
    saved = io.BytesIO()
    model = {key: weight.detach() for key, weight in whole.items()}
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, saved)
    advance(optimizer, whole, table, range(stop + 1, end + 1))

    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    parts = {key: nn.Parameter(value) for key, value in loaded["model"].items()}
    resumed = make(name, groups_of(parts), CONFIG)
    resumed.load_state_dict(loaded["optimizer"])
    advance(resumed, parts, table, range(stop + 1, end + 1))
    figure = max((whole[k] - parts[k]).abs().max().item() for k in whole)
    passed = all(torch.equal(whole[key], parts[key]) for key in whole)
    detail = f"stopped at {stop}, compared at {end}"
    return Row(f"{name}: resume is exact", passed, figure, detail)


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
    """The same of any model's groups; the figure counts what is wrong."""
    members = [(p, group["weight_decay"]) for group in groups for p in group["params"]]
    found = [id(parameter) for parameter, _ in members]
    wrong = [name for name, parameter in named if found.count(id(parameter)) != 1]
    strangers = len(set(found) - {id(parameter) for _, parameter in named})
    misdecayed = sum(d != (decay if p.ndim >= 2 else 0.0) for p, d in members)
    figure = len(wrong) + strangers + misdecayed
    detail = f"not exactly once: {wrong or 'none'}; wrong decay: {misdecayed}"
    return Row("groups: each parameter once", figure == 0, float(figure), detail)


def spam_trace(
    make: Make = make_default,
    config: OptimConfig = CONFIG,
    updates: int = UPDATES,
    device: str = "cpu",
) -> list[Seen]:
    """Every update of "wide.weight" under AdamWSPAM, without decay."""
    weights, table = fresh_weights(device=device), gradient_table(updates)
    optimizer = make("adamwspam", groups_of(weights, 0.0), config)
    watched = weights["wide.weight"]
    trace = []
    for update in range(1, updates + 1):
        before = watched.detach().cpu().clone()
        advance(optimizer, weights, table, range(update, update + 1))
        state = optimizer.state[watched]
        seen = Seen(
            update,
            table["wide.weight"][update - 1],
            before,
            watched.detach().cpu().clone(),
            state["exp_avg"].cpu().clone(),
            state["exp_avg_sq"].cpu().clone(),
        )
        trace.append(seen)
    return trace


def _entered(now: Seen, first_before: Tensor) -> Tensor:
    """The gradient that entered the first moment at this update."""
    return (now.first - CONFIG.beta1 * first_before) / (1.0 - CONFIG.beta1)


def check_clip(trace: list[Seen], config: OptimConfig = CONFIG) -> Row:
    """Spikes enter the moments as sqrt(theta v), and only where they should."""
    fired, error = 0, 0.0
    for last, now in zip(trace, trace[1:], strict=False):
        n = now.update
        if n % config.spam_interval == 0:
            continue
        limit = (config.spam_threshold * last.second).sqrt()
        open_ = n >= CLIP_AFTER and n % config.spam_interval >= CLIP_AFTER
        spike = (now.gradient.abs() > limit) & open_
        wanted = torch.where(spike, now.gradient.sign() * limit, now.gradient)
        entered = _entered(now, last.first)
        error = max(
            error, ((entered - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
        )
        fired += int(spike.sum())
    passed = fired > 0 and error <= 1e-6
    return Row("adamwspam: clip fires", passed, error, f"{fired} entries clipped")


def check_reset(trace: list[Seen], config: OptimConfig = CONFIG) -> Row:
    """The moments hold one gradient alone after updates n mod T == 0, only then."""
    wanted = [s.update for s in trace if s.update % config.spam_interval == 0]
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
    error, lowest = 0.0, 1.0
    for now in trace:
        n = now.update
        first = now.first / (1 - config.beta1**n)
        second = now.second / (1 - config.beta2**n)
        full = rate_at(n) * first / (second.sqrt() + config.eps)
        scale = ((now.before - now.after).norm() / full.norm()).item()
        wanted = warmup_scale(n, config.spam_interval, config.spam_warmup)
        error, lowest = max(error, abs(scale - wanted)), min(lowest, scale)
    passed = error <= 1e-6 and lowest < 0.02
    return Row("adamwspam: warm-up", passed, error, f"lowest scale seen {lowest:.4f}")
