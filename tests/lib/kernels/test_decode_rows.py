"""lib/kernels/decode_rows.py against torch's own operations, by the interpreter or on
a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.kernels.rows import HeadGate
from tests.interpreted import interpreted

N, ROW, SIZE = 24, 17, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def differences(device: str = "cpu") -> dict[str, float]:
    """Largest difference of each result from the formula."""
    return softmax_differences(device) | kept_differences(device)


def softmax_differences(device: str) -> dict[str, float]:
    from lib.kernels.decode_rows import QueryRing, softmax_rows

    found = {}
    scores, whole, alpha = draw(2, 3, 1, N), draw(2, 3, 1, N, seed=2), draw(3, seed=3)
    key, queries = draw(2, 3, 1, 5, seed=1), draw(2, 3, N, 5, seed=4)
    scale, bias, gates = (draw(*n, seed=5) for n in ((3,), (3,), (2, 3)))
    for row in (0, 3, ROW):
        at, place = torch.arange(N), torch.tensor([row])
        near = (at <= row) & (at > row - SIZE)
        ring, filled = torch.zeros(2, 3, SIZE, 5), torch.zeros(2, 3, SIZE, 5)
        for column in range(max(0, row + 1 - SIZE), row + 1):
            filled[:, :, column % SIZE] = queries[:, :, column]
            if column < row:
                ring[:, :, column % SIZE] = queries[:, :, column]
        ring = ring.to(device)
        band = QueryRing(key.to(device), queries[:, :, [row]].to(device), ring)
        for name, given, term, one in (
            ("plain", None, torch.zeros(()), 0.0),
            ("ring", band, key @ queries.mT * near, alpha),
            ("columns", whole.to(device), whole, 0.4),
        ):
            weight = one.view(-1, 1, 1) if isinstance(one, Tensor) else one
            logits = (scores + weight * term) * 0.5
            plain = weights(logits, row)
            for kind, stat in statistics(plain, row).items():
                gate = torch.sigmoid(scale[:, None] * stat + bias[:, None])
                factor = (0.3 + 0.7 * gate).unsqueeze(-1)
                outer = (0.6 + 0.4 * gates).view(2, 3, 1, 1)
                for at_weights in (False, True):
                    p = weights(logits * factor, row) if at_weights else plain
                    numbers = scale.to(device), bias.to(device), at_weights
                    other = HeadGate(0.4, gates.unsqueeze(1).to(device))
                    out, wide = softmax_rows(
                        scores.to(device),
                        place.to(device),
                        0.5,
                        torch.bfloat16,
                        term=given,
                        alpha=one.to(device) if isinstance(one, Tensor) else one,
                        gates=[other, HeadGate(0.7, None, *numbers)],
                        statistic=kind,
                        topk=3,
                        wide=True,
                    )
                    gated = p * outer if at_weights else p * outer * factor
                    # In bf16 within a unit of the last place.
                    beyond = (out.float().cpu() - gated).abs() - gated.abs() / 128
                    found[f"{name} {kind} {row} {at_weights}"] = max(
                        float((wide.cpu() - p).abs().max()),
                        float(beyond.clamp_min(0).max()),
                    )
        found[f"ring {row}"] = float((ring.cpu() != filled).sum())
    alone, _ = softmax_rows(scores.to(device), place.to(device), 0.5, torch.float32)
    found["alone"] = float((alone.cpu() - weights(scores * 0.5, ROW)).abs().max())
    return found


def weights(logits: Tensor, row: int) -> Tensor:
    hidden = torch.arange(N) > row
    return logits.masked_fill(hidden, -torch.inf).softmax(-1)


def statistics(p: Tensor, row: int) -> dict[str, Tensor]:
    logs = torch.where(p > 0, p, 1.0).log()
    return {
        "topk": p.topk(3).values.sum(-1),
        "max": p.amax(-1),
        "rms": (p.square().sum(-1) / (row + 1)).sqrt(),
        "entropy": -(p * logs).sum(-1) / torch.tensor(max(2.0, row + 1)).log(),
    }


def kept_differences(device: str) -> dict[str, float]:
    from lib.kernels.decode_rows import kept_sum

    found = {}
    for row in (1, N - 1):
        heads = draw(2, 3, 1, N).abs()
        heads[..., row + 1 :] = 0.0
        heads[:, :, :, row] += 0.3  # the row's own is among the largest
        low = draw(2, N + 3, 6, seed=1)
        new, before = low[:, [row]], low.clone()
        before[:, row] = torch.nan
        mean = heads.mean(1)
        top, kept = mean.topk(4), torch.zeros(2, 1, N)
        kept.scatter_(-1, top.indices, top.values)
        for renorm in (False, True):
            w = kept / kept.sum(-1, keepdim=True) if renorm else kept
            held = before.to(device)
            here = heads.to(device), torch.tensor([row], device=device), new.to(device)
            mine = kept_sum(*here, held, 4, renorm).cpu()
            found[f"kept {row} {renorm}"] = float((mine - w @ low[:, :N]).abs().max())
            found[f"held {row} {renorm}"] = float((held.cpu() != low).sum())
    return found


def assert_equal(found: dict[str, float]) -> None:
    assert len(found) > 40
    assert all(value < 3e-6 for value in found.values()), found


def test_by_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert_equal(interpreted(differences))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    assert_equal(differences("cuda"))
