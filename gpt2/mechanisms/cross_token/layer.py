"""The cross-token MLP: hidden states summed by attention's mean weights."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2.model.backends.call import Largest, OfHeads
from gpt2.model.context import LayerCache
from gpt2.model.kept_weights import keep_weights, normalised
from gpt2.model.low_rank_hidden import Hidden, added, read
from gpt2.model.parts import AttentionSide, MlpPart
from gpt2.settings.schema import Settings


class CrossToken(MlpPart):
    """h_i + a (c_i V) U with c_i = sum_j w_ij h_j over the kept mean weights."""

    factored = True

    def __init__(self, settings: Settings, produces: bool) -> None:
        super().__init__(settings, produces)
        m, x = settings.model, settings.mechanisms
        self.mix, self.select, self.topk = x.cross_mix, x.cross_select, x.cross_topk
        self.tau, self.renorm = x.cross_tau, x.cross_renorm
        self.down = nn.Linear(m.mlp_width, x.cross_rank, bias=False)
        self.up = nn.Linear(x.cross_rank, m.mlp_width, bias=False)

    def readers(self) -> dict[str, Tensor]:
        return {"cross": self.down.weight}

    def update(
        self, hidden: Hidden, side: AttentionSide, cache: LayerCache | None = None
    ) -> Hidden:
        """hidden [B, S, M] -> [B, S, M], by the mean weights or their topk largest."""
        weights = side.mean_weights
        assert weights is not None, (
            "the cross-token MLP reads the mean attention weights, which this "
            "block's attention did not produce"
        )
        low = read(hidden, "cross", self.down.weight)  # summed at rank R, not M
        if isinstance(weights, OfHeads):
            from lib.kernels.decode_rows import kept_sum

            assert cache is not None and self.select == "topk"
            held = cache.room("cross", low, 1)
            summed = kept_sum(*weights, low, held, self.topk, self.renorm)
            return added(hidden, summed, self.up.weight, self.mix)
        if cache is not None:
            low = cache.extend("cross", low, 1)
        if isinstance(weights, Largest):
            summed = sum_largest(weights, low, self.renorm)
        else:
            how = self.select, self.topk, self.tau, self.renorm
            visible = None if cache is None else cache.place.counts(low.device)
            kept = keep_weights(weights, *how, visible)
            summed = kept.to(low.dtype) @ low
        return added(hidden, summed, self.up.weight, self.mix)


def sum_largest(weights: Largest, low: Tensor, renorm: bool) -> Tensor:
    """sum_j w_ij low_j over the largest weights; low [B, N, R] -> [B, S, R]."""
    from lib.kernels.topk_rows import sum_kept

    values = normalised(weights.values) if renorm else weights.values
    return sum_kept(values, weights.columns, low)


MLP = {"cross": CrossToken}
