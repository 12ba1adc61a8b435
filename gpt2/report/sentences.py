"""Sentences of the report that terminal, Markdown and HTML share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gpt2.report.controls import sentence
from gpt2.report.evidence import FDR, SEQUENTIAL, TOGETHER, Rules
from gpt2.report.grades import INCONCLUSIVE, family_size
from gpt2.report.lines import (
    DIGITS,
    has_removed_heads,
    has_zeros,
    lines_of,
    p_text,
)
from gpt2.report.noise import KNOWN_NOISE, known_noise_of
from gpt2.report.results import MatrixResults
from gpt2.report.size_trends import SizeTrend, size_trends
from gpt2.report.verdicts import Comparison, Judgement, only_timed
from lib import human


def headline(matrix: MatrixResults) -> str:
    """ "9 of 12 runs finished, 1 failed, 2 planned"."""
    counts = Counter(run.row["status"] for run in matrix.runs)
    done = counts.pop("done", 0)
    rest = "".join(f", {n} {status}" for status, n in sorted(counts.items()))
    return f"{done} of {len(matrix.runs)} runs finished{rest}"


def control_lines(judged: Judgement) -> list[str]:
    """Outcome of the A/A control, and reasons that void all verdicts of the matrix."""
    found = [sentence(control) for control in judged.controls]
    if judged.void:
        found.append(
            f"ALL VERDICTS OF THIS MATRIX ARE INVALID: {'; '.join(judged.void)}."
        )
    return found


def noise_lines(judged: Judgement) -> list[str]:
    """Noise floor in words, one sentence per baseline."""
    if not judged.noise:
        low, high = KNOWN_NOISE
        known = f" (sd at 124M in the literature: {low} to {high})"
        return [
            "Noise floor: not measured; this needs a baseline with two or more seeds"
            f"{known if known_noise_of(judged.arms) else ''}."
        ]
    return [
        f"Noise floor: {noise.arm.label} has sd {noise.sample.sd:.4f} over "
        f"{noise.sample.n} seeds (95%: {noise.interval.low:.4f} to "
        f"{noise.interval.high:.4f})."
        for noise in judged.noise
    ]


def size_lines(judged: Judgement) -> list[str]:
    """Trend of each arm over the sizes of SIZES, one sentence each."""
    return [_trend_text(trend, judged.rules) for trend in size_trends(judged)]


def _trend_text(trend: SizeTrend, rules: Rules) -> str:
    slope = trend.slope
    if slope is None:
        return f"Size: {trend.name}: no trend: {trend.why}."
    numbers = (slope.mean, *slope.interval)
    mean, low, high = (human.fixed(x, DIGITS, sign=True) for x in numbers)
    meaning = "no trend is shown"
    if max(map(abs, numbers)) < rules.margin:
        meaning = f"smaller than the margin of {rules.margin:g}"
    elif slope.p_holm < rules.alpha_of_look:
        way = "falls, in favour of" if slope.mean < 0 else "rises, against"
        meaning = f"the difference {way} the arm"
    if slope.p_bend is not None and slope.p_bend < rules.alpha_of_look:
        meaning += "; a line does not describe it"
    return (
        f"Size: {trend.name}: {mean} nats per tenfold parameters (95%: {low} to "
        f"{high}; p {p_text(slope.p_holm)}; {len(slope.sizes)} sizes, "
        f"{len(slope.seeds)} seeds): {meaning}."
    )


def seeds_lines(comparisons: Sequence[Comparison], rules: Rules) -> list[str]:
    """Advice on adding seeds without false findings, if seeds are missing."""
    short = any(c.at_steps.grade == INCONCLUSIVE for c in comparisons)
    if rules.looks > 1:
        return [
            f"Looks: {rules.looks} reports are planned as seeds are added, each at "
            f"{rules.alpha_of_look:.2%}; more of them would produce false findings."
        ]
    if not short:
        return []
    return [
        "More seeds: adding them until a verdict appears produces false findings (18% "
        'instead of 5% if "about N seeds" is followed three times). Run the whole '
        "number as fresh seeds in a new folder, or fix the number of seeds of each "
        "report in advance and set LOOKS to the number of reports."
    ]


def family_lines(judged: Judgement) -> list[str]:
    """State of a sequential family, or advice on adding seeds."""
    series = judged.series
    if series is None:
        return seeds_lines(judged.comparisons, judged.rules)
    tests, found = len(series.tests), sum(test.found for test in series.tests)
    return [
        f"Sequential family: {human.counted(tests, 'test')} so far, of which {found} "
        f"found a difference; the next one has a level of "
        f"{human.level(series.next_level())}. More seeds of an arm that was tested "
        "are a further test."
    ]


def statistics_lines(judged: Judgement) -> list[str]:
    """Trends over sizes, noise floor, and the state of the family."""
    return [*size_lines(judged), *noise_lines(judged), *family_lines(judged)]


METHOD = """\
Arms are paired by seed with the arm they are compared with; a difference is the arm's
validation loss minus its partner's, in nats per token; negative is better. Intervals
are 95% by Student's t on the paired differences. A verdict needs three seeds. {family}
The margin of ±{margin:g} nats (REPORT_MARGIN, to be chosen before seeing results) is
the difference declared too small to matter. NEUTRAL: the difference is within the
margin (two one-sided t tests, corrected likewise), whether or not it is 0. SUPPORTED
and HARMFUL: it is not 0, and not shown to be within the margin. INCONCLUSIVE: more
seeds are needed. UNMATCHED: the arm differs from its partner in parameters or tokens by
more than {tolerance:.0%}, or in data, which says nothing about the architecture."""

AT_TIME = """\
At equal time, losses are read between evaluations, when the first of the compared runs
ended, each arm at its median speed, for other work on a GPU slows single runs; how
uncertain that reading is counts in intervals and p. The slower arm is then still in the
middle of its learning-rate schedule, which is a disadvantage for it. Runs with a time
budget are compared at their ends."""
TIMED = """\
All runs have a time budget: they are compared at their ends, after equal time and, in
general, unequal numbers of updates, each with its whole learning-rate schedule."""

FAMILY = {
    TOGETHER: """\
Whether a difference is 0 is decided by the pooled test, which estimates the noise from
all arms over the same seeds, those of each size and learning rate apart, and is guarded
against arms noisier than the rest; with only two arms{and_at_time}, by the paired t
test with Holm's correction. The family-wise error over all arms is
{alpha:.0%}{looks}{twice}. The remarks give both tests where they disagree;
docs/statistics.md has their error rates.""",
    SEQUENTIAL: """\
The arms are an open-ended series: each is tested once, in the order of sequence.json,
and has a level of its own. The probability of any false finding in the whole series,
however long it becomes, is at most {alpha:.0%} (online fallback, Tian and Ramdas 2021).
{tested}""",
    FDR: """\
The arms are an open-ended series: each is tested once, in the order of sequence.json,
and has a level of its own, which rises with every finding. On average at most
{alpha:.0%} of the findings are false (LORD++, Ramdas et al. 2017; simulated for arms
with a common baseline). {tested}""",
}
TESTED = """\
p is that of the test times {alpha} over its level. The noise is estimated from all arms
tested so far over the same seeds, guarded against arms noisier than the rest; the first
arm has the paired t test{so_at_time}. Where an arm gets more seeds, or other
losses, it is tested again as a further test of the series.
docs/statistics.md has error rates and power."""

SWEPT = """\
A cell of the sweep is compared with the cell of its step's partner at the same values;
a step that does not read a setting has one cell for all of its values."""

SWEPT_FAMILY = """\
The comparisons of the sweep at equal budgets, over all steps and all of its values, are
one family of {number}: every p and every verdict is corrected for all of them."""

BEST_OF_SWEEP = """\
Mean validation loss over the seeds; * is the lowest of its row. It is chosen on the
runs that it is read from, so that it is too optimistic by about the noise: the verdicts
above compare arms at equal values, and not each at its best."""

TREND = """\
Differences against size: for each seed a straight line over log10 of the partner's
parameters, and Student's t on the slopes over the seeds; p by Holm's method over all
trends. A line through these sizes says nothing about larger ones."""

ZEROS = """\
Zeros are counted among the weights of linear layers, excluding embeddings and a head
tied to them. They are unstructured, which saves neither time nor memory on common
hardware: a pruned arm costs as much as the same arm unpruned."""

REMOVED_HEADS = """\
Pruned heads are masked during training and removed from the exported model, whose
logits were compared with the masked model's. Decode cache, time per decoded token and
time of a forward pass are given before and after the removal; the times were measured
at the end of each run on its device, not compiled. KV/token is the exported model's;
all other columns (loss, parameters, zeros, training speed) are the masked model's."""


def method(judged: Judgement) -> str:
    """Method of the verdicts, in words."""
    rules, timed = judged.rules, only_timed(judged.comparisons)
    looks = f", shared by {rules.looks} planned looks" if rules.looks > 1 else ""
    words = {
        "twice": ", at equal updates and once more at equal time",
        "and_at_time": ", and at equal time",
        "so_at_time": ", and so has each arm at equal time",
    }
    words = {name: "" if timed else text for name, text in words.items()}
    tested = TESTED.format(alpha=rules.alpha, **words)
    family = FAMILY[rules.family].format(
        alpha=rules.alpha, looks=looks, tested=tested, **words
    )
    text = METHOD.format(family=family, margin=rules.margin, tolerance=rules.tolerance)
    lines = lines_of(judged)
    parts = [text, TIMED if timed else AT_TIME]
    if any(arm.coordinates for arm in judged.arms):
        if not rules.is_sequential:
            number = family_size(c.at_steps for c in judged.comparisons)
            parts.append(SWEPT_FAMILY.format(number=number))
        parts.append(SWEPT)
    if size_trends(judged):
        parts.append(TREND)
    if has_zeros(lines):
        parts.append(ZEROS)
    if has_removed_heads(lines):
        parts.append(REMOVED_HEADS)
    return " ".join(parts)
