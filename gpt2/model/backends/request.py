"""Which path of gpt2/model/backends/causal_attention.py serves a request, and what a
request is.

Shapes as there: B batch, H heads, S rows (queries), N columns (keys), D head width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from gpt2.settings.schema import WHOLE_CONTEXT, Settings

BACKENDS = ("auto", "reference", "sdpa", "cudnn", "flex", "triton")
WIDEST_HEAD = 128  # of the kernels in lib/kernels
WIDEST_TOPK = 32


@dataclass(frozen=True, slots=True)
class Transposed:
    """The reciprocal term: alpha * keys_i . queries_j where i - j <= window.

    ``keys`` [B, H, S, D] are the rows' own; ``queries`` [B, H, <=N, D] those of
    the last columns; with S = N they are attention's own k and q. ``alpha`` is a
    number or one weight a head [H].
    """

    keys: Tensor
    queries: Tensor
    alpha: float | Tensor
    window: int

    @property
    def alpha_per_head(self) -> float | Tensor:
        """Shaped to multiply [B, H, S, N]."""
        return (
            self.alpha if isinstance(self.alpha, float) else self.alpha.view(-1, 1, 1)
        )

    def is_whole(self, columns: int) -> bool:
        """Whether the band covers every visible key."""
        return self.window == WHOLE_CONTEXT or self.window >= columns - 1


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number for each row of attention weights, over its visible keys."""

    kind: str
    topk: int
    head_average: bool


# ---- which path serves ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionRequest:
    """What a call asks for, as far as paths differ in what they can do.

    ``rows`` S, ``columns`` N, ``widths`` D and Dv, ``window`` of a transposed term
    (None: there is none; WHOLE_CONTEXT: no band).
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

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        transposed: Transposed | None,
        statistic: Statistic | None,
        mean: bool = False,
        dropout: float = 0.0,
        values: bool = True,
    ) -> AttentionRequest:
        """The request that ``attend`` makes with these arguments."""
        columns, window = k.shape[2], None
        if transposed is not None:
            window = transposed.window
            window = WHOLE_CONTEXT if transposed.is_whole(columns) else window
        return cls(
            rows=q.shape[2],
            columns=columns,
            widths=(q.shape[3], v.shape[3]),
            dtype=v.dtype,
            window=window,
            statistic=statistic,
            mean=mean,
            dropout=dropout,
            values=values,
        )

    @property
    def banded(self) -> bool:
        return self.window is not None and self.window != WHOLE_CONTEXT


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call runs: the kind of device, and whether kernels in Triton, cuDNN's
    attention and compiled FlexAttention can be had there."""

    device: str
    triton: bool
    compiled: bool
    cudnn: bool = False


def place_of(device: str, compiled: bool) -> Place:
    """device: torch's name of its kind; Triton's interpreter counts as a device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    there = find_spec("triton") is not None
    return Place(
        device,
        triton=there and (device == "cuda" or interpreted),
        compiled=compiled,
        cudnn=device == "cuda" and torch.version.cuda is not None,
    )


_PLACES = {kind: place_of(kind, False) for kind in ("cpu", "cuda")}


def place_of_tensor(x: Tensor) -> Place:
    """Where calls on this tensor run."""
    # Looked up, since torch.compile cannot follow find_spec.
    place = _PLACES.get(x.device.type, Place(x.device.type, False, False))
    compiling = torch.compiler.is_compiling()
    return Place(place.device, place.triton, compiling, place.cudnn)


def refusal(path: str, request: AttentionRequest, place: Place) -> str:
    """Why a path cannot serve a request; empty if it can."""
    checks = {
        "sdpa": _not_sdpa,
        "cudnn": _not_cudnn,
        "flex": _not_flex,
        "triton": _not_triton,
    }
    if path not in checks:
        return ""
    return next((why for bad, why in checks[path](request, place) if bad), "")


def _not_sdpa(r: AttentionRequest, place: Place) -> Iterator[tuple[bool, str]]:
    yield r.statistic is not None, "no statistics of its weights"
    yield r.mean, "no weights to average"
    yield r.banded, "no band"
    yield r.rows != r.columns, "no decoding"


def _not_cudnn(r: AttentionRequest, place: Place) -> Iterator[tuple[bool, str]]:
    yield not place.cudnn, "needs an NVIDIA GPU"
    yield from _not_sdpa(r, place)
    yield r.dropout > 0, "no dropout"
    yield r.dtype not in (torch.bfloat16, torch.float16), "16-bit numbers alone"
    # A whole-context transposed term doubles the width of queries and keys.
    widths = (r.widths[0] * (1 if r.window is None else 2), r.widths[1])
    yield max(widths) > WIDEST_HEAD, f"head width above {WIDEST_HEAD}"
    yield any(width % 8 for width in widths), "head widths in multiples of 8 alone"


def _not_flex(r: AttentionRequest, place: Place) -> Iterator[tuple[bool, str]]:
    entropy = r.statistic is not None and r.statistic.kind == "entropy"
    yield place.device != "cuda", "needs a GPU"
    yield not place.compiled, "needs torch.compile (COMPILE_MODEL=y)"
    yield r.mean, "no weights to average"
    yield r.statistic is not None and not entropy, "no statistic but the entropy"
    yield r.statistic is not None and r.statistic.head_average, "heads stay apart"
    yield r.statistic is not None and r.banded, "no entropy within a band"
    yield r.dropout > 0, "no dropout"
    yield r.rows != r.columns, "no decoding"
    yield r.dtype == torch.float64, "no float64"


def _not_triton(r: AttentionRequest, place: Place) -> Iterator[tuple[bool, str]]:
    s = r.statistic
    yield not place.triton, "Triton is not installed, or there is no GPU"
    yield r.dropout > 0, "no dropout"
    yield r.rows != r.columns, "no decoding"
    yield max(r.widths) > WIDEST_HEAD, f"head width above {WIDEST_HEAD}"
    kept = s is not None and s.kind == "topk" and not s.head_average
    yield kept and s is not None and s.topk > WIDEST_TOPK, f"k above {WIDEST_TOPK}"
    yield r.dtype == torch.float64, "no float64"


def backend_of(request: AttentionRequest, backend: str, place: Place) -> str:
    """The path that serves: the named one, else sdpa, else the reference."""
    named = () if backend == "auto" else (backend,)
    order = named if backend == "reference" else (*named, "sdpa")
    for path in order:
        if not refusal(path, request, place):
            return path
    return "reference"


# ---- what a model's settings ask for -----------------------------------------------


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def requests_of(settings: Settings) -> tuple[AttentionRequest, ...]:
    """The requests of one layer in training, in the order of its calls."""
    m, x = settings.model, settings.mechanisms
    rope = x.rope_dim if x.attention == "mla_rope" else 0
    window = x.ra_window if x.ra_window < m.block_size - 1 else WHOLE_CONTEXT
    statistic = Statistic(x.ract_statistic, x.ract_topk, x.ract_head_average)
    main = AttentionRequest(
        rows=m.block_size,
        columns=m.block_size,
        widths=(m.head_dim + rope, m.head_dim),
        dtype=DTYPES[settings.optim.mixed_precision],
        window=window if x.ra else None,
        statistic=statistic if x.ract and x.ract_placement == "output" else None,
        mean=x.cross_token,
        dropout=m.dropout,
    )
    if not x.ract or x.ract_placement == "output":
        return (main,)
    before = replace(main, statistic=statistic, mean=False, dropout=0.0, values=False)
    return before, main


def served_by(settings: Settings, place: Place) -> str:
    """The paths that serve a model in training, such as "sdpa"; where two calls of
    a layer differ, both, as "reference+sdpa"."""
    backend = settings.resources.attention_backend
    found = [backend_of(r, backend, place) for r in requests_of(settings)]
    return "+".join(dict.fromkeys(found))


def fallbacks(settings: Settings, place: Place) -> list[str]:
    """One line a request that the path asked for by name cannot serve."""
    backend = settings.resources.attention_backend
    lines = []
    for request in requests_of(settings):
        why = "" if backend == "auto" else refusal(backend, request, place)
        if why:
            path = backend_of(request, backend, place)
            lines.append(f"attention by {backend!r}: {why}; {path} serves instead")
    return lines
