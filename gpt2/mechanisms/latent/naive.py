"""Formula of latent reciprocity."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gpt2.model.reference.formula import BlockFormula


class LatentFormula(BlockFormula):
    """h + a up(c^K), and a down(h) for the key latent of the next block."""

    def latent(self, ctx: Mapping[str, Tensor]) -> Tensor | None:
        return self.x.latent_mix * ctx["mlp_latent"] if "mlp_latent" in ctx else None

    def hidden(self, h: Tensor, weights: Tensor, key_latent: Tensor | None) -> Tensor:
        assert key_latent is not None, "no key latent to read"
        return h + self.x.latent_mix * (key_latent @ self.up().T)

    def made(self, h: Tensor) -> Tensor:
        return h @ self.down().T

    def up(self) -> Tensor:
        """From the key latent to the hidden state, [M, L]."""
        if self.x.latent == "per_head_scalar":
            return self.get("mlp.exchange.basis") * self.scales("up_scale")
        return self.get("mlp.exchange.up.weight")

    def down(self) -> Tensor:
        """From the hidden state to the next key latent, [L, M]."""
        if self.x.latent == "per_head_scalar":
            basis = self.get("mlp.exchange.basis") * self.scales("down_scale")
            return basis.T
        if self.x.latent == "untied":
            return self.get("mlp.exchange.down.weight")
        return self.up().T

    def scales(self, name: str) -> Tensor:
        """One number per head over contiguous chunks of the latent, [L]."""
        heads, width = self.model.n_head, int(self.x.latent_dim)
        owner = [i * heads // width for i in range(width)]
        return self.get(f"mlp.exchange.{name}")[owner]


FORMULA = LatentFormula
