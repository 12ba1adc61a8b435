"""A/A control: a baseline trained again with other kernels, compared seed by seed.

Correct kernels differ by rounding, which training amplifies, so two correct runs end at
different losses, too. NOISE is the largest measured standard deviation of such a
difference, in nats: eight combinations of kernels with one seed at 124M spread over
0.02 after 100 updates. At the end of long runs even seeds spread over less (0.0013 to
0.0019). A steep start amplifies more: after 150 updates with a warm-up of 20 two seeds
of one arm were 0.09 apart, and the control of one of them 0.06 (124M, H200). Where the
seeds spread more than NOISE, their spread is used instead, up to LARGEST_NOISE. If a
control differs by more than this explains, some kernel is wrong, and since any arm may
have used it, all verdicts of the matrix are void.

With noise up to NOISE, less than 1% of correct controls are rejected (simulated; with
heavy tails, for up to three quarters of NOISE). A shift of 0.05 nats in every seed is
rejected in 97% of matrices of one seed at that noise, in 99.9% with two or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING

from gpt2.report.arms import Arm, above_guess, has_diverged
from gpt2.report.evidence import Rules, not_paired, worse_than_guess
from gpt2.report.results import Run, seeds_of
from lib import human
from lib.rounded_losses import rounding_variance

if TYPE_CHECKING:
    from lib.stats import Interval

EQUAL, PENDING, DIFFERS = "EQUAL", "PENDING", "INVALID"
NOISE = 0.01  # nats; see above
SIGMAS = 3.0  # largest mean difference, in units of its standard error
LARGEST = 5.0  # largest difference of one seed, in units of the noise
LARGEST_NOISE = 0.1  # nats; a larger spread must not excuse a wrong kernel
ALPHA = 0.005  # of a t test on the differences, which detects less than NOISE
ROUNDING = rounding_variance(2**-22, 2**-22)  # for losses of 2 to 4 nats in float32
KERNELS = ("attention_backend", "mlp_backend", "compile")  # fields of a manifest


@dataclass(frozen=True, slots=True)
class Control:
    """Comparison of an A/A arm with its baseline: losses in nats, control - baseline.

    grade: EQUAL, PENDING (unfinished, or nothing measured) or DIFFERS, which makes all
    verdicts of the matrix INVALID. reasons: for PENDING and DIFFERS.
    """

    arm: Arm
    baseline: Arm
    grade: str
    reasons: tuple[str, ...]
    seeds: tuple[int, ...]
    differences: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return fmean(self.differences) if self.differences else None

    @property
    def interval(self) -> Interval | None:
        from lib import stats

        return stats.t_interval(self.differences) if self.differences else None


# (paired differences, margin, noise) -> reason if larger than rounding, else ""
Test = Callable[[Sequence[float], float, float], str]


def controls_of(
    arms: Sequence[Arm], rules: Rules, tests: Sequence[Test] | None = None
) -> list[Control]:
    """Judge the controls of a matrix. One without its baseline is PENDING.

    tests: by default is_large and is_steady.
    """
    tests = (is_large, is_steady) if tests is None else tests
    found = []
    for arm in arms:
        if not arm.is_control:
            continue
        baseline = next((a for a in arms if _is_baseline_of(a, arm)), None)
        if baseline is not None:
            found.append(judge_control(arm, baseline, rules.margin, tests))
        else:
            why = "its baseline was not run"
            found.append(Control(arm, arm, PENDING, (why,), (), ()))
    return found


def _is_baseline_of(arm: Arm, control: Arm) -> bool:
    name = next((run.job.get("parent_name") for run in control.runs), None)
    return not arm.is_control and (arm.step, arm.name) == (control.step, name)


def judge_control(
    arm: Arm, baseline: Arm, margin: float, tests: Sequence[Test]
) -> Control:
    """Compare a control with its baseline; margin in nats."""
    mine, theirs = arm.by_seed("val_loss"), baseline.by_seed("val_loss")
    seeds = tuple(sorted(mine.keys() & theirs.keys()))
    differences = tuple(mine[seed] - theirs[seed] for seed in seeds)
    noise = noise_of(list(mine.values()), list(theirs.values()))
    found = (test(differences, margin, noise) for test in tests if differences)
    wrong = _broken(arm) + [*not_paired(arm, baseline)]
    wrong += [why for why in found if why][:1]
    if wrong:
        return Control(arm, baseline, DIFFERS, tuple(wrong), seeds, differences)
    open_ = (*_unfinished(arm, seeds), *_same_kernels(arm, baseline))
    grade = PENDING if open_ else EQUAL
    return Control(arm, baseline, grade, open_, seeds, differences)


def is_alarming(control: Control) -> bool:
    """True if a control differs, or finished without measuring anything."""
    is_empty = control.grade == PENDING and not _unfinished(control.arm, control.seeds)
    return control.grade == DIFFERS or is_empty


def noise_of(*losses: Sequence[float]) -> float:
    """Sd that rounding may explain: NOISE, or the spread of the seeds if larger."""
    spreads = [variance(values) for values in losses if len(values) > 1]
    spread = math.sqrt(fmean(spreads)) if spreads else 0.0
    return min(max(NOISE, spread), LARGEST_NOISE)


def is_large(differences: Sequence[float], margin: float, noise: float = NOISE) -> str:
    """Test the mean, and each seed, against the noise."""
    # The standard error of a mean of n differences is noise / sqrt(n). LARGEST is wider
    # than SIGMAS because it is the most extreme of n seeds that is tested.
    mean, worst = fmean(differences), max(differences, key=abs)
    limit = max(margin, SIGMAS * noise / math.sqrt(len(differences)))
    if abs(mean) > limit:
        return f"differs by {_nats(mean)}; rounding explains at most {limit:.4f}"
    if abs(worst) > max(margin, LARGEST * noise):
        return f"differs by {_nats(worst)} in one seed, more than rounding explains"
    return ""


def is_steady(differences: Sequence[float], margin: float, noise: float = NOISE) -> str:
    """Test by Student's t for a difference that is small and the same in all seeds.

    Imports scipy, which starts threads; a process that forks must not have them.
    """
    from lib import stats

    mean, p = fmean(differences), stats.t_test(differences, ROUNDING)
    if abs(mean) <= margin or p is None or p >= ALPHA:
        return ""
    return f"differs by {_nats(mean)} in the same way in every seed (p {p:.4f})"


def _nats(value: float) -> str:
    return f"{human.fixed(value, 4, True)} nats"


def _broken(arm: Arm) -> list[str]:
    """Seeds of a control that diverged although its baseline did not."""
    diverged = [run for run in arm.runs if has_diverged(run) or above_guess(run)]
    return [f"diverged (seed {seeds_of(diverged)})"] if diverged else []


def _unfinished(arm: Arm, seeds: Sequence[int]) -> list[str]:
    """Reason if the control or its baseline lacks one of the control's seeds."""
    done, planned = len(seeds), len(arm.runs)
    return [] if done == planned else [f"{done} of {planned} seeds finished"]


def _same_kernels(arm: Arm, baseline: Arm) -> list[str]:
    """Reason if a control used its baseline's kernels, which measures nothing."""
    theirs = {run.seed: _kernels(run) for run in baseline.done}
    same = [run for run in arm.done if _kernels(run) == theirs.get(run.seed)]
    text = f"used the same kernels as its baseline (seed {seeds_of(same)})"
    return [f"{text}: nothing is measured"] if same else []


def _kernels(run: Run) -> tuple[str, ...]:
    """Attention backend, MLP backend and compilation of a run, from its manifest."""
    return tuple(str(run.manifest.get(name)) for name in KERNELS)


def void_reasons(
    baselines: Sequence[Arm], controls: Sequence[Control]
) -> tuple[str, ...]:
    """Reasons that void all verdicts of a matrix: its A/A control differs, or a
    baseline ended above a uniform guess."""
    found = [
        f"the A/A control of {control.baseline.label} {reason}"
        for control in controls
        if control.grade == DIFFERS
        for reason in control.reasons
    ]
    for arm in baselines:
        found += [f"the baseline {arm.label}: {why}" for why in worse_than_guess(arm)]
    return tuple(found)


def sentence(control: Control) -> str:
    """One sentence for the head of the report."""
    begin = f"A/A control: {control.baseline.label} with other kernels"
    if control.grade == EQUAL:
        return f"{begin} ends {so_far(control)}: the numerical noise of this matrix."
    more = f" ({so_far(control)})" if control.differences else ""
    return f"{begin}: {control.grade}: {'; '.join(control.reasons)}{more}."


def so_far(control: Control) -> str:
    """Difference as text: "+2.1e-05 ± 1.8e-05 nats from it over 3 seeds"."""
    assert control.mean is not None
    seeds = human.counted(len(control.seeds), "seed")
    interval = control.interval
    half = "" if interval is None else f" ± {interval.half:.1e}"
    mean = f"{control.mean:+.1e}".replace("-", "\u2212", control.mean < 0)
    return f"{mean}{half} nats from it over {seeds}"
