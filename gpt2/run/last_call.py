"""The command that repeats the last call of a results folder.

A runner that was killed could not print it, and its settings may have been given on the
command line alone. Torch-free.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from gpt2.run.results_dir import CONFIG_FILE
from gpt2.settings.configuration import load, strict_kconfig
from gpt2.settings.rerun_commands import SETTINGS, assignments
from gpt2.settings.schema import SYMBOL_OF
from gpt2.settings.shown import text_of
from lib.kconfig.config_py import Config, read_config
from lib.kconfig.dotconfig import COMMAND_LINE


def last_call(output_dir: Path, now: Config | None = None) -> str:
    """The `make` command with the settings in a folder's config.py.

    They are assignments if these give the same settings as in the folder; otherwise the
    command copies its .config, as the present one is of another preset. "" outside of
    make, if either cannot be read, for values that a terminal should not print, or if
    the settings of the present call (now) are the same.
    """
    if SETTINGS not in os.environ:
        return ""
    place = f"OUTPUT_DIR={output_dir}"
    try:
        there, here = read_config(output_dir / CONFIG_FILE), load(CONFIG_FILE)
        if now is not None and there.values == now.values:
            return ""
        words = sorted([*_assigned(there), place])
        if not all(word.isprintable() for word in words):
            return ""
        same = strict_kconfig().override(here, words).values
    except (OSError, ValueError):
        return ""
    # it may have been moved since
    if same == there.values | {"OUTPUT_DIR": str(output_dir)}:
        return " ".join(["make", *assignments(words)])
    copy = shlex.join(["cp", str(output_dir / ".config"), ".config"])
    return " ".join([copy, "&& make", *assignments([place])])


def _assigned(config: Config) -> list[str]:
    """The settings that were given on the command line, but for OUTPUT_DIR."""
    symbols = {*SYMBOL_OF.values()} - {"OUTPUT_DIR"}
    return [
        f"{symbol}={text_of(config.values[symbol])}"
        for symbol, origin in config.origins.items()
        if symbol in symbols and origin == COMMAND_LINE
    ]
