"""--json: what docs/json.md promises, and a program that decides by it alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.scratch import ROOT, make
from tests.scripts.inprocess import run_script

DOC = ROOT / "docs" / "json.md"
SCHEMA = ROOT / "gpt2" / "report" / "summary.schema.json"
ENVELOPE = {"schema", "command", "exit_code", "error"}
ARM = """
[[step]]
id = 100
name = "fast-learner"
title = "baseline, trained at a rate of 0.05"
question = "Is the usual rate too low for so few updates?"
parent = 0
changes = {{ LEARNING_RATE = {rate} }}
"""
MATRIX = "run_test_matrix.py"
QUIET = ("--no-plots", "--no-html")
COMMANDS = {
    "list": (MATRIX, "--list"),
    "budget": (MATRIX, "--budget"),
    "status": (MATRIX, "--status"),
    "stop": (MATRIX, "--stop"),
    "run": (MATRIX, "--skip-verify"),
    "plan": ("plan_seeds.py", "--sd", "0.01"),
    "report": ("report.py", *QUIET),
    "compare": ("compare.py", "0", "5"),
    "audit": ("audit.py", "--no-write", "0"),
    "eval": ("eval.py", "--items", "2", "0,5"),
    "attention": ("attention.py", "--windows", "2", "0"),
    "sample": ("sample.py", "--prompt", "Doc", "--count", "2", "0"),
    "bundle": ("bundle.py",),
    "data": ("prepare_data.py",),
    "explain": ("kconfig.py", "explain", "RA_WINDOW"),
    "list-defconfigs": ("kconfig.py", "list-defconfigs"),
}
SLOW = {
    "dry-run": (MATRIX, "--dry-run"),
    "rerun": (MATRIX, "--rerun", "--skip-verify", "--only=step05-ra"),
    "estimate": (MATRIX, "--estimate"),
    "as-trained": (MATRIX, "--as-trained"),
    "verify": ("verify.py", "--config", "config.py", "--at-hand"),
    "overfit": ("overfit.py", "--overrides", "STEPS=0"),
    "export": ("export.py", "0"),
    "inference-bench": (
        *("inference_bench.py", "--batches", "1", "--prompt_tokens", "4"),
        *("--new_tokens", "4", "--repeats", "1", "--peers", ",", "--out", "b.json"),
        "0",
    ),
    "bench": ("bench.py", "--parts", "start", "--repeats", "1", "--out", "b.json"),
}


# Named in docs/json.md, but not in the answers here: fields of lists that are empty,
# fields of a GPU or of a failure, and values that others have.
ABSENT = {
    *("size", "n_layer", "n_head", "n_embd", "learning_rates", "updates", "flops"),
    *("values", "symbol", "reason", "path", "status", "cell", "message"),
    *("failed", "table", "step", "alarm", "same_tokens", "peak_bytes"),
    *("single", "matrix", "bool", "hex", "string", "make"),
}


@cache
def rows() -> dict[str, list[tuple[str, str]]]:
    """Fields of each command in docs/json.md, with what is said about them."""
    found = {}
    for section in re.split(r"^### ", DOC.read_text(encoding="utf-8"), flags=re.M)[1:]:
        names, _, table = section.partition("\n")
        pairs = re.findall(r"^\| (`\w+`.*?) \|(.*)", table, re.M)
        for name in names.split(", "):
            found[name] = [pair for pair in pairs if f"(not for {name})" not in pair[1]]
    return found


@cache
def documented() -> dict[str, set[str]]:
    """Fields of each command in docs/json.md."""
    return {
        name: {field for cell, _ in pairs for field in re.findall(r"\w+", cell)}
        for name, pairs in rows().items()
    }


def named_within(command: str) -> set[str]:
    """Names of inner fields, and of values, in what is said about the fields."""
    texts = (re.sub(r"\[.*?\]\(.*?\)", "", text) for _, text in rows()[command])
    return {name for text in texts for name in re.findall(r"`([a-z]\w*)`", text)}


def words_of(value: Any) -> Iterator[str]:
    """All names of fields and all texts in a part of an answer."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from words_of(part)
    elif isinstance(value, str):
        yield value


def answer(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = run_script(words[0], *words[1:], "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict) and found["exit_code"] == code
    return found


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_commands_answer_with_the_documented_fields(
    finished: Path, tmp_path: Path, command: str
) -> None:
    words = list((COMMANDS | SLOW)[command])
    (finished / "results" / "REPORT.md").touch()  # which a bundle needs
    if words[0] == MATRIX:
        words += ["--overrides", "SEEDS=1"]
    found = answer(finished, *words)
    fields = documented()[command]
    assert (found["command"], found["error"]) == (command, None)
    assert found.keys() == ENVELOPE | fields
    assert named_within(command) - {*words_of(found)} <= ABSENT


def test_the_report_has_the_summary_by_its_schema(finished: Path) -> None:
    found = answer(finished, "report.py", *QUIET)
    jsonschema.validate(found["summary"], json.loads(SCHEMA.read_text()))
    assert found["summary"] == json.loads(
        (finished / "results" / "summary.json").read_text()
    )


def test_a_refusal_is_an_answer(finished: Path) -> None:
    words = (MATRIX, "--status", "--overrides", "STEPS=99")
    found = answer(finished, *words, code=2)
    assert found.keys() == ENVELOPE and "there is no step 99" in found["error"]
    found = answer(finished, "export.py", "0", "--repo", "", code=2)
    assert found["command"] == "push" and found["error"].startswith("push: REPO='' ")


def test_make_passes_it_on() -> None:
    done = make(ROOT, "JSON=y", "explain", "SYMBOL=LR")
    found = json.loads(done.stdout)
    assert found["symbol"] == "CONFIG_LEARNING_RATE" and found["range"] is None
    every = json.loads(make(ROOT, "JSON=y", "explain", "BATCH_SIZE=3").stdout)
    (mine,) = (x for x in every["changes"] if x["symbol"] == "CONFIG_BATCH_SIZE")
    assert (mine["value"], mine["origin"]) == (3, "command line")
    for words in (("JSON=1x", "explain"), ("JSON=y", "quickstart")):
        refused = make(ROOT, *words)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert "JSON" in refused.stderr


def test_every_documented_command_is_tried() -> None:
    assert {*COMMANDS, *SLOW} == documented().keys()


def test_every_command_has_the_option() -> None:
    without = {
        path.stem
        for path in (ROOT / "scripts").glob("[a-z]*.py")
        if "@answers_json(" not in path.read_text(encoding="utf-8")
    }
    of_developers = {
        *("build_docs", "check", "check_commit", "check_defconfigs", "check_words"),
        *("fix_whitespace_issues", "generate_docs", "install_hooks", "setup_env"),
    }
    # kablate runs the others, print_sbatch prints a script, track opens a dashboard.
    assert without == {*of_developers, "kablate", "print_sbatch", "track"}


def script(folder: Path, name: str, *words: str) -> dict[str, Any]:
    """A command in a process of its own, of which only standard output is read."""
    command = [sys.executable, str(ROOT / "scripts" / name), *words, "--json"]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict) and found["exit_code"] == done.returncode
    return found


def test_a_program_proposes_an_arm_and_decides_by_its_verdict(
    folder: Path,
) -> None:
    words = ("--overrides", "STEPS_FILE=arm.toml STEPS=0,100 SEEDS=1,2,3 JOBS=2")

    (folder / "arm.toml").write_text(ARM.format(rate='"high"'))
    refused = script(folder, MATRIX, *words)
    assert refused["exit_code"] == 2 and "arm.toml:8" in refused["error"]

    (folder / "arm.toml").write_text(ARM.format(rate=0.05))
    planned = script(folder, MATRIX, "--list", *words)
    assert planned["refusal"] is planned["missing_data"] is None
    assert [cell["step"] for cell in planned["cells"]] == [0, 100]
    (change,) = planned["cells"][1]["changes"]
    assert (change["setting"], change["to"]) == ("learning_rate", 0.05)

    ended = script(folder, MATRIX, *words)
    assert ended["statuses"] == {"done": 6} and ended["error"] is None
    report = script(folder, "report.py", *QUIET)
    (verdict,) = report["summary"]["verdicts"]["comparisons"]
    assert verdict["step"] == 100 and verdict["partner"]["step"] == 0
    found = verdict["at_equal_steps"]
    assert found["grade"] == "SUPPORTED" and found["family_interval"][1] < 0
