"""An installed kablate: a wheel has all that it reads, and works without a checkout."""

import json
import re
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from scripts.kablate import COMMANDS
from tests.results_factory import write_matrix
from tests.scratch import copy_files, project_files, python, run
from tests.scripts.conftest import once

PARTS = ("pyproject.toml", "README.md", "LICENSE", "gpt2", "lib", "scripts")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"
NOT_INSTALLED = "scripts/hooks/"  # of git: for a checkout alone
USE = """
import json
import gpt2
from gpt2.plan.planning import make_plan
from gpt2.settings.configuration import DEFCONFIGS, load_preset

presets = [path.name for path in DEFCONFIGS.iterdir()]
loaded = [load_preset(name) for name in presets]
jobs = [j for c in loaded if not c.values["INIT_FROM"] for j in make_plan(c).jobs]
steps = make_plan(load_preset("gpt2-quickstart", "STEPS=0,5 SEEDS=7")).jobs
print(json.dumps([gpt2.__file__, presets, len(jobs), [job.run_dir for job in steps]]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip would build, by the same backend and without a network."""
    pytest.importorskip("setuptools", "77", "builds the wheel")

    def fill(place: Path) -> None:
        tree = copy_files(place / "tree", (*PARTS, "defconfigs"))
        (tree / "gpt2/__pycache__").mkdir(exist_ok=True)
        (tree / "gpt2/__pycache__/old.cpython-311.pyc").touch()
        done = python(tree, "-c", BUILD)
        assert done.returncode == 0, done.stdout + done.stderr

    (found,) = once(tmp_path_factory, "wheel", fill).glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the contents of site-packages after `pip install`."""
    place = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(place)
    return place


def kablate(installed: Path, folder: Path, *words: str | Path) -> CompletedProcess[str]:
    """A command as the program that pip makes of the entry point runs it."""
    code = "import sys; from scripts.kablate import main; sys.exit(main())"
    return run(folder, sys.executable, "-c", code, *words, PYTHONPATH=str(installed))


def test_a_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    ours = project_files(("gpt2", "lib", "scripts", "defconfigs"))
    assert names == {n for n in ours if not n.startswith(NOT_INSTALLED)}


def test_the_entry_point_leads_to_the_commands(installed: Path) -> None:
    (text,) = installed.glob("*.dist-info/entry_points.txt")
    (found,) = re.findall(r"^kablate = (.+)$", text.read_text(), re.M)
    assert callable(EntryPoint("kablate", found, "console_scripts").load())


def test_presets_and_plans_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, "-c", USE, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    file, presets, jobs, steps = json.loads(done.stdout)
    assert Path(file) == installed / "gpt2" / "__init__.py"
    assert len(presets) >= 11 and jobs > 100
    assert steps == ["step00-baseline/seed7", "step05-ra/seed7"]


def test_results_are_reported_without_a_checkout(
    installed: Path, tmp_path: Path
) -> None:
    write_matrix(tmp_path / "out", (0, 5))
    done = kablate(installed, tmp_path, "report", "--no-plots", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict" in done.stdout and (tmp_path / "out/report.html").is_file()
    done = kablate(installed, tmp_path, "plan", "--delta", "0.003", "--sd", "0.0015")
    assert "Seeds of each arm for 80% power" in done.stdout


def test_models_are_used_without_a_checkout(
    installed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    model = undisturbed / "results/step05-ra/seed1"
    done = kablate(installed, tmp_path, "sample", model, "--prompt=ab", "--count=3")
    assert done.returncode == 0 and done.stdout.startswith("ab"), done.stderr
    code = "from gpt2.infer.hf_export import licence; print(licence())"
    done = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(installed))
    assert done.stdout.startswith("MIT License"), done.stderr


def test_help_lists_the_commands_and_others_are_refused(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = kablate(root, tmp_path)
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) +\S", done.stdout, re.M) == [*COMMANDS]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "usage: plan_seeds.py" in kablate(root, tmp_path, "plan", "--help").stdout
    done = kablate(root, tmp_path, "train")
    assert done.returncode == 2 and "no command 'train'" in done.stderr
