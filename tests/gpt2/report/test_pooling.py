"""The pooled test on results directories, rounded losses, and looks."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gpt2.report.arms import group_arms
from gpt2.report.evidence import Rules, at_equal_steps
from gpt2.report.grades import (
    HARMFUL,
    INCONCLUSIVE,
    INVALID,
    NEUTRAL,
    SUPPORTED,
    UNMATCHED,
)
from gpt2.report.noise import Family
from gpt2.report.notes import remarks
from gpt2.report.pooling import family_of, pool, pools_of
from gpt2.report.power import measured_spreads
from gpt2.report.read_results import read_matrix
from gpt2.report.sentences import noise_lines, seeds_lines
from gpt2.report.verdicts import judge
from lib import pooled_variance, stats
from tests.results_factory import (
    STEPS,
    change_final_loss,
    write_matrix,
    write_run,
    write_swept,
)

ARMS = (0, 5, 8, 29)


def judged(root, **rules):
    return judge(read_matrix(root), Rules(**rules))


def verdicts(root, **rules):
    return {c.arm.step: c.at_steps for c in judged(root, **rules).comparisons}


def set_losses(root, change):
    """Replace each final loss by ``change(step, seed, loss)``."""
    for path in root.glob("step*/seed*"):
        change_final_loss(
            path, partial(change, int(path.parts[-2][4:6]), int(path.parts[-1][4:]))
        )


def test_verdicts_are_those_of_the_pooled_test(tmp_path):
    write_matrix(tmp_path, ARMS, range(4), effects={8: -0.006})
    found = verdicts(tmp_path)
    losses = [arm.values("val_loss") for arm in group_arms(read_matrix(tmp_path))]
    # Steps 5 and 8 against 0, and 29 against 5.
    want = pooled_variance.pooled_test(np.array(losses), ((1, 0), (2, 0), (3, 1)))
    assert [found[step].p_pooled for step in (5, 8, 29)] == pytest.approx(list(want.p))
    assert found[8].p_deciding == found[8].p_pooled != found[8].p_holm
    half = (found[8].family_interval.high - found[8].family_interval.low) / 2
    assert half == pytest.approx(want.half_width[1])


def test_an_invalid_comparison_is_not_pooled_and_counts_for_the_correction(tmp_path):
    write_matrix(tmp_path, ARMS, range(4), effects={8: -0.006})
    base, ra, mla, gate = group_arms(read_matrix(tmp_path))
    pairs = [(ra, base), (mla, base), (gate, ra)]
    evidence = [at_equal_steps(*pair, Rules()) for pair in pairs]
    evidence[2] = replace(evidence[2], invalid=("of other data",))
    found = pool(pairs, evidence, Rules())
    losses = np.array([arm.values("val_loss") for arm in (base, ra, mla)])
    want = pooled_variance.pooled_test(losses, ((1, 0), (2, 0)), comparisons=3)
    assert [one.p for one in found] == [*map(pytest.approx, want.p), None]


@pytest.mark.parametrize("coarse", [0, 1])
def test_the_coarsest_losses_decide_what_rounding_adds(tmp_path, coarse):
    write_matrix(tmp_path, (0, 5, 8), range(4), effects={8: -0.006})
    base, ra, mla = group_arms(read_matrix(tmp_path))
    pairs = [(ra, base), (mla, base)]
    evidence = [replace(at_equal_steps(*p, Rules()), rounding=0.0) for p in pairs]
    evidence[coarse] = replace(evidence[coarse], rounding=1e-4)
    found = pool(pairs, evidence, Rules())
    losses = np.array([arm.values("val_loss") for arm in (base, ra, mla)])
    want, fine = (
        pooled_variance.pooled_test(losses, ((1, 0), (2, 0)), rounding=r).half_width
        for r in (1e-4, 0.0)
    )
    assert [one.half_width for one in found] == pytest.approx(list(want))
    assert min(want) > 1.5 * max(fine)


def test_what_only_the_pooled_test_finds_is_found_and_both_are_shown(tmp_path):
    write_matrix(tmp_path, ARMS, range(3), noise=0.002)
    base = group_arms(read_matrix(tmp_path))[0].by_seed("val_loss")
    gains = (-0.0131, -0.01, -0.0069)
    set_losses(tmp_path, lambda s, seed, x: base[seed] + gains[seed] if s == 8 else x)
    found = verdicts(tmp_path)[8]
    assert found.grade == SUPPORTED and found.p_pooled < 0.05 < found.p_holm
    words = "the pooled test finds a difference and the paired t test does not"
    assert words in found.reasons[0]
    said = [what for label, what in remarks(judged(tmp_path)) if label.startswith("8")]
    assert any(words in what and f"{found.p_holm:.3f}" in what for what in said)


def test_seeds_that_agree_by_chance_are_said_to(tmp_path):
    """The narrow interval of three equal differences is not what decides."""
    write_matrix(tmp_path, ARMS, range(3), noise=0.002)
    base = group_arms(read_matrix(tmp_path))[0].by_seed("val_loss")

    def with_gains(*gains: float):
        set_losses(
            tmp_path, lambda s, seed, x: base[seed] + gains[seed] if s == 8 else x
        )
        return verdicts(tmp_path)[8]

    found = with_gains(-0.0201, -0.02, -0.0199)
    half = found.family_interval.high - found.mean
    assert found.grade == SUPPORTED
    assert f"over all arms together it is ±{half:.4f}" in " ".join(found.reasons)
    assert "spread of 0.0001, those of all arms 0.00" in " ".join(found.reasons)
    assert not any("narrow" in x for x in with_gains(-0.022, -0.02, -0.018).reasons)
    assert not any("narrow" in x for x in with_gains(-1e-4, 0.0, 1e-4).reasons)


def test_what_only_the_paired_test_finds_is_not_found_and_both_are_shown(tmp_path):
    """A small difference of a quiet arm together with a very noisy one."""
    write_matrix(tmp_path, ARMS, range(5), noise=1e-3, effects={5: -0.002})
    set_losses(tmp_path, lambda step, seed, x: x + (step == 8) * (seed % 3 - 1) * 0.2)
    found = verdicts(tmp_path)[5]
    assert found.p_holm < 0.05 < found.p_pooled
    assert found.grade == INCONCLUSIVE
    words = "the paired t test finds a difference and the pooled"
    assert words in str(found.reasons)


def test_two_arms_are_decided_by_the_paired_test(tmp_path):
    write_matrix(tmp_path, (0, 5), range(3), effects={5: -0.03})
    found = verdicts(tmp_path)[5]
    assert found.p_pooled is None and found.p_deciding == found.p_holm == found.p


def test_at_equal_time_the_paired_test_decides(tmp_path):
    write_matrix(tmp_path, ARMS, range(3))
    for comparison in judged(tmp_path).comparisons:
        assert comparison.at_steps.p_pooled is not None
        assert comparison.at_time.p_pooled is None
        assert comparison.at_time.p_holm is not None


def test_arms_over_other_seeds_are_tested_apart_and_counted(tmp_path):
    write_matrix(tmp_path, (0,), range(1, 7))
    write_matrix(tmp_path, (5, 8), (1, 2, 3), effects={5: -0.02})
    write_matrix(tmp_path, (2,), (4, 5, 6), result={"parameters": 124_000_000})
    found = verdicts(tmp_path)
    assert found[2].p_pooled is None and found[2].p_holm is not None
    rows = {a.step: a.by_seed("val_loss") for a in group_arms(read_matrix(tmp_path))}
    table = np.array([[rows[step][seed] for seed in (1, 2, 3)] for step in (0, 5, 8)])
    want = pooled_variance.pooled_test(table, ((1, 0), (2, 0)), comparisons=3)
    assert [found[s].p_pooled for s in (5, 8)] == pytest.approx(list(want.p), rel=0.1)


def test_an_invalid_arm_is_counted_and_lends_no_noise(tmp_path):
    write_matrix(tmp_path, (0, 5, 8), range(3), effects={5: -0.02})
    alone = verdicts(tmp_path)[5]
    write_matrix(tmp_path, (29,), range(2))
    write_run(tmp_path, 29, 2, status="failed", failure="nan")
    among = verdicts(tmp_path)
    assert among[29].grade == INVALID and among[29].p_pooled is None
    assert among[5].p_pooled >= alone.p_pooled


# ---- rounded losses -------------------------------------------------------------


def test_rounded_losses_without_spread_prove_nothing(tmp_path):
    """Steps of 0.001, and the same difference of one step in every seed."""
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    set_losses(
        tmp_path, lambda s, seed, _: [3.301, 3.317, 3.325][seed - 1] - (s == 5) / 1000
    )
    found = verdicts(tmp_path, margin=0.0005)[5]
    assert found.differences == pytest.approx([-0.001] * 3)
    assert found.grade == INCONCLUSIVE and 0.0 in found.interval
    assert any("losses are multiples of 0.001" in reason for reason in found.reasons)


def test_one_imported_arm_that_is_rounded_is_seen(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    set_losses(tmp_path, lambda step, _, x: round(x, 3) if step == 5 else x)
    baseline, arm = group_arms(read_matrix(tmp_path))
    found = at_equal_steps(arm, baseline, Rules())
    assert found.resolution == pytest.approx(0.001)
    assert found.rounding == pytest.approx(0.001**2 / 12, rel=1e-4)


def test_rounding_matters_at_equal_time_too(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=0.05)
    set_losses(tmp_path, lambda step, seed, loss: round(loss, 2))
    for path in tmp_path.glob("step*/seed*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if "val_loss" in record:
                record["val_loss"] = round(record["val_loss"], 2)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    comparison = judged(tmp_path).comparisons[0]
    for verdict in (comparison.at_time, comparison.at_steps):
        assert any("multiples of 0.01" in r for r in verdict.reasons)


def test_losses_of_full_precision_carry_no_rounding(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    baseline, arm = group_arms(read_matrix(tmp_path))
    assert at_equal_steps(arm, baseline, Rules()).resolution < 1e-6


# ---- guards ---------------------------------------------------------------------


@pytest.mark.parametrize("column", ["parameters", "tokens"])
@pytest.mark.parametrize(("share", "matched"), [(0.008, True), (0.012, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_budgets_match_within_one_percent(tmp_path, column, share, matched, sign):
    write_matrix(tmp_path, (0,), (1, 2, 3), result={column: 1_000_000})
    other = {column: int(1_000_000 * (1 + sign * share))}
    write_matrix(tmp_path, (5,), (1, 2, 3), effects={5: -0.05}, result=other)
    found = verdicts(tmp_path)[5]
    assert (found.grade == UNMATCHED) is not matched
    assert found.grade in (UNMATCHED, SUPPORTED)


def test_equivalence_is_corrected_for_all_comparisons(tmp_path):
    """Each of three arms alone would be NEUTRAL at 5%; together they are not."""
    write_matrix(tmp_path, (0, 5, 8), range(3), noise=1e-5)
    far = {0: -0.0008, 1: 0.0, 2: 0.0008}
    set_losses(tmp_path, lambda step, seed, x: x + (step == 5) * far[seed])
    write_matrix(tmp_path, (29,), range(3), noise=1e-5)
    found = verdicts(tmp_path, margin=0.0014)
    raw = {
        step: stats.equivalence_test(verdict.differences, 0.0014)
        for step, verdict in found.items()
    }
    assert all(q < 0.05 for q in raw.values())
    assert found[8].grade == NEUTRAL
    assert found[5].p_equivalent_holm == pytest.approx(2 * raw[5], rel=0.01)
    assert found[5].p_equivalent_holm > 0.05 and found[5].grade != NEUTRAL


def test_each_arm_is_compared_with_its_own_partner(tmp_path):
    """Not with step 0: 29 loses against 5 what it gains against 0."""
    effects = {5: -0.05, 29: -0.02}
    write_matrix(tmp_path, ARMS, (1, 2, 3), effects=effects)
    found = judged(tmp_path)
    partners = {c.arm.step: c.partner.step for c in found.comparisons}
    assert partners == {5: 0, 8: 0, 29: 5}
    grades = {c.arm.step: c.at_steps.grade for c in found.comparisons}
    assert (grades[5], grades[29]) == (SUPPORTED, HARMFUL)
    assert {step: STEPS[step][2] for step in partners} == partners


# ---- looks ----------------------------------------------------------------------


def test_looks_share_the_level(tmp_path):
    write_matrix(tmp_path, (0, 5), range(3))
    arms = group_arms(read_matrix(tmp_path))
    step = np.array([-0.012, -0.010, -0.0085])
    base = dict(zip(range(3), arms[0].values("val_loss"), strict=True))
    set_losses(
        tmp_path, lambda s, seed, x: x if s == 0 else base[seed] + float(step[seed])
    )
    p = stats.t_test(list(step))
    assert 0.05 / 10 < p < 0.05
    assert verdicts(tmp_path)[5].grade == SUPPORTED
    assert verdicts(tmp_path, looks=10)[5].grade == INCONCLUSIVE
    with pytest.raises(ValueError, match="looks=0"):
        Rules(looks=0)


def test_looks_share_the_level_of_the_pooled_test(tmp_path):
    write_matrix(tmp_path, (0, 5, 8), range(4))
    losses = [arm.values("val_loss") for arm in group_arms(read_matrix(tmp_path))]
    want = pooled_variance.pooled_test(
        np.array(losses), ((1, 0), (2, 0)), alpha=0.05 / 4
    )
    found = verdicts(tmp_path, looks=4)[5].family_interval
    assert (found.high - found.low) / 2 == pytest.approx(want.half_width[0], rel=0.05)


def test_more_seeds_come_with_a_warning_or_with_planned_looks(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    found = judged(tmp_path)
    assert "fresh seeds" in seeds_lines(found.comparisons, found.rules)[0]
    planned = judged(tmp_path, looks=4)
    assert "1.25%" in seeds_lines(planned.comparisons, planned.rules)[0]
    write_matrix(tmp_path, (0, 5), (3, 4), noise=0.0, effects={5: 0.0})
    set_losses(tmp_path, lambda step, seed, x: 3.3 + seed / 7 + step / 50)
    decided = judged(tmp_path)
    assert decided.comparisons[0].at_steps.grade == HARMFUL
    assert seeds_lines(decided.comparisons, decided.rules) == []


def test_the_noise_of_124m_is_mentioned_at_that_size_only(tmp_path):
    for parameters, known in ((124_000_000, True), (900_000, False)):
        root = tmp_path / str(parameters)
        write_matrix(root, (0, 5), (1,), result={"parameters": parameters})
        line = noise_lines(judged(root))[0]
        assert "not measured" in line and ("124M" in line) is known


# ---- rates and sizes ------------------------------------------------------------


@pytest.mark.parametrize("field", ["learning_rate", "size"])
def test_each_rate_and_size_has_its_own_noise(tmp_path, field):
    """A difference among quiet arms is found though others are 20 times noisier."""
    write_swept(tmp_path, {3: 0.004, 9: 0.08}, field=field, effects={3: -0.01})
    comparisons = judged(tmp_path).comparisons
    rows = [a.values("val_loss") for a in group_arms(read_matrix(tmp_path))]
    quiet, noisy = rows[::2], rows[1::2]
    pairs = ((1, 0), (2, 0), (4, 3), (5, 3))
    want = pooled_variance.pooled_test(np.array(quiet + noisy), pairs, pools=(3, 3))
    found = {(c.arm.step, c.arm.coordinates[field]): c.at_steps for c in comparisons}
    order = [(5, 3), (8, 3), (5, 9), (8, 9)]
    assert [found[at].p_pooled for at in order] == pytest.approx(want.p, rel=0.1)
    assert found[5, 3].grade == SUPPORTED
    assert pooled_variance.pooled_test(np.array(quiet + noisy), pairs).p[0] > 0.05
    spreads = measured_spreads(judged(tmp_path))
    origins = [spread.origin.partition("results ")[2] for spread in spreads]
    assert origins == [f"at {field}=3 (8 df)", f"at {field}=9 (8 df)"]
    assert 5 * spreads[0].sd < spreads[1].sd
    assert family_of([(c.arm, c.partner) for c in comparisons]) == Family(4, pools=2)


def test_arms_compared_across_rates_are_one_pool(tmp_path):
    write_swept(tmp_path, {1: 0.001, 2: 0.002})
    arms = {a.label: a for a in group_arms(read_matrix(tmp_path))}
    low, high = (arms[f"0 baseline/learning_rate={n}"] for n in (1, 2))
    ra = arms["5 ra/learning_rate=1"]
    assert pools_of([(ra, low), (low, high)]) == ["", ""]
    assert pools_of([(ra, low), (arms["5 ra/learning_rate=2"], high)]) == [
        "learning_rate=1",
        "learning_rate=2",
    ]


def test_a_single_arm_at_each_rate_has_the_noise_of_its_pair(tmp_path):
    write_swept(tmp_path, {1: 0.001, 2: 0.004}, (0, 5), effects={1: -0.02})
    found = [c.at_steps for c in judged(tmp_path).comparisons]
    assert [v.p_pooled is not None for v in found] == [True, True]
    assert [v.grade for v in found] == [SUPPORTED, INCONCLUSIVE]
