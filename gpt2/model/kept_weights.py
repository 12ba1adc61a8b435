"""Which weights of a row are kept, and their sums."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.model.backends.call import platform_of_tensor
from gpt2.model.backends.reference import row_positions
from lib.kernels.rows import SMALLEST_SUM


def normalised(weights: Tensor) -> Tensor:
    """Non-negative numbers [..., N] divided by their sum."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(SMALLEST_SUM)


def keep_weights(
    weights: Tensor,
    select: str,
    topk: int,
    tau: float,
    renorm: bool,
    visible: Tensor | None = None,
) -> Tensor:
    """Keep the k largest of each row, or those of at least tau times its rms.

    weights [B, S, N] with zeros where j > i; gradients flow through what is
    kept. Of those that equal the k-th largest the first stay, so that every path
    chooses the same. The rms is over the visible part of the row, of ``visible`` [S]
    columns where rows are not the last S of N positions. The kernel gives the type of
    autocast's products, everything else that of the weights.
    """
    kernel = platform_of_tensor(weights).triton and weights.dtype == torch.float32
    if kernel and (visible is None or select != "rms"):
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
        if visible is None:
            visible = row_positions(rows, columns, weights.device).squeeze(1) + 1
        rms = (weights.square().sum(-1, keepdim=True) / visible.unsqueeze(1)).sqrt()
        weights = weights * (weights >= tau * rms).to(weights.dtype)
    return normalised(weights) if renorm else weights
