"""The MLP and its reciprocal parts: cross-token, latent, and gates to come."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.attention import AttentionSide
from gpt2.model.backends.call import Largest, platform_of_tensor
from gpt2.model.backends.reference import row_positions
from gpt2.model.context import BlockContext, LayerCache
from gpt2.model.gating import MlpGate
from gpt2.model.low_rank_hidden import Factored, Hidden, added, read
from gpt2.settings.schema import Settings
from lib.kernels.rows import SMALLEST_SUM


class CrossToken(nn.Module):
    """h_i + a (c_i V) U with c_i = sum_j w_ij h_j over the kept mean weights."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        m, x = settings.model, settings.mechanisms
        self.mix, self.select, self.topk = x.cross_mix, x.cross_select, x.cross_topk
        self.tau, self.renorm = x.cross_tau, x.cross_renorm
        self.down = nn.Linear(m.mlp_width, x.cross_rank, bias=False)
        self.up = nn.Linear(x.cross_rank, m.mlp_width, bias=False)

    def forward(
        self, hidden: Hidden, weights: Tensor | Largest, cache: LayerCache | None = None
    ) -> Hidden:
        """hidden [B, S, M], weights [B, S, N] or their topk largest -> [B, S, M]."""
        low = read(hidden, "cross", self.down.weight)  # summed at rank R, not M
        if cache is not None:
            low = cache.extend("cross", low, 1)
        if isinstance(weights, Largest):
            summed = sum_largest(weights, low, self.renorm)
        else:
            kept = keep_weights(weights, self.select, self.topk, self.tau, self.renorm)
            summed = kept.to(low.dtype) @ low
        return added(hidden, summed, self.up.weight, self.mix)


def sum_largest(weights: Largest, low: Tensor, renorm: bool) -> Tensor:
    """sum_j w_ij low_j over the largest weights; low [B, N, R] -> [B, S, R]."""
    from lib.kernels.topk_rows import sum_kept

    values = normalised(weights.values) if renorm else weights.values
    return sum_kept(values, weights.columns, low)


def normalised(weights: Tensor) -> Tensor:
    """Non-negative numbers [..., N] divided by their sum."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(SMALLEST_SUM)


def keep_weights(
    weights: Tensor, select: str, topk: int, tau: float, renorm: bool
) -> Tensor:
    """Keep the k largest of each row, or those of at least tau times its rms.

    weights [B, S, N] with zeros where j > i; gradients flow through what is
    kept. Of those that equal the k-th largest the first stay, so that every path
    chooses the same. The rms is over the visible part of the row. The kernel gives
    the type of autocast's products, everything else that of the weights.
    """
    if platform_of_tensor(weights).triton and weights.dtype == torch.float32:
        from lib.kernels.row_mask import keep

        kind = torch.get_autocast_dtype(weights.device.type)
        mixed = torch.is_autocast_enabled(weights.device.type)
        dtype = kind if mixed else torch.float32
        least = topk if select == "topk" else 0
        return keep(weights, least, tau if select == "rms" else 0.0, renorm, dtype)
    rows, columns = weights.shape[-2:]
    if select == "topk" and topk < columns:
        seen = weights.detach()
        last = seen.topk(topk, dim=-1).values[..., -1:]
        above, equal = seen > last, seen == last
        room = topk - above.sum(-1, keepdim=True)
        weights = weights * (above | (equal & (equal.cumsum(-1) <= room)))
    elif select == "rms":
        visible = row_positions(rows, columns, weights.device) + 1
        rms = (weights.square().sum(-1, keepdim=True) / visible).sqrt()
        weights = weights * (weights >= tau * rms).to(weights.dtype)
    return normalised(weights) if renorm else weights


class LatentExchange(nn.Module):
    """Latent reciprocity: h + a up(c^K), and down(h) for the next block.

    tied_transpose: one W of M x L, down by W, up by its transpose. untied: two.
    per_head_scalar: a fixed orthonormal projection, and for each direction one
    learned scalar a head over contiguous chunks of the latent.
    """

    basis: Tensor

    def __init__(self, settings: Settings, produces: bool) -> None:
        super().__init__()
        m, x = settings.model, settings.mechanisms
        self.kind, self.mix, self.produces = x.latent, x.latent_mix, produces
        if self.kind == "per_head_scalar":
            self.register_buffer("basis", torch.eye(m.mlp_width, x.latent_dim))
            self.chunks = chunk_of(x.latent_dim, m.n_head)
            self.up_scale = nn.Parameter(torch.ones(m.n_head))
            self.down_scale = nn.Parameter(torch.ones(m.n_head)) if produces else None
            return
        self.up = nn.Linear(x.latent_dim, m.mlp_width, bias=False)
        owns_down = produces and self.kind == "untied"
        down = nn.Linear(m.mlp_width, x.latent_dim, bias=False) if owns_down else None
        self.down = down

    def add(self, hidden: Hidden, key_latent: Tensor) -> Hidden:
        """hidden [B, S, M] with this block's key latent [B, S, L] added."""
        if self.kind == "per_head_scalar":
            scaled = key_latent * self.up_scale[self._chunk(key_latent)]
            return added(hidden, scaled, self.basis, self.mix)
        return added(hidden, key_latent, self.up.weight, self.mix)

    def reader(self) -> Tensor:
        """What ``give`` reads with, [L, M]."""
        if self.kind == "per_head_scalar":
            return self.basis.T
        return self.up.weight.T if self.down is None else self.down.weight

    def give(self, hidden: Hidden) -> Tensor | None:
        """[B, S, M] -> [B, S, L] for the next block; None from the last."""
        if not self.produces:
            return None
        low = read(hidden, "latent", self.reader())
        if self.kind == "per_head_scalar":
            assert self.down_scale is not None, "a producer without its scalars"
            low = low * self.down_scale[self._chunk(low)]
        return low

    def _chunk(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.chunks, device=like.device)


def chunk_of(width: int, heads: int) -> list[int]:
    """Head of each latent dimension: contiguous chunks as even as possible."""
    return [index * heads // width for index in range(width)]


def through_gelu(
    x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor, backend: str
) -> Tensor:
    """gelu(x into^T + bias) outof^T; x [..., E], into [M, E], outof [R, M]."""
    if backend == "cublaslt":
        from lib.kernels import gelu_op

        return gelu_op.through_gelu(x, into, bias, outof)
    return F.linear(F.gelu(F.linear(x, into, bias), approximate="tanh"), outof)


class MlpResult(NamedTuple):
    """Output [B, S, E] and what the next block reads."""

    output: Tensor
    ctx: BlockContext


class MLP(nn.Module):
    """GPT-2's MLP with the mechanisms its settings switch on."""

    def __init__(self, settings: Settings, produces: bool) -> None:
        super().__init__()
        m, x = settings.model, settings.mechanisms
        self.fc = nn.Linear(m.n_embd, m.mlp_width, bias=m.bias)
        self.exchange = (
            LatentExchange(settings, produces) if x.latent != "none" else None
        )
        self.cross = CrossToken(settings) if x.cross_token else None
        self.gate = MlpGate(settings) if x.mlp_gate and produces else None
        self.proj = nn.Linear(m.mlp_width, m.n_embd, bias=m.bias)
        self.dropout = nn.Dropout(m.dropout)
        self.backend = settings.resources.mlp_backend
        literal = settings.resources.attention_backend == "reference"
        mechanisms = (self.exchange, self.cross, self.gate)
        self.factors = not literal and any(x is not None for x in mechanisms)

    def forward(
        self,
        x: Tensor,
        *,
        side: AttentionSide,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> MlpResult:
        """x [B, S, E], normed; ``side`` from this block's attention."""
        hidden = self._hidden(x, cache)
        if self.exchange is not None:
            assert side.key_latent is not None, (
                "latent reciprocity reads the key latent, which this block's "
                "attention did not produce"
            )
            hidden = self.exchange.add(hidden, side.key_latent)
        if self.cross is not None:
            assert side.mean_weights is not None, (
                "the cross-token MLP reads the mean attention weights, which this "
                "block's attention did not produce"
            )
            hidden = self.cross(hidden, side.mean_weights, cache)
        ctx = BlockContext(
            mlp_gate=None if self.gate is None else self.gate(hidden, cache, position),
            mlp_latent=None if self.exchange is None else self.exchange.give(hidden),
        )
        return MlpResult(self.dropout(self._project(hidden)), ctx)

    def _hidden(self, x: Tensor, cache: LayerCache | None) -> Hidden:
        """The hidden state, or what is read of it where that is faster: by cuBLASLt,
        and on a GPU wherever mechanisms read it or add to it."""
        few = cache is not None  # tokens: products of matrices would not pay
        factors = self.factors and platform_of_tensor(x).triton
        if few or not (factors or self.backend == "cublaslt"):
            return F.gelu(self.fc(x), approximate="tanh")
        readers = {}  # in the order in which they read
        if self.cross is not None:
            readers["cross"] = self.cross.down.weight
        if self.gate is not None:
            readers["gate"] = self.gate.down.weight
        if self.exchange is not None and self.exchange.produces:
            readers["latent"] = self.exchange.reader()
        readers["proj"] = self.proj.weight
        fc, backend = self.fc, self.backend
        return Factored(
            readers, lambda rows: through_gelu(x, fc.weight, fc.bias, rows, backend)
        )

    def _project(self, hidden: Hidden) -> Tensor:
        if isinstance(hidden, Tensor):
            return self.proj(hidden)
        out, bias = hidden.read("proj"), self.proj.bias
        return out if bias is None else out + bias.to(out.dtype)
