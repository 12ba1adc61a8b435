"""One call of causal attention: its arguments, its results, and what it requires.

Shapes, here and in all backends: B batch, H heads, S rows (queries), N columns (keys),
D head width of queries and keys, Dv of values. Rows are the last S of the N positions,
S = N in training. Row i sees the columns j <= i.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.mechanisms.needs import WHOLE_CONTEXT, Statistic
from lib.kernels.rows import HeadGate


@dataclass(frozen=True, slots=True)
class Transposed:
    """The reciprocal term: alpha * keys_i . queries_j where i - j <= window.

    ``keys`` [B, H, S, D] belong to the rows; ``queries`` [B, H, <=N, D] to the last
    columns; with S = N they are the call's own k and q. ``alpha`` is a number or one
    weight per head [H]. ``ring`` [B, H, W + 1, D]: the queries of the window, that of
    column j at j modulo W + 1, into which attention writes ``queries``, the row's own.
    """

    keys: Tensor
    queries: Tensor
    alpha: float | Tensor
    window: int
    ring: Tensor | None = None

    @property
    def alpha_per_head(self) -> float | Tensor:
        """Shaped to multiply [B, H, S, N]."""
        return (
            self.alpha if isinstance(self.alpha, float) else self.alpha.view(-1, 1, 1)
        )

    def is_whole(self, columns: int) -> bool:
        """Whether the band covers every visible key."""
        return self.window == WHOLE_CONTEXT or self.window >= columns - 1


class Largest(NamedTuple):
    """The K largest of each row of a matrix [B, S, N], as values and columns [B, S, K];
    value 0 and column -1 where fewer are positive."""

    values: Tensor
    columns: Tensor

    def matrix(self, columns: int) -> Tensor:
        """[B, S, N] with zeros for all others."""
        zeros = self.values.new_zeros(*self.values.shape[:2], columns)
        return zeros.scatter_add(-1, self.columns.clamp_min(0).long(), self.values)


class OfHeads(NamedTuple):
    """The weights [B, H, 1, N] of one row in fp32, of which the mean is left to the
    kernel that reads it, and the row's position [1]."""

    weights: Tensor
    row: Tensor


class Attended(NamedTuple):
    """Output [B, H, S, Dv], empty for a call without values; if asked for, statistic
    [B, H or 1, S] and the weights' mean over heads [B, S, N], before dropout. gated:
    the call's gates are in the output."""

    output: Tensor
    statistic: Tensor | None = None
    mean: Tensor | Largest | OfHeads | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """softmax over j <= i of scale * row_scale_i * (q_i.k_j + transposed) times v.

    q [B, H, S, D], k [B, H or 1, N, D], v [B, H or 1, N, Dv] or None if the statistic
    alone is asked for, row_scale [B, H, S] on the logits of a row. ``mean``: give the
    weights' mean over heads; ``kept``: how many of a row's mean weights are read (0:
    all), for backends that then give those alone. ``dropout``: probability, on the
    weights. ``qkv`` [B, S, 3, H, D], if q, k and v are views of it, lets a kernel write
    their gradients into one tensor. ``row`` [1]: the position of the only row, if
    columns behind it have been allocated and not been filled. ``gates``: one by the
    statistic and one of other numbers at most, for kernels that decode.
    """

    q: Tensor
    k: Tensor
    v: Tensor | None
    scale: float
    transposed: Transposed | None = None
    statistic: Statistic | None = None
    row_scale: Tensor | None = None
    mean: bool = False
    kept: int = 0
    dropout: float = 0.0
    qkv: Tensor | None = None
    row: Tensor | None = None
    gates: tuple[HeadGate, ...] = ()

    @property
    def shape(self) -> CallShape:
        """Shape of the call, from which backends decide whether they support it."""
        columns, window = self.k.shape[2], None
        if self.transposed is not None:
            window = self.transposed.window
            window = WHOLE_CONTEXT if self.transposed.is_whole(columns) else window
        v = self.q if self.v is None else self.v
        return CallShape(
            rows=self.q.shape[2],
            columns=columns,
            widths=(self.q.shape[3], v.shape[3]),
            dtype=v.dtype,
            window=window,
            statistic=self.statistic,
            mean=self.mean,
            dropout=self.dropout,
            values=self.v is not None,
        )

    def check_packing(self) -> None:
        """Assert that q, k and v are the parts of ``qkv`` where it is given.

        Only the kernels that take it in their place would compute with other numbers,
        so a layer that replaces one of them and keeps qkv is wrong on a GPU alone.
        """
        if self.qkv is None:
            return
        for part, x in zip(self.qkv.unbind(2), (self.q, self.k, self.v), strict=True):
            assert x is not None and _place(x) == _place(
                part.transpose(1, 2)
            ), "qkv was kept although q, k or v was replaced"

    def expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v in one dtype, with all heads, as fused kernels take them; v is
        q where there is none."""
        v = self.q if self.v is None else self.v
        k, v = (x.expand(*self.q.shape[:2], -1, -1) for x in (self.k, v))
        return self.q.to(v.dtype), k.to(v.dtype), v


def _place(x: Tensor) -> tuple[object, ...]:
    """Where the numbers of a tensor are in memory."""
    storage = x.untyped_storage()._cdata
    return storage, x.storage_offset(), x.shape, x.stride()


@dataclass(frozen=True, slots=True)
class CallShape:
    """A call as far as backends differ in what they support.

    ``rows`` S, ``columns`` N, ``widths`` D and Dv, ``window`` of a transposed term
    (None: there is none; WHOLE_CONTEXT: no band), ``values``: whether there is a v.
    """

    rows: int
    columns: int
    widths: tuple[int, int]
    dtype: torch.dtype
    window: int | None = None
    statistic: Statistic | None = None
    mean: bool = False
    dropout: float = 0.0
    values: bool = True

    @property
    def banded(self) -> bool:
        return self.window is not None and self.window != WHOLE_CONTEXT


@dataclass(frozen=True, slots=True)
class Platform:
    """Where a call runs: torch's name of the device's kind, and whether Triton's
    kernels, torch.compile and cuDNN's attention can be used there."""

    device: str
    triton: bool
    compiled: bool
    cudnn: bool = False


def platform_of(device: str, compiled: bool) -> Platform:
    """device: torch's name of its kind; Triton's interpreter counts as a device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    installed = find_spec("triton") is not None
    return Platform(
        device,
        triton=installed and (device == "cuda" or interpreted),
        compiled=compiled,
        cudnn=device == "cuda" and torch.version.cuda is not None,
    )


# Made once, because torch.compile cannot trace find_spec.
_PLATFORMS = {kind: platform_of(kind, False) for kind in ("cpu", "cuda")}


def platform_of_tensor(x: Tensor) -> Platform:
    """Where calls on this tensor run."""
    found = _PLATFORMS.get(x.device.type, Platform(x.device.type, False, False))
    compiling = torch.compiler.is_compiling()
    return Platform(found.device, found.triton, compiling, found.cudnn)


def first_reason(*checks: tuple[bool, str]) -> str:
    """The text of the first check that is true, empty without one."""
    return next((why for unsupported, why in checks if unsupported), "")
