"""gpt2/settings/checks.py: combinations that make no sense, and those worth a word."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2.plan.planning import make_plan
from gpt2.settings.checks import check, remarks
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import settings_from, settings_from_dict
from lib.kconfig.config_py import ConfigError
from tests.gpt2.helpers import make_config, tiny

SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"n_embd": 10, "n_head": 4, "head_dim": 0}, "GPT2_N_EMBD=10 is not a multiple"),
    ({"latent": "untied"}, "needs RA_MLA_ATTENTION='mla', but it is 'mha'"),
    ({"latent": "untied", "attention": "mla_rope"}, "it is 'mla_rope'"),
    (
        {"latent": "per_head_scalar", "attention": "mla", "latent_dim": 3},
        "RA_MLA_LATENT_DIM=3 into one chunk per head, and there are 4 heads",
    ),
    (
        {"latent": "per_head_scalar", "attention": "mla", "mlp_width": 5},
        "an MLP of width 5 .* RA_MLA_LATENT_DIM=6 are too many",
    ),
    ({"attention": "mla_rope", "rope_dim": 5}, "RA_MLA_ROPE_DIM=5 must be even"),
    ({"mechanism_share": 0.2}, "RA_MLA_MECHANISM_SHARE=0.2 has no mechanism"),
    ({"mlp_gate": True}, "RA_MLA_MLP_GATE_DIM=0 takes its width from"),
    ({"cross_token": True}, "RA_MLA_CROSS_RANK=0 takes its width from"),
    (
        {"mlp_gate": True, "mlp_gate_dim": 2, "n_layer": 1},
        "GPT2_N_LAYER of at least 2, but it is 1",
    ),
    (
        {"attention": "mla", "latent": "untied", "n_layer": 1},
        "GPT2_N_LAYER of at least 2, but it is 1",
    ),
    ({"min_lr": 1.0}, "GPT2_MIN_LR=1 is above LEARNING_RATE=0.0006"),
    ({"prune_method": "state"}, "by adamwprune's state; adamw has none"),
    ({"prune_method": "heads", "attention": "mla"}, "'heads': .* is 'mla', whose"),
    (
        {"prune_method": "heads", "cross_token": True, "cross_rank": 2},
        "RA_MLA_CROSS_TOKEN=y reads the mean over all heads",
    ),
    (
        {"prune_method": "heads", "ract": True, "ract_head_average": True},
        "RA_MLA_RACT_HEAD_AVERAGE=y gates by the mean over all heads",
    ),
    ({"prune_method": "heads", "optimizer": "muon"}, "muon keeps no second moment"),
    ({"dataset": "text", "text_path": ""}, "GPT2_DATASET_TEXT_PATH is empty"),
    ({"engine": "ray", "gpus": "0"}, "GPUS='0'.* Ray assigns them"),
    ({"engine": "ray", "device": "cuda:1"}, "DEVICE='cuda:1'.* Ray assigns them"),
    ({"engine": "ray", "jobs_per_gpu": 2}, "JOBS_PER_GPU=2: with ENGINE=ray"),
    ({"gpus": "0,a"}, "GPUS='0,a': 'a' is neither a number nor a UUID"),
    ({"gpus": "0,0"}, "GPUS='0,0': it names GPU 0 twice"),
    ({"alloc_conf": "x"}, "PYTORCH_CUDA_ALLOC_CONF='x': 'x' is not an option"),
    ({"output_dir": "../x"}, r"OUTPUT_DIR='\.\./x' must name a folder"),
    ({"output_dir": ""}, "OUTPUT_DIR='' must name a folder"),
    ({"output_dir": "~/x"}, "OUTPUT_DIR='~/x' must name a folder"),
    ({"device": "gpu"}, "DEVICE='gpu' must be auto, cpu, cuda"),
    ({"device": "cpu:1"}, "DEVICE='cpu:1' must be"),
    ({"device": "cpu", "mixed_precision": "fp16"}, "a CPU trains in bf16 or fp32"),
    ({"device": "cpu", "ddp_backend": "nccl"}, "CPUs communicate with gloo"),
    ({"seeds": (1, 2**32)}, "SEEDS: 4294967296 is above 4294967295"),
    ({"output_dir": "a\0b"}, r"OUTPUT_DIR='a\\x00b' must name a folder"),
]


@pytest.mark.parametrize(("fields", "reason"), SENSELESS)
def test_senseless_combinations_are_refused_with_the_reason(
    fields: dict[str, Any], reason: str
) -> None:
    settings = tiny(**fields)
    with pytest.raises(ValueError, match=reason):
        check(settings)
    with pytest.raises(ValueError, match=reason):
        settings_from_dict(settings.to_dict())
    check(tiny())


def test_latent_reciprocity_without_mla_is_refused_by_kconfig_too() -> None:
    with pytest.raises(ConfigError, match="RA_MLA_ATTENTION_MLA"):
        make_config(RA_MLA_LATENT_RECIPROCITY_TIED="y")


@pytest.mark.parametrize(
    "first",
    ["OPTIMIZER_MUON", "RA_MLA_ATTENTION_MLA", "RA_MLA_CROSS_TOKEN"],
)
def test_heads_that_cannot_be_pruned_are_refused_with_the_line(tmp_path, first) -> None:
    preset = tmp_path / "preset"
    preset.write_text(f"CONFIG_{first}=y\nCONFIG_PRUNING_HEADS=y\n")
    with pytest.raises(ConfigError, match=r"preset:2: CONFIG_PRUNING_HEADS depends"):
        strict_kconfig().load([preset])


def test_an_ablation_may_prune_heads_in_steps_that_own_them() -> None:
    config = make_config(RA_MLA_ABLATION_MODE="y", PRUNING_HEADS="y", STEPS="0,5,13")
    methods = {job.settings.pruning.prune_method for job in make_plan(config).jobs}
    assert methods == {"heads"}
    config = make_config(RA_MLA_ABLATION_MODE="y", PRUNING_HEADS="y", STEPS="0,8")
    with pytest.raises(ValueError, match="step 8: .*'heads': .* is 'mla'"):
        make_plan(config)


def test_it_is_said_where_the_last_head_of_a_layer_stays() -> None:
    found = remarks(tiny(prune_method="heads", prune_sparsity=0.9))
    assert found == [
        "a sparsity of 90% would prune 11 of 12 heads; 9 are pruned, since each "
        "layer keeps one"
    ]
    assert not remarks(tiny(prune_method="heads", prune_sparsity=0.5))
    settings = settings_from(
        make_config(RA_MLA_ATTENTION_MLA="y", RA_MLA_LATENT_RECIPROCITY_TIED="y")
    )
    assert settings.mechanisms.latent == "tied_transpose"


def test_both_modes_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="excludes"):
        make_config(RA_MLA_ABLATION_MODE="y", TEST_MATRIX_MODE="y")
