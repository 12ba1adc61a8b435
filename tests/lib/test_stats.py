"""lib/stats.py against scipy.stats, hand-worked cases and simulation."""

import math

import numpy as np
import pytest

from lib import stats
from lib.rounded_losses import rounding_variance


@pytest.fixture(scope="module")
def oracle():
    from scipy import stats  # a second: not in workers that collect alone

    return stats


SAMPLES = [
    [0.1, -0.2],
    [-0.0012, 0.0021, -0.0030],
    [-0.021, -0.019, -0.020, -0.025, -0.017],
    list(np.random.default_rng(0).normal(0.3, 1, size=40)),
]


@pytest.mark.parametrize("values", SAMPLES)
def test_interval_and_p_are_scipys(values, oracle):
    want = oracle.ttest_1samp(values, 0.0)
    found = stats.t_interval(values, alpha=0.1)
    want_interval = want.confidence_interval(0.9)
    assert found.low == pytest.approx(want_interval.low, rel=1e-9)
    assert found.high == pytest.approx(want_interval.high, rel=1e-9)
    assert stats.t_test(values) == pytest.approx(want.pvalue, rel=1e-9)


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize("margin", [0.003, 0.5])
def test_equivalence_is_the_larger_of_two_one_sided_tests(values, margin, oracle):
    above = oracle.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = oracle.ttest_1samp(values, margin, alternative="less").pvalue
    assert stats.equivalence_test(values, margin) == pytest.approx(max(above, below))


def test_one_value_has_no_interval_and_no_test():
    assert stats.t_interval([0.1]) is None
    assert stats.t_test([0.1]) is None
    assert stats.equivalence_test([0.1], 1.0) is None
    assert math.isnan(stats.describe([0.1]).sd)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_a_sample_of_no_or_bad_values_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        stats.describe(values)


def test_values_without_spread_prove_nothing():
    assert stats.t_test([0.0, 0.0]) == 1.0
    assert stats.t_test([-0.1] * 3) == 1.0
    assert stats.equivalence_test([0.0, 0.0], 0.003) == 0.0
    assert stats.equivalence_test([0.001] * 3, 0.003) == 1.0
    assert stats.describe([0.1] * 3).sd == 0.0  # a sum would leave 1e-17 behind


def test_rounding_widens_the_interval_and_no_number_of_seeds_removes_it():
    rounding = rounding_variance(0.001, 0.001)
    assert rounding == pytest.approx(0.001**2 / 6)
    for n in (3, 30, 300):
        interval = stats.t_interval([-0.001] * n, rounding=rounding)
        assert interval.high - interval.low > 1.5 * 0.001
    assert stats.t_test([-0.001] * 3, rounding) > 0.1
    plain = [-0.0012, 0.0021, -0.0030]
    assert stats.t_test(plain, rounding) > stats.t_test(plain)
    assert stats.t_test(plain, rounding_variance(1e-9)) == pytest.approx(
        stats.t_test(plain)
    )


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("sd", [0.0005, 0.001, 0.0015])
def test_losses_in_steps_of_a_thousandth_make_no_false_findings(seeds, sd):
    """Six arms, Holm. Without the variance of rounding 39 to 50% of matrices have a
    false finding with two seeds and 8 to 12% with three."""
    random = np.random.default_rng(seeds)
    width, hits, naive = 0.001, 0, 0
    for _ in range(250):
        losses = np.round(3.3 + random.normal(0, sd, (7, seeds)), 3)
        samples = (losses[1:] - losses[0]).tolist()
        rounding = rounding_variance(width, width)
        tests = [stats.t_test(sample, rounding) for sample in samples]
        found = stats.holm([p for p in tests if p is not None])
        hits += min(found) < 0.05
        naive += any(sample == sample[:1] * seeds and sample[0] for sample in samples)
    assert hits <= 12  # 4.8%
    assert naive > hits or seeds > 2


def test_holm_by_hand():
    # 0.01*4; 0.02*3; then the running maximum; the last stays
    assert stats.holm([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_rejects_between_bonferroni_and_no_correction():
    random = np.random.default_rng(1)
    for _ in range(200):
        raw = list(random.uniform(size=6) ** 3)
        adjusted = stats.holm(raw)
        assert all(
            p <= q <= min(1.0, 6 * p) + 1e-15
            for p, q in zip(raw, adjusted, strict=True)
        )
        order = np.argsort(raw)
        assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_interval_of_the_spread_is_the_chi_square_one(oracle):
    sample = stats.Sample(5, 0.0, 0.002)
    low, high = oracle.chi2.ppf([0.025, 0.975], 4)
    found = stats.sd_interval(sample)
    assert found.low == pytest.approx(0.002 * math.sqrt(4 / high))
    assert found.high == pytest.approx(0.002 * math.sqrt(4 / low))
    # of two values: |x - y| / sqrt(2) is |z| times the spread, z a standard normal
    two = stats.sd_interval(stats.Sample(2, 0.0, 0.002), alpha=0.1)
    low, high = oracle.norm.ppf([0.525, 0.975])
    assert two.low == pytest.approx(0.002 / high)
    assert two.high == pytest.approx(0.002 / low)
    assert stats.sd_interval(stats.Sample(1, 0.0, math.nan)) is None


def coverage(interval, draw, trials=600):
    random = np.random.default_rng(2)
    return sum(0.0 in interval(list(draw(random))) for _ in range(trials)) / trials


def test_bootstrap_covers_without_a_normal_assumption():
    found = coverage(
        lambda x: stats.bootstrap_interval(x, resamples=1000),
        lambda random: random.exponential(size=8) - 1.0,
    )
    assert 0.90 <= found <= 0.99


def test_bootstrap_agrees_with_t_on_a_normal_sample():
    values = SAMPLES[3]
    t, boot = stats.t_interval(values), stats.bootstrap_interval(values)
    width = t.high - t.low
    assert boot.low == pytest.approx(t.low, abs=0.1 * width)
    assert boot.high == pytest.approx(t.high, abs=0.1 * width)
    assert boot == stats.bootstrap_interval(values)  # seeded


def test_bootstrap_says_nothing_where_it_could_not():
    assert stats.bootstrap_interval([0.1, 0.2, 0.3]) is None
    assert stats.bootstrap_interval([0.1] * 5) is None


@pytest.mark.parametrize(("delta", "sd", "n"), [(0.003, 0.0027, 5), (1.0, 0.5, 3)])
def test_power_is_that_of_simulated_t_tests(delta, sd, n, oracle):
    random = np.random.default_rng(3)
    draws = random.normal(delta, sd, size=(20_000, n))
    result = oracle.ttest_1samp(draws, 0.0, axis=1)
    hits = ((result.pvalue < 0.05) & (result.statistic > 0)).mean()
    assert stats.power_of_difference(delta, sd, n, 0.05) == pytest.approx(
        hits, abs=0.012
    )


@pytest.mark.parametrize(("delta", "n"), [(0.003, 6), (0.004, 5), (0.002, 40)])
def test_power_beyond_a_margin_is_that_of_simulated_tests(delta, n):
    """Near the margin it is less than that of the t test alone, within it none."""
    random = np.random.default_rng(5)
    samples = random.normal(delta, 0.0019, size=(4_000, n)).tolist()
    found = [sum(s) > 0 and stats.t_test(s) < 0.05 for s in samples]
    small = [stats.equivalence_test(s, 0.003) < 0.05 for s in samples]
    hits = np.mean([f and not s for f, s in zip(found, small, strict=True)])
    power = stats.power_of_difference(delta, 0.0019, n, 0.05, 0.003)
    assert power == pytest.approx(hits, abs=0.03)
    assert power <= stats.power_of_difference(delta, 0.0019, n, 0.05)


def test_without_a_margin_the_integral_is_the_noncentral_t():
    plain = stats.power_of_difference(0.003, 0.0019, 6, 0.05)
    tiny = stats.power_of_difference(0.003, 0.0019, 6, 0.05, 1e-12)
    assert tiny == pytest.approx(plain, abs=0.002)


@pytest.mark.parametrize(("delta", "n"), [(0.0, 5), (0.001, 12), (0.0025, 20)])
def test_power_of_equivalence_is_that_of_simulated_tests(delta, n, oracle):
    random = np.random.default_rng(4)
    draws = random.normal(delta, 0.002, size=(20_000, n))
    above = oracle.ttest_1samp(draws, -0.003, axis=1, alternative="greater").pvalue
    below = oracle.ttest_1samp(draws, 0.003, axis=1, alternative="less").pvalue
    hits = ((above < 0.05) & (below < 0.05)).mean()
    found = stats.power_of_equivalence(delta, 0.003, 0.002, n, 0.05)
    assert found == pytest.approx(hits, abs=0.012)


@pytest.mark.parametrize("delta", [0.0, 0.002, 0.003, -0.003, 0.004, -0.004])
def test_without_spread_the_power_is_0_or_1(delta):
    """The mean is then the true one: found unless 0, small inside the margin."""
    is_small = abs(delta) < 0.003
    assert stats.power_of_difference(delta, 0.0, 2, 0.05) == (delta != 0)
    assert stats.power_of_difference(delta, 0.0, 2, 0.05, 0.003) == (not is_small)
    assert stats.power_of_equivalence(delta, 0.003, 0.0, 2, 0.05) == is_small


def test_numbers_of_seeds_by_hand():
    last = stats.SEED_NUMBERS[-1]
    assert stats.seeds_needed(lambda n: float(n >= 9), 0.8) == stats.Seeds(9)
    assert stats.seeds_needed(lambda n: float(n >= last), 0.8) == stats.Seeds(last)
    assert stats.seeds_needed(lambda n: 0.79, 0.8) is None
    # all numbers, and a few between which it is looked up
    for numbers in (stats.SEED_NUMBERS, [3, 5, 10, 20]):
        rising = stats.seed_window(lambda n: float(n >= 7), 0.8, numbers)
        assert rising == stats.Seeds(7)
        passing = stats.seed_window(lambda n: float(7 <= n <= 12), 0.8, numbers)
        assert passing == stats.Seeds(7, 12)
        at_once = stats.seed_window(lambda n: 0.8 * (n <= 4), 0.8, numbers)
        assert at_once == stats.Seeds(3, 4)
        assert stats.seed_window(lambda n: 0.0, 0.8, numbers) is None


@pytest.mark.parametrize("n", [2, 3, 10])
def test_detectable_difference_inverts_the_power(n):
    delta = stats.detectable_difference(
        lambda delta: stats.power_of_difference(delta, 0.002, n, 0.01), 0.002, 0.9
    )
    found = stats.power_of_difference(delta, 0.002, n, 0.01)
    assert found == pytest.approx(0.9, abs=1e-4)


def test_pooled_spread_is_weighted_by_degrees_of_freedom():
    samples = [[1.0, 2.0], [5.0, 5.5, 7.0, 4.0], [3.0]]
    want = (np.var(samples[0], ddof=1) + 3 * np.var(samples[1], ddof=1)) / 4
    assert stats.pooled_sd(samples) == pytest.approx(math.sqrt(want))
    assert stats.pooled_sd([[1.0], [2.0, 2.0]]) is None
