"""Certificates of a step, checked before it may use GPU time.

Each certificate takes a Subject, whose ``build`` makes the model, so that a
planted fault can take its place. It returns a Finding: passed or not, the
figure behind it, and the reason of a failure. Those of features are in features.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gpt2.mechanisms import enabled
from gpt2.model.context import DecodeCache
from gpt2.model.gpt import GPT
from gpt2.model.reference.formulas import forward_deviations, whole_deviations
from gpt2.model.reference.measures import deviation
from gpt2.plan.budget import budget
from gpt2.verify.features import acting, identity
from gpt2.verify.head_cuts import heads
from gpt2.verify.subject import EXACT, LENGTHS, ROUNDING, Finding, Subject
from lib.optim.certify import check_grouping

FLOP_TOLERANCE = 0.01


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
    x = model.embed(tokens).detach().requires_grad_()
    hidden = model.hidden(x)
    weights = torch.linspace(-1.0, 1.0, hidden.shape[-1], dtype=hidden.dtype)
    for cut in cuts:
        row = hidden[:, cut - 1]
        (gradient,) = torch.autograd.grad((row * weights).sum(), x, retain_graph=True)
        worst = max(worst, deviation(gradient[:, cut:], torch.zeros(())))
    return worst


# ---- 2 stateless ------------------------------------------------------------------


def stateless(subject: Subject) -> Finding:
    """The same input gives the same logits, whatever came before, and in training (at
    certificate size without dropout) as in evaluation."""
    model = subject.model()
    tokens = subject.tokens("stateless")
    first = model.logits(tokens).detach()
    trained = deviation(first, model.train().logits(tokens).detach())
    worst = 0.0  # after what is not the same batch again: that came twice already
    for history in (
        subject.tokens("another batch"),
        subject.tokens("of another size", subject.batch + 1)[:, :-1],
    ):
        model.train()
        model(history, history).backward()
        model.eval()
        worst = max(worst, deviation(first, model.logits(tokens).detach()))
    detail = "" if worst == 0 else f"logits changed by {worst:.2g} with the history"
    if trained != 0:
        detail = f"logits in training are {trained:.2g} off those in evaluation"
    return Finding(not detail, f"{max(worst, trained):.1e}", detail)


# ---- 3 alive ----------------------------------------------------------------------


def alive(subject: Subject) -> Finding:
    """After two real updates every parameter had a gradient and moved."""
    model = subject.model(generic=False).train()
    optimizer = subject.optimizer(model, subject.settings.optim)
    named, decay = list(model.named_parameters()), subject.settings.optim.weight_decay
    groups = check_grouping(optimizer.param_groups, named, decay)
    problems = [] if groups.passed else [f"{groups.name}: {groups.detail}"]
    before = {name: p.detach().clone() for name, p in named}
    norms = dict.fromkeys(before, 0.0)
    for update in range(2):
        for micro in range(2):
            tokens = subject.tokens(f"update {update} {micro}")
            (model(tokens, tokens.roll(-1, 1)) / 2).backward()
        for name, parameter in named:
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
        f"{name} did not move" for name, p in named if torch.equal(p, before[name])
    ]
    smallest = min(norms, key=lambda name: norms[name])
    return Finding(not problems, f"{norms[smallest]:.1e}", "; ".join(problems[:4]))


# ---- 7 budget ---------------------------------------------------------------------


@torch.no_grad()
def budgets(subject: Subject) -> Finding:
    """Analytic parameters, FLOPs and cache equal what is built and run."""
    problems = []
    for settings in (subject.settings, subject.full):
        counted = sum(shape.numel() for shape in subject.shapes(settings).values())
        if counted != budget(settings).parameters:
            expected = budget(settings).parameters
            problems.append(f"{counted:,} parameters, expected {expected:,}")
    ratio = _flop_ratio(subject)
    if abs(ratio - 1) > FLOP_TOLERANCE:
        problems.append(f"FLOPs are {ratio:.3f} times the expected")
    model, tokens = subject.model(), subject.tokens("budget", 1)
    cache = model.new_cache(tokens.shape[1])
    model.decode(tokens, cache)
    known = budget(subject.settings)
    expected = known.cache_per_token * tokens.shape[1] + known.cache_constant
    if cache.numbers != expected:
        problems.append(f"the cache holds {cache.numbers} numbers, expected {expected}")
    total = budget(subject.full).parameters
    return Finding(not problems, f"{total / 1e6:.2f}M", "; ".join(problems))


def _flop_ratio(subject: Subject) -> float:
    """Counted over analytic, where the reference does no more than is counted."""
    counted = {n: v for m in enabled(subject.settings) for n, v in m.whole.items()}
    whole = subject.settings.replace(attention_backend="reference", **counted)
    model, tokens = subject.model(whole), subject.tokens("flops")
    with FlopCounterMode(display=False) as counter:
        mode: Any = counter.mode  # as it is inside what keeps torch's compiler out
        mode.__torch_dispatch__ = unwrap(type(mode).__torch_dispatch__).__get__(mode)
        model.logits(tokens)
    return counter.get_total_flops() / (budget(whole).flops_forward * tokens.numel())


# ---- 8 decode ---------------------------------------------------------------------


@torch.no_grad()
def decode(subject: Subject) -> Finding:
    """Token by token with the cache gives the logits of the whole at once, with the
    position as a number and, as in recordings on a GPU, in memory."""
    model, tokens = subject.model(), subject.tokens("decode")
    full = model.logits(tokens)
    prompt = max(1, tokens.shape[1] // 4)
    first, rest = tokens[:, :prompt], tokens[:, prompt:].split(1, 1)
    found = {}
    for how, step in (("decoding", GPT.decode), ("recorded decoding", _as_recorded)):
        cache = model.new_cache(tokens.shape[1])
        logits = [model.decode(first, cache), *(step(model, x, cache) for x in rest)]
        found[how] = deviation(torch.cat(logits, 1), full) / full.abs().max().item()
    how, worst = max(found.items(), key=lambda item: item[1])
    detail = "" if worst <= ROUNDING else f"{how} deviates by {worst:.2g}"
    return Finding(worst <= ROUNDING, f"{worst:.1e}", detail)


def _as_recorded(model: GPT, token: Tensor, cache: DecodeCache) -> Tensor:
    """Logits [B, 1, V] that follow a token [B, 1], by the code that GPUs record."""
    logits = model.decode_at(token, cache, cache.length)
    assert cache.row is not None, "decode_at puts the position there"
    cache.position += 1
    cache.row += 1
    return logits


# ---- 9 formula --------------------------------------------------------------------


def formula(subject: Subject) -> Finding:
    """Each part of the model equals its formula, with gradients."""
    flat, length = subject.settings.flat(), min(9, subject.settings.model.block_size)
    short = subject.settings.replace(
        block_size=length, **{name: min(flat[name], length // 3) for name in LENGTHS}
    )
    model = subject.model(short).double()
    tokens = subject.tokens("formula", 1)[:, : short.model.block_size]
    return _equal(whole_deviations(model, short, tokens[0]))


def _equal(found: dict[str, float]) -> Finding:
    """Whether no distance is above rounding; named is the first part that has one."""
    wrong = (f"{n} deviates by {d:.2g}" for n, d in found.items() if d > EXACT)
    detail = next(wrong, "")
    return Finding(not detail, f"{max(found.values()):.1e}", detail)


def at_size(subject: Subject) -> Finding:
    """Each part equals its formula with as many layers, heads and tokens as tiny
    sizes never reach: a limit that is written into the code ends a band, a sum or a
    table there."""
    settings = subject.larger
    if settings is None:
        return Finding(True, "-")
    model = subject.model(settings).double()
    (tokens,) = replace(subject, settings=settings).tokens("at size", 1)
    return _equal(forward_deviations(model, settings, tokens))


CERTIFICATES: dict[str, Callable[[Subject], Finding]] = {
    "causal": causal,
    "stateless": stateless,
    "alive": alive,
    "acting": acting,
    "identity": identity,
    "budget": budgets,
    "decode": decode,
    "formula": formula,
    "at size": at_size,
    "heads": heads,
}


def certify(subject: Subject) -> dict[str, Finding]:
    """All certificates of one step; an exception is a failure with its text."""
    found = {}
    for name, certificate in CERTIFICATES.items():
        try:
            found[name] = certificate(subject)
        except Exception as error:  # a step that crashes is what this is for
            found[name] = Finding.of_crash(error)
    return found
