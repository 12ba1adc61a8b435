"""How many runs prepare ahead: by setting, cores and the memory of a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt2.plan.jobs import Job
from gpt2.plan.memory import USABLE, memory
from gpt2.plan.planning import make_plan
from gpt2.run import prepare_ahead
from gpt2.run.gpu_sharing import CONTEXT
from gpt2.run.placement import describe, gpu_slots
from gpt2.run.prepare_ahead import Ahead, runs_ahead, with_turns
from lib.jobs.options import Options
from lib.jobs.slots import Gpus, place_of
from lib.jobs.turn import SHARE, TURN
from tests.gpt2.tinytraining import tiny_config

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with so many cores and GPUs of so many bytes."""

    def make(cores: int, card: int) -> None:
        monkeypatch.setattr(prepare_ahead, "usable_cores", lambda: cores)
        monkeypatch.setattr(prepare_ahead, "card_memory", lambda slot: card)

    return make


def jobs(count: int = 9, **changes: object) -> list[Job]:
    words = [f"{name}={value}" for name, value in changes.items()]
    seeds = ",".join(map(str, range(1, count + 1)))
    mode = ("RA_MLA_ABLATION_MODE=y", "STEPS=0", f"SEEDS={seeds}", "CONTROLS=n")
    return list(make_plan(tiny_config(*mode, *words)).jobs)


def slots(gpus: int, found: list[Job]) -> Options:
    names = tuple(map(str, range(gpus)))
    return Options(slots=gpu_slots(found[0].settings.resources, Gpus("cuda", names)))


def test_by_default_every_gpu_that_is_there_gets_a_job(machine: Any) -> None:
    found = jobs()
    options = slots(4, found)
    assert [place_of(slot) for slot in options.slots] == ["0", "1", "2", "3"]
    pairs = slots(4, jobs(DDP_GPUS_PER_JOB=2))
    assert [place_of(slot) for slot in pairs.slots] == ["0,1", "2,3"]


@pytest.mark.parametrize(
    ("cores", "gpus", "count"), [(2, 1, 1), (8, 1, 2), (64, 1, 3), (16, 2, 2)]
)
def test_cores_bound_it(machine: Any, cores: int, gpus: int, count: int) -> None:
    machine(cores, 80 * GIB)
    found = jobs()
    assert runs_ahead(found, slots(gpus, found)).count == count


@pytest.mark.parametrize(("fit", "count"), [(1.9, 0), (2.1, 1), (3.1, 2), (9.0, 3)])
def test_memory_bounds_it(machine: Any, fit: float, count: int) -> None:
    """One trains and one still writes; what is left is for those that prepare."""
    found = jobs()
    one = memory(found[0].settings)
    need = one.total + CONTEXT
    rest = one.weights + one.gradients + one.optimizer + one.casts + CONTEXT
    machine(64, round((fit * need + rest) / USABLE))
    ahead = runs_ahead(found, slots(1, found))
    assert (ahead.count, ahead.need, ahead.rest) == (count, need, rest)
    if count:
        assert need <= ahead.share
        assert (count + 1) * ahead.share + rest <= USABLE * ahead.card


def test_no_more_prepare_than_are_left(machine: Any) -> None:
    machine(64, 80 * GIB)
    for count, gpus, expected in ((1, 1, 0), (2, 1, 1), (4, 2, 1), (5, 2, 2)):
        found = jobs(count)
        assert runs_ahead(found, slots(gpus, found)).count == expected
    assert runs_ahead([], Options()).count == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"DDP_GPUS_PER_JOB": 2},
        {"JOBS": 4},  # two on each GPU
        {"PREPARE_AHEAD": 0},
    ],
)
def test_where_it_would_disturb_nothing_prepares(machine: Any, changes: Any) -> None:
    machine(64, 80 * GIB)
    found = jobs(**changes)
    assert runs_ahead(found, slots(2, found)).count == 0


def test_a_run_that_is_limited_by_time_is_not_slowed_down(machine: Any) -> None:
    machine(64, 80 * GIB)
    found = jobs()
    timed = [replace(j, settings=j.settings.replace(time_budget="1m")) for j in found]
    assert runs_ahead(timed, slots(1, timed)).count == 0


def test_without_known_memory_nothing_prepares_unless_asked(machine: Any) -> None:
    machine(64, 0)
    found = jobs()
    assert runs_ahead(found, slots(1, found)).count == 0
    asked = jobs(PREPARE_AHEAD=2)
    assert runs_ahead(asked, slots(1, asked)).count == 2


def test_a_cpu_prepares_nothing_ahead_unless_asked() -> None:
    assert runs_ahead(jobs(), Options(slots=[{}])).count == 0
    assert runs_ahead(jobs(PREPARE_AHEAD=1), Options(slots=[{}])) == Ahead(1)


def test_slots_get_turns_of_their_own(tmp_path: Path) -> None:
    options = Options(slots=[{"A": "0"}, {"A": "1"}])
    assert with_turns(options, Ahead(0), tmp_path) is options
    found = with_turns(options, Ahead(2, need=20, rest=3, card=70), tmp_path)
    assert found.ahead == 2 and [slot["A"] for slot in found.slots] == ["0", "1"]
    assert [slot[TURN] for slot in found.slots] == [
        str(tmp_path / ".slot0"),
        str(tmp_path / ".slot1"),
    ]
    assert {slot[SHARE] for slot in found.slots} == {"20"}, "(0.9 * 70 - 3) / 3"


def test_the_listing_says_where_for_how_long_and_with_how_much_memory(
    machine: Any, tmp_path: Path
) -> None:
    machine(64, 80 * GIB)
    found = jobs(4)
    options = slots(2, found)
    ahead = Ahead(1, need=10 * GIB, rest=2 * GIB, card=80 * GIB)
    first, second = describe(found, options, ahead, tmp_path).splitlines()
    assert first == "4 jobs on GPU 0, 1, 2 at a time; `make estimate` says how long"
    assert "10.0 GiB each by estimate and at most 35.0 GiB of the 80.0 GiB" in second
    assert describe(found, Options(slots=[{}]), Ahead(0), tmp_path) == ""
