"""cuDNN's attention on NVIDIA's GPUs; see lib/kernels/cudnn.py for its gradient."""

from __future__ import annotations

import torch

from gpt2.model.backends import sdpa
from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Platform,
    first_reason,
)
from lib.kernels.rows import WIDEST_HEAD


def unsupported(shape: CallShape, platform: Platform) -> str:
    """Why this backend cannot serve such a call; empty if it can."""
    # A whole-context transposed term doubles the width of queries and keys.
    widths = (shape.widths[0] * (1 if shape.window is None else 2), shape.widths[1])
    in_16_bits = shape.dtype in (torch.bfloat16, torch.float16)
    as_sdpa = sdpa.unsupported(shape, platform)
    return first_reason(
        (not platform.cudnn, "needs an NVIDIA GPU"),
        (bool(as_sdpa), as_sdpa),
        (shape.dropout > 0, "no dropout"),
        (not in_16_bits, "16-bit numbers alone"),
        (max(widths) > WIDEST_HEAD, f"head width above {WIDEST_HEAD}"),
        (any(width % 8 for width in widths), "head widths in multiples of 8 alone"),
    )


def run(call: AttentionCall) -> Attended:
    from lib.kernels.cudnn import attention  # declares an operator, which takes long

    return Attended(attention(*sdpa.plain(call), call.scale))
