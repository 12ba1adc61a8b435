"""RA-CT: gates of each row by a statistic of its attention weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt2.mechanisms import needs_of
from gpt2.mechanisms.needs import Statistic
from gpt2.model.backends.call import Attended
from gpt2.model.parts import OPEN, AttentionPart, mixed
from gpt2.settings.schema import Settings
from lib.kernels.rows import HeadGate


class StatisticGate(AttentionPart):
    """RA-CT: sigmoid(scale_h stat + bias_h) of a statistic of each row."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        x, heads = settings.mechanisms, settings.model.n_head
        found = needs_of(settings).statistic
        assert found is not None, "RA-CT is off"
        self.statistic = found
        self.at_weights = x.ract_placement == "weights"
        self.mix, self.detach = x.ract_mix, x.ract_detach
        self.scale = nn.Parameter(torch.ones(heads))
        self.bias = nn.Parameter(torch.full((heads,), OPEN))

    def forward(self, statistic: Tensor) -> Tensor:
        """Factor [B, H, S] from a statistic [B, H or 1, S]."""
        stat = statistic.detach() if self.detach else statistic
        gate = torch.sigmoid(self.scale[:, None] * stat + self.bias[:, None])
        return mixed(gate, self.mix)

    def row_factor(self, find: Callable[[Statistic], Tensor]) -> Tensor | None:
        if not self.at_weights:
            return None
        return self(find(self.statistic))

    def head_gate(self, given: Tensor | None) -> HeadGate:
        return HeadGate(self.mix, None, self.scale, self.bias, self.at_weights)

    def gate_heads(
        self, out: Tensor, attended: Attended, given: Tensor | None = None
    ) -> Tensor:
        if self.at_weights:
            return out
        assert attended.statistic is not None, "RA-CT without its statistic"
        return out * self(attended.statistic).unsqueeze(-1).to(out.dtype)


ATTENTION = {"ract": StatisticGate}
