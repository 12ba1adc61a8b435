"""Settings that were asked for and change nothing in any job of a plan.

A preset serves many sets of steps, so that this is no error; but nobody shall take
a number for the effect of a setting that nothing read. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt2.plan import Plan
from gpt2.schema import IDENTITY_PARTS, PART_OF, SYMBOL_OF, Settings
from lib.generated import Config


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads some fields, as the end of "no job ...", and where it is on."""

    what: str
    fields: tuple[str, ...]
    is_on: Callable[[Settings], bool]


READERS = (
    Reader("has RA", ("ra_window", "ra_alpha"), lambda s: s.mechanisms.ra),
    Reader(
        "has RA-CT",
        ("ract_statistic", "ract_mix", "ract_head_average", "ract_detach"),
        lambda s: s.mechanisms.ract,
    ),
    Reader(
        "has RA-CT by the top-k sum",
        ("ract_topk",),
        lambda s: s.mechanisms.ract and s.mechanisms.ract_statistic == "topk",
    ),
    Reader(
        "has the MLP gate",
        ("mlp_gate_dim", "mlp_gate_mix", "mlp_gate_pool"),
        lambda s: s.mechanisms.mlp_gate,
    ),
    Reader(
        "has the cross-token MLP",
        ("cross_rank", "cross_mix", "cross_select", "cross_renorm"),
        lambda s: s.mechanisms.cross_token,
    ),
    Reader(
        "has a cross-token MLP that keeps the largest weights",
        ("cross_topk",),
        lambda s: s.mechanisms.cross_token and s.mechanisms.cross_select == "topk",
    ),
    Reader(
        "has a cross-token MLP that keeps weights by their rms",
        ("cross_tau",),
        lambda s: s.mechanisms.cross_token and s.mechanisms.cross_select == "rms",
    ),
    Reader(
        "has latent reciprocity",
        ("latent_mix",),
        lambda s: s.mechanisms.exchanges_latent,
    ),
    Reader(
        "has MLA",
        ("latent_dim", "mla_shared_k", "mla_shared_v"),
        lambda s: s.mechanisms.attention == "mla",
    ),
    Reader(
        "has MLA with a rotary key",
        ("joint_latent_dim", "rope_dim"),
        lambda s: s.mechanisms.attention == "mla_rope",
    ),
    Reader(
        "uses an optimizer of the Adam family",
        ("beta1", "beta2", "eps"),
        lambda s: s.optim.optimizer != "sgd",
    ),
    Reader(
        "uses SGD or Muon",
        ("momentum",),
        lambda s: s.optim.optimizer in ("sgd", "muon"),
    ),
    Reader(
        "uses AdamWSPAM",
        ("spam_threshold", "spam_interval", "spam_warmup", "spam_reset_counter"),
        lambda s: s.optim.optimizer == "adamwspam",
    ),
    Reader(
        "is pruned by AdamWPrune's state",
        ("adamwprune_variant",),
        lambda s: s.pruning.prune_method == "state",
    ),
    Reader(
        "is pruned",
        (
            "prune_sparsity",
            "prune_interval",
            "prune_warmup",
            "prune_ramp_end",
            "prune_scope",
        ),
        lambda s: s.pruning.prune_method != "none",
    ),
    Reader(
        "has workers to load its data",
        ("prefetch_factor", "persistent_workers"),
        lambda s: s.resources.num_workers > 0,
    ),
    Reader(
        "runs on a GPU",
        (
            "cuda_graphs",
            "auto_batch",
            "gpu_memory",
            "tf32",
            "cudnn_benchmark",
            "gpu_warmup",
            "alloc_conf",
            "pin_memory",
            "jobs_per_gpu",
        ),
        lambda s: s.resources.device != "cpu",
    ),
    Reader(
        "is trained by several ranks",
        ("ddp_backend",),
        lambda s: s.resources.ddp_gpus_per_job > 1,
    ),
)


def idle(plan: Plan, config: Config) -> list[str]:
    """A line for each setting of ``config`` that acts on no job, with its origin."""
    found = []
    for name, symbol in SYMBOL_OF.items():
        origin = config.origins.get(symbol)
        why = "" if origin is None else _why_idle(plan, name, origin)
        if why:
            value = config.values[symbol]
            found.append(f"{symbol}={value} ({origin}) changes nothing: {why}")
    return found


def _why_idle(plan: Plan, name: str, origin: str) -> str:
    """Why a field asked for at ``origin`` acts on no job; empty if it does."""
    reader = next((r for r in READERS if name in r.fields), None)
    jobs = [job for job in plan.jobs if reader is None or reader.is_on(job.settings)]
    if reader is not None and not jobs:
        return f"no job {reader.what}"
    origins = dict.fromkeys(job.origins[name] for job in jobs)
    if PART_OF[name] in IDENTITY_PARTS and origin not in origins:
        return f"the jobs have it from {', '.join(origins)}"
    return ""
