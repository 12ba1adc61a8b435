"""gpt2/trials.py: which of several paths is kept."""

from __future__ import annotations

from dataclasses import replace

from gpt2.trials import Trial, fastest


def test_the_fastest_right_path_is_kept() -> None:
    slow, fast = Trial("flex", 2.0), Trial("triton", 1.0)
    assert fastest([slow, fast], "reference") == "triton"
    assert fastest([slow, replace(fast, problem="differs")], "reference") == "flex"
    assert fastest([replace(fast, problem="failed")], "reference") == "reference"
