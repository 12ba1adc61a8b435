"""lib/alarms.py on curves that are right, and on each way to be wrong."""

import math
import random

import pytest

from lib.alarms import (
    DIVERGING,
    FIRST,
    FLAT,
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
