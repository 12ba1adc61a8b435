"""lib/sequential.py: levels and test by hand, and error rates by simulation."""

import math

import numpy as np
import pytest

from lib import sequential, stats
from lib.sequential import fallback_level, gamma, lord_level, sequential_test
from tests.lib.noise_worlds import WORLDS, lognormal, normal, rows
from tests.lib.series_worlds import found_in, p_values

HARDER = {
    "baseline 1.5x": rows(1.5, 0),
    "baseline 3x": rows(3, 0),
    "three arms 10x": rows(10, 1, 2, 3),
    "last three arms 10x": rows(10, 98, 99, 100),
    "lognormal sds, 1.0": lognormal(1.0),
}


def drawn(arms, seeds, seed=0):
    return np.random.default_rng(seed).standard_normal((arms, seeds))


# ---- levels ---------------------------------------------------------------------


def test_levels_of_a_series_without_findings_sum_to_at_most_alpha():
    levels: list[float] = []
    for number in range(1, 2001):
        levels.append(fallback_level(0.05, levels, [False] * len(levels)))
        assert levels[-1] == pytest.approx(0.05 * gamma(number))
    assert 0.045 < sum(levels) < 0.05


def test_a_finding_hands_its_level_to_the_next_test():
    first = fallback_level(0.05, [], [])
    second = fallback_level(0.05, [first], [True])
    assert second == pytest.approx(0.05 * (gamma(1) + gamma(2)))
    third = fallback_level(0.05, [first, second], [True, False])
    assert third == pytest.approx(0.05 * gamma(3))


def test_lord_earns_with_every_finding():
    """The formula of Ramdas et al. 2017 for W_0 = alpha / 2 and findings 2 and 3."""
    found = [False, True, True, False]
    want = 0.025 * gamma(5) + 0.025 * gamma(5 - 2) + 0.05 * gamma(5 - 3)
    assert lord_level(0.05, [], found) == pytest.approx(want)
    assert lord_level(0.05, [], [False] * 4) == pytest.approx(0.025 * gamma(5))


# ---- the test -------------------------------------------------------------------


def test_the_first_arm_of_a_series_has_its_paired_t_test():
    table = drawn(2, 4)
    found = sequential_test(table, 0.05, 0.02)
    difference = (table[0] - table[1]).tolist()
    assert found.p == pytest.approx(stats.t_test(difference))
    interval = stats.t_interval(difference, 0.02)
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_fewer_than_three_seeds_are_not_tested():
    assert sequential_test(drawn(5, 2), 0.05, 0.02) is None


def test_p_is_below_the_level_where_the_interval_excludes_0():
    for seed in range(30):
        table = drawn(8, 4, seed)
        table[0] -= 0.3 * seed
        found = sequential_test(table, 0.05, 0.004)
        distance = abs(np.mean(table[0] - table[1]))
        assert (found.p <= 0.004) == (distance >= found.half_width)


def test_a_noisy_arm_is_not_found_by_the_noise_of_the_others():
    table = drawn(12, 3)
    table[0] = [-9.0, 9.0, -9.0]  # a mean of -3, far outside the others' noise
    assert sequential_test(table, 0.05, 0.004).p > 0.5


def test_rounding_that_explains_a_difference_hides_it():
    table = 0.001 * drawn(8, 3)
    table[0] -= 0.05
    assert sequential_test(table, 0.05, 0.004).p < 0.004
    assert sequential_test(table, 0.05, 0.004, rounding=0.05**2).p > 0.004


def test_simulated_series_are_judged_as_single_tests_are():
    table = drawn(5, 3)
    together = p_values(table[None])[0]
    for arm in range(1, 5):
        mine = np.array([table[arm], table[0], *table[arm - 1 : 0 : -1]])
        found = sequential_test(mine, 0.05, 0.01)
        assert found.p == pytest.approx(together[arm - 1])


def test_power_rises_with_seeds_and_falls_with_the_level():
    chance = [sequential.power(0.006, 0.002, n, 6, 0.05, 0.002) for n in (2, 3, 5, 8)]
    assert chance[0] == 0 and chance == sorted(chance) and chance[-1] > 0.9
    assert sequential.power(0.006, 0.002, 5, 6, 0.05, 1e-4) < chance[2]
    within = sequential.power(0.002, 0.0005, 20, 6, 0.05, 0.002, margin=0.003)
    assert within < 0.2 < sequential.power(0.002, 0.0005, 20, 6, 0.05, 0.002)
    two = sequential.power(0.006, 0.002, 4, 2, 0.05, 0.02)
    assert two == stats.power_of_difference(0.006, 0.002, 4, 0.02)


# ---- by simulation --------------------------------------------------------------

ARMS, SERIES = 100, 2000


def allowed(rate):
    """With three standard errors of the simulation."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / SERIES)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
def test_false_findings_of_a_hundred_arms_without_effect(seeds):
    """All arms share the baseline. Without any effect both rates are the same."""
    for number, (world, make) in enumerate((WORLDS | HARDER).items()):
        losses = make(np.random.default_rng(number), (SERIES, ARMS + 1, seeds))
        p = p_values(losses)
        for rule in (fallback_level, lord_level):
            rate = found_in(p, rule).any(axis=1).mean()
            assert rate <= allowed(0.05), (world, rule.__name__)


def mixture(make, seeds, share, effect=3.0):
    """p, and which arms have an effect, for a share of arms with one."""
    random = np.random.default_rng(7)
    losses = make(random, (SERIES, ARMS + 1, seeds))
    has_effect = random.random((SERIES, ARMS)) < share
    losses[:, 1:] -= effect * has_effect[:, :, None]
    return p_values(losses), has_effect


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_false_findings_among_arms_with_effects(seeds, share):
    for world in ("equal noise", "lognormal sds", "baseline 5x", "t with 3 degrees"):
        p, has_effect = mixture(WORLDS[world], seeds, share)
        any_false = (found_in(p, fallback_level) & ~has_effect).any(axis=1)
        assert any_false.mean() <= allowed(0.05), world
        found = found_in(p, lord_level)
        of_found = (found & ~has_effect).sum(axis=1) / np.maximum(1, found.sum(axis=1))
        assert of_found.mean() <= allowed(0.05), world


@pytest.mark.slow
def test_power_beside_holm_over_the_whole_series():
    """Three standard deviations of a run, five seeds, 30% of the arms; the first 20
    tests, which Holm's method could grade only after all 100."""
    p, has_effect = mixture(normal, 5, 0.3)
    early = np.s_[:, :20]
    power = {
        rule: (found_in(p, rule) & has_effect)[early].sum() / has_effect[early].sum()
        for rule in (fallback_level, lord_level)
    }
    holm = stats.power_of_difference(3.0, math.sqrt(2), 5, 0.05 / 100)
    assert power[fallback_level] > 2 * holm and power[lord_level] > 4 * holm


def test_where_its_own_spread_decides_p_and_interval_take_its_share_of_the_error():
    """A quiet pair among noisy arms: the paired t test, at a share of the level."""
    seeds, level = 5, 0.02
    noisy = np.random.default_rng(1).normal(3.3, 0.5, (4, seeds))
    partner = np.full(seeds, 3.3)
    arm = partner + 1e-4 * np.array([1.0, -1.0, 2.0, 0.0, -1.5])
    result = sequential_test(np.vstack([arm, partner, noisy]), 0.05, level)
    differences = arm - partner
    share = sequential.share_alone(seeds)
    t = stats.t_quantile(1 - share * level / 2, seeds - 1)
    error = differences.std(ddof=1) / math.sqrt(seeds)
    assert 0 < share < 1
    assert result.half_width == pytest.approx(t * error, rel=1e-9)
    alone = stats.t_test(differences.tolist())
    assert result.p == pytest.approx(min(1.0, alone / share), rel=1e-9)
