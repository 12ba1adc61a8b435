"""Remarks below the table of the report, on what the grades do not show."""

from __future__ import annotations

from collections.abc import Collection

from gpt2.report.alarms import far_baselines
from gpt2.report.evidence import worse_than_guess
from gpt2.report.grades import Verdict
from gpt2.report.identical_runs import twin_arms
from gpt2.report.lines import interval_text
from gpt2.report.own_best import BestComparison
from gpt2.report.pruned_heads import has_removed, removal_remark
from gpt2.report.results import seeds_of
from gpt2.report.verdicts import Comparison, Judgement


def remarks(judged: Judgement) -> list[tuple[str, str]]:
    """Remarks as (label of the arm, sentence), each once.

    Reasons that void the whole matrix are left out: they head the report.
    """
    found = []
    for c in judged.comparisons:
        found += comparison_remarks(c, c.at_steps, judged.void)
        if doubt := _bootstrap_doubt(c.at_steps):
            found.append((c.arm.label, doubt))
    found += [(c.arm.label, reason) for c in judged.controls for reason in c.reasons]
    found += judged.notes.items()
    arms = judged.arms
    found += [(arm.label, f"alarm: {text}") for arm, text in far_baselines(arms)]
    found += [(arm.label, why) for arm in arms for why in worse_than_guess(arm)]
    found += [(arm.label, removal_remark(arm)) for arm in arms if has_removed(arm)]
    found += [
        (arm.label, f"alarm of seed {run.row['seed']} at {alarm}")
        for arm in arms
        for run in arm.runs
        for alarm in run.alarms
    ]
    return list(dict.fromkeys([*found, *_twins(judged)]))


def comparison_remarks(
    compared: Comparison | BestComparison, verdict: Verdict, void: Collection[str]
) -> list[tuple[str, str]]:
    """Why the partner is not the recorded one, and the reasons of a verdict."""
    note, reasons = compared.note, [why for why in verdict.reasons if why not in void]
    if note:
        reasons.insert(0, f"compared with {compared.partner.label}, because {note}")
    return [(compared.arm.label, why) for why in reasons]


def _twins(judged: Judgement) -> list[tuple[str, str]]:
    """Arms with identical losses that are not compared with each other."""
    compared = {frozenset((c.arm.label, c.partner.label)) for c in judged.comparisons}
    return [
        (b, f"its losses are identical to those of {a} (seeds {seeds_of(runs)})")
        for (a, b), runs in twin_arms(judged.arms).items()
        if frozenset((a, b)) not in compared
    ]


def _bootstrap_doubt(verdict: Verdict) -> str:
    """Remark if the two kinds of interval disagree about 0."""
    t, bootstrap = verdict.interval, verdict.bootstrap
    if t is None or bootstrap is None or (0 in t) == (0 in bootstrap):
        return ""
    which = "includes" if 0 in bootstrap else "excludes"
    ends = interval_text(bootstrap)
    return f"the bootstrap interval {ends} {which} 0, unlike Student's t"
