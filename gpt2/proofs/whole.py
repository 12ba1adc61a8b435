"""A whole step by the formulas of its parts: what its logits and gradients must be.

Plain and slow: one sequence, one head at a time, whole T x T matrices. It shares no
line with the model but the names of the weights, so that a part which is wired wrongly
is found although the attention inside it is right.

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

from gpt2.attention import AttentionSide
from gpt2.mlp import MlpResult
from gpt2.model import GPT
from gpt2.proofs.naive import naive_statistic
from gpt2.proofs.subject import deviation
from gpt2.schema import Settings

Weights = Mapping[str, Tensor]


def whole_deviations(
    model: GPT, settings: Settings, tokens: Tensor
) -> dict[str, float]:
    """How far each part is from its formula for tokens [T], in the order in which
    they work, then the gradient of each parameter; infinite for a part amiss."""
    mine = _watched(model, tokens)
    true = whole_trace(dict(model.state_dict(keep_vars=True)), settings, tokens)
    found = {
        name: deviation(mine[name], part) if name in mine else math.inf
        for name, part in true.items()
    }
    found |= {name: math.inf for name in mine if name not in true}
    named = dict(model.named_parameters())
    leaves = list(named.values())
    slopes = (_slopes(trace["the logits"], leaves) for trace in (mine, true))
    for name, one, other in zip(named, *slopes, strict=True):
        found[f"the gradient of {name}"] = deviation(one, other)
    return found


def _slopes(logits: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a generic linear function of logits; 0 where none flows."""
    total = (logits * torch.linspace(-1.0, 1.3, logits.numel()).view_as(logits)).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
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
    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    last = settings.model.n_layer - 1
    trace: dict[str, Tensor] = {}
    gates = latent = None
    for number in range(last + 1):
        block = _Block(weights, settings, f"blocks.{number}.")
        attended, added, h = block(x, gates, latent)
        x = x + attended + added
        trace[f"the attention of block {number}"] = attended
        trace[f"the MLP of block {number}"] = added
        gates = block.gates(h) if number < last else None
        latent = block.down(h) if number < last else None
        if gates is not None:
            trace[f"the gates from block {number}"] = gates
        if latent is not None:
            trace[f"the latent from block {number}"] = latent
    logits = _norm(x, weights, "ln_f") @ weights["wte.weight"].T
    return {**trace, "the logits": logits}


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = centred / spread * weights[f"{name}.weight"]
    return normed + weights.get(f"{name}.bias", 0.0)


def _softmax(scores: Tensor) -> Tensor:
    """Of the visible keys of each row, [T, T]; 0 for those ahead."""
    ahead = torch.ones_like(scores).triu(1).bool()
    return scores.masked_fill(ahead, -math.inf).softmax(-1)


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


class _Block:
    """One block, by the weights whose names begin with ``prefix``."""

    def __init__(self, weights: Weights, settings: Settings, prefix: str) -> None:
        self.weights, self.prefix = weights, prefix
        self.model, self.x = settings.model, settings.mechanisms

    def __call__(
        self, x: Tensor, gates: Tensor | None, latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, E] with what the block before made: gates [T, H], latent [T, L].
        Gives what attention and MLP add to x, and the hidden state [T, M]."""
        normed = _norm(x, self.weights, self.prefix + "ln_1")
        attended, mean, key_latent = self._attention(normed, gates, latent)
        x = x + attended
        h = _gelu(self._linear("mlp.fc", _norm(x, self.weights, self.prefix + "ln_2")))
        if self.x.exchanges_latent:
            assert key_latent is not None, "no key latent to read"
            h = h + self.x.latent_mix * self._up(key_latent)
        if self.x.cross_token:
            summed = self._kept(mean) @ h
            low = summed @ self._get("mlp.cross.down.weight").T
            h = h + self.x.cross_mix * (low @ self._get("mlp.cross.up.weight").T)
        return attended, self._linear("mlp.proj", h), h

    def _get(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{self.prefix}{name}.bias", 0.0)
        return x @ self._get(f"{name}.weight").T + bias

    # ---- attention ------------------------------------------------------------------

    def _attention(
        self, x: Tensor, gates: Tensor | None, latent: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [T, E], mean weights [T, T], key latent [T, L]."""
        q, k, v, key_latent = self._projected(x, latent)
        scores = [self._scores(*pair) for pair in zip(q, k, range(len(q)), strict=True)]
        weights = [_softmax(s) for s in scores]
        factors = [torch.ones(len(x), dtype=x.dtype)] * len(q)
        if self.x.ract:
            factors = self._factors(weights)
        if self.x.ract_placement == "weights":
            pairs = zip(scores, factors, strict=True)
            weights = [_softmax(s * f[:, None]) for s, f in pairs]
        outputs = [w @ value for w, value in zip(weights, v, strict=True)]
        if self.x.ract_placement == "output":
            pairs = zip(outputs, factors, strict=True)
            outputs = [o * f[:, None] for o, f in pairs]
        if gates is not None:
            a = self.x.mlp_gate_mix
            columns = gates.unbind(-1)
            outputs = [
                (1 - a) * o + a * g[:, None] * o
                for o, g in zip(outputs, columns, strict=True)
            ]
        joined = torch.cat(outputs, -1)
        if self.x.output_gate:
            joined = (
                joined * (x @ self._get("attn.output_gate.gate.weight").T).sigmoid()
            )
        mean = torch.stack(weights).mean(0)
        return self._linear("attn.proj", joined), mean, key_latent

    def _projected(
        self, x: Tensor, latent: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor | None]:
        """q, k and v of each head, and the key latent of plain MLA."""
        heads, kind = self.model.n_head, self.x.attention
        if kind == "mha":
            parts = self._each("qkv", x, 3 * heads)
            return parts[:heads], parts[heads : 2 * heads], parts[2 * heads :], None
        if kind == "mla":
            c_k = self._linear("attn.projection.down_k", x)
            c_v = self._linear("attn.projection.down_v", x)
            if latent is not None:
                c_k = c_k + self.x.latent_mix * latent
            k = self._each("up_k.up", c_k, 1 if self.x.mla_shared_k else heads)
            v = self._each("up_v.up", c_v, 1 if self.x.mla_shared_v else heads)
            return (
                self._each("q", x, heads),
                k * (heads // len(k)),
                v * (heads // len(v)),
                c_k,
            )
        c = self._linear("attn.projection.down", x)
        root = (c.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        c = c / root * self._get("attn.projection.norm.weight")
        turned = self._turned(self._linear("attn.projection.k_rope", x))
        k = [torch.cat([part, turned], -1) for part in self._each("up_k.up", c, heads)]
        pairs = zip(
            self._each("q", x, heads), self._each("q_rope", x, heads), strict=True
        )
        q = [torch.cat([plain, self._turned(rope)], -1) for plain, rope in pairs]
        return q, k, self._each("up_v.up", c, heads), None

    def _each(self, name: str, x: Tensor, parts: int) -> list[Tensor]:
        """x [T, in] projected and cut into equal parts, one a head."""
        return list(self._linear(f"attn.projection.{name}", x).chunk(parts, -1))

    @staticmethod
    def _turned(x: Tensor) -> Tensor:
        """Rotary positions [T, R]: dimension i turns with i + R / 2, by base 10000."""
        half = x.shape[-1] // 2
        place = torch.arange(len(x), dtype=torch.float64)[:, None]
        rates = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = (place * rates).float()  # the model's tables are in fp32
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        one, two = x[:, :half], x[:, half:]
        return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)

    def _scores(self, q: Tensor, k: Tensor, head: int) -> Tensor:
        """Logits [T, T] of one head, keys ahead included."""
        distance = torch.arange(len(q))[:, None] - torch.arange(len(q))
        scores = q @ k.T
        if self.x.ra:
            near = torch.ones_like(scores)
            if self.x.ra_window:
                near = (distance <= self.x.ra_window).to(scores.dtype)
            alpha: Tensor | float = self.x.ra_alpha
            if self.x.ra_learned_alpha:
                alpha = self._get("attn.reciprocity.alpha")[head]
            scores = scores + alpha * near * (k @ q.T)
        # D is of q and k: with a rotary part it counts too.
        return scores / math.sqrt(q.shape[-1])

    def _factors(self, weights: list[Tensor]) -> list[Tensor]:
        """1 - a + a sigmoid(scale stat + bias) [T] for each head."""
        if self.x.ract_head_average:
            weights = [torch.stack(weights).mean(0)] * len(weights)
        factors, a = [], self.x.ract_mix
        for head, rows in enumerate(weights):
            found = [
                naive_statistic(row[: i + 1], self.x.ract_statistic, self.x.ract_topk)
                for i, row in enumerate(rows)
            ]
            stat = torch.stack(found)
            stat = stat.detach() if self.x.ract_detach else stat
            scale, bias = self._get("attn.ract.scale"), self._get("attn.ract.bias")
            gate = (scale[head] * stat + bias[head]).sigmoid()
            factors.append(1 - a + a * gate)
        return factors

    # ---- the MLP's mechanisms -------------------------------------------------------

    def _kept(self, mean: Tensor) -> Tensor:
        """The cross-token MLP's weights [T, T], row by row."""
        rows = []
        for i, row in enumerate(mean):
            seen = row[: i + 1]
            least = row.new_zeros(())
            if self.x.cross_select == "topk":
                least = seen.sort(descending=True).values[: self.x.cross_topk][-1]
            elif self.x.cross_select == "rms":
                least = self.x.cross_tau * seen.pow(2).mean().sqrt()
            seen = seen * (seen >= least)
            seen = seen / seen.sum() if self.x.cross_renorm else seen
            rows.append(torch.cat([seen, row.new_zeros(len(row) - i - 1)]))
        return torch.stack(rows)

    def _scaled(self, latent: Tensor, name: str) -> Tensor:
        """A latent [T, L] times one number a head, over contiguous chunks of L."""
        heads, width = self.model.n_head, latent.shape[-1]
        owner = torch.tensor([i * heads // width for i in range(width)])
        return latent * self._get(f"mlp.exchange.{name}")[owner]

    def _up(self, latent: Tensor) -> Tensor:
        if self.x.latent == "per_head_scalar":
            return self._scaled(latent, "up_scale") @ self._get("mlp.exchange.basis").T
        return latent @ self._get("mlp.exchange.up.weight").T

    def down(self, h: Tensor) -> Tensor | None:
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

    def gates(self, h: Tensor) -> Tensor | None:
        """Gates of the next block's heads, [T, H]."""
        if not self.x.mlp_gate:
            return None
        if self.x.mlp_gate_pool == "prefix_mean":
            h = torch.stack([h[: i + 1].mean(0) for i in range(len(h))])
        low = h @ self._get("mlp.gate.down.weight").T
        return (
            low @ self._get("mlp.gate.up.weight").T + self._get("mlp.gate.bias")
        ).sigmoid()
