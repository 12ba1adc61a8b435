"""Remarks below the table of the report, on what the grades do not show."""

from __future__ import annotations

from gpt2.report.alarms import far_baselines
from gpt2.report.evidence import worse_than_guess
from gpt2.report.grades import Verdict
from gpt2.report.identical_runs import twin_arms
from gpt2.report.lines import interval_text
from gpt2.report.pruned_heads import has_removed, removal_remark
from gpt2.report.verdicts import Judgement


def remarks(judged: Judgement) -> list[tuple[str, str]]:
    """Remarks as (label of the arm, sentence), each once.

    Reasons that void the whole matrix are left out: they head the report.
    """
    found = []
    for comparison in judged.comparisons:
        label, reasons = comparison.arm.label, comparison.at_steps.reasons
        if comparison.note:
            with_whom = f"compared with {comparison.partner.label}"
            found.append((label, f"{with_whom}, because {comparison.note}"))
        found.extend((label, x) for x in reasons if x not in judged.void)
        if doubt := _bootstrap_doubt(comparison.at_steps):
            found.append((label, doubt))
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


def _twins(judged: Judgement) -> list[tuple[str, str]]:
    """Arms with identical losses that are not compared with each other."""
    compared = {frozenset((c.arm.label, c.partner.label)) for c in judged.comparisons}
    return [
        (b.label, f"its losses are identical to those of {a.label} (seeds {seeds})")
        for a, b, numbers in twin_arms(judged.arms)
        if frozenset((a.label, b.label)) not in compared
        for seeds in [", ".join(map(str, numbers))]
    ]


def _bootstrap_doubt(verdict: Verdict) -> str:
    """Remark if the two kinds of interval disagree about 0."""
    t, bootstrap = verdict.interval, verdict.bootstrap
    if t is None or bootstrap is None or (0 in t) == (0 in bootstrap):
        return ""
    which = "includes" if 0 in bootstrap else "excludes"
    ends = interval_text(bootstrap)
    return f"the bootstrap interval {ends} {which} 0, unlike Student's t"
