"""Pruning of whole attention heads; lib/pruning/heads.py scores and prunes them."""

from lib.pruning.spec import MethodSpec

SPEC = MethodSpec(
    name="heads",
    summary="whole heads, those of the lowest |m| / sqrt(v)",
    reads_moments=True,
    is_structured=True,
    against="none",
    place=4,
)
