"""Dimensions that matrix units do not like. Torch-free."""

from __future__ import annotations

from gpt2.mechanisms import enabled
from gpt2.settings.schema import SYMBOL_OF, Settings

MULTIPLE = 64  # of the tiles of 16-bit products on NVIDIA and AMD alike


def unaligned(settings: Settings) -> list[str]:
    """ "GPT2_N_EMBD=100" for each inner dimension that is not a multiple of 64.

    The vocabulary is not among them: the loss pads it (gpt2/model/loss.py).
    """
    names = ["n_embd", "head_dim", "mlp_width", "block_size"]
    names += [width for m in enabled(settings) for width in m.widths]
    values = settings.flat()
    return [
        f"{SYMBOL_OF[name]}={values[name]}" for name in names if values[name] % MULTIPLE
    ]
