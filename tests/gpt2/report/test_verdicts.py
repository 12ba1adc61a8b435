"""Grades: by hand-made directories, and by simulated matrices."""

import json
import math

import numpy as np
import pytest

from gpt2.report.evidence import Rules
from gpt2.report.grades import (
    HARMFUL,
    INCONCLUSIVE,
    INVALID,
    NEUTRAL,
    SUPPORTED,
    UNMATCHED,
    UNVERIFIED,
    Differences,
    Verdict,
    family_size,
    grade_family,
)
from gpt2.report.noise import (
    KNOWN_NOISE,
    Design,
    Family,
    PlannedTest,
    seeds_to_decide,
)
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from lib import stats
from tests.results_factory import (
    STEPS,
    change_final_loss,
    settings,
    write_matrix,
    write_run,
)


def verdicts(root, rules=None):
    """Grade at equal steps by step id."""
    judged = judge(read_matrix(root), rules)
    return {c.arm.step: c.at_steps for c in judged.comparisons}


def test_a_clear_gain_is_supported_a_clear_loss_harmful(tmp_path):
    write_matrix(tmp_path, (0, 5, 8), range(5), effects={5: 0.03, 8: -0.03})
    found = verdicts(tmp_path)
    assert (found[5].grade, found[8].grade) == (HARMFUL, SUPPORTED)
    assert found[8].mean == pytest.approx(-0.03, abs=0.003)
    assert found[8].interval.high < 0 and found[8].p_holm < 0.05
    assert found[8].seeds == (0, 1, 2, 3, 4)


def test_difference_is_paired_by_seed(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=0.0)
    for seed, value in ((1, 3 + 1 / 7), (2, 3.5 + 1 / 7), (3, 3.9 + 1 / 7)):
        set_loss(tmp_path, 0, seed, value)
        set_loss(tmp_path, 5, seed, value - 0.01 - seed * 1e-5)
    found = verdicts(tmp_path)[5]
    assert found.grade == SUPPORTED  # the spread over seeds cancels
    assert found.differences == pytest.approx((-0.01001, -0.01002, -0.01003))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_give_no_verdict(tmp_path, count):
    """Whatever they show: a clear gain, a clear loss, or no difference at all."""
    seeds = range(1, count + 1)
    write_matrix(tmp_path, (0, 5, 8, 29), seeds, noise=1e-6, effects={5: -2.0, 8: 2.0})
    for found in verdicts(tmp_path).values():
        assert found.grade == INCONCLUSIVE and found.seeds_needed >= 3
        assert found.p is None and found.p_deciding is None
        few = {1: "one seed is", 2: "two seeds are"}[count]
        assert f"{few} not enough for a verdict (at least 3)" in found.reasons[0]
    third = max(seeds) + 1
    write_matrix(
        tmp_path, (0, 5, 8, 29), range(third, 4), noise=1e-6, effects={5: -2.0, 8: 2.0}
    )
    grades = {step: found.grade for step, found in verdicts(tmp_path).items()}
    assert grades == {5: SUPPORTED, 8: HARMFUL, 29: HARMFUL}


def set_loss(root, step, seed, value):
    folder = root / f"step{step:02d}-{STEPS[step][0]}/seed{seed}"
    change_final_loss(folder, lambda loss: value)


def sample(*differences):
    return Differences(tuple(differences))


def design(rules=None, family=1, is_pooled=False, runs_sd=None, pooled_sd=None):
    rules = rules or Rules()
    test = PlannedTest(rules, Family(family), is_pooled)
    return Design(test, runs_sd, pooled_sd=pooled_sd)


def test_inconclusive_says_how_many_seeds_would_decide():
    differences = (-0.006, -0.001, -0.004)
    verdict = grade_family([sample(*differences), Differences(), Differences()])[0]
    assert verdict.grade == INCONCLUSIVE
    seeds, basis = seeds_to_decide(differences, design(family=3)) or (0, "")
    known = stats.describe(differences)
    assert seeds > 3 and "its own differences" in basis
    want = PlannedTest(Rules(), Family(3), False).seeds_to_find(
        known.mean, known.sd, 0.0
    )
    assert seeds == want.first


@pytest.mark.parametrize(
    ("differences", "basis"),
    [((0.001, 0.0011), "the noise floor"), ((0.001, 0.1), "its own differences")],
)
def test_two_seeds_are_planned_for_by_the_larger_of_two_spreads(differences, basis):
    assert basis in seeds_to_decide(differences, design(runs_sd=0.0019))[1]


def test_three_seeds_are_planned_for_by_the_larger_of_two_spreads():
    quiet = (-0.004, -0.0041, -0.0042)
    still, noisy = (
        design(family=6, is_pooled=True, pooled_sd=sd) for sd in (1e-5, 0.004)
    )
    few, _ = seeds_to_decide(quiet, still) or (0, "")
    more, basis = seeds_to_decide(quiet, noisy) or (0, "")
    assert few == 4 < more and "all arms" in basis


def test_a_toy_is_not_planned_for_by_the_noise_of_124m(tmp_path):
    """One seed and two of the same toy must not give 3 seeds and 1000."""
    for seeds in ((1,), (1, 2)):
        root = tmp_path / str(len(seeds))
        toy = {"result": {"parameters": 1_000_000}}
        write_matrix(root, (0, 5), seeds, noise=0.03, effects={5: 0.005}, **toy)
        reason = verdicts(root)[5].reasons[0]
        assert "124M" not in reason
        if len(seeds) == 1:
            assert "the noise at this size is unknown" in reason
            assert "would need" not in reason


def test_one_seed_of_124m_is_planned_for_by_the_noise_known_there(tmp_path):
    write_matrix(tmp_path, (0, 5), (1,), effects={5: 0.01})
    found = verdicts(tmp_path)[5]
    assert "seeds at the known noise at 124M" in found.reasons[0]
    want = PlannedTest(Rules(), Family(1), False).seeds_to_find(
        found.mean, 2**0.5 * KNOWN_NOISE[1], 0.0
    )
    assert found.seeds_needed == want.first


def test_many_seeds_decide_that_an_arm_is_neutral(tmp_path):
    write_matrix(tmp_path, (0, 5), range(20), noise=0.001)
    found = verdicts(tmp_path)[5]
    assert found.grade == NEUTRAL and found.p_equivalent_holm < 0.05
    small = verdicts(tmp_path, Rules(margin=0.0001))[5]
    assert small.grade != NEUTRAL


@pytest.mark.parametrize(
    ("effect", "way", "beyond"),
    [(-0.001, "improvement", SUPPORTED), (0.001, "loss", HARMFUL)],
)
def test_a_sure_difference_within_the_margin_is_neutral_and_told(
    tmp_path, effect, way, beyond
):
    write_matrix(tmp_path, (0, 5), range(4), noise=1e-5, effects={5: effect})
    found = verdicts(tmp_path)[5]
    assert found.grade == NEUTRAL and found.p_holm < 0.05
    reason = f"a real {way}, but smaller than the margin of 0.003"
    assert found.reasons == (reason,)
    strict = verdicts(tmp_path, Rules(margin=0.0005))[5]
    assert (strict.grade, strict.reasons) == (beyond, ())


def test_runs_that_agree_bit_for_bit_are_neutral(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    for seed in (1, 2, 3):
        for step in (0, 5):
            set_loss(tmp_path, step, seed, 3.0 + seed / 700)
    assert verdicts(tmp_path)[5].grade == NEUTRAL


def test_a_bigger_model_is_unmatched_whatever_it_gains(tmp_path):
    write_matrix(tmp_path, (0, 2), range(5), effects={2: -0.5})
    found = verdicts(tmp_path)[2]
    assert found.grade == UNMATCHED
    assert found.reasons == ("parameters differ by +11.3%",)
    assert found.mean < -0.4 and found.interval is not None  # still shown
    assert verdicts(tmp_path, Rules(tolerance=0.2))[2].grade == SUPPORTED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"manifest": {"effective_batch": 32}}, "effective batch differ by -50.0%"),
        ({"manifest": {"data_fingerprint": "e"}}, "trained on different data"),
        ({"result": {"tokens": 1000}}, "tokens differ by -100.0%"),
    ],
)
def test_unlike_conditions_are_unmatched(tmp_path, changes, reason):
    write_matrix(tmp_path, (0,), (1, 2, 3))
    write_matrix(tmp_path, (5,), (1, 2, 3), **changes)
    found = verdicts(tmp_path)[5]
    assert found.grade == UNMATCHED and reason in found.reasons


@pytest.mark.parametrize("verified", ["skipped", None])
def test_without_certificates_there_is_no_verdict(tmp_path, verified):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), effects={5: -1.0}, verified=verified)
    assert verdicts(tmp_path)[5].grade == UNVERIFIED


def test_one_seed_without_certificates_is_enough_for_none(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), effects={5: -1.0})
    write_run(tmp_path, 5, 4, effect=-1.0, verified="skipped")
    assert verdicts(tmp_path)[5].grade == UNVERIFIED


def test_a_failed_certificate_is_invalid(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2, 3))
    write_matrix(tmp_path, (5,), (1, 2, 3), verified="failed")
    found = verdicts(tmp_path)[5]
    assert found.grade == INVALID and "certificate" in found.reasons[0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"status": "failed", "failure": "nan"}, "seed 3 diverged"),
        ({"status": "failed", "failure": "crash"}, "seed 3 failed: crash"),
        ({"status": "oom", "failure": "oom"}, "seed 3 oom"),
        ({"status": "interrupted"}, "seed 3 interrupted"),
        ({"status": "planned"}, "seed 3 planned"),
        ({"result": {"val_loss": float("nan")}}, "seed 3 diverged"),
        ({"result": {"val_loss": "3.1"}}, "seed 3 diverged or without a loss"),
    ],
)
@pytest.mark.parametrize("broken", [0, 5])
def test_an_incomplete_arm_or_partner_is_invalid(tmp_path, state, words, broken):
    for step in (0, 5):
        write_matrix(tmp_path, (step,), (1, 2), effects={5: -1.0})
        write_run(tmp_path, step, 3, **(state if step == broken else {}))
    found = verdicts(tmp_path)[5]
    assert found.grade == INVALID
    assert "2 of 3 seeds finished" in found.reasons[0] and words in found.reasons[0]
    assert found.seeds == (1, 2) and found.mean < 0  # shown all the same


def test_an_arm_still_to_come_is_corrected_for_and_eases_no_other(tmp_path):
    """Nor would a grade fall when it comes, whatever its first seeds say."""
    write_matrix(tmp_path, (0, 5), (1, 2, 3), effects={5: 0.01})
    write_matrix(tmp_path, (8,), (1, 2), effects={8: -2.0})
    write_run(tmp_path, 8, 3, status="running")
    found = verdicts(tmp_path)
    assert found[8].grade == INVALID
    assert 0 < found[5].p_holm == 2 * found[5].p < 1


def test_no_seed_in_common_is_invalid(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2))
    write_matrix(tmp_path, (5,), (3, 4))
    assert verdicts(tmp_path)[5].reasons == (
        "no common seed is finished (seeds 3, 4 of 5 ra, 1, 2 of 0 baseline)",
    )


def test_seeds_that_change_nothing_are_no_replicas(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), effects={5: -0.1})
    for seed in (1, 2, 3):
        set_loss(tmp_path, 5, seed, 3.25)
    found = verdicts(tmp_path)[5]
    assert found.grade == INVALID and "not replicas" in found.reasons[0]


def copy_curves(root):
    """Give step 5 the losses of step 0, seed by seed."""
    for seed in (1, 2, 3):
        base = root / f"step00-baseline/seed{seed}"
        for name in ("metrics.jsonl", "status.json"):
            copied = (base / name).read_text()
            (root / f"step05-ra/seed{seed}" / name).write_text(copied)


def test_a_step_that_trains_exactly_as_its_partner_is_no_step(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    copy_curves(tmp_path)
    found = verdicts(tmp_path)[5]
    assert found.grade == INVALID and "have no effect" in found.reasons[0]


def test_identical_arms_of_identical_settings_are_neutral(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2, 3))
    write_matrix(tmp_path, (5,), (1, 2, 3), job={"settings": settings(0)})
    copy_curves(tmp_path)
    assert verdicts(tmp_path)[5].grade == NEUTRAL


def test_a_partner_that_was_not_run_is_replaced_by_its_own_and_said_so(tmp_path):
    write_matrix(tmp_path, (0, 29), (1, 2))
    comparison = judge(read_matrix(tmp_path)).comparisons[0]
    assert (comparison.arm.step, comparison.partner.step) == (29, 0)
    assert comparison.note == "step 5 was not run"


def test_an_arm_without_any_partner_is_named(tmp_path):
    write_matrix(tmp_path, (5,), (1, 2))
    judged = judge(read_matrix(tmp_path))
    assert judged.comparisons == []
    assert "was not run" in judged.notes["5 ra"]


@pytest.mark.parametrize(
    ("partners", "pairs"),
    [
        ({"adamw": None, "sgd": None, "spam": None}, {"sgd": "adamw", "spam": "adamw"}),
        ({"adamw": "sgd", "sgd": None, "spam": "sgd"}, {"adamw": "sgd", "spam": "sgd"}),
        ({"adamw": None, "sgd": None, "spam": "sgd"}, {"spam": "sgd"}),
    ],
)
def test_cells_of_a_test_matrix_are_held_to_the_named_or_the_first(
    tmp_path, partners, pairs
):
    for name, partner in partners.items():
        for seed in (1, 2):
            job = {"step": None, "name": name, "parent": None, "parent_name": partner}
            write_run(tmp_path, 0, seed, job=job, effect=len(name) / 100)
    judged = judge(read_matrix(tmp_path))
    assert {c.arm.name: c.partner.name for c in judged.comparisons} == pairs
    baselines = [noise.arm.name for noise in judged.noise]
    assert baselines == [name for name in partners if name not in pairs]


def test_noise_floor_is_the_baselines_spread_over_seeds(tmp_path):
    write_matrix(tmp_path, (0, 5), range(6))
    judged = judge(read_matrix(tmp_path))
    losses = judged.arms[0].values("val_loss")
    assert [noise.arm.step for noise in judged.noise] == [0]
    assert judged.noise[0].sample.sd == pytest.approx(np.std(losses, ddof=1))


def test_equal_time_reads_the_slower_run_before_its_end(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=1e-6)
    comparison = judge(read_matrix(tmp_path)).comparisons[0]
    matrix = read_matrix(tmp_path)
    ends = {r.row["step"]: r.row["seconds"] for r in matrix.runs}
    assert ends[5] > ends[0]
    assert comparison.at_time.seconds == pytest.approx(ends[0])
    points = [(r["seconds"], r["val_loss"]) for r in matrix.runs[3].evals]
    want = np.interp(ends[0], [x for x, _ in points], [y for _, y in points])
    base = matrix.runs[0].evals[-1]["val_loss"]
    assert comparison.at_time.differences[0] == pytest.approx(want - base)
    assert comparison.at_time.grade == HARMFUL
    assert abs(comparison.at_steps.mean) < 1e-5


@pytest.mark.parametrize(("slower", "grade"), [(1.03, INCONCLUSIVE), (1.5, HARMFUL)])
def test_equal_time_knows_less_between_evaluations(tmp_path, slower, grade):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=1e-6)
    speed = read_matrix(tmp_path).runs[0].row["tokens_per_s"] / slower
    for path in tmp_path.glob("step05-*/seed*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record["seconds"] = record["tokens"] / speed
            if "tokens_per_s" in record:
                record["tokens_per_s"] = speed
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = judge(read_matrix(tmp_path)).comparisons[0].at_time
    assert found.grade == grade and found.mean > 0
    assert "which more seeds do not lower" in found.reasons[0]
    assert found.seeds_needed is None
    assert (found.interval.low < 0) == (grade == INCONCLUSIVE)


def test_equal_time_does_not_depend_on_what_else_a_gpu_did(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=1e-6)
    undisturbed = judge(read_matrix(tmp_path)).comparisons[0].at_time
    # Others prepare next to one run, half of whose updates take three times as long.
    path = next(tmp_path.glob("step05-*/seed2/metrics.jsonl"))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    half = records[len(records) // 2]["seconds"]
    for record in records:
        late = max(0.0, record["seconds"] - half)
        if late and "tokens_per_s" in record:
            record["tokens_per_s"] /= 3
        record["seconds"] += 2 * late
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    disturbed = judge(read_matrix(tmp_path)).comparisons[0].at_time
    assert disturbed.differences == pytest.approx(undisturbed.differences)
    assert disturbed.seconds == pytest.approx(undisturbed.seconds)


def test_equal_time_needs_the_same_machine(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2, 3))
    device = {"device": {"name": "NVIDIA H100"}}
    write_matrix(tmp_path, (5,), (1, 2, 3), manifest=device)
    comparison = judge(read_matrix(tmp_path)).comparisons[0]
    assert comparison.at_time.grade == UNMATCHED
    assert comparison.at_time.reasons == ("run on different hardware",)
    assert comparison.at_steps.grade != UNMATCHED


def test_equal_time_without_curves_is_invalid(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    judged = judge(read_matrix(tmp_path, curves=False))
    assert judged.comparisons[0].at_time.grade == INVALID
    assert judged.comparisons[0].at_steps.grade in (NEUTRAL, INCONCLUSIVE)


def test_a_comparison_still_to_come_counts_in_the_correction():
    found = sample(-0.02, -0.021, -0.0195)
    alone, among = (
        grade_family([found])[0],
        grade_family([found] + [Differences()] * 9)[0],
    )
    assert among.p_holm == pytest.approx(10 * alone.p_holm)
    assert among.family_interval.high > alone.family_interval.high


def test_unmatched_arms_do_not_tax_the_others(tmp_path):
    write_matrix(tmp_path, (0, 2, 5), range(3), effects={5: -0.01})
    found = verdicts(tmp_path)
    assert found[5].p_holm == found[5].p and found[2].p_holm is None
    assert (found[5].family, found[2].family) == (1, None)


@pytest.mark.parametrize(
    "change", [{"alpha": 0.0}, {"margin": 0.0}, {"margin": math.inf}, {"power": 1.0}]
)
def test_rules_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Rules(**change)


# ---- simulated matrices ---------------------------------------------------------

SD = 0.0016  # of a run over seeds


def simulate(matrices, arms, seeds, effects=(), batch_share=0.3, seed=0):
    """Grades of simulated matrices: arms share a baseline and part of the noise."""
    random = np.random.default_rng(seed)
    shift = np.zeros(arms)
    shift[: len(effects)] = effects
    for _ in range(matrices):
        common = random.normal(0, SD * math.sqrt(batch_share), size=seeds)
        own = random.normal(0, SD * math.sqrt(1 - batch_share), (arms + 1, seeds))
        losses = common + own
        differences = losses[1:] - losses[0] + shift[:, None]
        yield [
            v.grade for v in grade_family([sample(*d) for d in differences.tolist()])
        ]


def false_claims(matrices, arms, seeds):
    rounds = simulate(matrices, arms, seeds)
    return sum(bool({SUPPORTED, HARMFUL} & set(grades)) for grades in rounds)


def below(rate, trials):
    """Four standard errors over the rate: a right program fails 1 in 30,000."""
    return rate * trials + 4 * math.sqrt(trials * rate * (1 - rate))


@pytest.mark.parametrize(("arms", "seeds"), [(1, 3), (6, 5)])
def test_identical_arms_are_seldom_told_apart(arms, seeds):
    assert false_claims(600, arms, seeds) <= below(0.05, 600)


def test_without_correction_identical_arms_would_be_told_apart():
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        samples = random.normal(0, SD, (10, 3)).tolist()
        hits += any(stats.t_test(sample) < 0.05 for sample in samples)
    assert hits > below(0.05, 300)


def planned_power(matrices, arms, delta):
    """(share of planted effects found, power promised) with the planned seeds."""
    sd = SD * math.sqrt(2 * 0.7)
    alpha = 0.05 / arms
    margin = Rules().margin
    seeds = (
        PlannedTest(Rules(), Family(arms), False).seeds_to_find(delta, sd, margin).first
    )
    rounds = simulate(matrices, arms, seeds, effects=[-delta])
    hits = sum(grades[0] == SUPPORTED for grades in rounds) / matrices
    return hits, stats.power_of_difference(delta, sd, seeds, alpha, margin)


def test_planted_effect_is_found_about_as_often_as_planned():
    hits, promised = planned_power(1000, 4, 0.005)
    assert hits == pytest.approx(promised, abs=4 * math.sqrt(0.25 / 1000))


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "seeds"), [(1, 3), (4, 3), (18, 3), (11, 8)])
def test_family_wise_error_over_10000_identical_matrices(arms, seeds):
    assert false_claims(10_000, arms, seeds) / 10_000 <= 0.05 + 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "delta"), [(1, 0.003), (4, 0.005), (11, 0.004)])
def test_planted_effects_over_10000_matrices(arms, delta):
    hits, promised = planned_power(10_000, arms, delta)
    assert hits == pytest.approx(promised, abs=0.03)


@pytest.mark.slow
def test_an_arm_at_the_margin_is_seldom_called_neutral():
    rounds = simulate(10_000, 6, 5, effects=[0.003] * 6)
    assert sum(NEUTRAL in grades for grades in rounds) <= 10_000 * (0.05 + 0.005)


def test_a_family_is_as_large_as_what_p_values_are_corrected_for():
    """Unmatched comparisons have no family, nor have those of a sequential one."""
    family = [Verdict(), Verdict(family=6), Verdict(family=2)]
    assert family_size(family) == 6
    assert family_size([Verdict()]) == family_size([]) == 0


def test_no_difference_at_all_is_neutral_and_not_called_real(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), noise=0.0)
    for seed, difference in ((1, 0.0005), (2, 0.0001), (3, -0.0006)):
        loss = 3 + seed / 7
        set_loss(tmp_path, 0, seed, loss)
        set_loss(tmp_path, 5, seed, loss + difference)
    found = verdicts(tmp_path)[5]
    assert found.grade == NEUTRAL and found.p_deciding > 0.9
    assert not any("a real" in reason for reason in found.reasons)
