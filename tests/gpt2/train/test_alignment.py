"""Dimensions that are not multiples of 64 are named."""

from gpt2.plan.planning import make_plan
from gpt2.train.alignment import unaligned
from tests.gpt2.tinytraining import tiny_config


def test_each_unaligned_dimension_is_named_by_its_symbol():
    settings = make_plan(tiny_config()).jobs[0].settings
    good = settings.replace(n_embd=768, head_dim=64, mlp_width=3072, block_size=1024)
    assert unaligned(good) == []
    odd = good.replace(mlp_width=2720, latent_dim=100)
    assert unaligned(odd) == ["GPT2_MLP_WIDTH=2720"]  # there is no latent in use
    mla = good.replace(attention="mla", latent_dim=100)
    assert unaligned(mla) == ["RA_MLA_LATENT_DIM=100"]
