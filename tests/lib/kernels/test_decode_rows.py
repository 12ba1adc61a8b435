"""lib/kernels/decode_rows.py against torch's own operations, by the interpreter or on
a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.interpreted import interpreted

N, ROW, KEEP = 24, 17, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def differences(device: str = "cpu") -> dict[str, float]:
    """Largest difference of each result from the formula."""
    found = softmax_differences(device)
    found |= kept_differences(device) | gate_differences(device)
    return found


def softmax_differences(device: str) -> dict[str, float]:
    from lib.kernels.decode_rows import softmax_rows

    found = {}
    scores, ring = draw(2, 3, 1, N), draw(2, 3, 1, KEEP + 1, seed=1)
    whole, factor = draw(2, 3, 1, N, seed=2), draw(2, 3, 1, seed=3).exp()
    alpha = torch.tensor([0.3, -0.7, 1.5])
    for row in (0, 3, ROW):
        at, place = torch.arange(N), torch.tensor([row])
        banded = torch.zeros_like(scores)
        for column in range(max(0, row - KEEP), row + 1):
            slot = KEEP if column == row else column % KEEP
            banded[..., column] = ring[..., slot]
        for name, products, term, one in (
            ("plain", None, torch.zeros(()), 0.0),
            ("ring", ring, banded, alpha),
            ("columns", whole, whole, 0.4),
        ):
            weight = one.view(-1, 1, 1) if isinstance(one, Tensor) else one
            logits = (scores + weight * term) * 0.5 * factor.unsqueeze(-1)
            p = logits.masked_fill(at > row, -torch.inf).softmax(-1)
            logs = torch.where(p > 0, p, 1.0).log()
            statistics = {
                "topk": p.topk(3).values.sum(-1),
                "max": p.amax(-1),
                "rms": (p.square().sum(-1) / (row + 1)).sqrt(),
                "entropy": -(p * logs).sum(-1) / torch.tensor(max(2.0, row + 1)).log(),
            }
            for kind, true in statistics.items():
                out, wide, stat = softmax_rows(
                    scores.to(device),
                    place.to(device),
                    0.5,
                    torch.bfloat16,
                    products=None if products is None else products.to(device),
                    is_ring=name == "ring",
                    alpha=one.to(device) if isinstance(one, Tensor) else one,
                    factor=factor.to(device),
                    statistic=kind,
                    topk=3,
                    wide=True,
                )
                pairs = ((wide, p), (stat, true))
                worst = [float((a.cpu() - b).abs().max()) for a, b in pairs]
                # In bf16 within a unit of the last place.
                beyond = ((out.float().cpu() - p).abs() - p / 128).clamp_min(0)
                found[f"{name} {kind} {row}"] = max(*worst, float(beyond.max()))
    return found


def kept_differences(device: str) -> dict[str, float]:
    from lib.kernels.decode_rows import kept_sum

    found = {}
    for filled in (2, N):
        weights = draw(2, 1, N).abs()
        weights[..., filled:] = 0.0
        low = draw(2, N + 3, 6, seed=1)[:, :N]
        kept = torch.zeros_like(weights)
        top = weights.topk(4)
        kept.scatter_(-1, top.indices, top.values)
        for renorm in (False, True):
            w = kept / kept.sum(-1, keepdim=True) if renorm else kept
            mine = kept_sum(weights.to(device), low.to(device), 4, renorm)
            found[f"kept {filled} {renorm}"] = float((mine.cpu() - w @ low).abs().max())
    return found


def gate_differences(device: str) -> dict[str, float]:
    from lib.kernels.decode_rows import gate_rows

    x = draw(2, 3, 5).unsqueeze(2)
    gate, scale, bias = draw(2, 3, seed=1), draw(3, seed=2), draw(3, seed=3)
    raw = torch.sigmoid(scale * gate + bias)
    here = [t.to(device) for t in (x, gate, scale, bias)]
    mine = gate_rows(here[0], here[1], 0.7), gate_rows(here[0], here[1], 0.7, *here[2:])
    true = [x * (0.3 + 0.7 * g[:, :, None, None]) for g in (gate, raw)]
    off = gate_rows(here[0], here[1], 0.0)
    return {
        "gate": float((mine[0].cpu() - true[0]).abs().max()),
        "raw gate": float((mine[1].cpu() - true[1]).abs().max()),
        "gate at 0": float((off.cpu() != x).sum()),
    }


def assert_equal(found: dict[str, float]) -> None:
    assert len(found) > 40
    assert all(value < 3e-6 for value in found.values()), found


def test_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    assert_equal(interpreted(differences))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    assert_equal(differences("cuda"))
