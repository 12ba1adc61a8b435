"""Gates on attention: by its own statistics (RA-CT), by the MLP, by its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.model.backends.call import Statistic
from gpt2.model.context import LayerCache
from gpt2.model.low_rank_hidden import Hidden, read
from gpt2.settings.schema import Settings

OPEN = 2.0  # initial gate bias: sigmoid(2) = 0.88, nearly open


def mixed(gate: Tensor, mix: float) -> Tensor:
    """The factor 1 - a + a g of a gate g of any shape, exactly 1 at a = 0."""
    return 1.0 - mix + mix * gate


class StatisticGate(nn.Module):
    """RA-CT: sigmoid(scale_h stat + bias_h) of a statistic of each row."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        x, heads = settings.mechanisms, settings.model.n_head
        self.statistic = Statistic(x.ract_statistic, x.ract_topk, x.ract_head_average)
        self.at_weights = x.ract_placement == "weights"
        self.mix, self.detach = x.ract_mix, x.ract_detach
        self.scale = nn.Parameter(torch.ones(heads))
        self.bias = nn.Parameter(torch.full((heads,), OPEN))

    def forward(self, statistic: Tensor) -> Tensor:
        """Factor [B, H, S] from a statistic [B, H or 1, S]."""
        stat = statistic.detach() if self.detach else statistic
        gate = torch.sigmoid(self.scale[:, None] * stat + self.bias[:, None])
        return mixed(gate, self.mix)


class MlpGate(nn.Module):
    """Gates of the next block's heads from this block's MLP hidden state.

    gamma_t = sigmoid(h_t W_1 W_2 + b), per token, or of the mean of h over
    the tokens up to t.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        m, x = settings.model, settings.mechanisms
        self.pooled = x.mlp_gate_pool == "prefix_mean"
        self.down = nn.Linear(m.mlp_width, x.mlp_gate_dim, bias=False)
        self.up = nn.Linear(x.mlp_gate_dim, m.n_head, bias=False)
        self.bias = nn.Parameter(torch.full((m.n_head,), OPEN))

    def forward(
        self, hidden: Hidden, cache: LayerCache | None = None, position: int = 0
    ) -> Tensor:
        """Gates [B, S, H] from hidden states [B, S, M]."""
        low = read(hidden, "gate", self.down.weight)
        if self.pooled:
            low = self._prefix_mean(low, cache, position)
        return torch.sigmoid(self.up(low) + self.bias)

    @staticmethod
    def _prefix_mean(low: Tensor, cache: LayerCache | None, position: int) -> Tensor:
        # The mean commutes with W_1, so the running sum is G wide, not M.
        sums = low.float().cumsum(1) if low.dtype != torch.float64 else low.cumsum(1)
        if cache is not None:
            sums = sums + cache.add("gate_sum", sums[:, -1:])
        count = torch.arange(low.shape[1], device=low.device) + position + 1
        return (sums / count[:, None]).to(low.dtype)


class OutputGate(nn.Module):
    """SDPA output gate (arXiv 2505.06708): sigmoid(x W), elementwise per head."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        m = settings.model
        self.gate = nn.Linear(m.n_embd, m.n_head * m.head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Factor [B, S, H D] from the block's normed input [B, S, E]."""
        return torch.sigmoid(self.gate(x))
