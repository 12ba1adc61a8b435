"""The formulas of a whole step: the logits and gradients that a model must give.

One sequence at a time, with whole T x T matrices for all heads. It shares no line with
the model but the names of the weights, so that a part which is wired wrongly is found
although the attention inside it is right. It runs on the device and in the type of the
weights that it is given; memory grows as layers x heads x T x T.

Shapes: T tokens, E width, H heads, D head width, L latent, M MLP width. Matrices are
[out, in], as torch keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.model.attention import AttentionSide
from gpt2.model.gpt import GPT
from gpt2.model.mlp import MlpResult
from gpt2.model.reference.measures import deviation, generic_sum
from gpt2.settings.schema import Settings

Weights = Mapping[str, Tensor]


def whole_deviations(
    model: GPT, settings: Settings, tokens: Tensor
) -> dict[str, float]:
    """How far each part is from its formula for tokens [T], in the order in which
    they work, then the gradient of each parameter; infinite for a part
    that one of the two lacks."""
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
    """What the model gives and what the formulas give, by part."""
    weights = dict(model.state_dict(keep_vars=True))
    return _watched(model, tokens), whole_trace(weights, settings, tokens)


def _between(mine: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    found = {
        name: deviation(mine[name], part) if name in mine else math.inf
        for name, part in true.items()
    }
    return found | {name: math.inf for name in mine if name not in true}


def _slopes(logits: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a generic linear function of logits; 0 where none flows."""
    found = torch.autograd.grad(generic_sum(logits), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(p) if slope is None else slope for slope, p in pairs]


def _watched(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """What the parts of the model give, by the names of ``whole_trace``."""
    trace: dict[str, Tensor] = {}

    def watch(number: int, part: nn.Module) -> Any:
        def attention(_: Any, __: Any, given: tuple[Tensor, AttentionSide]) -> None:
            trace[f"the attention of block {number}"] = given[0][0]

        def mlp(_: Any, __: Any, given: MlpResult) -> None:
            trace[f"the MLP of block {number}"] = given.output[0]
            gates, latent = given.ctx.mlp_gate, given.ctx.mlp_latent
            if gates is not None:
                trace[f"the gates from block {number}"] = gates[0]
            if latent is not None:
                trace[f"the latent from block {number}"] = latent[0]

        is_mlp = part is model.layers()[number].mlp
        return part.register_forward_hook(mlp if is_mlp else attention)

    with ExitStack() as hooks:
        for number, block in enumerate(model.layers()):
            for part in (block.attn, block.mlp):
                hooks.enter_context(watch(number, part))
        logits = model.logits(tokens[None])[0]
    return {**trace, "the logits": logits}


def whole_trace(
    weights: Weights, settings: Settings, tokens: Tensor
) -> dict[str, Tensor]:
    """What each part must give for tokens [T], in the order in which they work:
    of each block attention [T, E], MLP [T, E] and what it hands on; logits [T, V]."""
    x, gates, latent = _embedded(weights, tokens), None, None
    trace: dict[str, Tensor] = {}
    for number in range(settings.model.n_layer):
        block = _Block(weights, settings, number)
        attended, added, gates, latent = block(x, gates, latent)
        x = x + attended + added
        trace[f"the attention of block {number}"] = attended
        trace[f"the MLP of block {number}"] = added
        if gates is not None:
            trace[f"the gates from block {number}"] = gates
        if latent is not None:
            trace[f"the latent from block {number}"] = latent
    return {**trace, "the logits": _logits(weights, x)}


def whole_loss(
    weights: Weights, settings: Settings, tokens: Tensor, targets: Tensor
) -> Tensor:
    """Mean cross-entropy in nats of targets [T] after tokens [T]. Each block is
    computed again for its gradients, so that the T x T matrices of one are held."""
    x, gates, latent = _embedded(weights, tokens), None, None
    for number in range(settings.model.n_layer):
        block = _Block(weights, settings, number)
        attended, added, gates, latent = checkpoint(
            block, x, gates, latent, use_reentrant=False, preserve_rng_state=False
        )
        x = x + attended + added
    logits = _logits(weights, x)
    own = logits.gather(-1, targets[:, None])[:, 0]
    return (logits.logsumexp(-1) - own).mean()


def _embedded(weights: Weights, tokens: Tensor) -> Tensor:
    return weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]


def _logits(weights: Weights, x: Tensor) -> Tensor:
    return _norm(x, weights, "ln_f") @ weights["wte.weight"].T


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = centred / spread * weights[f"{name}.weight"]
    return normed + weights.get(f"{name}.bias", 0.0)


def _softmax(scores: Tensor) -> Tensor:
    """Of the visible keys of each row, [..., T, T]; 0 for those ahead."""
    ahead = torch.ones(scores.shape[-2:], device=scores.device).triu(1).bool()
    return scores.masked_fill(ahead, -math.inf).softmax(-1)


def _visible(rows: Tensor) -> Tensor:
    """How many keys each of T rows [..., T, N] sees: 1 to T, in their type."""
    return torch.arange(1, rows.shape[-2] + 1, dtype=rows.dtype, device=rows.device)


def row_statistics(weights: Tensor, kind: str, topk: int) -> Tensor:
    """The statistic [..., T] of each row of weights [..., T, T], 0 ahead of a row."""
    if kind == "topk":
        return weights.sort(-1, descending=True).values[..., :topk].sum(-1)
    if kind == "max":
        return weights.max(-1).values
    if kind == "rms":
        return (weights.pow(2).sum(-1) / _visible(weights)).sqrt()
    assert kind == "entropy", kind
    # p ln p is 0 at 0, and its slope there must be finite. A row of one key has ln 1.
    smallest = torch.finfo(weights.dtype).tiny
    nats = -(weights * weights.clamp_min(smallest).log()).sum(-1)
    return nats / _visible(weights).clamp_min(2).log()


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


class _Block:
    """One block, by the weights under its number."""

    def __init__(self, weights: Weights, settings: Settings, number: int) -> None:
        self.weights, self.prefix = weights, f"blocks.{number}."
        self.model, self.x = settings.model, settings.mechanisms
        self.is_last = number == settings.model.n_layer - 1

    def __call__(
        self, x: Tensor, gates: Tensor | None, latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """x [T, E] with gates [T, H] and latent [T, L] of the block before: what
        attention and MLP add to x, and gates and latent for the next block."""
        normed = _norm(x, self.weights, self.prefix + "ln_1")
        attended, weights, key_latent = self._attention(normed, gates, latent)
        x = x + attended
        h = _gelu(self._linear("mlp.fc", _norm(x, self.weights, self.prefix + "ln_2")))
        if self.x.latent != "none":
            assert key_latent is not None, "no key latent to read"
            h = h + self.x.latent_mix * self._up(key_latent)
        if self.x.cross_token:
            summed = self._kept(weights.mean(0)) @ h
            low = summed @ self._get("mlp.cross.down.weight").T
            h = h + self.x.cross_mix * (low @ self._get("mlp.cross.up.weight").T)
        added = self._linear("mlp.proj", h)
        if self.is_last:
            return attended, added, None, None
        return attended, added, self._gates(h), self._down(h)

    def _get(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{self.prefix}{name}.bias", 0.0)
        return x @ self._get(f"{name}.weight").T + bias

    # ---- attention ------------------------------------------------------------------

    def _attention(
        self, x: Tensor, gates: Tensor | None, latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [T, E], weights [H, T, T], key latent [T, L]."""
        q, k, v, key_latent = self._projected(x, latent)
        scores = self._scores(q, k)
        weights = _softmax(scores)
        factors = self._factors(weights) if self.x.ract else None
        if factors is not None and self.x.ract_placement == "weights":
            weights = _softmax(scores * factors[..., None])
        outputs = weights @ v
        if factors is not None and self.x.ract_placement == "output":
            outputs = outputs * factors[..., None]
        if gates is not None:
            a = self.x.mlp_gate_mix
            outputs = (1 - a) * outputs + a * gates.T[..., None] * outputs
        joined = torch.cat(list(outputs), -1)
        if self.x.output_gate:
            joined = (
                joined * (x @ self._get("attn.output_gate.gate.weight").T).sigmoid()
            )
        return self._linear("attn.proj", joined), weights, key_latent

    def _projected(
        self, x: Tensor, latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k and v [H, T, D], or [1, T, D] where all heads share them, and the key
        latent [T, L] of plain MLA."""
        heads, kind = self.model.n_head, self.x.attention
        if kind == "mha":
            q, k, v = self._each("qkv", x, 3 * heads).chunk(3)
            return q, k, v, None
        if kind == "mla":
            c_k = self._linear("attn.projection.down_k", x)
            c_v = self._linear("attn.projection.down_v", x)
            if latent is not None:
                c_k = c_k + self.x.latent_mix * latent
            k = self._each("up_k.up", c_k, 1 if self.x.mla_shared_k else heads)
            v = self._each("up_v.up", c_v, 1 if self.x.mla_shared_v else heads)
            return self._each("q", x, heads), k, v, c_k
        c = self._linear("attn.projection.down", x)
        root = (c.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        c = c / root * self._get("attn.projection.norm.weight")
        turned = self._turned(self._linear("attn.projection.k_rope", x))
        copies = turned.repeat(heads, 1, 1)
        k = torch.cat([self._each("up_k.up", c, heads), copies], -1)
        rotary = self._turned(self._each("q_rope", x, heads))
        q = torch.cat([self._each("q", x, heads), rotary], -1)
        return q, k, self._each("up_v.up", c, heads), None

    def _each(self, name: str, x: Tensor, parts: int) -> Tensor:
        """x [T, in] projected and cut into equal parts, one per head: [H, T, D]."""
        return torch.stack(
            self._linear(f"attn.projection.{name}", x).chunk(parts, -1), 0
        )

    @staticmethod
    def _turned(x: Tensor) -> Tensor:
        """Rotary positions [..., T, R]: dimension i turns with i + R / 2, by base
        10000 (arXiv 2104.09864)."""
        half = x.shape[-1] // 2
        place = torch.arange(x.shape[-2], dtype=torch.float64)[:, None]
        rates = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = (place * rates).float()  # the model's tables are in fp32, from a CPU
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        one, two = x[..., :half], x[..., half:]
        return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Logits [H, T, T] of each head, keys ahead included."""
        scores = q @ k.mT
        if self.x.ra:
            back = k @ q.mT
            if self.x.ra_window:
                place = torch.arange(q.shape[1], device=q.device)
                back = back * (place[:, None] - place <= self.x.ra_window)
            alpha: Tensor | float = self.x.ra_alpha
            if self.x.ra_learned_alpha:
                alpha = self._get("attn.reciprocity.alpha")[:, None, None]
            scores = scores + alpha * back
        # D is of q and k: with a rotary part it counts too.
        return scores / math.sqrt(q.shape[-1])

    def _factors(self, weights: Tensor) -> Tensor:
        """1 - a + a sigmoid(scale stat + bias) [H, T] of weights [H, T, T]."""
        if self.x.ract_head_average:
            weights = weights.mean(0, keepdim=True)
        stat = row_statistics(weights, self.x.ract_statistic, self.x.ract_topk)
        stat = stat.detach() if self.x.ract_detach else stat
        scale, bias = self._get("attn.ract.scale"), self._get("attn.ract.bias")
        gate = (scale[:, None] * stat + bias[:, None]).sigmoid()
        return 1 - self.x.ract_mix + self.x.ract_mix * gate

    # ---- the MLP's mechanisms -------------------------------------------------------

    def _kept(self, mean: Tensor) -> Tensor:
        """The cross-token MLP's weights [T, T] of the heads' mean weights."""
        kept = mean
        if self.x.cross_select == "topk":
            last = min(self.x.cross_topk, len(mean)) - 1
            least = mean.sort(-1, descending=True).values[:, last : last + 1]
            kept = mean * (mean >= least)
        elif self.x.cross_select == "rms":
            squares = mean.pow(2).sum(-1) / _visible(mean)
            kept = mean * (mean >= self.x.cross_tau * squares.sqrt()[:, None])
        return kept / kept.sum(-1, keepdim=True) if self.x.cross_renorm else kept

    def _scaled(self, latent: Tensor, name: str) -> Tensor:
        """A latent [T, L] times one number a head, over contiguous chunks of L."""
        heads, width = self.model.n_head, latent.shape[-1]
        owner = [i * heads // width for i in range(width)]
        return latent * self._get(f"mlp.exchange.{name}")[owner]

    def _up(self, latent: Tensor) -> Tensor:
        if self.x.latent == "per_head_scalar":
            return self._scaled(latent, "up_scale") @ self._get("mlp.exchange.basis").T
        return latent @ self._get("mlp.exchange.up.weight").T

    def _down(self, h: Tensor) -> Tensor | None:
        """What the next block's key latent gets, [T, L]."""
        match self.x.latent:
            case "tied_transpose":
                return h @ self._get("mlp.exchange.up.weight")
            case "untied":
                return h @ self._get("mlp.exchange.down.weight").T
            case "per_head_scalar":
                low = h @ self._get("mlp.exchange.basis")
                return self._scaled(low, "down_scale")
        return None

    def _gates(self, h: Tensor) -> Tensor | None:
        """Gates of the next block's heads, [T, H]."""
        if not self.x.mlp_gate:
            return None
        if self.x.mlp_gate_pool == "prefix_mean":
            seen = torch.ones(len(h), len(h), dtype=h.dtype, device=h.device).tril()
            h = seen / _visible(h)[:, None] @ h
        low = h @ self._get("mlp.gate.down.weight").T
        return (
            low @ self._get("mlp.gate.up.weight").T + self._get("mlp.gate.bias")
        ).sigmoid()
