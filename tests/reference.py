"""The truth: every mechanism as naive loops over batch, head, row and key.

Written from the formulas, not from gpt2/. Nothing is masked: row i is a list of
its i + 1 visible keys, so that none of this can see the future. Precision is that
of the inputs, and autograd gives the gradients.

Shapes: B batch, T tokens, E width, H heads, D head width, L latent, M MLP width.
``Vectors`` [b][t] and ``Heads`` [b][h][t] are nested lists of 1-d tensors; ``Rows``
[b][h][i] are lists of 1-d tensors of i + 1 numbers, one a visible key. Matrices
multiply row vectors from the right, x W, as in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings

Vectors = list[list[Tensor]]
Heads = list[list[list[Tensor]]]
Rows = list[list[list[Tensor]]]
State = Mapping[str, Tensor]


# ---- the pieces of GPT-2 ------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def softmax(row: Tensor) -> Tensor:
    powers = (row - row.max().detach()).exp()
    return powers / powers.sum()


def gelu(x: Tensor) -> Tensor:
    """The tanh form, as in GPT-2."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + inner.tanh())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    centred = x - x.mean()
    normed = centred / ((centred * centred).mean() + 1e-5).sqrt() * weight
    return normed if bias is None else normed + bias


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / ((x * x).mean() + 1e-6).sqrt() * weight


def each(x: Vectors, matrix: Tensor, bias: Tensor | None = None) -> Vectors:
    """x W + b, token by token."""
    return [[y @ matrix + (0 if bias is None else bias) for y in xs] for xs in x]


def split(x: Vectors, heads: int) -> Heads:
    """Cut each token's vector into equal parts, one a head."""
    width = x[0][0].numel() // heads
    return [
        [[y[h * width : (h + 1) * width] for y in xs] for h in range(heads)] for xs in x
    ]


def tensor_of(nested: list) -> Tensor:
    """Nested lists of equal tensors as one tensor."""
    if isinstance(nested, Tensor):
        return nested
    return torch.stack([tensor_of(part) for part in nested])


def vectors_of(x: Tensor) -> Vectors:
    """[B, T, N] as nested lists."""
    return [[x[b, t] for t in range(x.shape[1])] for b in range(x.shape[0])]


def heads_of(x: Tensor) -> Heads:
    """[B, H, T, D] as nested lists."""
    return [vectors_of(x[b]) for b in range(x.shape[0])]


# ---- attention and reciprocal attention ---------------------------------------------


def scores(
    q: Heads,
    k: Heads,
    scale: float,
    alpha: Sequence[float] | Tensor | None = None,
    window: int | None = None,
) -> Rows:
    """s_ij = scale (q_i.k_j + alpha_h [i-j <= W] q_j.k_i) for j <= i.

    ``alpha`` one weight a head, None without RA; ``window`` None is no band.
    """
    result: Rows = []
    for b in range(len(q)):
        result.append([])
        for h in range(len(q[b])):
            result[b].append([])
            for i in range(len(q[b][h])):
                row = []
                for j in range(i + 1):
                    s = dot(q[b][h][i], k[b][h][j])
                    if alpha is not None and (window is None or i - j <= window):
                        s = s + alpha[h] * dot(q[b][h][j], k[b][h][i])
                    row.append(s * scale)
                result[b][h].append(torch.stack(row))
    return result


def weights(s: Rows) -> Rows:
    """p: softmax over the visible keys."""
    return [[[softmax(row) for row in head] for head in batch] for batch in s]


def outputs(p: Rows, v: Heads) -> Heads:
    """o_i = sum_j p_ij v_j."""
    result: Heads = []
    for b in range(len(p)):
        result.append([])
        for h in range(len(p[b])):
            result[b].append([])
            for i in range(len(p[b][h])):
                o = torch.zeros_like(v[b][h][0])
                for j in range(i + 1):
                    o = o + p[b][h][i][j] * v[b][h][j]
                result[b][h].append(o)
    return result


# ---- latent attention ---------------------------------------------------------------


def absorbed(q: Heads, a: Sequence[Tensor]) -> Heads:
    """q~_i^h = q_i^h A_h with A_h [D, L]."""
    return [[[qi @ a[h] for qi in head] for h, head in enumerate(batch)] for batch in q]


def per_head(c: Vectors, u: Sequence[Tensor]) -> Heads:
    """c_j U_h for every head, with U_h [L, D]."""
    return [[[cj @ u[h] for cj in cs] for h in range(len(u))] for cs in c]


def same_for_all(c: Vectors, heads: int) -> Heads:
    """One vector a token, seen by every head."""
    return [[cs for _ in range(heads)] for cs in c]


def rotate(x: Tensor, position: int) -> Tensor:
    """RoPE with base 10000: (x_n, x_{n + d/2}) turned by position * rate_n."""
    half = x.numel() // 2
    first, second = [], []
    for n in range(half):
        angle = position * 10000.0 ** (-2 * n / x.numel())
        c, s = math.cos(angle), math.sin(angle)
        first.append(x[n] * c - x[n + half] * s)
        second.append(x[n] * s + x[n + half] * c)
    return torch.stack(first + second)


def joined(a: Heads, b: Heads) -> Heads:
    """[a, b] for every batch, head and token."""
    return [
        [
            [torch.cat([x, y]) for x, y in zip(xs, ys, strict=True)]
            for xs, ys in zip(p, q, strict=True)
        ]
        for p, q in zip(a, b, strict=True)
    ]


# ---- RA-CT: gating by attention statistics ------------------------------------------


def statistic(p: Tensor, kind: str, k: int) -> Tensor:
    """One number of one row of weights; ``p`` holds its visible keys only."""
    visible = p.numel()
    if kind == "topk":
        return p.sort(descending=True).values[:k].sum()
    if kind == "max":
        return p.max()
    if kind == "entropy":
        if visible == 1:
            return 0 * p.sum()
        total = torch.zeros_like(p[0])
        for n in range(visible):
            total = total - p[n] * p[n].log()
        return total / math.log(visible)
    assert kind == "rms"
    return ((p * p).sum() / visible).sqrt()


def head_mean(p: Rows, b: int, i: int) -> Tensor:
    """Row i of batch b, averaged over heads."""
    total = torch.zeros_like(p[b][0][i])
    for h in range(len(p[b])):
        total = total + p[b][h][i]
    return total / len(p[b])


def statistic_factors(
    p: Rows,
    scale: Tensor,
    bias: Tensor,
    *,
    kind: str,
    k: int,
    mix: float,
    head_average: bool = False,
    detach: bool = False,
) -> Rows:
    """1 - a + a g with g = sigmoid(scale_h stat + bias_h), one number a row."""
    result: Rows = []
    for b in range(len(p)):
        result.append([])
        for h in range(len(p[b])):
            result[b].append([])
            for i in range(len(p[b][h])):
                row = head_mean(p, b, i) if head_average else p[b][h][i]
                stat = statistic(row, kind, k)
                stat = stat.detach() if detach else stat
                g = sigmoid(scale[h] * stat + bias[h])
                result[b][h].append((1 - mix) + mix * g)
    return result


def times(rows: Rows | Heads, factors: Rows) -> Rows:
    """Every row or output times its own number."""
    return [
        [
            [row * f for row, f in zip(head, fs, strict=True)]
            for head, fs in zip(batch, ffs, strict=True)
        ]
        for batch, ffs in zip(rows, factors, strict=True)
    ]


# ---- MLP to attention, tokens to tokens, latent to MLP ------------------------------


def mlp_gates(
    h: Vectors, w_1: Tensor, w_2: Tensor, bias: Tensor, prefix_mean: bool
) -> Vectors:
    """gamma_t = sigmoid(h_t W_1 W_2 + b) [H]; of the mean over j <= t if asked."""
    result: Vectors = []
    for hs in h:
        result.append([])
        for t in range(len(hs)):
            read = hs[t]
            if prefix_mean:
                read = hs[0]
                for j in range(1, t + 1):
                    read = read + hs[j]
                read = read / (t + 1)
            result[-1].append(sigmoid(read @ w_1 @ w_2 + bias))
    return result


def gated_by_mlp(o: Heads, gamma: Vectors, mix: float) -> Heads:
    """o^h_t <- (1-a) o^h_t + a gamma^h_t o^h_t."""
    return [
        [
            [
                (1 - mix) * o[b][h][t] + mix * gamma[b][t][h] * o[b][h][t]
                for t in range(len(o[b][h]))
            ]
            for h in range(len(o[b]))
        ]
        for b in range(len(o))
    ]


def kept(w: Tensor, select: str, k: int, tau: float, renorm: bool) -> list[Tensor]:
    """The weights of one row that the cross-token MLP keeps; others are 0."""
    visible, values = w.numel(), w.tolist()
    if select == "topk":
        order = sorted(range(visible), key=lambda j: -values[j])
        keep = set(order[:k])
    elif select == "rms":
        rms = math.sqrt(sum(x**2 for x in values) / visible)
        keep = {j for j in range(visible) if values[j] >= tau * rms}
    else:
        keep = set(range(visible))
    row = [w[j] if j in keep else torch.zeros_like(w[j]) for j in range(visible)]
    if renorm and keep:
        total = sum(row[1:], row[0])
        row = [x / total for x in row]
    return row


def cross_token(
    h: Vectors,
    p: Rows,
    v: Tensor,
    u: Tensor,
    *,
    mix: float,
    select: str,
    k: int,
    tau: float,
    renorm: bool,
) -> Vectors:
    """h_i + a (c_i V) U, c_i = sum_j w_ij h_j; w: kept head means of ``p``."""
    result: Vectors = []
    for b in range(len(h)):
        result.append([])
        for i in range(len(h[b])):
            w = kept(head_mean(p, b, i), select, k, tau, renorm)
            c = torch.zeros_like(h[b][i])
            for j in range(i + 1):
                c = c + w[j] * h[b][j]
            result[b].append(h[b][i] + mix * (c @ v @ u))
    return result


def chunk_scales(scales: Tensor, latent: int) -> Tensor:
    """One learned scalar a head over contiguous chunks of the latent, [L]."""
    heads = scales.numel()
    bounds = [math.ceil(h * latent / heads) for h in range(heads + 1)]
    return torch.cat(
        [scales[h].repeat(bounds[h + 1] - bounds[h]) for h in range(heads)]
    )


def added(x: Vectors, y: Vectors, mix: float) -> Vectors:
    """x + a y, token by token."""
    return [
        [p + mix * q for p, q in zip(ps, qs, strict=True)]
        for ps, qs in zip(x, y, strict=True)
    ]


# ---- the whole model ----------------------------------------------------------------


class Layer:
    """One block of a GPT, read from the parameters of the real one by name."""

    def __init__(self, state: State, settings: Settings, index: int) -> None:
        self.state, self.m, self.x = state, settings.model, settings.mechanisms
        self.index, self.last = index, index == settings.model.n_layer - 1

    def raw(self, name: str) -> Tensor:
        return self.state[f"blocks.{self.index}.{name}"]

    def matrix(self, name: str) -> Tensor:
        """A linear layer's matrix, from inputs to outputs."""
        return self.raw(f"{name}.weight").T

    def bias(self, name: str) -> Tensor | None:
        return self.raw(f"{name}.bias") if self.m.bias else None

    def linear(self, x: Vectors, name: str, has_bias: bool = True) -> Vectors:
        return each(x, self.matrix(name), self.bias(name) if has_bias else None)

    def norm(self, x: Vectors, name: str) -> Vectors:
        weight, bias = self.raw(f"{name}.weight"), self.bias(name)
        return [[layer_norm(y, weight, bias) for y in ys] for ys in x]

    def ups(self, name: str, shared: bool) -> list[Tensor]:
        """U_h [L, D] of every head."""
        whole, d = self.raw(f"attn.projection.{name}.up.weight"), self.m.head_dim
        return [
            (whole if shared else whole[h * d : (h + 1) * d]).T
            for h in range(self.m.n_head)
        ]

    # ---- one projection each: queries, keys, values, scale, key latent

    def mha(self, x: Vectors) -> tuple[Heads, Heads, Heads, float, None]:
        inner = self.m.n_head * self.m.head_dim
        whole = self.linear(x, "attn.projection.qkv")
        q, k, v = (
            split([[y[n * inner : (n + 1) * inner] for y in ys] for ys in whole], h)
            for n, h in enumerate([self.m.n_head] * 3)
        )
        return q, k, v, 1 / math.sqrt(self.m.head_dim), None

    def mla(
        self, x: Vectors, e: Vectors | None
    ) -> tuple[Heads, Heads, Heads, float, Vectors]:
        q = split(self.linear(x, "attn.projection.q"), self.m.n_head)
        c_k = self.linear(x, "attn.projection.down_k", has_bias=False)
        c_v = self.linear(x, "attn.projection.down_v", has_bias=False)
        if e is not None:
            c_k = added(c_k, e, self.x.latent_mix)
        a = [u.T for u in self.ups("up_k", self.x.mla_shared_k)]
        v = per_head(c_v, self.ups("up_v", self.x.mla_shared_v))
        scale = 1 / math.sqrt(self.m.head_dim)
        return absorbed(q, a), same_for_all(c_k, self.m.n_head), v, scale, c_k

    def mla_rope(self, x: Vectors) -> tuple[Heads, Heads, Heads, float, None]:
        heads = self.m.n_head
        raw = self.linear(x, "attn.projection.down", has_bias=False)
        weight = self.raw("attn.projection.norm.weight")
        c = [[rms_norm(y, weight) for y in ys] for ys in raw]
        q_c = split(self.linear(x, "attn.projection.q"), heads)
        q_r = split(self.linear(x, "attn.projection.q_rope"), heads)
        k_r = self.linear(x, "attn.projection.k_rope", has_bias=False)
        q_r = [[[rotate(y, t) for t, y in enumerate(ys)] for ys in hs] for hs in q_r]
        k_r = [[rotate(y, t) for t, y in enumerate(ys)] for ys in k_r]
        q = joined(q_c, q_r)
        k = joined(per_head(c, self.ups("up_k", False)), same_for_all(k_r, heads))
        v = per_head(c, self.ups("up_v", False))
        return q, k, v, 1 / math.sqrt(self.m.head_dim + self.x.rope_dim), None

    def project(
        self, x: Vectors, e: Vectors | None
    ) -> tuple[Heads, Heads, Heads, float, Vectors | None]:
        if self.x.attention == "mla":
            return self.mla(x, e)
        return self.mha(x) if self.x.attention == "mha" else self.mla_rope(x)

    # ---- attention and MLP

    def alpha(self) -> Sequence[float] | Tensor | None:
        if not self.x.ra:
            return None
        if self.x.ra_learned_alpha:
            return self.raw("attn.reciprocity.alpha")
        return [self.x.ra_alpha] * self.m.n_head

    def ract(self, p: Rows) -> Rows:
        return statistic_factors(
            p,
            self.raw("attn.ract.scale"),
            self.raw("attn.ract.bias"),
            kind=self.x.ract_statistic,
            k=self.x.ract_topk,
            mix=self.x.ract_mix,
            head_average=self.x.ract_head_average,
            detach=self.x.ract_detach,
        )

    def attention(
        self, x: Vectors, gamma: Vectors | None, e: Vectors | None
    ) -> tuple[Vectors, Rows, Vectors | None]:
        """Output of the attention, its weights, MLA's key latent."""
        q, k, v, scale, c_k = self.project(x, e)
        s = scores(q, k, scale, self.alpha(), self.x.ra_window or None)
        p = weights(s)
        if self.x.ract and self.x.ract_placement == "weights":
            p = weights(times(s, self.ract(p)))
        o = outputs(p, v)
        if self.x.ract and self.x.ract_placement == "output":
            o = times(o, self.ract(p))
        if gamma is not None:
            o = gated_by_mlp(o, gamma, self.x.mlp_gate_mix)
        joint = [
            [
                torch.cat([o[b][h][t] for h in range(len(o[b]))])
                for t in range(len(o[b][0]))
            ]
            for b in range(len(o))
        ]
        if self.x.output_gate:
            gate = self.linear(x, "attn.output_gate.gate", has_bias=False)
            joint = [
                [y * sigmoid(g) for y, g in zip(ys, gs, strict=True)]
                for ys, gs in zip(joint, gate, strict=True)
            ]
        return self.linear(joint, "attn.proj"), p, c_k

    def mlp(
        self, x: Vectors, p: Rows, c_k: Vectors | None
    ) -> tuple[Vectors, Vectors | None, Vectors | None]:
        """Output of the MLP; gates and latent for the next block."""
        h = [[gelu(y) for y in ys] for ys in self.linear(x, "mlp.fc")]
        if self.x.latent != "none":
            h = added(h, each(c_k, self.up()), self.x.latent_mix)
        if self.x.cross_token:
            h = cross_token(
                h,
                p,
                self.matrix("mlp.cross.down"),
                self.matrix("mlp.cross.up"),
                mix=self.x.cross_mix,
                select=self.x.cross_select,
                k=self.x.cross_topk,
                tau=self.x.cross_tau,
                renorm=self.x.cross_renorm,
            )
        out = self.linear(h, "mlp.proj")
        if self.last:
            return out, None, None
        e = each(h, self.down()) if self.x.latent != "none" else None
        if not self.x.mlp_gate:
            return out, None, e
        w_1, w_2 = self.matrix("mlp.gate.down"), self.matrix("mlp.gate.up")
        pooled = self.x.mlp_gate_pool == "prefix_mean"
        return out, mlp_gates(h, w_1, w_2, self.raw("mlp.gate.bias"), pooled), e

    def up(self) -> Tensor:
        """Key latent to MLP hidden state, [L, M]."""
        if self.x.latent != "per_head_scalar":
            return self.matrix("mlp.exchange.up")
        basis = self.raw("mlp.exchange.basis")
        scales = chunk_scales(self.raw("mlp.exchange.up_scale"), self.x.latent_dim)
        return torch.stack([scales[n] * basis[:, n] for n in range(scales.numel())])

    def down(self) -> Tensor:
        """MLP hidden state to the next key latent, [M, L]."""
        if self.x.latent == "tied_transpose":
            return self.up().T
        if self.x.latent == "untied":
            return self.matrix("mlp.exchange.down")
        basis = self.raw("mlp.exchange.basis")
        scales = chunk_scales(self.raw("mlp.exchange.down_scale"), self.x.latent_dim)
        columns = [scales[n] * basis[:, n] for n in range(scales.numel())]
        return torch.stack(columns, dim=1)

    def __call__(
        self, x: Vectors, gamma: Vectors | None, e: Vectors | None
    ) -> tuple[Vectors, Vectors | None, Vectors | None]:
        attended, p, c_k = self.attention(self.norm(x, "ln_1"), gamma, e)
        x = added(x, attended, 1.0)
        out, gamma, e = self.mlp(self.norm(x, "ln_2"), p, c_k)
        return added(x, out, 1.0), gamma, e


def gpt(state: State, settings: Settings, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of a GPT with these parameters and buffers, by name."""
    wte, wpe = state["wte.weight"], state["wpe.weight"]
    x: Vectors = [
        [wte[token] + wpe[t] for t, token in enumerate(row)] for row in tokens.tolist()
    ]
    gamma: Vectors | None = None
    e: Vectors | None = None
    for index in range(settings.model.n_layer):
        x, gamma, e = Layer(state, settings, index)(x, gamma, e)
    bias = state["ln_f.bias"] if settings.model.bias else None
    x = [[layer_norm(y, state["ln_f.weight"], bias) for y in ys] for ys in x]
    return tensor_of(each(x, wte.T))
