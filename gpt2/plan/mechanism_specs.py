"""Table of the mechanisms: switches, neutral values, and which fields are read when.

The one place that certificates, notes on unused settings and step 0 derive from. A
field of ``Mechanisms`` (gpt2/settings/schema.py) that no entry names fails a test.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2.settings.schema import Mechanisms


@dataclass(frozen=True, slots=True)
class Reads:
    """Fields that are read where the mechanism is on and ``where`` holds.

    what: the same in words, as the end of "no job ...".
    where: the values that other fields must have.
    """

    what: str
    fields: tuple[str, ...]
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One mechanism of a model.

    off: its switch, and the value at which it is off.
    neutral: values at which it is on and does nothing, if there are any.
    needs: what other fields must be for it to be on.
    replaces: whether it takes the place of a part of GPT-2 and has weights of its own,
        so that a model without it cannot be made of the same weights.
    """

    name: str
    off: Mapping[str, Any]
    reads: tuple[Reads, ...] = ()
    neutral: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Any] = field(default_factory=dict)
    replaces: bool = False

    def is_on(self, x: Mechanisms) -> bool:
        return any(getattr(x, name) != value for name, value in self.off.items())

    def reads_on(self, x: Mechanisms, reads: Reads) -> bool:
        """Whether the fields of ``reads`` have an effect."""
        return self.is_on(x) and all(
            getattr(x, name) == value for name, value in reads.where.items()
        )


MECHANISMS = (
    Mechanism(
        name="latent attention",
        off={"attention": "mha"},
        reads=(
            Reads(
                "has MLA",
                ("latent_dim", "mla_shared_k", "mla_shared_v"),
                {"attention": "mla"},
            ),
            Reads(
                "has MLA with a rotary key",
                ("joint_latent_dim", "rope_dim"),
                {"attention": "mla_rope"},
            ),
        ),
        replaces=True,
    ),
    Mechanism(
        name="ra",
        off={"ra": False},
        reads=(Reads("has RA", ("ra_window", "ra_alpha", "ra_learned_alpha")),),
        neutral={"ra_alpha": 0.0},
    ),
    Mechanism(
        name="ract",
        off={"ract": False},
        reads=(
            Reads(
                "has RA-CT",
                (
                    *("ract_statistic", "ract_placement", "ract_mix"),
                    *("ract_head_average", "ract_detach"),
                ),
            ),
            Reads(
                "has RA-CT by the top-k sum",
                ("ract_topk",),
                {"ract_statistic": "topk"},
            ),
        ),
        neutral={"ract_mix": 0.0},
    ),
    Mechanism(
        name="mlp_gate",
        off={"mlp_gate": False},
        reads=(
            Reads(
                "has the MLP gate", ("mlp_gate_dim", "mlp_gate_mix", "mlp_gate_pool")
            ),
        ),
        neutral={"mlp_gate_mix": 0.0},
    ),
    Mechanism(
        name="cross_token",
        off={"cross_token": False},
        reads=(
            Reads(
                "has the cross-token MLP",
                ("cross_rank", "cross_mix", "cross_select", "cross_renorm"),
            ),
            Reads(
                "has a cross-token MLP that keeps the largest weights",
                ("cross_topk",),
                {"cross_select": "topk"},
            ),
            Reads(
                "has a cross-token MLP that keeps weights by their rms",
                ("cross_tau",),
                {"cross_select": "rms"},
            ),
        ),
        neutral={"cross_mix": 0.0},
    ),
    Mechanism(
        name="latent",
        off={"latent": "none"},
        reads=(Reads("has latent reciprocity", ("latent_mix",)),),
        neutral={"latent_mix": 0.0},
        needs={"attention": "mla"},
    ),
    Mechanism(name="output_gate", off={"output_gate": False}),
)
# Requests that gpt2/plan/budget.py turns into widths, with the values that ask for
# nothing. The model does not read them.
WIDTH_REQUESTS: Mapping[str, Any] = {
    "mlp_ratio": 0.0,
    "mechanism_share": 0.0,
    "match_step": "",
}
OFF: Mapping[str, Any] = {
    **{name: value for m in MECHANISMS for name, value in m.off.items()},
    **WIDTH_REQUESTS,
}
