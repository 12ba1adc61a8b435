"""What is proven of a step before it may spend GPU time.

Each certificate takes a Subject, whose ``build`` makes the model, so that a
planted fault can take its place. It returns a Finding: passed or not, the
figure behind it, and what went wrong. gpt2/proofs/verify.py runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from gpt2.attention import CausalAttention, Heads
from gpt2.budget import budget
from gpt2.context import BlockContext, DecodeCache
from gpt2.init import generator_for, init_parameters
from gpt2.model import GPT
from gpt2.proofs.naive import naive_attend
from gpt2.schema import WHOLE_CONTEXT, Optim, Settings
from gpt2.training.optimize import make_optimizer
from lib.optim.groups import OptimizerLike

EXACT = 1e-9  # float64 against float64
ROUNDING = 1e-5  # fp32 against fp32, relative to the largest logit
FLOP_TOLERANCE = 0.01

# How each feature is switched off, and the value at which it does nothing.
FEATURES: dict[str, dict[str, Any]] = {
    "ra": {"ra": False},
    "ract": {"ract": False},
    "mlp_gate": {"mlp_gate": False},
    "cross_token": {"cross_token": False},
    "latent": {"latent": "none"},
    "output_gate": {"output_gate": False},
}
NEUTRAL: dict[str, dict[str, Any]] = {
    "ra": {"ra_alpha": 0.0},
    "ract": {"ract_mix": 0.0},
    "mlp_gate": {"mlp_gate_mix": 0.0},
    "cross_token": {"cross_mix": 0.0},
    "latent": {"latent_mix": 0.0},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One cell of the table."""

    passed: bool
    figure: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A step at certificate size. ``full`` are its settings at real size."""

    settings: Settings
    full: Settings
    build: Callable[[Settings], GPT] = GPT
    optimizer: Callable[[nn.Module, Optim], OptimizerLike] = make_optimizer
    seed: int = 1
    batch: int = 3

    def model(self, settings: Settings | None = None, generic: bool = True) -> GPT:
        """A model in evaluation mode, at a generic point or as initialised."""
        model = self.build(settings or self.settings)
        init_parameters(model, self.seed)
        if generic:
            scramble(model, self.seed)
        return model.eval()

    def tokens(self, tag: str, batch: int | None = None) -> Tensor:
        """Random tokens [B, T] that fill the context."""
        shape = (batch or self.batch, self.settings.model.block_size)
        generator = generator_for(self.seed, f"tokens {tag}")
        return torch.randint(self.settings.vocab_size, shape, generator=generator)


@torch.no_grad()
def scramble(model: nn.Module, seed: int) -> None:
    """Move every parameter to a generic point, where no two effects cancel."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(seed, f"+{name}"))
        if parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.3 * noise)


def features_of(settings: Settings) -> list[str]:
    """The features that are switched on."""
    flat = settings.flat()
    return [
        n for n, off in FEATURES.items() if any(flat[f] != v for f, v in off.items())
    ]


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for anything not finite."""
    worst = (a - b).abs().max().item() if a.numel() else 0.0
    return worst if worst == worst else float("inf")


# ---- 1 causal ---------------------------------------------------------------------


def causal(subject: Subject) -> Finding:
    """No logit depends on a later token, nor on how many there are."""
    model = subject.model().double()
    tokens = subject.tokens("causal")
    length = tokens.shape[1]
    cuts = sorted({1, length // 3, length // 2, length - 1})
    with torch.no_grad():
        base = model.logits(tokens)
        other = subject.tokens("another suffix")
        changed = [torch.cat([tokens[:, :c], other[:, c:]], 1) for c in cuts]
        found = {
            f"changing the tokens from {c} on": deviation(
                model.logits(x)[:, :c], base[:, :c]
            )
            for c, x in zip(cuts, changed, strict=True)
        }
        found |= {
            f"cutting after {c} tokens": deviation(
                model.logits(tokens[:, :c]), base[:, :c]
            )
            for c in cuts
        }
    found["the gradient"] = _future_gradient(model, tokens, cuts)
    where, worst = max(found.items(), key=lambda item: item[1])
    detail = "" if worst <= EXACT else f"{where} moves earlier logits by {worst:.2g}"
    return Finding(worst <= EXACT, f"{worst:.1e}", detail)


def _future_gradient(model: GPT, tokens: Tensor, cuts: list[int]) -> float:
    """Largest derivative of a logit by the embedding of a later token."""
    worst = 0.0
    for cut in cuts:
        x = model.embed(tokens).detach().requires_grad_()
        row = model.hidden(x)[:, cut - 1]
        weights = torch.linspace(-1.0, 1.0, row.shape[-1], dtype=row.dtype)
        (gradient,) = torch.autograd.grad((row * weights).sum(), x)
        worst = max(worst, deviation(gradient[:, cut:], torch.zeros(())))
    return worst


# ---- 2 stateless ------------------------------------------------------------------


def stateless(subject: Subject) -> Finding:
    """The same input gives the same logits, whatever came before."""
    model = subject.model()
    tokens = subject.tokens("stateless")
    first = model.logits(tokens).detach()
    worst = 0.0
    for history in (
        tokens,
        subject.tokens("another batch"),
        subject.tokens("of another size", subject.batch + 1)[:, :-1],
    ):
        model.train()
        model(history, history).backward()
        model.eval()
        worst = max(worst, deviation(first, model.logits(tokens).detach()))
    detail = "" if worst == 0 else f"logits changed by {worst:.2g} with the history"
    return Finding(worst == 0, f"{worst:.1e}", detail)


# ---- 3 alive ----------------------------------------------------------------------


def alive(subject: Subject) -> Finding:
    """After two real updates every parameter had a gradient and moved."""
    model = subject.model(generic=False).train()
    optimizer = subject.optimizer(model, subject.settings.optim)
    problems = list(_group_problems(model, optimizer, subject.settings.optim))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    norms = dict.fromkeys(before, 0.0)
    for update in range(2):
        for micro in range(2):
            tokens = subject.tokens(f"update {update} {micro}")
            (model(tokens, tokens.roll(-1, 1)) / 2).backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            norm = 0.0 if gradient is None else gradient.norm().item()
            if norm != norm or norm == float("inf"):
                problems.append(f"{name} has a gradient that is not finite")
            norms[name] = max(norms[name], norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.eval().score(tokens, tokens)
        model.train()
    problems += [f"{name} had no gradient" for name, n in norms.items() if n == 0]
    problems += [
        f"{name} did not move"
        for name, p in model.named_parameters()
        if torch.equal(p, before[name])
    ]
    smallest = min(norms, key=lambda name: norms[name])
    return Finding(not problems, f"{norms[smallest]:.1e}", "; ".join(problems[:4]))


def _group_problems(
    model: nn.Module, optimizer: OptimizerLike, optim: Optim
) -> Iterator[str]:
    """Each parameter in one group once, with the decay that was asked for."""
    decay: dict[int, list[float]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decay.setdefault(id(parameter), []).append(group["weight_decay"])
    for name, parameter in model.named_parameters():
        found = decay.pop(id(parameter), [])
        wanted = optim.weight_decay if parameter.ndim >= 2 else 0.0
        if len(found) != 1:
            yield f"{name} is in {len(found)} optimizer groups"
        elif found[0] != wanted:
            yield f"{name} has weight decay {found[0]}, not {wanted}"
    if decay:
        yield f"{len(decay)} tensors of the optimizer are no parameters of the model"


# ---- 4 acting ---------------------------------------------------------------------


@torch.no_grad()
def acting(subject: Subject) -> Finding:
    """Each feature changes the logits, and context changes what is downstream."""
    model, tokens = subject.model(), subject.tokens("acting")
    with_all = model.logits(tokens)
    effects = {
        name: deviation(with_all, _without(subject, model, name).logits(tokens))
        for name in features_of(subject.settings)
    }
    problems = [
        f"{name} changes nothing" for name, e in effects.items() if e < ROUNDING
    ]
    problems += _context_problems(model, tokens)
    if not effects:
        return Finding(not problems, "-", "; ".join(problems))
    return Finding(not problems, f"{min(effects.values()):.1e}", "; ".join(problems))


def _without(subject: Subject, model: GPT, feature: str) -> GPT:
    """The same weights in a model without one feature."""
    changed = subject.settings.replace(**FEATURES[feature])
    return _with_weights_of(model, subject.model(changed))


def _with_weights_of(model: GPT, other: GPT) -> GPT:
    weights = model.state_dict()
    kept = {name: weights[name] for name in other.state_dict()}
    other.load_state_dict(kept)
    return other


def _context_problems(model: GPT, tokens: Tensor) -> Iterator[str]:
    """Knock out what each block hands on; see where the outputs change."""
    base = _block_outputs(model, tokens)
    for layer in range(len(model.blocks) - 1):
        if not any(_context(base[layer])):
            continue
        knocked = _block_outputs(model, tokens, knock_out=layer)
        for index, (a, b) in enumerate(zip(base, knocked, strict=True)):
            changed = deviation(a[0], b[0]) > 0
            if changed and index <= layer:
                yield f"context from block {layer} changes block {index}"
            if not changed and index > layer:
                yield f"context from block {layer} does not reach block {index}"


def _context(output: tuple[Tensor, BlockContext]) -> tuple[bool, bool]:
    ctx = output[1]
    return ctx.mlp_gate is not None, ctx.mlp_latent is not None


def _block_outputs(
    model: GPT, tokens: Tensor, knock_out: int | None = None
) -> list[tuple[Tensor, BlockContext]]:
    """What each block returned; the context out of one block may be zeroed."""
    outputs: list[tuple[Tensor, BlockContext]] = []

    def watch(_: nn.Module, __: Any, output: tuple[Tensor, BlockContext]) -> Any:
        outputs.append(output)
        if len(outputs) - 1 != knock_out:
            return output
        gate, latent = output[1].mlp_gate, output[1].mlp_latent
        none = BlockContext(
            None if gate is None else torch.zeros_like(gate),
            None if latent is None else torch.zeros_like(latent),
        )
        return output[0], none

    hooks = [block.register_forward_hook(watch) for block in model.blocks]
    try:
        model.logits(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


# ---- 5 identity -------------------------------------------------------------------


@torch.no_grad()
def identity(subject: Subject) -> Finding:
    """At its neutral value a feature leaves the model without it, bit for bit."""
    plain = subject.settings.replace(attention_backend="reference")
    at_reference = Subject(plain, subject.full, subject.build, seed=subject.seed)
    tokens, problems = subject.tokens("identity"), []
    for name in features_of(plain):
        if name not in NEUTRAL:
            continue
        model = at_reference.model(plain.replace(**NEUTRAL[name]))
        if name == "ra":
            _zero_learned_alpha(model)
        off = _without(at_reference, model, name)
        distance = deviation(model.logits(tokens), off.logits(tokens))
        if distance != 0:
            problems.append(f"neutral {name} deviates by {distance:.2g}")
    start = subject.model(generic=False)
    off_changes = {k: v for f in features_of(plain) for k, v in FEATURES[f].items()}
    bare = subject.model(subject.settings.replace(**off_changes), generic=False)
    shipped = deviation(start.logits(tokens), bare.logits(tokens))
    return Finding(not problems, f"~{shipped:.1e}", "; ".join(problems))


def _zero_learned_alpha(model: GPT) -> None:
    for block in model.layers():
        reciprocity = block.attn.reciprocity
        if reciprocity is not None and reciprocity.alpha is not None:
            reciprocity.alpha.zero_()


# ---- 7 budget ---------------------------------------------------------------------


class _NothingDrawn(TorchFunctionMode):
    """Modules keep what memory holds. To draw on the meta device torch imports its
    compiler, which takes longer than all other certificates of a step."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def budgets(subject: Subject) -> Finding:
    """Analytic parameters, FLOPs and cache equal what is built and run."""
    problems = []
    for settings in (subject.settings, subject.full):
        with torch.device("meta"), _NothingDrawn():
            counted = sum(p.numel() for p in subject.build(settings).parameters())
        if counted != budget(settings).parameters:
            expected = budget(settings).parameters
            problems.append(f"{counted:,} parameters, expected {expected:,}")
    ratio = _flop_ratio(subject)
    if abs(ratio - 1) > FLOP_TOLERANCE:
        problems.append(f"FLOPs are {ratio:.3f} times the expected")
    cache = DecodeCache.empty(subject.settings.model.n_layer)
    tokens = subject.tokens("budget", 1)
    subject.model().decode(tokens, cache)
    known = budget(subject.settings)
    expected = known.cache_per_token * tokens.shape[1] + known.cache_constant
    if cache.numbers != expected:
        problems.append(f"the cache holds {cache.numbers} numbers, expected {expected}")
    total = budget(subject.full).parameters
    return Finding(not problems, f"{total / 1e6:.2f}M", "; ".join(problems))


def _flop_ratio(subject: Subject) -> float:
    """Counted over analytic. The reference path computes a band as the whole."""
    whole = subject.settings.replace(
        ra_window=WHOLE_CONTEXT, attention_backend="reference"
    )
    tokens = subject.tokens("flops")
    with FlopCounterMode(display=False) as counter:
        mode: Any = counter.mode  # as it is inside what keeps torch's compiler out
        mode.__torch_dispatch__ = unwrap(type(mode).__torch_dispatch__).__get__(mode)
        subject.model(whole).logits(tokens)
    return counter.get_total_flops() / (budget(whole).flops_forward * tokens.numel())


# ---- 8 decode ---------------------------------------------------------------------


@torch.no_grad()
def decode(subject: Subject) -> Finding:
    """Token by token with the cache gives the logits of the whole at once."""
    model, tokens = subject.model(), subject.tokens("decode")
    full = model.logits(tokens)
    cache = DecodeCache.empty(len(model.blocks))
    prompt = max(1, tokens.shape[1] // 4)
    pieces = [tokens[:, :prompt], *tokens[:, prompt:].split(1, 1)]
    found = torch.cat([model.decode(piece, cache) for piece in pieces], 1)
    worst = deviation(found, full) / full.abs().max().item()
    detail = "" if worst <= ROUNDING else f"decoding deviates by {worst:.2g}"
    return Finding(worst <= ROUNDING, f"{worst:.1e}", detail)


# ---- 9 formula --------------------------------------------------------------------


def formula(subject: Subject) -> Finding:
    """Attention of each layer equals loops over rows and keys, with gradients."""
    x, length = subject.settings.mechanisms, min(9, subject.settings.model.block_size)
    short = subject.settings.replace(
        block_size=length,
        ra_window=min(x.ra_window, length // 3),  # a band, or 0: the whole context
        ract_topk=min(x.ract_topk, length // 3),
    )
    model = subject.model(short).double()
    tokens = subject.tokens("formula", 1)[:, : short.model.block_size]
    worst, where = 0.0, ""
    for layer, heads in enumerate(_projected(model, tokens)):
        for name, distance in _compare_attention(
            model.layers()[layer].attn, heads, short
        ).items():
            if distance >= worst:
                worst, where = distance, f"{name} of block {layer}"
    detail = "" if worst <= EXACT else f"{where} deviates by {worst:.2g}"
    return Finding(worst <= EXACT, f"{worst:.1e}", detail)


def _projected(model: GPT, tokens: Tensor) -> list[Heads]:
    """What each block's projection gives, detached, with gradients to take."""
    found: list[Heads] = []

    def watch(_: nn.Module, __: Any, heads: Heads) -> None:
        q, k, v = (
            x.detach().clone().requires_grad_() for x in (heads.q, heads.k, heads.v)
        )
        found.append(Heads(q, k, v, row_q=q, row_k=k))

    hooks = [b.attn.projection.register_forward_hook(watch) for b in model.layers()]
    try:
        model.logits(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _compare_attention(
    layer: CausalAttention, heads: Heads, settings: Settings
) -> dict[str, float]:
    """Distances of output, statistic, mean weights and gradients."""
    attended = layer.weigh(heads)
    alpha: Tensor | float = 0.0
    if layer.reciprocity is not None:
        learned = layer.reciprocity.alpha
        alpha = layer.reciprocity.fixed_alpha if learned is None else learned
    output, statistic, mean = naive_attend(
        heads, layer.projection.scale, settings.mechanisms, alpha, layer.ract
    )
    pairs = {"the output": (attended.output, output)}
    if attended.statistic is not None:
        ours = attended.statistic.expand_as(statistic)
        pairs["the statistic"] = (ours, statistic)
    if attended.mean is not None:
        pairs["the mean weights"] = (attended.mean, mean)
    found = {name: deviation(a, b) for name, (a, b) in pairs.items()}
    leaves = (heads.q, heads.k, heads.v)
    slopes = _gradients([a for a, _ in pairs.values()], leaves)
    true_slopes = _gradients([b for _, b in pairs.values()], leaves)
    for name, mine, true in zip("qkv", slopes, true_slopes, strict=True):
        found[f"the gradient of {name}"] = deviation(mine, true)
    return found


def _gradients(outputs: list[Tensor], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of a generic linear function of the outputs."""
    total = torch.stack([_project(x) for x in outputs]).sum()
    return torch.autograd.grad(total, leaves)


def _project(x: Tensor) -> Tensor:
    """A generic linear function of a tensor."""
    return (x * torch.linspace(-1.0, 1.3, x.numel(), dtype=x.dtype).view_as(x)).sum()


CERTIFICATES: dict[str, Callable[[Subject], Finding]] = {
    "causal": causal,
    "stateless": stateless,
    "alive": alive,
    "acting": acting,
    "identity": identity,
    "budget": budgets,
    "decode": decode,
    "formula": formula,
}


def certify(subject: Subject) -> dict[str, Finding]:
    """All certificates of one step; an exception is a failure with its text."""
    found = {}
    for name, certificate in CERTIFICATES.items():
        try:
            found[name] = certificate(subject)
        except Exception as error:  # a step that crashes is what this is for
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            found[name] = Finding(False, "crashed", text)
    return found
