"""STEPS, the rows of the registry: the only place that defines an arm.

Everything else is derived from it: Kconfig help, README table, plan, run paths, the
trainer's settings and the report's comparison partner. Ids never change. A new step
over existing mechanisms is one more row here, or a row of a user's STEPS_FILE, where
ids begin at 100.

In the titles r is the ratio of MLP to attention parameters. A title states it exactly
only where the row or its ancestors set it; otherwise it depends on the configuration.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.plan.registry import Registry, Step, Times
from gpt2.settings.schema import LARGEST_ARM, NO_WIDTH_REQUESTS

# GPT-2 itself, with every mechanism off: step 0, the root of each lineage.
PLAIN = {
    name: value
    for values in (*({**m.off, **m.plain} for m in mechanisms()), NO_WIDTH_REQUESTS)
    for name, value in values.items()
}
RACT = {"ract": True, "ract_statistic": "topk", "ract_placement": "output"}
GATE_AND_CROSS = {"mlp_gate": True, "cross_token": True, "mechanism_share": 0.20}
R_2_5 = {"mlp_ratio": 2.5}
AS_STEP_0 = {"match_step": "0"}


def _heads(numerator: int, denominator: int) -> dict[str, Any]:
    return {"n_head": Times(Fraction(numerator, denominator)), **AS_STEP_0}


STEPS: dict[int, Step] = {
    step.id: step
    for step in (
        Step(
            0,
            "baseline",
            "GPT-2 baseline",
            "What every other arm has to beat.",
            None,
            PLAIN,
        ),
        Step(
            1,
            "spam-magnitude-50",
            "baseline + AdamWSPAM, magnitude pruning to 50%",
            "What do half the weights and a spike-aware optimizer cost?",
            0,
            {
                "optimizer": "adamwspam",
                "prune_method": "magnitude",
                "prune_sparsity": 0.5,
            },
        ),
        Step(
            2,
            "r25",
            "baseline with r=2.5",
            "Does a wider MLP help, and is it the width or the parameters?",
            0,
            R_2_5,
        ),
        Step(
            3,
            "r25-gate",
            "r=2.5, 15% of the MLP budget to the MLP->attention gate",
            "Is the gate worth more than the MLP units it replaces?",
            2,
            {"mlp_gate": True, "mechanism_share": 0.15},
        ),
        Step(
            4,
            "r25-gate-cross",
            "step 3 + cross-token MLP, mechanisms together 20%",
            "Does the MLP gain from other tokens' hidden states?",
            3,
            {"cross_token": True, "mechanism_share": 0.20},
        ),
        Step(
            5,
            "ra",
            "baseline + RA, band of the configured window",
            "Does the transposed score in a causal band help?",
            0,
            {"ra": True},
        ),
        Step(
            6,
            "ra-r25",
            "RA with r=2.5",
            "Does RA change what a wider MLP is worth?",
            5,
            R_2_5,
        ),
        Step(
            7,
            "ra-r25-gate-cross",
            "step 6 + gate + cross-token MLP, together 20%",
            "Do the reciprocal MLPs add to RA?",
            6,
            GATE_AND_CROSS,
        ),
        Step(
            8,
            "mla",
            "MLA, MLP as wide as the baseline's",
            "What does a latent cache cost in loss?",
            0,
            {"attention": "mla"},
        ),
        Step(
            9,
            "mla-r25",
            "MLA with r=2.5",
            "What does MLA lose with a narrower MLP?",
            8,
            R_2_5,
        ),
        Step(
            10,
            "mla-r25-gate-cross",
            "step 9 + gate + cross-token MLP, together 20%",
            "Do the reciprocal MLPs help MLA?",
            9,
            GATE_AND_CROSS,
        ),
        Step(
            11,
            "mla-ra-r25",
            "MLA + RA with r=2.5",
            "Does RA help on latent attention?",
            9,
            {"ra": True},
        ),
        Step(
            12,
            "mla-ra-r25-gate-cross",
            "step 11 + gate + cross-token MLP, together 20%",
            "Do all reciprocal parts together help MLA?",
            11,
            GATE_AND_CROSS,
        ),
        Step(
            13,
            "ract-topk",
            "baseline + RA-CT: top-k sum, gating the output",
            "Do a head's own attention statistics make a useful gate?",
            0,
            RACT,
        ),
        Step(
            14,
            "mla-r25-ract",
            "MLA with r=2.5 + RA-CT",
            "Does RA-CT help on latent attention?",
            9,
            RACT,
        ),
        Step(
            15,
            "mla-ra-r25-ract",
            "MLA + RA with r=2.5 + RA-CT",
            "Does RA-CT add to RA on latent attention?",
            11,
            RACT,
        ),
        Step(
            16,
            "full",
            "full: step 12 + RA-CT",
            "Does everything together beat its parts?",
            12,
            RACT,
        ),
        Step(
            17,
            "ract-weights",
            "RA-CT at the weights, before the softmax",
            "Is it better to sharpen a row than to scale its output?",
            13,
            {"ract_placement": "weights"},
        ),
        Step(
            18,
            "ract-entropy",
            "RA-CT with the entropy",
            "Is entropy a better statistic than the top-k sum?",
            13,
            {"ract_statistic": "entropy"},
        ),
        Step(
            19,
            "output-gate",
            "control: SDPA output gate, parameters as step 0",
            "What does a gate that is known to help bring here?",
            0,
            {"output_gate": True, **AS_STEP_0},
        ),
        Step(
            20,
            "wide",
            "control: baseline, MLP wider than the largest arm's parameters",
            "How much of any gain do parameters alone bring?",
            0,
            {"match_step": LARGEST_ARM},
        ),
        Step(
            21,
            "gate",
            "MLP->attention gate alone on 10%, parameters as step 0",
            "Is the gate worth its weights at GPT-2's budget?",
            0,
            {"mlp_gate": True, "mechanism_share": 0.10, **AS_STEP_0},
        ),
        Step(
            22,
            "cross",
            "cross-token MLP alone on 10%, parameters as step 0",
            "Is the cross-token MLP worth its weights?",
            0,
            {"cross_token": True, "mechanism_share": 0.10, **AS_STEP_0},
        ),
        Step(
            23,
            "ract-max",
            "RA-CT with the largest weight",
            "Is the maximum a better statistic than the top-k sum?",
            13,
            {"ract_statistic": "max"},
        ),
        Step(
            24,
            "ract-rms",
            "RA-CT with the rms",
            "Is the rms a better statistic than the top-k sum?",
            13,
            {"ract_statistic": "rms"},
        ),
        Step(
            25,
            "mla-latent-tied",
            "MLA + latent reciprocity, tied, parameters as step 9",
            "Does it help MLP and key latent to read each other?",
            9,
            {"latent": "tied_transpose", "match_step": "9"},
        ),
        Step(
            26,
            "mla-latent-untied",
            "MLA + latent reciprocity, untied, parameters as step 9",
            "As step 25, with a matrix for each direction.",
            9,
            {"latent": "untied", "match_step": "9"},
        ),
        Step(
            27,
            "mla-latent-scalar",
            "MLA + latent reciprocity, learned scalars per head",
            "As step 25, with next to no weights.",
            9,
            {"latent": "per_head_scalar"},
        ),
        Step(
            28,
            "mla-rope",
            "MLA after DeepSeek-V2 with RoPE key, parameters as step 8",
            "What do rotary positions and a joint latent bring?",
            8,
            {"attention": "mla_rope", "match_step": "8"},
        ),
        Step(
            29,
            "ra-whole",
            "RA over the whole context",
            "Is the band a restriction or a help?",
            5,
            {"ra_window": WHOLE_CONTEXT},
        ),
        Step(
            30,
            "ra-learned",
            "RA with a learned alpha per head, from 0",
            "Does training choose reciprocity at all?",
            5,
            {"ra_learned_alpha": True, "ra_alpha": 0.0},
        ),
        Step(
            31,
            "r10",
            "r near 1.0: 3/2 the heads, parameters as step 0",
            "Where is the optimum of r at equal parameters?",
            0,
            _heads(18, 12),
        ),
        Step(
            32,
            "r16",
            "r near 1.6 at 12 heads: 7/6 of them, parameters as step 0",
            "Where is the optimum of r at equal parameters?",
            0,
            _heads(14, 12),
        ),
        Step(
            33,
            "r30",
            "r near 3.0: 3/4 the heads, parameters as step 0",
            "Where is the optimum of r at equal parameters?",
            0,
            _heads(9, 12),
        ),
    )
}

SHIPPED = Registry(STEPS)
