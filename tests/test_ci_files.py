"""Container and workflow files name what the project has."""

import json
import re

import pytest

from gpt2.settings.configuration import load_preset
from tests.documents import MakeCommand
from tests.scratch import ROOT


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_containers_run_the_quickstart(kind: str) -> None:
    text = (ROOT / f".ci/Dockerfile.{kind}").read_text()
    (setup,) = re.findall(r"^RUN (make setup.*)$", text, re.M)
    call = MakeCommand.of(setup)
    assert call and call.variables.get("EXTRAS", "gpu") == "gpu"
    (words,) = re.findall(r"^CMD (.*)$", text, re.M)
    call = MakeCommand.of(" ".join(json.loads(words)))
    assert call and call.goals == ("quickstart",)
    given = " ".join(f"{name}={value}" for name, value in call.variables.items())
    assert load_preset("gpt2-quickstart", given).values["DEVICE"] == kind


def test_both_containers_differ_in_their_image_and_device_alone() -> None:
    cuda, rocm = ((ROOT / f".ci/Dockerfile.{k}").read_text() for k in ("cuda", "rocm"))
    own = re.compile(r"^(#.*|ARG BASE=.*|RUN make setup.*|CMD .*)\n", re.M)
    assert own.sub("", cuda) == own.sub("", rocm) != ""


def test_the_workflow_runs_what_is_run_elsewhere() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (command,) = re.findall(r"^ +- run: (.*)$", text, re.M)
    assert (ROOT / command).stat().st_mode & 0o100
    (listed,) = re.findall(r"python: (\[.*\])", text)
    oldest = re.search(
        r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text()
    )
    assert oldest and json.loads(listed)[0] == oldest[1]
