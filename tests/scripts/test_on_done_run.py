"""ON_DONE with the real runner."""

import json
import shlex
import sys

from tests.scripts.inprocess import run_script
from tests.tinymatrix import run_matrix

TELL = """\
import json, os
found = {n: v for n, v in os.environ.items() if n.startswith("KABLATE_")}
with open("end.json", "a") as file:
    print(json.dumps(found), file=file)
"""


def test_a_matrix_that_ends_runs_the_command_once(finished):
    (finished / "tell.py").write_text(TELL)
    words = "--on_done", shlex.join([sys.executable, "tell.py"])
    done = run_matrix(finished, "--overrides", "SEEDS=1", *words)
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (finished / "end.json").read_text().splitlines())
    assert record == {
        "KABLATE_RESULTS": str((finished / "results").resolve()),
        "KABLATE_EXIT_CODE": "0",
        "KABLATE_JOBS_DONE": "2",
        "KABLATE_JOBS_PLANNED": "2",
    }


def test_what_cannot_run_is_refused_before_the_runs(folder):
    done = run_script("run_test_matrix.py", "--on_done", "nosuchprogram x", cwd=folder)
    assert done.returncode == 2
    assert "ON_DONE=nosuchprogram x: there is no program" in done.stderr
    assert not (folder / "results").exists()
