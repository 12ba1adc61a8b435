"""Phase records: what a process writes and what readers take from a file."""

import json
import time
from typing import Any

import pytest

from lib.jobs.phases import PHASES, next_stage, phase_record, phases_of
from tests.scratch import ROOT, python


def test_a_record_says_when_a_phase_was_reached():
    before = time.time()
    record = json.loads(json.dumps(phase_record("ready", attempt=2)))
    assert (record["kind"], record["name"], record["attempt"]) == ("phase", "ready", 2)
    assert before - 0.001 <= record["time"] <= time.time() + 0.001
    assert phase_record("ready", 1, at=12.3456)["time"] == 12.346


def test_a_name_that_no_reader_knows_is_refused():
    with pytest.raises(AssertionError):
        phase_record("redy", 1)


def test_readers_take_phases_in_order_and_skip_everything_else():
    good: list[dict[str, Any]] = [
        phase_record(name, 1, float(i)) for i, name in enumerate(PHASES)
    ]
    odd: list[dict[str, Any]] = [
        {"kind": "train", "name": "ready", "time": 1.0, "attempt": 1},
        {"kind": "phase", "name": "unheard of", "time": 1.0, "attempt": 1},
        {"kind": "phase", "name": "ready", "time": None, "attempt": 1},
        {"kind": "phase", "name": ["ready"], "time": 1.0, "attempt": 1},
        {"kind": "phase"},
    ]
    expected = [(name, float(i), 1) for i, name in enumerate(PHASES)]
    assert phases_of([*odd, *good, *odd]) == expected


def test_the_start_of_a_process_is_before_its_imports():
    program = (
        "import time; time.sleep(0.3)\n"
        "from lib.jobs.phases import process_start; print(process_start())"
    )
    before = time.time()
    done = python(ROOT, "-c", program)
    assert before - 0.05 <= float(done.stdout) <= time.time() - 0.25


def test_the_start_of_a_process_is_never_later_than_what_it_did_first():
    """A run that an idle process takes over imports nothing: it is at work at once."""
    program = (
        "import os, time\n"
        "from lib.jobs.phases import process_start\n"
        "if os.fork():\n"
        "    os.wait()\n"
        "else:\n"
        "    first = time.time()\n"
        "    for _ in range(20):\n"
        "        time.sleep(0.001)\n"
        "        print(process_start() <= first)\n"
    )
    done = python(ROOT, "-c", program)
    assert done.stdout.split() == ["True"] * 20


@pytest.mark.parametrize(
    ("phases", "stage"),
    [
        ("started imported data", "preparing"),
        ("started imported data kernels model compiled ready", "waiting"),
        ("started imported data ready turn first_update", "training"),
        ("started data ready turn data kernels ready", "training"),  # out of memory
        ("started turn data ready", "training"),  # had to be alone from the start
        ("started ready turn released written", "finishing"),
        ("started ready turn released data", "preparing"),  # out of memory at the end
        ("started ready turn first_update started", "preparing"),  # the next attempt
    ],
)
def test_the_stage_of_a_run_follows_from_its_phases(phases: str, stage: str) -> None:
    found = ""
    for phase in phases.split():
        found = next_stage(found, phase)
    assert found == stage
