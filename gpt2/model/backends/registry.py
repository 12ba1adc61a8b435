"""The attention backends by name, and which of them serves a call.

A backend is one module of this folder: ``unsupported`` says what it cannot do, ``run``
does it. All agree up to rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from gpt2.model.backends import cudnn, flex, reference, sdpa, triton
from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    Statistic,
    platform_of_tensor,
)
from gpt2.settings.schema import WHOLE_CONTEXT, Settings
from lib.gpu.device import DTYPES


class Backend(Protocol):
    """A module of this folder that computes attention."""

    def unsupported(self, shape: CallShape, platform: Platform) -> str: ...

    def run(self, call: AttentionCall) -> Attended: ...


# In the order in which `auto` tries them on a GPU.
BACKENDS: dict[str, Backend] = {
    "cudnn": cudnn,
    "sdpa": sdpa,
    "triton": triton,
    "flex": flex,
    "reference": reference,
}


def attend(call: AttentionCall, backend: str = "auto") -> Attended:
    """Compute a call by the backend of that name; where it is "auto" or cannot serve,
    by sdpa, or else by the reference (``serving`` says which)."""
    name = serving(call.shape, backend, platform_of_tensor(call.q))
    return BACKENDS[name].run(call)


def serving(shape: CallShape, backend: str, platform: Platform) -> str:
    """The backend that serves a call: the named one, else sdpa, else the reference."""
    order = ("sdpa",) if backend == "auto" else (backend, "sdpa")
    for name in order:
        if not BACKENDS[name].unsupported(shape, platform):
            return name
    return "reference"


# ---- what a model's settings ask for -----------------------------------------------


def shapes_of(settings: Settings) -> tuple[CallShape, ...]:
    """The calls of one layer in training, in their order."""
    m, x = settings.model, settings.mechanisms
    rope = x.rope_dim if x.attention == "mla_rope" else 0
    window = x.ra_window if x.ra_window < m.block_size - 1 else WHOLE_CONTEXT
    statistic = Statistic(x.ract_statistic, x.ract_topk, x.ract_head_average)
    main = CallShape(
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


def served_by(settings: Settings, platform: Platform) -> str:
    """The backends that serve a model in training, such as "sdpa"; where two calls of
    a layer differ, both, as "reference+sdpa"."""
    backend = settings.resources.attention_backend
    found = [serving(shape, backend, platform) for shape in shapes_of(settings)]
    return "+".join(dict.fromkeys(found))


def fallbacks(settings: Settings, platform: Platform) -> list[str]:
    """One line per call that the backend asked for by name cannot serve."""
    backend = settings.resources.attention_backend
    lines = []
    for shape in shapes_of(settings):
        why = ""
        if backend != "auto":
            why = BACKENDS[backend].unsupported(shape, platform)
        if why:
            name = serving(shape, backend, platform)
            lines.append(f"attention by {backend!r}: {why}; {name} serves instead")
    return lines
