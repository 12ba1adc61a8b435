"""gpt2/settings/configuration.py: config.py as a command takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2.settings.configuration import NOTED, load, load_defaults
from lib.kconfig.config_py import ConfigError
from tests.tinymatrix import write_config

BY_HAND = {
    "out of range": ("CONFIG_GPT2_MAX_ITERS = 10", "CONFIG_GPT2_MAX_ITERS = -5"),
    "another mode": ("CONFIG_KABLATE_MODE = 'ablation'", "CONFIG_KABLATE_MODE = 'x'"),
    "what is derived": ("CONFIG_OPTIMIZER = 'adamw'", "CONFIG_OPTIMIZER = 'sgd'"),
    "of no symbol": ("\nORIGINS", "CONFIG_MAX_ITRES = 3\n\nORIGINS"),
}


@pytest.mark.parametrize("overrides", ["", "SEEDS=7"])
@pytest.mark.parametrize("edit", BY_HAND)
def test_a_config_py_edited_by_hand_is_refused_with_its_line(
    tmp_path: Path, edit: str, overrides: str
) -> None:
    write_config(tmp_path)
    path, (old, new) = tmp_path / "config.py", BY_HAND[edit]
    assert load(path, overrides).values["GPT2_MAX_ITERS"] == 10
    text = path.read_text().replace(old, new)
    path.write_text(text)
    line = text[: text.index(new)].count("\n") + 1
    symbol = new.split()[0]
    said = rf"config\.py:{line}: (unknown symbol {symbol}|{symbol} (is|=) )"
    with pytest.raises(ConfigError, match=said):
        load(path, overrides)


def test_what_a_command_sets_may_be_said_once_more() -> None:
    word = "RA_MLA_ABLATION_MODE=y"
    config = load_defaults(f"{word} STEPS=5", [word])
    assert config.values["RA_MLA_ABLATION_STEPS"] == "5"
    with pytest.raises(ConfigError, match="STEPS is set twice"):
        load_defaults("STEPS=5 STEPS=5", [word])


def test_settings_in_the_environment_are_noted_once_with_their_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path)
    monkeypatch.setenv(NOTED, "")
    monkeypatch.delenv(NOTED)  # put back afterwards, as it is set for children
    monkeypatch.setenv("SEEDS", "7")
    load(tmp_path / "config.py", "SEEDS=8")
    assert capsys.readouterr().err == ""
    assert load(tmp_path / "config.py").values["SEEDS"] == "1,2"
    assert capsys.readouterr().err.startswith("note: SEEDS=7 in the environment")
    load(tmp_path / "config.py")  # as the certificates do, in a process of their own
    assert capsys.readouterr().err == ""
