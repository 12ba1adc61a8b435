"""Certificates of features: each acts when it is on, and not at its neutral value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.mechanisms import enabled
from gpt2.mechanisms.spec import Mechanism
from gpt2.model.context import BlockContext
from gpt2.model.gpt import GPT
from gpt2.model.init_source import set_in_blocks
from gpt2.model.reference.measures import deviation
from gpt2.settings.schema import Settings
from gpt2.verify.subject import ROUNDING, Finding, Subject


def features_of(settings: Settings) -> list[Mechanism]:
    """Enabled mechanisms that can be switched off with the same weights."""
    return [m for m in enabled(settings) if not m.replaces]


# ---- 4 acting ---------------------------------------------------------------------


@torch.no_grad()
def acting(subject: Subject) -> Finding:
    """Each feature changes the logits, and context changes what is downstream."""
    model, tokens = subject.model(), subject.tokens("acting")
    with_all = model.logits(tokens)
    effects = {
        each.name: deviation(with_all, _without(subject, model, each).logits(tokens))
        for each in features_of(subject.settings)
    }
    problems = [
        f"{name} changes nothing" for name, e in effects.items() if e < ROUNDING
    ]
    problems += _context_problems(model, tokens)
    figure = f"{min(effects.values()):.1e}" if effects else "-"
    return Finding(not problems, figure, "; ".join(problems))


def _without(subject: Subject, model: GPT, feature: Mechanism) -> GPT:
    """The same weights in a model without one feature."""
    changed = subject.settings.replace(**feature.off)
    return _with_weights_of(model, subject.model(changed))


def _with_weights_of(model: GPT, other: GPT) -> GPT:
    weights = model.state_dict()
    kept = {name: weights[name] for name in other.state_dict()}
    other.load_state_dict(kept)
    return other


def _context_problems(model: GPT, tokens: Tensor) -> Iterator[str]:
    """Later blocks with outputs that stay the same when a tensor that a block hands on
    is set to 0. One tensor at a time, since one may hide that another is not read."""
    base = _block_outputs(model, tokens)
    for layer, (_, ctx) in enumerate(base[:-1]):
        for name in ctx:
            knocked = _block_outputs(model, tokens, knock_out=(layer, name))
            for index in range(layer + 1, len(base)):
                if deviation(base[index][0], knocked[index][0]) == 0:
                    yield f"{name} from block {layer} does not reach block {index}"


def _block_outputs(
    model: GPT, tokens: Tensor, knock_out: tuple[int, str] | None = None
) -> list[tuple[Tensor, BlockContext]]:
    """Outputs of each block; one tensor that one block hands on may be zeroed."""
    outputs: list[tuple[Tensor, BlockContext]] = []

    def watch(_: nn.Module, __: Any, output: tuple[Tensor, BlockContext]) -> Any:
        outputs.append(output)
        layer = len(outputs) - 1
        zeroed = {
            name: torch.zeros_like(made) if (layer, name) == knock_out else made
            for name, made in output[1].items()
        }
        return output[0], zeroed

    with ExitStack() as hooks:
        for block in model.blocks:
            hooks.enter_context(block.register_forward_hook(watch))
        model.logits(tokens)
    return outputs


# ---- 5 identity -------------------------------------------------------------------


@torch.no_grad()
def identity(subject: Subject) -> Finding:
    """At its neutral value a feature leaves the model without it, bit for bit."""
    plain = subject.settings.replace(attention_backend="reference")
    at_reference = replace(subject, settings=plain)
    tokens, problems = subject.tokens("identity"), []
    for feature in features_of(plain):
        if not (feature.neutral or feature.neutral_weights):
            continue
        model = at_reference.model(plain.replace(**feature.neutral))
        set_in_blocks(model, feature.neutral_weights)
        off = _without(at_reference, model, feature)
        distance = deviation(model.logits(tokens), off.logits(tokens))
        if distance != 0:
            problems.append(f"neutral {feature.name} deviates by {distance:.2g}")
    start = subject.model(generic=False)
    off_changes = {k: v for f in features_of(plain) for k, v in f.off.items()}
    bare = subject.model(subject.settings.replace(**off_changes), generic=False)
    shipped = deviation(start.logits(tokens), bare.logits(tokens))
    return Finding(not problems, f"~{shipped:.1e}", "; ".join(problems))
