"""AdamWPrune: AdamW, whose moments lib/pruning/methods/state.py reads."""

from dataclasses import replace

from lib.optim.optimizers import adamw

SPEC = replace(
    adamw.SPEC,
    name="adamwprune",
    summary="AdamW whose state scores the weights to prune",
    unpruned="adamw",
    place=6,
)
