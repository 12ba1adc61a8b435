"""Load the configuration of a command: config.py plus overrides.

Torch-free.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.settings.parse import PREFIXES, SPELLINGS, symbol_types
from gpt2.settings.rerun_commands import assignments, make_variables
from gpt2.settings.schema import SYMBOL_OF
from lib.kconfig.config_py import Config, ConfigError, read_config, render_config
from lib.kconfig.dotconfig import split_overrides, symbols_named
from lib.suggestions import hint

if TYPE_CHECKING:
    from lib.kconfig.strict import StrictKconfig

ROOT = Path(__file__).resolve().parents[2]
# A wheel lacks the first, which only sources the second.
KCONFIG = next(
    path for path in (ROOT / "Kconfig", ROOT / "gpt2" / "Kconfig") if path.is_file()
)
DEFCONFIGS = ROOT / "defconfigs"
NOTED = "KABLATE_NOTED"  # set after settings in the environment were reported


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --config, --overrides and --only, which select the jobs of a command."""
    add = parser.add_argument
    add("--config", type=Path, default=Path("config.py"), help="default: config.py")
    add(
        "--overrides",
        default="",
        help="assignments, for example 'MAX_ITERS=100 STEPS=0,5'",
    )
    add("--only", default="", help="jobs that match, for example 'adamw-*,*/seed1'")


def strict_kconfig() -> StrictKconfig:
    """Our Kconfig, with types and short names of its symbols, and the variables of the
    current command; parsed once per process."""
    return _strict_kconfig(tuple(make_variables()))


@cache
def _strict_kconfig(variables: tuple[str, ...]) -> StrictKconfig:
    from lib.kconfig.strict import StrictKconfig  # kconfiglib: only where it is needed

    names = symbol_types(), SPELLINGS, PREFIXES
    return StrictKconfig(KCONFIG, *names, ROOT, variables)


def load(path: str | Path, overrides: str = "", first: Sequence[str] = ()) -> Config:
    """Load config.py and apply the assignments of the command line.

    overrides: for example "MAX_ITERS=100 STEPS=0,5". first: assignments to make before
    them, unless they are among them. Raises FileNotFoundError with instructions, and
    lib.kconfig.config_py.ConfigError, also for values that Kconfig would not have
    written because config.py was edited by hand.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"there is no {path}: load a preset with `make defconfig-<name>` "
            "(`make list-defconfigs` lists them)"
        )
    config = read_config(path)
    note_environment(config, overrides)
    if overrides.strip() or first:
        return override(config, overrides, first)
    return strict_kconfig().require_possible(config)


def load_defaults(overrides: str = "", first: Sequence[str] = ()) -> Config:
    """Load Kconfig's defaults and apply assignments; raises ConfigError."""
    config = strict_kconfig().load([])
    note_environment(config, overrides)
    return override(config, overrides, first)


def load_preset(name: str, overrides: str = "") -> Config:
    """Load defconfigs/``name`` and apply assignments, as `make defconfig-name` does.

    Raises ConfigError, with the nearest name if there is no such preset.
    """
    return strict_kconfig().load([preset(name)], split_overrides(overrides))


def preset(name: str) -> Path:
    """The file of a preset; ConfigError, with similar names, if there is none."""
    known = preset_names()
    if name not in known:
        raise ConfigError(
            f"there is no preset {name!r}{hint(name, known)} (`make list-defconfigs` "
            "shows all)"
        )
    return DEFCONFIGS / name


def preset_names() -> list[str]:
    return sorted(path.name for path in DEFCONFIGS.glob("[!._]*") if path.is_file())


def results_of(path: str | Path) -> Path | None:
    """OUTPUT_DIR of a config.py, relative to its folder; None if the file does not
    exist. Raises lib.kconfig.config_py.ConfigError if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        return None
    config = read_config(path)
    note_environment(config, "", only=("OUTPUT_DIR", "REPORT_MARGIN"))
    if "OUTPUT_DIR" not in config.values:
        missing = "CONFIG_OUTPUT_DIR is missing; run `make olddefconfig`"
        raise ConfigError(f"{path}: {missing}")
    return path.parent / str(config.values["OUTPUT_DIR"])


def note_environment(
    config: Config, overrides: str, only: Collection[str] | None = None
) -> None:
    """Warn on stderr about settings in the environment, such as `MAX_ITERS=5 make`:
    they are not read. Child processes do not repeat the warning.

    only: the symbols that this command reads, by default all.
    """
    if NOTED in os.environ:
        return
    typed = {word.partition("=")[0] for word in split_overrides(overrides)}
    for name, value in sorted(os.environ.items()):
        symbols = _settings_named(name, config)
        if not symbols or name in typed or (only and not symbols & {*only}):
            continue
        os.environ[NOTED] = "1"
        (word,) = assignments([f"{name}={value}"])
        print(
            f"note: {word} in the environment has no effect: settings are given after "
            f"make, for example `make {word}`",
            file=sys.stderr,
        )


def refuse_unread(overrides: str, read: Collection[str]) -> None:
    """Raise ConfigError for an assignment of anything but these symbols, which are all
    that the command reads."""
    kinds = dict.fromkeys(SYMBOL_OF.values(), "")
    for word in split_overrides(overrides):
        name = word.partition("=")[0]
        symbols = symbols_named(name, kinds, SPELLINGS, PREFIXES)
        if not symbols or not {*symbols} <= {*read}:
            own = ", ".join(sorted(make_variables()))
            raise ConfigError(
                f"{word} has no effect on runs that are trained. This command takes "
                f"{own}{' and, ' * bool(own)}of the settings, {', '.join(sorted(read))}"
            )


def _settings_named(name: str, config: Config) -> set[str]:
    """Symbols that an override of this name would set. Variables in lower case, such as
    those of proxies, are meant for other programs."""
    if not name.isupper():
        return set()
    kinds = dict.fromkeys(config.values, "")
    found = symbols_named(name, kinds, SPELLINGS, PREFIXES)
    return set(found) or {name} & {*SPELLINGS}


def load_or_defaults(
    path: Path | None, overrides: str, first: Sequence[str] = ()
) -> Config:
    """Like load if config.py exists, else like load_defaults."""
    if path is not None and path.exists():
        return load(path, overrides, first)
    return load_defaults(overrides, first)


def copies(config: Config) -> dict[str, str]:
    """Contents of config.py and .config, including overrides, to store with results."""
    return {
        "config.py": render_config(config, symbol_types()),
        ".config": strict_kconfig().render_dotconfig(config),
    }


def override(config: Config, overrides: str, first: Sequence[str] = ()) -> Config:
    """Copy of ``config`` with assignments applied; raises ConfigError."""
    if not overrides.strip() and not first:
        return config
    words = split_overrides(overrides)
    first = [word for word in first if word not in words]
    return strict_kconfig().override(config, [*first, *words])
