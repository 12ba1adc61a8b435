"""The attention backends by name, and which of them serves a call.

A backend is one module of this folder: ``unsupported`` says what it cannot do, ``run``
does it. All agree up to rounding. A new one needs its module, a row in ``BACKENDS``, a
symbol in gpt2/Kconfig.hardware and what it keeps in gpt2/plan/memory.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from gpt2.mechanisms import needs_of, projection_of
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model.backends import cudnn, decode, flex, reference, sdpa, triton
from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    platform_of,
    platform_of_tensor,
)
from gpt2.settings.schema import Settings
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
    by sdpa, or else by the reference (``serving`` says which). One row of a longer
    sequence is decoded (decode.py)."""
    if decode.serves(call) and (backend != "reference" or call.row is not None):
        return decode.run(call)
    assert call.row is None, "a recording decodes one row at a time"
    if not torch.compiler.is_compiling():  # which has no addresses
        call.check_packing()
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
    m, needs = settings.model, needs_of(settings)
    window = needs.window
    if window is not None and not needs.is_banded(m.block_size):
        window = WHOLE_CONTEXT
    main = CallShape(
        rows=m.block_size,
        columns=m.block_size,
        widths=(projection_of(settings).key_width(settings), m.head_dim),
        dtype=DTYPES[settings.optim.mixed_precision],
        window=window,
        statistic=None if needs.at_weights else needs.statistic,
        mean=needs.mean,
        dropout=m.dropout,
    )
    if not needs.at_weights:
        return (main,)
    before = replace(
        main, statistic=needs.statistic, mean=False, dropout=0.0, values=False
    )
    return before, main


def platform_for(settings: Settings, device: str) -> Platform:
    """Where a model of these settings attends; device: torch's name of its kind."""
    return platform_of(device, settings.resources.compile_model)


def served_by(settings: Settings, platform: Platform) -> str:
    """The backends that serve a model in training, such as "sdpa"; where two calls of
    a layer differ, both, as "reference+sdpa"."""
    backend = settings.resources.attention_backend
    found = [serving(shape, backend, platform) for shape in shapes_of(settings)]
    return "+".join(dict.fromkeys(found))


def fallbacks(settings: Settings, platform: Platform) -> list[str]:
    """One line per call that the backend asked for by name cannot serve."""
    backend = settings.resources.attention_backend
    if backend == "auto":
        return []
    return [
        f"attention by {backend!r}: {why}; {serving(shape, backend, platform)} serves "
        "instead"
        for shape in shapes_of(settings)
        if (why := BACKENDS[backend].unsupported(shape, platform))
    ]
