"""The command that repeats the last call of a results folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gpt2.run.last_call import last_call
from gpt2.settings.configuration import copies, load, load_preset
from gpt2.settings.rerun_commands import SETTINGS
from lib.kconfig.config_py import Config


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SETTINGS, "")
    store(Path("."), load_preset("gpt2-cpu-smoke"))


def store(folder: Path, config: Config) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in copies(config).items():
        (folder / name).write_text(text)


def test_the_command_gives_the_settings_of_the_folder() -> None:
    typed = "SWEEP='RA_WINDOW=4,16 RA_ALPHA=0.1' STEPS=0,5 DATASET=text MAX_ITERS=40"
    config = load("config.py", f"{typed} DATASET_TEXT_PATH='my *.txt' OUTPUT_DIR=old")
    store(Path("moved here"), config)
    make, *words = shlex.split(last_call(Path("moved here")))
    assert make == "make"
    again = load("config.py", shlex.join(words)).values
    assert again == config.values | {"OUTPUT_DIR": "moved here"}


def test_the_same_call_is_not_shown_again() -> None:
    config = load("config.py", "STEPS=0,5 OUTPUT_DIR=here")
    store(Path("here"), config)
    assert last_call(Path("here"), now=config) == ""
    assert last_call(Path("here"), now=load("config.py")) != ""


def test_settings_of_another_preset_are_copied() -> None:
    store(Path("other"), load_preset("gpt2-quickstart", "SEEDS=1-4"))
    command = "cp other/.config .config && make OUTPUT_DIR=other"
    assert last_call(Path("other")) == command


def test_a_folder_without_usable_settings_has_none() -> None:
    assert last_call(Path("nowhere")) == ""
    config = load("config.py", "DATASET=text DATASET_TEXT_PATH=x OUTPUT_DIR=odd")
    config.values["GPT2_DATASET_TEXT_PATH"] = "\x1b]0;owned\x07"
    store(Path("odd"), config)
    assert last_call(Path("odd")) == ""
