"""Certificates of head pruning: a tiny model is pruned, watched, cut and read back.

As in lib/pruning/certify.py, every check takes what it checks (`make`, with
HeadPruner's signature, or `cut`, with without_heads'), so that a faulty one can take
its place. The numbers that a head owns are listed here independently, index by index.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.model.heads import head_layers, without_heads
from gpt2.model.init import init_parameters
from gpt2.plan.budget import budget
from gpt2.settings import configuration
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import Settings
from gpt2.train.build_optimizer import make_optimizer, prunable
from gpt2.train.export import load_export, write_export
from gpt2.train.head_removal import TOLERANCE, Cut, RemovalDiffers, compare
from lib.jobs.run_files import EXPORT_FILE
from lib.optim.certify import Row, largest, reloaded
from lib.optim.groups import set_learning_rate
from lib.pruning import reference
from lib.pruning.certify_scores import SCORES
from lib.pruning.heads import HeadPruner, head_scores, keep_heads
from lib.pruning.registry import SCOPES
from lib.pruning.schedules import ramp

UPDATES = 10
NOISE = 1e-4  # in the place of a gradient
SPARSITY, HIGH = 0.5, 0.9  # at the latter the last heads of both layers are asked for
RATE = 3e-3
# Everything that a head may own.
MODEL = (
    "MODEL=CUSTOM N_LAYER=2 N_HEAD=4 N_EMBD=32 BLOCK_SIZE=8 TOKENIZER=BYTES "
    "DEVICE=cpu MIXED_PRECISION=n RA_MLA_RA=y RA_MLA_RA_WINDOW=4 "
    "RA_MLA_RA_LEARNED_ALPHA=y RA_MLA_RACT=y RA_MLA_RACT_TOPK=3 RA_MLA_MLP_GATE=y "
    "RA_MLA_MLP_GATE_DIM=4 RA_MLA_OUTPUT_GATE=y"
)

MakePruner = Callable[..., HeadPruner]


@cache
def tiny(optimizer: str) -> Settings:
    """The model of the certificates, to be trained by an optimizer."""
    settings = settings_from(configuration.load_defaults(MODEL))
    return settings.replace(optimizer=optimizer, head_dim=8, mlp_width=64)


class PrunedTraining:
    """A tiny GPT in training with a pruner, on fixed noise for data."""

    def __init__(
        self,
        optimizer: str,
        make: MakePruner = HeadPruner,
        scope: str = "global",
        sparsity: float = SPARSITY,
    ) -> None:
        self.settings = tiny(optimizer)
        self.schedule = ramp(
            sparsity=sparsity, warmup_steps=2, interval=2, ramp_end=0.8, steps=UPDATES
        )
        self.model = GPT(self.settings)
        init_parameters(self.model, 1)
        self.optimizer = make_optimizer(self.model, self.settings.optim)
        self.pruner = make(
            prunable(self.model),
            head_layers(self.model),
            self.optimizer,
            schedule=self.schedule,
            scope=scope,
        )
        self.owned = {place: owned(self.model, *place) for place in self.heads()}
        generator = torch.Generator().manual_seed(3)
        shape = (UPDATES + 1, 2, self.settings.model.block_size)
        self.tokens = torch.randint(
            self.settings.vocab_size, shape, generator=generator
        )

    def backward(self, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(self.tokens[step], self.tokens[step].roll(-1, 1))
        torch.autograd.backward(loss)

    def step(self) -> None:
        set_learning_rate(self.optimizer, RATE)
        self.optimizer.step()

    def update(self, step: int) -> None:
        self.backward(step)
        self.pruner.before_update(step)
        self.step()
        self.pruner.after_update(step)

    def updates(self, first: int = 1, last: int = UPDATES) -> Iterator[int]:
        """Make these updates as it is iterated over; the number of each."""
        for step in range(first, last + 1):
            self.update(step)
            yield step

    def heads(self) -> Iterator[tuple[int, int]]:
        """(layer, head) of all heads."""
        m = self.settings.model
        return product(range(m.n_layer), range(m.n_head))

    def dead(self) -> set[tuple[int, int]]:
        """The heads all of whose numbers are exact zeros, as the model has them."""
        return {
            place
            for place in self.heads()
            if all(not weight[mask].any() for weight, mask in self.owned[place])
        }


def owned(model: GPT, layer: int, head: int) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter in which a head of `tiny` has a share, and the share's mask."""
    named = dict(model.named_parameters())
    heads, width = 4, 8
    own = range(head * width, (head + 1) * width)
    found = []

    def share(name: str, rows: list[int], dim: int = 0) -> None:
        mask = torch.zeros_like(named[name], dtype=torch.bool)
        mask.index_fill_(dim, torch.tensor(rows), True)
        found.append((named[name], mask))

    fused = [part * heads * width + row for part in range(3) for row in own]
    here = f"blocks.{layer}.attn"
    share(f"{here}.projection.qkv.weight", fused)
    share(f"{here}.projection.qkv.bias", fused)
    share(f"{here}.proj.weight", list(own), dim=1)
    share(f"{here}.output_gate.gate.weight", list(own))
    for name in ("reciprocity.alpha", "ract.scale", "ract.bias"):
        share(f"{here}.{name}", [head])
    if layer:
        share(f"blocks.{layer - 1}.mlp.gate.up.weight", [head])
        share(f"blocks.{layer - 1}.mlp.gate.bias", [head])
    return found


def certify_heads(optimizer: str) -> dict[str, Row]:
    """All certificates of head pruning with one optimizer, by short names."""
    return {
        "schedule": check_schedules(optimizer),
        "gradients": check_gradients(optimizer),
        "for good": check_permanence(optimizer),
        "resume": check_resume(optimizer),
        "selection": check_selection(),
        "scores": check_scores(optimizer),
        "export": check_export(optimizer),
    }


def check_schedules(optimizer: str, make: MakePruner = HeadPruner) -> Row:
    """The worst of all scopes, half and nearly all heads to be pruned."""
    cases = product(SCOPES, (SPARSITY, HIGH))
    rows = [check_schedule(optimizer, make, *case) for case in cases]
    return max(rows, key=lambda row: (not row.passed, row.figure))


def check_schedule(
    optimizer: str,
    make: MakePruner = HeadPruner,
    scope: str = "global",
    sparsity: float = SPARSITY,
) -> Row:
    """After every update the schedule's number of heads is dead; each layer keeps one.

    Counted in the weights after the optimizer's update. Kept heads have no zeros. The
    figure is the largest deviation, in heads.
    """
    run, worst, at = PrunedTraining(optimizer, make, scope, sparsity), 0, 0
    s, m = run.schedule, run.settings.model
    layers = [(m.n_layer, 1)] if scope == "global" else [(1, m.n_layer)]
    for step in run.updates():
        share = reference.sparsity(step, s.start, s.interval, s.updates, s.final)
        wanted = sum(
            times * min(round(share * number * m.n_head), number * (m.n_head - 1))
            for number, times in layers
        )
        deviation = abs(len(run.dead()) - wanted) + _lone_zeros(run)
        if deviation > worst:
            worst, at = deviation, step
    kept = [m.n_head - sum(i == n for i, _ in run.dead()) for n in range(m.n_layer)]
    passed = worst == 0 and min(kept) >= 1 and bool(run.dead())
    detail = f"worst at update {at}, heads left by layer {kept}"
    label = f"{optimizer}, heads to {sparsity:g}, {scope}: on schedule"
    return Row(label, passed, float(worst), detail)


def _lone_zeros(run: PrunedTraining) -> int:
    """Zero matrix entries of heads that are not dead."""
    dead = run.dead()
    return sum(
        int((weight[mask] == 0).sum())
        for place in run.heads()
        if place not in dead
        for weight, mask in run.owned[place]
        if weight.ndim == 2
    )


def check_gradients(optimizer: str, make: MakePruner = HeadPruner) -> Row:
    """Gradients of dead heads reach the optimizer as 0, all others whole; the
    optimizer's state of the dead is 0. Since a dead head has no gradient of its own,
    a constant is added to all. The figure counts entries that are not so."""
    run, wrong = PrunedTraining(optimizer, make), 0
    for step in range(1, UPDATES + 1):
        run.backward(step)
        named = dict(run.model.named_parameters())
        wanted = {}
        for name, parameter in named.items():
            assert parameter.grad is not None, name
            wanted[name] = parameter.grad.add_(NOISE).clone()
        names = {id(p): name for name, p in named.items()}
        for place in run.dead():
            for weight, mask in run.owned[place]:
                wanted[names[id(weight)]][mask] = 0.0
        run.pruner.before_update(step)
        for name, gradient in wanted.items():
            found = named[name].grad
            assert found is not None
            wrong += int((found != gradient).sum())
        run.step()
        run.pruner.after_update(step)
        wrong += _live_state(run)
    dead = len(run.dead())
    detail = f"{UPDATES} updates, {dead} heads pruned"
    return Row(
        "heads: gradients of the pruned", wrong == 0 < dead, float(wrong), detail
    )


def _live_state(run: PrunedTraining) -> int:
    """Optimizer state entries of masked heads that are not 0."""
    return sum(
        int((value[mask] != 0).sum())
        for place in run.heads()
        if not run.pruner.kept()[place[0]][place[1]]
        for weight, mask in run.owned[place]
        for value in run.optimizer.state[weight].values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    )


def check_permanence(optimizer: str, make: MakePruner = HeadPruner) -> Row:
    """Dead heads stay dead, in masks and weights; the figure counts the others."""
    run, back, dead = PrunedTraining(optimizer, make), 0, set[tuple[int, int]]()
    for _ in run.updates():
        kept = run.pruner.kept()
        back += len(dead - run.dead()) + sum(kept[i][h] for i, h in dead)
        dead = run.dead()
    detail = f"{back} of {len(dead)} came back"
    return Row("heads: pruned for good", back == 0 < len(dead), float(back), detail)


def check_resume(optimizer: str, make: MakePruner = HeadPruner) -> Row:
    """Stop in mid ramp, save, load, go on: equal bit for bit, masks included."""
    whole, stop = PrunedTraining(optimizer, make), 5
    list(whole.updates(1, stop))
    names = ("model", "optimizer", "pruner")
    loaded = reloaded({name: getattr(whole, name).state_dict() for name in names})
    at_stop, kept = len(whole.dead()), whole.pruner.kept()
    list(whole.updates(stop + 1))
    parts = PrunedTraining(optimizer, make)
    for name in names:
        getattr(parts, name).load_state_dict(loaded[name])
    bools = all(m.dtype == torch.bool for m in loaded["pruner"]["masks"].values())
    same = bools and len(parts.dead()) == at_stop > 0 and parts.pruner.kept() == kept
    list(parts.updates(stop + 1))
    pairs = list(zip(whole.model.parameters(), parts.model.parameters(), strict=True))
    figure = max((a - b).abs().max().item() for a, b in pairs)
    same &= all(torch.equal(a, b) for a, b in pairs)
    same &= whole.pruner.kept() == parts.pruner.kept()
    detail = f"stopped at {stop} with {at_stop} heads pruned, compared at {UPDATES}"
    return Row(f"{optimizer}, heads: resume is exact", same, figure, detail)


def check_selection(
    select: Callable[[list[list[float]], int], list[list[bool]]] = keep_heads,
) -> Row:
    """Whether ``select`` picks the heads that a loop over them picks, ties included;
    the figure counts differences."""
    generator = torch.Generator().manual_seed(5)
    rough = torch.rand((3, 4), generator=generator).tolist()
    tied = torch.randint(-1, 2, (3, 4), generator=generator).float().tolist()
    uneven = [[0.1], [0.2, 0.1, 0.3], [0.1, 0.1]]
    cases = [(s, k) for s in (rough, tied, uneven) for k in range(14)]
    wrong = sum(select(s, k) != reference.keep_heads(s, k) for s, k in cases)
    detail = f"{len(cases)} cases, ties and last heads among them"
    return Row("heads: selection one by one", wrong == 0, float(wrong), detail)


def check_scores(optimizer: str, make: MakePruner = HeadPruner) -> Row:
    """Scores equal their formula in float64, weight by weight, and the heads that
    are pruned at each mask update are those of the lowest. The figure is the largest
    relative error of a score."""
    run, worst, wrong = PrunedTraining(optimizer, make), 0.0, 0
    for step in range(1, UPDATES + 1):
        run.backward(step)
        run.pruner.before_update(step)
        run.step()
        if run.schedule.is_update(step) and step > run.schedule.start:
            truth = [_naive_scores(run, layer, step) for layer in (0, 1)]
            for theirs, layer in zip(
                truth, head_layers(run.model).values(), strict=True
            ):
                pairs = zip(head_scores(layer, run.optimizer), theirs, strict=True)
                error = largest(float(abs(mine - b)) for mine, b in pairs)
                worst = max(worst, error / max(theirs))
            for layer_of, head in run.dead():
                truth[layer_of][head] = -1.0  # first to go, again
            pruned = round(run.schedule.sparsity(step) * 8)
            run.pruner.after_update(step)
            wrong += reference.keep_heads(truth, pruned) != run.pruner.kept()
        else:
            run.pruner.after_update(step)
    detail = f"{wrong} mask updates chose other heads"
    return Row("heads: scores = formula", worst <= SCORES and not wrong, worst, detail)


def _naive_scores(run: PrunedTraining, layer: int, step: int) -> list[float]:
    named, optim = dict(run.model.named_parameters()), run.settings.optim
    moments = []
    for name in ("projection.qkv", "proj"):
        state = run.optimizer.state[named[f"blocks.{layer}.attn.{name}.weight"]]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        moments.append((first.double().numpy(), second.double().numpy()))
    beta = (optim.beta1, optim.beta2)
    return reference.head_scores(moments[0], moments[1], 4, step, beta)


def check_export(
    optimizer: str, make: MakePruner = HeadPruner, cut: Cut = without_heads
) -> Row:
    """A model written without its pruned heads and read back computes what the masked
    model does, with the parameters and the cache of the budget. The figure is the
    difference of logits relative to the largest, over a context and decoding."""
    run, label = PrunedTraining(optimizer, make), "heads: export = masked model"
    list(run.updates())
    tokens, settings, kept = run.tokens[0][:1], run.settings, run.pruner.kept()
    heads = [sum(layer) for layer in kept]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / EXPORT_FILE
            write_export(path, cut(run.model, settings, kept), settings, heads)
            found = load_export(path)
        assert found.heads is not None
        figure = compare(run.model, found.model, settings, found.heads, tokens)
    except (ValueError, RemovalDiffers) as error:
        return Row(label, False, float("inf"), str(error))
    counted = sum(p.numel() for p in found.model.parameters())
    expected = budget(settings, found.heads).parameters
    detail = f"heads by layer {list(found.heads)}, {counted:,} parameters"
    fits = counted == expected < budget(settings).parameters
    return Row(label, figure <= TOLERANCE and fits, figure, detail)
