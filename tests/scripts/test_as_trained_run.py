"""`make as-trained`: gradients of every step against the formulas, beforehand."""

from __future__ import annotations

from pathlib import Path

from tests.tinymatrix import run_matrix


def test_steps_are_compared_and_no_run_is_begun(folder: Path) -> None:
    """Whatever the runs in the folder are set to, and with AS_TRAINED=n for them."""
    words = ("--as-trained", "--overrides", "SEEDS=1,2 STEPS=0,16 AS_TRAINED=n JOBS=2")
    done = run_matrix(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 steps train as their formulas say" in done.stdout
    for name in ("step00-baseline", "step16-full"):
        (line,) = [x for x in done.stdout.splitlines() if x.startswith(f"{name}  ")]
        worst, allowed, loss = map(float, line.split()[1:4])
        assert 0 < worst < allowed == 1e-4 and loss < 1e-6
    assert not list((folder / "results").glob("step*")), "nothing is left of them"
