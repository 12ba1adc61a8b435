"""Turns on a device, between real processes: one at a time, lent, freed by a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lib.jobs.turn import GATE, RANK, SHARE, TURN, Turn, turn_path
from tests.scratch import PATIENT

FORK = multiprocessing.get_context("fork")


def serve(path: str, rank: int, line: Connection) -> None:
    """A run that follows commands, word by word."""
    turn = Turn.from_environment({TURN: path, RANK: str(rank)})

    def waiting() -> None:
        assert not line.poll(), "asked to give up"

    for word in iter(line.recv, "end"):
        if word == "alone":
            with turn.alone(waiting):
                line.send("alone")
                assert line.recv() == "not alone"
        elif word == "helper":  # which outlives a kill, as a loader's may
            if not os.fork():
                time.sleep(30)
                os._exit(0)
        elif word == "let go":
            turn.let_go()
        else:
            {"take": turn.take, "lend": turn.lend}[word](waiting)
        line.send(word)


@contextmanager
def run(
    path: str, rank: int = 0
) -> Iterator[tuple[Connection, multiprocessing.Process]]:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=serve, args=(path, rank, theirs))
    process.start()
    theirs.close()
    try:
        yield ours, process  # type: ignore[misc]
    finally:
        process.kill()
        process.join()


def ask(line: Connection, word: str) -> None:
    line.send(word)
    assert answered(line) == word


def answered(line: Connection) -> object:
    assert line.poll(PATIENT), "no answer"
    return line.recv()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return turn_path(tmp_path, 0)


def test_one_trains_at_a_time_and_the_next_when_it_lets_go(path: str) -> None:
    with run(path) as (one, _), run(path) as (other, _):
        ask(one, "take")
        other.send("take")
        assert not other.poll(0.2)
        ask(one, "let go")
        assert answered(other) == "take"


def test_of_those_that_wait_the_lowest_rank_trains_next(path: str) -> None:
    with ExitStack() as stack:
        first, *waiting = [stack.enter_context(run(path, n))[0] for n in range(4)]
        ask(first, "take")
        for line in reversed(waiting):  # the last in rank is the first to wait
            line.send("take")
            assert not line.poll(0.1)
        for before, line in pairwise([first, *waiting]):
            ask(before, "let go")
            assert answered(line) == "take"


def test_a_run_that_is_stopped_does_not_keep_others_waiting(path: str) -> None:
    with (
        run(path) as (first, _),
        run(path, 1) as (low, stopped),
        run(path, 2) as (
            high,
            _,
        ),
    ):
        ask(first, "take")
        for line in (low, high):
            line.send("take")
            assert not line.poll(0.1)
        os.kill(stopped.pid, signal.SIGSTOP)
        ask(first, "let go")
        assert answered(high) == "take"
        os.kill(stopped.pid, signal.SIGCONT)
        ask(high, "let go")
        assert answered(low) == "take"


def test_a_kill_frees_the_turn_even_if_a_helper_lives_on(path: str) -> None:
    with run(path) as (one, process), run(path) as (other, _):
        ask(one, "take")
        ask(one, "helper")
        other.send("take")
        assert not other.poll(0.2)
        process.kill()
        assert answered(other) == "take"


def test_a_run_that_trains_lends_the_device_between_updates(path: str) -> None:
    with run(path) as (one, _), run(path) as (other, _):
        trains = Turn(path)
        trains.take(lambda: None)
        assert not trains.is_wished()
        one.send("alone")
        other.send("take")
        while not trains.is_wished():
            time.sleep(0.01)
        assert not one.poll(0.1), "it must not begin before the device is lent"
        seen: list[object] = []

        def waiting() -> None:
            if one.poll():
                seen.append(one.recv())
                one.send("not alone")

        trains.lend(waiting)
        assert seen == ["alone"] and not trains.is_wished()
        assert not other.poll(0.1), "the turn itself is not lent"
        trains.let_go()
        assert answered(other) == "take"


def test_a_kill_while_the_device_is_lent_gives_it_back(path: str) -> None:
    with run(path) as (one, process):
        trains = Turn(path)
        trains.take(lambda: None)
        one.send("alone")
        while not trains.is_wished():
            time.sleep(0.01)

        def waiting() -> None:
            if one.poll() and process.is_alive():
                process.kill()

        trains.lend(waiting)
        assert not trains.is_wished()


def test_without_others_nothing_waits_and_nothing_is_written(tmp_path: Path) -> None:
    turn = Turn.from_environment({})
    turn.take(lambda: pytest.fail("it waits"))
    with turn.alone(lambda: pytest.fail("it waits")):
        assert not turn.is_wished()
    turn.let_go()
    assert turn.is_mine and not turn.is_shared and list(tmp_path.iterdir()) == []


def test_the_environment_names_the_place_and_the_share_of_memory(path: str) -> None:
    turn = Turn.from_environment({TURN: path, SHARE: "1000"})
    assert (turn.is_shared, turn.is_mine, turn.memory) == (True, False, 1000)


def test_a_wait_ends_when_it_is_asked_to(path: str) -> None:
    with run(path) as (one, _):
        ask(one, "take")

        def stop() -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            Turn(path).take(stop)


@pytest.mark.parametrize("shared", [True, False])
def test_while_the_gate_is_closed_none_trains(
    path: str, tmp_path: Path, shared: bool
) -> None:
    gate, waits = tmp_path / "gate", 0
    turn = Turn.from_environment({GATE: str(gate), **({TURN: path} if shared else {})})

    def waiting() -> None:
        nonlocal waits
        waits += 1
        with turn.alone(lambda: pytest.fail("kernels cannot be timed meanwhile")):
            pass
        if waits == 3:
            gate.touch()

    turn.take(waiting)
    assert waits == 3 and turn.is_mine
    gate.unlink()
    turn.take(lambda: pytest.fail("it waits again"))


def test_what_is_lent_can_be_used_by_others_and_the_turn_is_kept(path: str) -> None:
    with run(path) as (one, _), run(path) as (other, _):
        trains = Turn(path)
        trains.take(lambda: None)
        one.send("alone")
        other.send("take")
        with trains.lent(lambda: None):
            assert answered(one) == "alone"
            one.send("not alone")
            assert answered(one) == "alone"  # its word, once it is done
            assert not other.poll(0.1)
        trains.let_go()
        assert answered(other) == "take"
