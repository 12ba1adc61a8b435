"""Gates of the next block's heads, made from an MLP's hidden state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.backends.call import Attended
from gpt2.model.context import LayerCache
from gpt2.model.low_rank_hidden import Hidden, read
from gpt2.model.parts import OPEN, AttentionPart, MlpPart, mixed
from gpt2.settings.schema import Settings
from lib.kernels.rows import HeadGate


class MlpGate(MlpPart):
    """Gates of the next block's heads from this block's MLP hidden state.

    gamma_t = sigmoid(h_t W_1 W_2 + b), per token, or of the mean of h over
    the tokens up to t.
    """

    factored = True
    is_producer = True

    def __init__(self, settings: Settings, produces: bool = True) -> None:
        super().__init__(settings, produces)
        m, x = settings.model, settings.mechanisms
        self.pooled = x.mlp_gate_pool == "prefix_mean"
        self.down = nn.Linear(m.mlp_width, x.mlp_gate_dim, bias=False)
        self.up = nn.Linear(x.mlp_gate_dim, m.n_head, bias=False)
        self.bias = nn.Parameter(torch.full((m.n_head,), OPEN))

    def making_readers(self) -> dict[str, Tensor]:
        return {"gate": self.down.weight}

    def make(self, hidden: Hidden, cache: LayerCache | None = None) -> Tensor:
        """Gates [B, S, H] from hidden states [B, S, M]."""
        low = read(hidden, "gate", self.down.weight)
        if self.pooled:
            low = self._prefix_mean(low, cache)
        if cache is not None:  # as rows of a matrix, so that one launch adds the bias
            rows = F.linear(low.flatten(0, 1), self.up.weight, self.bias)
            return torch.sigmoid(rows.view(*low.shape[:2], -1))
        return torch.sigmoid(self.up(low) + self.bias)

    @staticmethod
    def _prefix_mean(low: Tensor, cache: LayerCache | None) -> Tensor:
        # The mean commutes with W_1, so the running sum is G wide, not M.
        sums = low.float().cumsum(1) if low.dtype != torch.float64 else low.cumsum(1)
        if cache is None:
            count = torch.arange(1, low.shape[1] + 1, device=low.device)
        else:
            sums = sums + cache.add("gate_sum", sums[:, -1:])
            count = cache.place.counts(low.device)
        return (sums / count[:, None]).to(low.dtype)


class GatedByMlp(AttentionPart):
    """Gates the heads by what the MLP of the block before made."""

    reads = "mlp_gate"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mix = settings.mechanisms.mlp_gate_mix

    def head_gate(self, given: Tensor | None) -> HeadGate:
        return HeadGate(self.mix, given)

    def gate_heads(
        self, out: Tensor, attended: Attended, given: Tensor | None
    ) -> Tensor:
        assert given is not None
        factor = mixed(given, self.mix).transpose(1, 2).unsqueeze(-1)
        return out * factor.to(out.dtype)


ATTENTION = {"gated_by_mlp": GatedByMlp}
MLP = {"gate": MlpGate}
