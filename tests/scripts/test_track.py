"""scripts/track.py as `make track` runs it: an address that answers."""

import importlib.util
import os
import subprocess
import sys
import urllib.request

import pytest

from tests.scratch import ROOT, until
from tests.tinymatrix import TINY, run_command, write_config

COMMAND = [sys.executable, str(ROOT / "scripts" / "track.py")]


@pytest.mark.parametrize("tracker", ["trackio", "tensorboard"])
def test_the_dashboard_answers_at_the_address_that_is_printed(tmp_path, tracker):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip("the extra is not installed: make setup EXTRAS=trackers")
    write_config(tmp_path, TINY)
    (tmp_path / "results").mkdir()
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{asked}.new"\n')
    with browser.open("a") as file:
        file.write(f'mv "{asked}.new" "{asked}"\n')
    browser.chmod(0o755)
    environ = {
        "BROWSER": str(browser),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    served = subprocess.Popen(
        [*COMMAND, "--overrides", f"TRACKER={tracker}"],
        cwd=tmp_path,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stdout is not None
        lines = iter(served.stdout.readline, "")
        said = next(line for line in lines if line.startswith(f"{tracker} is at "))
        address = said.split()[3]
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200 and b"<html" in answer.read().lower()
        until(asked.exists)
        assert asked.read_text() == address
    finally:
        served.kill()
        served.wait()


@pytest.mark.parametrize(
    ("tracker", "hint"),
    [("none", "make TRACKER=trackio"), ("wandb", "wandb sync"), ("x", "is none of")],
)
def test_without_a_dashboard_the_way_out_is_told(tmp_path, tracker, hint):
    write_config(tmp_path, TINY)
    done = run_command(tmp_path, [*COMMAND, "--overrides", f"TRACKER={tracker}"])
    assert done.returncode == 2 and hint in done.stderr
    assert "Traceback" not in done.stderr


def test_before_the_first_run_there_is_nothing_to_show(tmp_path):
    write_config(tmp_path, TINY)
    done = run_command(tmp_path, [*COMMAND, "--overrides", "TRACKER=tensorboard"])
    assert done.returncode == 2
    expected = "nothing was run yet"
    if importlib.util.find_spec("tensorboard") is None:
        expected = "make setup EXTRAS=trackers"
    assert expected in done.stderr
