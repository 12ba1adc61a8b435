"""Latent reciprocity: MLP and MLA's key latent read each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.model.context import LayerCache
from gpt2.model.low_rank_hidden import Hidden, added, read
from gpt2.model.parts import AttentionPart, AttentionSide, MlpPart
from gpt2.settings.schema import Settings


class MlpLatent(AttentionPart):
    """Adds what the MLP of the block before made to the key latent."""

    reads = "mlp_latent"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mix = settings.mechanisms.latent_mix

    def latent(self, given: Tensor | None) -> Tensor:
        assert given is not None
        return self.mix * given


class LatentExchange(MlpPart):
    """Latent reciprocity: h + a up(c^K), and down(h) for the next block.

    tied_transpose: one W of M x L, down by W, up by its transpose. untied: two.
    per_head_scalar: a fixed orthonormal projection, and for each direction one
    learned scalar a head over contiguous chunks of the latent.
    """

    factored = True
    basis: Tensor

    def __init__(self, settings: Settings, produces: bool) -> None:
        super().__init__(settings, produces)
        m, x = settings.model, settings.mechanisms
        self.kind, self.mix = x.latent, x.latent_mix
        if self.kind == "per_head_scalar":
            self.register_buffer("basis", torch.eye(m.mlp_width, x.latent_dim))
            self.chunks = chunk_of(x.latent_dim, m.n_head)
            self.up_scale = nn.Parameter(torch.ones(m.n_head))
            self.down_scale = nn.Parameter(torch.ones(m.n_head)) if produces else None
            return
        self.up = nn.Linear(x.latent_dim, m.mlp_width, bias=False)
        owns_down = produces and self.kind == "untied"
        down = nn.Linear(m.mlp_width, x.latent_dim, bias=False) if owns_down else None
        self.down = down

    def update(
        self, hidden: Hidden, side: AttentionSide, cache: LayerCache | None = None
    ) -> Hidden:
        """hidden [B, S, M] with this block's key latent [B, S, L] added."""
        key_latent = side.key_latent
        assert key_latent is not None, (
            "latent reciprocity reads the key latent, which this block's "
            "attention did not produce"
        )
        if self.kind == "per_head_scalar":
            scaled = key_latent * self._of_chunks("up_scale", cache)
            return added(hidden, scaled, self.basis, self.mix)
        return added(hidden, key_latent, self.up.weight, self.mix)

    def reader(self) -> Tensor:
        """Matrix [L, M] with which ``make`` reads the hidden state."""
        if self.kind == "per_head_scalar":
            return self.basis.T
        return self.up.weight.T if self.down is None else self.down.weight

    def making_readers(self) -> dict[str, Tensor]:
        return {"latent": self.reader()}

    def make(self, hidden: Hidden, cache: LayerCache | None = None) -> Tensor:
        """[B, S, M] -> [B, S, L] for the next block."""
        low = read(hidden, "latent", self.reader())
        if self.kind == "per_head_scalar":
            low = low * self._of_chunks("down_scale", cache)
        return low

    def _of_chunks(self, name: str, cache: LayerCache | None) -> Tensor:
        """The head's scalar of each dimension of the latent, [L]; for decoding made
        once."""

        def make() -> Tensor:
            scale: Tensor | None = getattr(self, name)
            assert scale is not None, "a producer without its scalars"
            return scale[torch.as_tensor(self.chunks, device=scale.device)]

        return make() if cache is None else cache.once(name, make)


def chunk_of(width: int, heads: int) -> list[int]:
    """Head of each latent dimension: contiguous chunks as even as possible."""
    return [index * heads // width for index in range(width)]


ATTENTION = {"mlp_latent": MlpLatent}
MLP = {"exchange": LatentExchange}
