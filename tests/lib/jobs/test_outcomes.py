"""Classes of the ends of processes."""

from lib.jobs.outcomes import classify


def test_classify_trusts_a_status_of_this_attempt_alone() -> None:
    old = {"status": "failed", "failure": "nan", "attempt": 1, "message": "old"}
    assert classify(1, old, 1, None)[:2] == ("failed", "nan")
    assert classify(1, old, 2, None)[:2] == ("failed", "crash")
    assert classify(-9, old, 2, "stop")[:2] == ("interrupted", None)
    assert classify(0, {"status": "done"}, 2, "hang")[0] == "done"
    assert classify(3, {}, 2, "hang")[:2] == ("failed", "hang")
    torn = {"status": "interrupted", "attempt": 2}
    assert classify(1, torn, 2, None)[:2] == ("interrupted", None)


def test_classify_tells_the_kernels_kills_from_others() -> None:
    at_work = {"status": "running", "attempt": 1}
    assert classify(-9, at_work, 1, None, starved=True)[:2] == ("failed", "oom")
    assert classify(-9, at_work, 1, None)[:2] == ("failed", "killed")
    assert classify(1, at_work, 1, None, starved=True)[:2] == ("failed", "oom")
    recorded = {"status": "failed", "failure": "nan", "attempt": 1}
    assert classify(1, recorded, 1, None, starved=True)[:2] == ("failed", "nan")
    assert classify(-9, at_work, 1, "stop", starved=True)[0] == "interrupted"
    assert classify(-11, at_work, 1, None)[:2] == ("failed", "crash")


def test_classify_lets_a_rank_that_ran_out_of_memory_try_again() -> None:
    less = {"status": "failed", "failure": "oom", "attempt": 1}
    assert classify(4, less, 1, None)[:2] == ("failed", "oom")
    assert classify(4, {**less, "status": "oom"}, 1, None)[:2] == ("oom", "oom")
    assert classify(4, less, 2, None)[:2] == ("oom", "oom")
