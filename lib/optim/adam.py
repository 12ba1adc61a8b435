"""The Adam family, all torch's own: adam, adamw, adamwadv, adamwprune."""

from __future__ import annotations

from lib.optim.config import OptimConfig
from lib.optim.eager import Adam, AdamW
from lib.optim.groups import Group, fused_options


def adam(groups: list[Group], config: OptimConfig) -> Adam:
    """Adam (Kingma & Ba); its decay is an L2 penalty, g <- g + decay w.

    Adam divides that penalty by its own sqrt(v) like any gradient, so the same
    number decays otherwise than in AdamW. That difference is what sets "adam"
    apart from "adamw"; without decay the two are one.
    """
    return Adam(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        **fused_options(groups),
    )


def adamw(groups: list[Group], config: OptimConfig) -> AdamW:
    """AdamW (Loshchilov & Hutter): w <- w (1 - lr decay), then Adam's update.

    Also AdamWPrune: its update is AdamW's; lib.pruning reads the moments.
    """
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        **fused_options(groups),
    )


def adamwadv(groups: list[Group], config: OptimConfig) -> AdamW:
    """AdamW with AMSGrad (Reddi et al.): the denominator never shrinks.

    The cosine schedule and the clip at 1.0 that belong to it are the
    trainer's, and every arm has them.
    """
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        amsgrad=True,
        **fused_options(groups),
    )
