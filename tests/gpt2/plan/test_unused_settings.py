"""gpt2/plan/unused_settings.py: settings that were asked for and change nothing."""

from __future__ import annotations

import re

import pytest

from gpt2.plan.planning import make_plan
from gpt2.plan.unused_settings import unused_settings
from gpt2.run.plan_listing import listing
from gpt2.settings.configuration import override, strict_kconfig
from lib.kconfig.config_py import Config
from tests.gpt2.helpers import KCONFIG

PRESETS = KCONFIG.parent / "defconfigs"


def preset(name: str, overrides: str = "") -> Config:
    return override(strict_kconfig().load([PRESETS / name]), overrides)


def idle_in(config: Config) -> list[str]:
    return unused_settings(make_plan(config), config)


@pytest.mark.parametrize("name", [path.name for path in PRESETS.iterdir()])
def test_no_preset_asks_for_what_nothing_reads(name: str) -> None:
    assert idle_in(preset(name, "INIT_FROM=")) == []  # a folder that is not there


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("SPAM_THRESHOLD=50", "SPAM_THRESHOLD=50.0 .*no job uses adamwspam"),
        ("SPAM_THRESHOLD=50 STEPS=0,1,5,8 MAX_ITERS=2000", ""),
        (
            "OPTIMIZER_SGD=y ADAM_BETA1=0.8",
            "ADAM_BETA1=0.8 .*no job uses one of adam, ",
        ),
        ("OPTIMIZER_SGD=y SGD_MOMENTUM=0.8", ""),
        ("PRUNING_SPARSITY=0.9", "PRUNING_SPARSITY=0.9 .*no job is pruned"),
        ("RA_ALPHA=0.4 STEPS=8,30", "RA_ALPHA=0.4 .*the jobs have it from step 30"),
        ("RA_ALPHA=0.4", ""),
        ("SWEEP=RA_ALPHA=0.4", ""),  # one value, with which the jobs are trained
        ("SIZES=2x32", ""),
        ("SIZES=2x32 N_LAYER=3", "GPT2_N_LAYER=3 .*the jobs have it from SIZES"),
        ("ROPE_DIM=16", "ROPE_DIM=16 .*no job has MLA with a rotary key"),
        ("CROSS_TAU=0.4 STEPS=5,8,22", "CROSS_TAU=0.4 .*keeps weights by their rms"),
        ("TF32=n", "TF32=n .*no job runs on a GPU"),
        ("PIN_MEMORY=n DEVICE=auto", ""),
        ("GPUS=0,1", "GPUS=0,1 .*no job runs on a GPU"),
        ("GPUS=0,1 DEVICE=cuda", ""),
        ("ATTENTION_BACKEND=triton", "_BACKEND=triton .*no job runs on a GPU or"),
        ("ATTENTION_BACKEND=triton DEVICE=auto", ""),
        ("ATTENTION_BACKEND=sdpa", ""),
        ("MLP_BACKEND=cublaslt", "MLP_BACKEND=cublaslt .*no job runs on a GPU"),
        ("DDP_BACKEND=gloo", "DDP_BACKEND=gloo .*no job is trained by several ranks"),
        ("MAX_TOKENS=100000", "GPT2_MAX_ITERS=120 .*from GPT2_MAX_TOKENS"),
    ],
)
def test_a_setting_that_no_job_reads_is_reported_with_its_origin(
    overrides: str, said: str
) -> None:
    config = preset("gpt2-quickstart", overrides)
    found = idle_in(config)
    assert len(found) == bool(said), found
    for line in found:
        assert re.search(said, line)
        text = listing(make_plan(config), config)
        assert f"note: {line}" in " ".join(text.split())


def test_steps_without_a_mechanism_name_the_line_of_its_setting() -> None:
    found = idle_in(preset("gpt2-quickstart", "STEPS=0,2"))
    assert [line.split()[0] for line in found] == [
        "RA_MLA_LATENT_DIM=24",
        "RA_MLA_RA_WINDOW=16",
    ]
    assert all("(defconfigs/gpt2-quickstart:" in line for line in found)
