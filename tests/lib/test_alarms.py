"""lib/alarms.py on curves that are right, and on each way to be wrong."""

import json
import math
import random
from pathlib import Path

import pytest

from lib.alarms import (
    DIVERGING,
    FIRST,
    FLAT,
    GROWING,
    LEAK,
    LossWatch,
    are_identical,
    identical_curves,
)

VOCAB = 50257
START = math.log(VOCAB)


def kinds(curve, every=1, vocab=VOCAB):
    """Alarms of a training curve {update: loss}, logged every so many updates."""
    watch = LossWatch(vocab)
    found = [watch.train(n, x) for n, x in curve if n == 1 or n % every == 0]
    return [alarm.kind for alarms in found for alarm in alarms]


def healthy(updates=2000, noise=0.05, start=START, floor=3.3, first=1):
    draw = random.Random(0)
    for n in range(first, updates):
        yield n, floor + (start - floor) * (1 + n / 20) ** -0.8 + draw.gauss(0, noise)


@pytest.mark.parametrize("every", [1, 10, 50])
def test_a_healthy_curve_raises_nothing(every):
    assert kinds(healthy(), every) == []


def test_a_healthy_curve_of_bytes_raises_nothing():
    assert kinds(healthy(start=math.log(257), floor=1.3), vocab=257) == []


def test_a_resumed_curve_raises_nothing():
    assert kinds(healthy(first=1500)) == []


def test_trained_weights_start_low_and_may_stay_there():
    """As INIT_FROM of GPT-2: no leak and no failure to learn; both need random ones."""
    curve = [(n, 3.3 + 0.01 * (n % 2)) for n in range(1, 400)]
    for trained, expected in ((True, set()), (False, {FIRST, LEAK, FLAT})):
        watch = LossWatch(VOCAB, 4.3, trained)
        found = watch.evaluation(0, 3.31) + watch.evaluation(5, 3.3)
        found += [alarm for n, loss in curve for alarm in watch.train(n, loss)]
        assert {alarm.kind for alarm in found} == expected


def test_trained_weights_that_fall_too_fast_or_fall_apart_raise_alarms():
    watch = LossWatch(VOCAB, 4.3, trained=True)
    assert watch.evaluation(0, 3.3) == []
    assert [a.kind for a in watch.evaluation(2, 1.2)] == [LEAK]
    broken = LossWatch(VOCAB, 4.3, trained=True)
    assert [a.kind for a in broken.evaluation(0, 1.3 * START)] == [FIRST]
    assert [a.kind for a in broken.evaluation(9, 1.5 * START)] == [DIVERGING]


def test_noise_and_a_passing_spike_are_no_divergence():
    curve = [(n, x + (2.0 if n == 700 else 0.0)) for n, x in healthy(noise=0.2)]
    assert kinds(curve) == []


@pytest.mark.parametrize("first", [0.5 * START, 1.3 * START])
def test_first_loss_far_from_a_uniform_guess(first):
    assert kinds([(1, first)]) == [FIRST]
    watch = LossWatch(VOCAB)
    (alarm,) = watch.evaluation(0, first)
    assert alarm.kind == FIRST and "ln(50257) = 10.825" in alarm.message


@pytest.mark.parametrize("first", [START + 0.3, START - 0.1])
def test_first_loss_of_a_usual_initialisation(first):
    assert kinds([(1, first)]) == []


def test_a_flat_curve_is_told_once():
    draw = random.Random(1)
    flat = [(n, START + draw.gauss(0, 0.02)) for n in range(1, 1000)]
    assert kinds(flat) == [FLAT]
    assert kinds(flat[:150]) == []


def test_few_records_are_enough():
    """Of 400 updates, logged every 50: eight records."""
    flat = [(n, START + random.Random(n).gauss(0, 0.02)) for n in range(1, 401)]
    assert kinds(flat, every=50) == [FLAT]
    rising = [(n, x + max(0, n - 200) * 0.02) for n, x in healthy(401)]
    assert kinds(rising, every=50) == [DIVERGING]


def test_a_curve_that_rises_again_is_told_once():
    curve = [(n, x + max(0, n - 1500) * 0.01) for n, x in healthy()]
    assert kinds(curve) == [DIVERGING]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number(value):
    watch = LossWatch(VOCAB)
    assert [a.kind for a in watch.train(5, value)] == [DIVERGING]
    assert watch.evaluation(6, value) == []  # once is enough


def test_a_validation_loss_too_good_to_be_true():
    watch = LossWatch(VOCAB, bytes_per_token=4.2)
    assert watch.evaluation(1000, 3.0) == []
    (alarm,) = watch.evaluation(2000, 0.4)
    assert alarm.kind == LEAK and alarm.step == 2000 and "future" in alarm.message
    assert watch.evaluation(3000, 0.3) == []


def test_a_validation_loss_that_falls_too_fast():
    watch = LossWatch(VOCAB)
    assert watch.evaluation(10, 8.0) == []
    assert [a.kind for a in watch.evaluation(12, 2.0)] == [LEAK]


def test_identical_curves_are_found_among_many():
    base = [(0, 9.0), (10, 5.0), (20, 4.0), (30, 3.5)]
    almost = [*base[:3], (30, 3.5 + 1e-15)]
    curves = {"a": base, "b": almost, "c": list(base), "d": base[:3]}
    assert identical_curves(curves) == [("a", "c")]


def test_what_is_shared_before_training_proves_nothing():
    a, b = [(0, 9.0), (10, 5.0)], [(0, 9.0), (10, 5.0)]
    assert not are_identical(a, b) and not are_identical([], [])
    assert are_identical(a, b, points=1)
    assert not are_identical(a, [(0, 9.0), (20, 5.0)], points=1)


# ---- gradients --------------------------------------------------------------------

# (update, loss, gradient norm) of GPT-2 124M on Python source. The backward pass of its
# attention was wrong by 141% in the first two (one rank, and two).
WRONG = (
    ((40, 4.49, 1.1), (100, 4.39, 6.5), (150, 4.35, 7.5)),
    ((40, 4.47, 1.0), (100, 4.40, 23.6), (150, 4.39, 5.3)),
)
RIGHT = (
    ((40, 4.42, 0.8), (100, 3.87, 0.6), (150, 3.74, 0.4)),
    ((40, 4.37, 0.8), (100, 3.84, 0.8), (150, 3.64, 0.5)),
)
# Every record of trainings on a CPU, one an update: [loss, gradient norm].
CURVES = json.loads((Path(__file__).parent / "curves.json").read_text())


def gradients(records, vocab=VOCAB):
    """Alarms at records of (update, loss, gradient norm)."""
    watch = LossWatch(vocab)
    return [a for record in records for a in watch.train(*record)]


def between(points, every, noise=0.0, seed=0):
    """Records in between, with lognormal noise of the norm."""
    draw = random.Random(seed)
    for (a, x, p), (b, y, q) in zip(points, points[1:], strict=False):
        for n in range(a, b, every):
            share = (n - a) / (b - a)
            norm = p * (q / p) ** share * math.exp(draw.gauss(0, noise))
            yield n, x + (y - x) * share, norm
    yield points[-1]


def logged(curve, every, first):
    """As a trainer records it: the loss is a mean, the norm that of one update."""
    for n in range(first, len(curve) + 1, every):
        losses = [loss for loss, _ in curve[max(0, n - every) : n]]
        yield n, sum(losses) / len(losses), curve[n - 1][1]


@pytest.mark.parametrize("points", WRONG)
def test_gradients_that_grow_while_the_loss_stalls(points):
    (alarm,) = gradients(points)
    assert (alarm.kind, alarm.step) == (GROWING, 150)
    assert "are the gradients right?" in alarm.message
    for every in (1, 5, 10, 25):
        found = gradients(between(points, every, noise=0.2))
        assert [a.kind for a in found] == [GROWING], every


@pytest.mark.parametrize("points", RIGHT)
def test_gradients_of_a_healthy_training_raise_nothing(points):
    assert gradients(points) == []
    for every in (1, 5, 10, 25):
        assert gradients(between(points, every, noise=0.3)) == [], every


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("every", [1, 5, 10, 20, 40])
def test_recorded_trainings_raise_nothing(name, every):
    for first in range(1, every + 1):
        assert gradients(logged(CURVES[name], every, first), vocab=257) == []


def test_spikes_of_the_norm_are_no_growth():
    """Of 80 runs whose norm varies by a third and has spikes, at most one alarms."""
    alarmed = dict.fromkeys((1, 10, 50), 0)
    for seed in range(80):
        draw, curve, left = random.Random(seed), [], 0
        for n, loss in healthy(400, noise=0.03):
            left = draw.choice((1, 2, 3)) if draw.random() < 0.01 else left - 1
            spike = draw.uniform(3, 12) if left > 0 else 1.0
            norm = 0.3 + 2.0 / (1 + n / 20)
            curve.append((loss, norm * spike * math.exp(draw.gauss(0, 0.33))))
        for every in alarmed:
            alarmed[every] += bool(gradients(logged(curve, every, every)))
    assert max(alarmed.values()) <= 1


def test_growth_late_in_a_training_is_seen():
    curve = [(n, x, 0.4 if n < 1500 else 3.0) for n, x in healthy(noise=0.01)]
    (alarm,) = gradients(curve)
    assert alarm.kind == GROWING and 1500 < alarm.step < 1550


# ---- worse than a guess -----------------------------------------------------------


def test_a_blow_up_within_the_first_records_is_seen():
    """The quickstart at LEARNING_RATE=10 without a clip: 425 nats all the time."""
    watch = LossWatch(257)
    (alarm,) = watch.train(5, 80.0)
    assert alarm.kind == DIVERGING and alarm.step == 5
    assert "80.000, above ln(257) = 5.549 of a uniform guess" in alarm.message
    assert watch.train(10, 425.0) == [] == watch.evaluation(10, 425.0)


def test_a_validation_loss_above_a_guess():
    watch = LossWatch(257)
    (alarm,) = watch.evaluation(50, 6.1)
    assert alarm.kind == DIVERGING and "validation loss is 6.100" in alarm.message
    assert LossWatch(257).evaluation(1, 5.6) == []  # a hair above, at the beginning
