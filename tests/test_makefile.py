"""The Makefile as a user types it, in a copy of the tree."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.kconfig.config_py import read_config
from tests.results_factory import write_matrix
from tests.scratch import ROOT, STATE, copy_files, note_setup, run

PARTS = (
    *("Makefile", "Kconfig", "pyproject.toml", ".gitignore", "tests/__init__.py"),
    *("gpt2", "lib", "scripts", "defconfigs"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = copy_files(tmp_path / "tree", PARTS)
    (root / "defconfigs/one").write_text("# One\nCONFIG_GPT2_MAX_ITERS=700\n")
    note_setup(root)
    return root


def make(tree: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """make, with this interpreter's environment: nothing is installed."""
    return run(tree, "make", *words, **{"PYTHON": sys.executable, **environ})


def done(tree: Path, *words: str) -> str:
    ended = make(tree, *words)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


def refused(tree: Path, *words: str) -> str:
    ended = make(tree, *words)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_python_that_does_not_start_says_why(tree: Path) -> None:
    ended = run(tree, "make", "setup", PYTHONHASHSEED="abc")
    assert ended.returncode == 2
    said = ended.stderr.splitlines()[0]
    assert "python3 does not start: " in said and "PYTHONHASHSEED must be" in said
    assert "3.11" not in ended.stderr
    (tree / "bin").mkdir()
    for name in ("make", "sh", "sed"):
        (tree / "bin" / name).symlink_to(shutil.which(name) or "")
    ended = run(tree, "make", "setup", PATH=str(tree / "bin"))
    assert "needs Python 3.11 or newer: there is none on PATH" in ended.stderr
    shell = ("sh", "-c", "exec make setup <&- >&-")
    assert "standard output is closed" in run(tree, *shell).stderr


def test_make_prints_the_exit_code_of_a_script_and_exits_with_2(tree: Path) -> None:
    done(tree, "defconfig-one")
    (tree / "scripts/track.py").write_text("raise SystemExit(3)\n")
    assert re.search(r"make: \*\*\* .*track\] Error 3", refused(tree, "track"))


def test_python_may_leave_the_folder_of_a_script_out_of_its_path(tree: Path) -> None:
    ended = make(tree, "list-defconfigs", PYTHONSAFEPATH="1")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr


def test_help_lists_every_documented_target_and_every_target_is_documented() -> None:
    printed = done(ROOT, "help")
    assert not [line for line in printed.splitlines() if len(line) > 80]
    listed = re.findall(r"^  ([a-z%-]+) ", printed, re.M)
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z%-]*):", text, re.M)
    assert sorted(listed) == sorted(targets)
    assert {"all", "quickstart", "dry-run", "test", "menuconfig"} <= set(listed)


@pytest.mark.parametrize("how", ["| head -1", ">&-", "2>&-"])
@pytest.mark.parametrize("target", ["help", "list-defconfigs"])
def test_a_reader_that_leaves_is_no_failure(tree: Path, target: str, how: str) -> None:
    """The shell closes, and tells make's own status."""
    line = f"set -o pipefail; make {target} {how}"
    ended = run(tree, "bash", "-c", line, PYTHON=sys.executable)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_script_that_a_target_runs_is_there() -> None:
    for name in re.findall(r"scripts/\w+\.py", (ROOT / "Makefile").read_text()):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("words", [[], ["run"], ["dry-run"], ["report"], ["data"]])
def test_an_unconfigured_tree_teaches_and_makes_nothing(
    tree: Path, words: list[str]
) -> None:
    before = sorted(path.name for path in tree.iterdir())
    said = refused(tree, *words)
    for hint in ("make quickstart", "make list-defconfigs", "make menuconfig"):
        assert hint in said
    assert sorted(path.name for path in tree.iterdir()) == before


def test_a_preset_is_loaded_and_config_py_follows_dotconfig(tree: Path) -> None:
    said = done(tree, "defconfig-one", "MAX_ITERS=800", "SEEDS=1,2")
    assert "Loaded defconfigs/one and 2 settings from the command line" in said
    config = read_config(tree / "config.py")
    assert (config.values["GPT2_MAX_ITERS"], config.values["SEEDS"]) == (800, "1,2")
    assert config.origin("SEEDS") == "saved from the command line"

    text = (tree / ".config").read_text().replace("BATCH_SIZE=8", "BATCH_SIZE=4")
    (tree / ".config").write_text(text)
    done(tree, "config.py")
    assert read_config(tree / "config.py").values["BATCH_SIZE"] == 4

    (tree / ".config").write_text(text.replace("BATCH_SIZE=4", "BATCH_SIZE=2"))
    os.utime(tree / ".config", (0, 0))  # as one that is put back with mv
    done(tree, "config.py")
    assert read_config(tree / "config.py").values["BATCH_SIZE"] == 2
    written = (tree / "config.py").stat().st_mtime_ns
    done(tree, "config.py")
    assert (tree / "config.py").stat().st_mtime_ns == written


def test_presets_merge_and_unknown_ones_are_refused(tree: Path) -> None:
    (tree / "defconfigs/two").write_text("CONFIG_BATCH_SIZE=3\n")
    assert "defconfigs/one + defconfigs/two" in done(tree, "defconfig-one+two")
    said = refused(tree, "defconfig-gpt2-quikstart")
    assert "nearest: gpt2-quickstart" in said


def test_each_preset_is_a_target_for_completion(tree: Path) -> None:
    database = make(tree, "-npq", "help").stdout
    for name in ("one", "gpt2-quickstart"):
        assert re.search(rf"^defconfig-{name}:", database, re.M)


QUOTED = [
    'it\'s a "b" c\\d',
    "`touch y`;touch z|a>b&*",
    "$HOME $(touch x) #=~ä",
    "$(shell touch x)${HOME}$$",
    "  blanks   on all sides  ",
]


@pytest.mark.parametrize("value", QUOTED)
def test_settings_reach_the_scripts_as_they_were_typed(tree: Path, value: str) -> None:
    said = done(tree, "explain", "SYMBOL=OUTPUT_DIR", f"OUTPUT_DIR={value}")
    assert f"CONFIG_OUTPUT_DIR = {value!r}\n  origin      command line\n" in said
    assert sorted(path.name for path in tree.iterdir() if "." not in path.name) == [
        *("Kconfig", "Makefile", "defconfigs", "gpt2", "lib", "scripts", "tests")
    ]


@pytest.mark.parametrize("value", ["a\nb", "\ta"])
def test_control_characters_are_refused_and_not_lost(tree: Path, value: str) -> None:
    said = refused(tree, "explain", "SYMBOL=OUTPUT_DIR", f"OUTPUT_DIR={value}")
    assert f"CONFIG_OUTPUT_DIR: {value!r} has control characters" in said


def test_blanks_around_what_is_no_name_do_not_matter(tree: Path) -> None:
    words = ("MAX_ITERS= 9 ", "SEEDS= 1, 2", "BIAS= n", "DATASET= stdlib ", "LR= 0.5")
    done(tree, "defconfig-one", *words)
    values = read_config(tree / "config.py").values
    read = [values[n] for n in ("GPT2_MAX_ITERS", "GPT2_BIAS", "LEARNING_RATE")]
    assert read == [9, False, 0.5]


def test_other_variables_reach_the_scripts_as_they_were_typed(tree: Path) -> None:
    done(tree, "defconfig-one")
    odd = " a   $HOME $(shell touch x)`touch y` #'\"\n\t*"
    goals = ("savedefconfig", "explain", "compare", "sbatch", "report", "test")
    names = ("NAME", "SYMBOL", "A", "B", "ONLY", "SBATCH", "RESULTS", "PYTEST_ARGS")
    recipes = done(tree, "-n", *goals, *(f"{name}={odd}" for name in names))
    # What the shell makes of the words in the recipes.
    command = "printf '%s\\0' " + recipes.replace("\n", " ")
    shown = run(tree, "sh", "-c", command, KABLATE_NEWLINE="\n").stdout.split("\0")
    assert [word for word in shown if odd in word] == [
        *(odd, odd, odd, odd),
        *(f"--only={odd}", f"--sbatch={odd}", odd, odd),
    ]
    listed = make(tree, "test", "PYTEST_ARGS=--version '$(shell touch x)`touch y`'")
    assert listed.returncode == 0 and "pytest" in listed.stdout
    assert not [name for name in "xy" if (tree / name).exists()]
    said = refused(tree, "test", "PYTEST_ARGS=a '")
    assert said.startswith("PYTEST_ARGS: No closing quotation\n")


def test_a_report_finds_the_output_dir_that_a_run_was_given(tree: Path) -> None:
    done(tree, "defconfig-one")
    for variable in ("RESULTS", "OUTPUT_DIR"):
        said = refused(tree, "report", f"{variable}= a $HOME  b")
        assert "there are no results at  a $HOME  b" in said
    said = refused(tree, "report", "OUTPUT_DIR=x", "MAX_ITERS=5")
    assert "make report takes no settings" in said


def test_a_plan_measures_in_the_folder_that_it_is_given(tree: Path) -> None:
    write_matrix(tree / "a $HOME  b", (0,), range(5))
    for variable in ("RESULTS", "OUTPUT_DIR"):
        said = done(tree, "plan", f"{variable}=a $HOME  b", "DELTA=0.004")
        assert "5 seeds of 0 baseline" in said and "±0.004" in said
    said = refused(tree, "plan", "RESULTS=none", "MARGIN=x", "ARMS=2")
    assert "MARGIN=x must be a positive loss" in said and "usage" not in said


def test_a_checkout_may_lie_at_any_path(tmp_path: Path) -> None:
    name = 'a $HOME `touch pwned` "q" \'# $(shell touch pwned) %*:;\\ [x]? new\nline'
    root = copy_files(tmp_path / name, PARTS)
    note_setup(root)
    (root / ".venv").symlink_to(sys.prefix)
    state = json.loads((root / STATE).read_text())
    known = next(iter(state["done"].values()))
    state["done"] = {".venv/bin/python": known}
    (root / STATE).write_text(json.dumps(state))
    for words in (["defconfig-gpt2-quickstart"], ["dry-run", "SKIP_VERIFY=1"]):
        ended = run(root, "make", *words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert "step 8  mla" in ended.stdout
    assert not list(tmp_path.rglob("pwned"))


def test_settings_in_the_environment_are_noted_as_without_effect(tree: Path) -> None:
    environ = {
        **{"MAX_ITERS": "5", "OUTPUT_DIR": "a  b", "STEPS": "0", "CONFIG_SEEDS": "7"},
        **{"MAX_ITRES": "5", "PAGER": "x", "SYMBOL": "MAX_ITERS", "LR": "0.5"},
    }
    shown = make(tree, "defconfig-one", "LR=0.1", **environ)
    notes = shown.stderr.splitlines()
    assert [note.split(" in the environment")[0] for note in notes] == [
        *("note: CONFIG_SEEDS=7", "note: MAX_ITERS=5"),
        *("note: OUTPUT_DIR='a  b'", "note: STEPS=0"),
    ]
    assert notes[1].endswith(
        "has no effect: settings are given after make, for example `make MAX_ITERS=5`"
    )
    values = read_config(tree / "config.py").values
    assert (values["GPT2_MAX_ITERS"], values["LEARNING_RATE"]) == (700, 0.1)
    shown = make(tree, "report", OUTPUT_DIR="x", MAX_ITERS="5")
    assert "note: OUTPUT_DIR=x in" in shown.stderr and "MAX_ITERS" not in shown.stderr


def test_a_variable_without_a_value_is_noted(tree: Path) -> None:
    done(tree, "defconfig-one")
    ended = make(tree, "dry-run", "ONLY=", "SKIP_VERIFY=1")  # as of ONLY=$UNSET
    assert ended.returncode == 0
    assert ended.stderr.endswith(": note: ONLY= is empty and has no effect\n")


def test_several_settings_are_told_apart(tree: Path) -> None:
    said = done(tree, "explain", "SYMBOL=SEEDS", "SEEDS=1,2", "MAX_ITERS=9", "BIAS=n")
    assert "CONFIG_SEEDS = '1,2'" in said
    said = refused(tree, "explain", "SYMBOL=SEEDS", "SEEDS=1,2", "MAX_ITRS=9", "BIAS=7")
    assert "command line: BIAS=7: CONFIG_GPT2_BIAS must be y or n, not 7" in said
    assert "MAX_ITRS=9: there is no setting MAX_ITRS; nearest: MAX_ITERS" in said


@pytest.mark.parametrize(
    "target", ["clean", "help", "savedefconfig", "list-defconfigs"]
)
def test_a_target_that_would_ignore_settings_refuses_them(
    tree: Path, target: str
) -> None:
    said = refused(tree, target, "NAME=x", "MAX_ITERS=5")
    assert f"make {target} takes no settings, but there is 'MAX_ITERS=5'" in said


@pytest.mark.parametrize(
    ("words", "for_whom"),
    [
        (("dry-run", "MARGIN=0.1"), "MARGIN=0.1: it is for make .* report compare"),
        (("NAME=mine",), "make all takes no NAME, .* for make savedefconfig"),
        (("report", "ONLY=x*"), r"ONLY=x\*: it is for make all quickstart run"),
        (("report", "RUN=5"), "make report takes no RUN, .* for make audit sample"),
        (("help", "DELTA=0.003"), "make help takes no DELTA"),
        (("report", "RESULTS=a", "OUTPUT_DIR=b"), "RESULTS and OUTPUT_DIR both name"),
    ],
)
def test_a_variable_of_other_targets_is_refused(
    tree: Path, words: tuple[str, ...], for_whom: str
) -> None:
    said = refused(tree, *words)
    assert re.search(for_whom, " ".join(said.split())), said


def test_a_misspelled_variable_is_refused_with_those_of_the_command(
    tree: Path,
) -> None:
    done(tree, "defconfig-one")
    for words, says in {
        "sample TOKENS=5": "TOKENS=5 has no effect .* takes COUNT, JSON, PROMPT,",
        "audit BATCH_SIZE=4": "takes JSON, RESULTS, RUN, WINDOWS and, of the settings",
        "push REPOS=a/b": "REPOS=a/b has no effect .* OUT, REPO, RESULTS, RUN",
        "bench REPEAT=2": "there is no setting REPEAT; nearest: REPEATS",
        "sbatch SBACTH=-A": "no setting SBACTH; nearest: SBATCH",
        "plan PWR=0.8": "takes no settings, .*; make plan takes ARMS DELTA",
        "eval RUN=0": "it is for make audit .*; make eval takes CHOICES ITEMS",
    }.items():
        said = refused(tree, *words.split())
        assert re.search(says, " ".join(said.split())), said


def test_quickstart_refuses_a_wrong_margin_before_it_starts(tree: Path) -> None:
    said = refused(tree, "quickstart", "MARGIN=x")
    assert said.startswith("MARGIN=x must be a positive loss in nats")
    assert not (tree / ".config").exists()


def test_audit_takes_a_run_a_folder_and_where_the_text_is(tree: Path) -> None:
    said = refused(tree, "audit")
    assert "RUN=folder or RESULTS=folder" in said
    (tree / "empty").mkdir()
    said = refused(tree, "audit", "RUN=5", "RESULTS=empty", "DATA_DIR=x", "WINDOWS=8")
    assert "RUN='5' is neither a folder nor a run of empty" in said
    said = refused(tree, "audit", "RUN=5", "WINDOWS=some")
    assert "audit: WINDOWS=some must be a whole number" in said


def test_sample_takes_a_run_and_how_to_draw(tree: Path) -> None:
    (tree / "empty").mkdir()
    words = ("RUN=5", "RESULTS=empty", "TOP_K=4", "STOP= x", "DEVICE=cpu")
    said = refused(tree, "sample", "PROMPT=a b", *words)
    assert "RUN='5' is neither a folder nor a run of empty" in said
    recipe = done(tree, "-n", "sample", *words)
    assert "--top_k='4' --stop=' x' -- '5'" in " ".join(recipe.split())
    assert "COUNT=many must be a whole number" in refused(tree, "sample", "COUNT=many")
    # Shells and jobs have variables of such names in the environment.
    recipe = make(tree, "-n", "sample", PROMPT="%m%#", COUNT="3").stdout
    assert "scripts/sample.py" in recipe
    assert "--count" not in recipe and "--prompt" not in recipe


def test_exports_and_bundles_take_what_they_are_given(tree: Path) -> None:
    (tree / "empty").mkdir()
    for words in (["export", "OUT=x"], ["push", "REPO=a/b"]):
        said = refused(tree, *words, "RUN=5", "RESULTS=empty")
        assert "RUN='5' is neither a folder nor a run of empty" in said
    assert "REPO='' must be an account" in refused(tree, "push", "RUN=5")
    said = refused(tree, "eval", "RUNS=5", "RESULTS=empty", "TEXT=Makefile", "ITEMS=3")
    assert "RUNS='5' is neither a folder" in said
    said = refused(tree, "bundle", "RESULTS=empty")
    assert "no runs in empty" in said
    done(tree, "defconfig-one")
    said = refused(tree, "run", "ON_DONE=nosuch 'a b'", "SKIP_VERIFY=1")
    assert "ON_DONE=nosuch 'a b': there is no program 'nosuch'" in said


def test_savedefconfig_and_explain_take_their_own_variables(tree: Path) -> None:
    done(tree, "defconfig-one")
    done(tree, "savedefconfig", "NAME=mine")
    saved = (tree / "defconfigs/mine").read_text()
    assert saved.endswith("\nCONFIG_GPT2_MAX_ITERS=700\n")
    assert "a preset's name" in refused(tree, "savedefconfig", "NAME=../x")
    assert "GPT2_MAX_ITERS " in done(tree, "explain")


def test_sbatch_prints_a_script_of_the_runs_that_match(tree: Path) -> None:
    done(tree, "defconfig-one")
    words = ("SEEDS=1,2,3", "ONLY=*/seed[23]", "SBATCH=--partition=gpu --time=9")
    said = make(tree, "sbatch", *words, "JOBS=2", SKIP_VERIFY="1").stdout
    assert said.startswith("#!/bin/bash\n") and "#SBATCH --array=0-1%2\n" in said
    assert "#SBATCH --partition=gpu\n#SBATCH --time=9\n" in said
    runs = re.findall(r"^    (\S+)/single/seed(\d)$", said, re.M)
    assert runs == [(str(tree / "test_matrix_results"), n) for n in "23"]
    typed = "JOBS=2 SEEDS=1,2,3 ONLY='*/seed[23]' SKIP_VERIFY=1"
    assert f"\n# to run here what is missing: make {typed}\n" in said
    assert not (tree / "test_matrix_results/single/seed1").exists()
    said = refused(tree, "sbatch", *words, "SKIP_VERIFY=no")
    assert "SKIP_VERIFY=no is neither y (or 1) nor n (or 0)" in said


def test_data_is_prepared_again_by_the_command_that_is_printed(tree: Path) -> None:
    (tree / "my texts").mkdir()
    for name in "abc":
        (tree / "my texts" / name).write_text(f"{name}: a line.\n\n" * 200)
    done(tree, "defconfig-one")
    words = ("DATASET=TEXT", "DATASET_TEXT_PATH=my texts", "TOKENIZER=BYTES")
    first = "Next: make data, make dry-run, then make\n"
    assert done(tree, "defconfig-one", *words).endswith(first)
    assert "is prepared" in make(tree, "data", *words).stdout
    assert ". Next: make dry-run, then make\n" in done(tree, "defconfig-one", *words)
    (tree / "my texts" / "d").write_text("d: a line.\n\n" * 200)
    ended = make(tree, "data", *words)
    assert ended.returncode == 0 and "1 added (d)" in ended.stderr
    (command,) = re.findall("`(make data .* FORCE=1)`", ended.stderr)
    ended = run(tree, "sh", "-c", command, PYTHON=sys.executable)
    assert "is prepared" in ended.stdout, ended.stderr
    assert make(tree, "data", *words).stderr == ""
    assert "FORCE=2 is neither y (or 1)" in refused(tree, "data", "FORCE=2")
    assert "takes no FORCE" in refused(tree, "dry-run", "FORCE=1")


def test_clean_and_mrproper_remove_only_what_make_made(tree: Path) -> None:
    shutil.rmtree(tree / ".kablate")  # make sets up what is missing
    assert "Setting up" in done(tree, "defconfig-one")
    kept = ("test_matrix_results/run/metrics.jsonl", "data/x/train.bin", ".venv/mine")
    (tree / "cache").mkdir()
    (tree / "cache" / "mine").write_text("x")
    (tree / ".mypy_cache").symlink_to(tree / "cache")
    made = (
        *("lib/__pycache__/x.pyc", ".pytest_cache/x", ".ruff_cache/x"),
        *("build/lib/gpt2/x.py", "kablate.egg-info/PKG-INFO"),
    )
    for name in kept + made:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    done(tree, "clean")
    assert not any((tree / name).exists() for name in made)
    assert (tree / ".config").exists() and (tree / "config.py").exists()
    said = done(tree, "mrproper")
    assert "kept .venv" in said and "kept: results" in said
    assert all((tree / name).exists() for name in (*kept, "cache/mine"))
    assert not any((tree / n).exists() for n in (".config", "config.py", ".kablate"))
    assert (tree / "defconfigs/one").exists()


def test_mrproper_keeps_what_is_not_of_make(tree: Path) -> None:
    """A note among its own files, and what a link leads to."""
    (tree / ".kablate").mkdir(exist_ok=True)
    (tree / ".kablate" / "note.txt").write_text("kept")
    done(tree, "mrproper")
    assert [p.name for p in (tree / ".kablate").iterdir()] == ["note.txt"]
    (tree / ".kablate").rename(tree / "elsewhere")
    (tree / "elsewhere" / "made.config").write_text("of somebody")
    (tree / ".kablate").symlink_to(tree / "elsewhere")
    done(tree, "mrproper")
    assert (tree / "elsewhere" / "made.config").read_text() == "of somebody"
