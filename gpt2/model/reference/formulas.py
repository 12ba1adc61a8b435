"""The formulas of a whole step: the logits and gradients that a model must give.

One sequence at a time, with whole T x T matrices for all heads. It shares no line with
the model but the names of the weights, so that a part which is wired wrongly is found
although the attention inside it is right. It runs on the device and in the type of the
weights that it is given; memory grows as layers x heads x T x T.

The mechanisms' formulas are in their folders; shapes are those of formula.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpt2.mechanisms import enabled, module_of, projection_of
from gpt2.model.context import BlockContext
from gpt2.model.gpt import GPT
from gpt2.model.mlp import MlpResult
from gpt2.model.parts import AttentionSide
from gpt2.model.reference.formula import BlockFormula, Weights, softmax
from gpt2.model.reference.measures import deviation, generic_sum
from gpt2.settings.schema import Settings

KEPT = 1 << 23  # layers x heads x T x T: some 300 MB of matrices in fp32


def whole_deviations(
    model: GPT, settings: Settings, tokens: Tensor
) -> dict[str, float]:
    """Deviation of each part from its formula for tokens [T], in the order of
    computation, then of the gradient of each parameter; infinite for a part that one of
    the two lacks."""
    mine, true = _traces(model, settings, tokens)
    found = _between(mine, true)
    named = dict(model.named_parameters())
    leaves = list(named.values())
    slopes = (_slopes(trace["the logits"], leaves) for trace in (mine, true))
    for name, one, other in zip(named, *slopes, strict=True):
        found[f"the gradient of {name}"] = deviation(one, other)
    return found


@torch.no_grad()
def forward_deviations(
    model: GPT, settings: Settings, tokens: Tensor
) -> dict[str, float]:
    """The first half of ``whole_deviations``: the parts without any gradient."""
    return _between(*_traces(model, settings, tokens))


def _traces(
    model: GPT, settings: Settings, tokens: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of the model and of the formulas, by part."""
    weights = dict(model.state_dict(keep_vars=True))
    return _watched(model, tokens), whole_trace(weights, settings, tokens)


def _between(mine: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    found = {
        name: deviation(mine[name], part) if name in mine else math.inf
        for name, part in true.items()
    }
    return found | {name: math.inf for name in mine if name not in true}


def _slopes(logits: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a generic linear function of logits; 0 for leaves without one."""
    found = torch.autograd.grad(generic_sum(logits), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(p) if slope is None else slope for slope, p in pairs]


def _watched(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """Outputs of the model's parts, with the names of ``whole_trace``."""
    trace: dict[str, Tensor] = {}

    def attention(n: int, _: Any, __: Any, given: tuple[Tensor, AttentionSide]) -> None:
        trace[f"the attention of block {n}"] = given[0][0]

    def mlp(n: int, _: Any, __: Any, given: MlpResult) -> None:
        trace[f"the MLP of block {n}"] = given.output[0]
        trace.update((f"the {k} of block {n}", x[0]) for k, x in given.ctx.items())

    with ExitStack() as hooks:
        for n, block in enumerate(model.layers()):
            for part, watch in ((block.attn, attention), (block.mlp, mlp)):
                hooks.enter_context(part.register_forward_hook(partial(watch, n)))
        logits = model.logits(tokens[None])[0]
    return {**trace, "the logits": logits}


def whole_trace(
    weights: Weights, settings: Settings, tokens: Tensor
) -> dict[str, Tensor]:
    """Outputs that the formulas give for tokens [T], in the order of computation:
    of each block attention [T, E], MLP [T, E] and what it hands on; logits [T, V]."""
    x = _embedded(weights, tokens)
    ctx: BlockContext = {}
    trace: dict[str, Tensor] = {}
    for number in range(settings.model.n_layer):
        attended, added, ctx = NaiveBlock(weights, settings, number)(x, ctx)
        x = x + attended + added
        trace[f"the attention of block {number}"] = attended
        trace[f"the MLP of block {number}"] = added
        trace |= {f"the {name} of block {number}": made for name, made in ctx.items()}
    return {**trace, "the logits": _logits(weights, x)}


def whole_loss(
    weights: Weights, settings: Settings, tokens: Tensor, targets: Tensor
) -> Tensor:
    """Mean cross-entropy in nats of targets [T] after tokens [T]. In a large model each
    block is computed again for its gradients, so that T x T matrices are held of one
    block at a time."""
    x = _embedded(weights, tokens)
    ctx: BlockContext = {}
    m = settings.model
    recomputes = m.n_layer * m.n_head * len(tokens) ** 2 > KEPT
    for number in range(m.n_layer):
        block = NaiveBlock(weights, settings, number)
        call = _recomputed(block) if recomputes else block
        attended, added, ctx = call(x, ctx)
        x = x + attended + added
    logits = _logits(weights, x)
    own = logits.gather(-1, targets[:, None])[:, 0]
    return (logits.logsumexp(-1) - own).mean()


def _recomputed(block: Callable[..., Any]) -> Callable[..., Any]:
    # The import of torch's compiler, which comes with it, is half of the time that a
    # short run on a CPU takes to start.
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)


def _embedded(weights: Weights, tokens: Tensor) -> Tensor:
    return weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]


def _logits(weights: Weights, x: Tensor) -> Tensor:
    return _norm(x, weights, "ln_f") @ weights["wte.weight"].T


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = centred / spread * weights[f"{name}.weight"]
    return normed + weights.get(f"{name}.bias", 0.0)


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


class NaiveBlock:
    """One block, by the weights under its number: GPT-2's formulas, into which those of
    the mechanisms are set."""

    def __init__(self, weights: Weights, settings: Settings, number: int) -> None:
        self.weights, self.prefix = weights, f"blocks.{number}."
        self.is_last = number == settings.model.n_layer - 1
        self.parts = {
            spec: module_of(spec.name, "naive").FORMULA(weights, settings, number)
            for spec in enabled(settings)
        }
        self.trunk: BlockFormula = self.parts.get(
            projection_of(settings), BlockFormula(weights, settings, number)
        )

    def __call__(
        self, x: Tensor, ctx: BlockContext
    ) -> tuple[Tensor, Tensor, BlockContext]:
        """x [T, E] and what the block before made: what attention and MLP add to x, and
        what is made for the next block."""
        normed = _norm(x, self.weights, self.prefix + "ln_1")
        attended, weights, key_latent = self._attention(normed, ctx)
        normed = _norm(x + attended, self.weights, self.prefix + "ln_2")
        h = _gelu(self.trunk.linear("mlp.fc", normed))
        for part in self.parts.values():
            h = part.hidden(h, weights, key_latent)
        added = self.trunk.linear("mlp.proj", h)
        makers = {} if self.is_last else {s.hands_on: p for s, p in self.parts.items()}
        return attended, added, {n: p.made(h) for n, p in makers.items() if n}

    def _attention(
        self, x: Tensor, ctx: BlockContext
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [T, E], weights [H, T, T], key latent [T, L]."""
        parts = self.parts.values()
        latents = (part.latent(ctx) for part in parts)
        latent = next((found for found in latents if found is not None), None)
        q, k, v, key_latent = self.trunk.projected(x, latent)
        scores = q @ k.mT
        for part in parts:
            scores = part.scores(scores, q, k)
        # D is of q and k: with a rotary part it counts too.
        logits = scores / math.sqrt(q.shape[-1])
        for part in parts:
            logits = part.logits(logits)
        weights = softmax(logits)
        outputs = weights @ v
        for part in parts:
            outputs = part.outputs(outputs, weights, x, ctx)
        joined = torch.cat(list(outputs), -1)
        return self.trunk.linear("attn.proj", joined), weights, key_latent
