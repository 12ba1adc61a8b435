"""Keep config.py up to date with .config, and write both."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2.settings.configuration import KCONFIG, ROOT, strict_kconfig
from gpt2.settings.parse import settings_from, symbol_types
from lib.atomic_files import atomic_write_bytes, atomic_write_text
from lib.human import counted
from lib.kconfig.config_py import (
    Config,
    ConfigError,
    Literal,
    read_config,
    render_config,
)
from lib.kconfig.dotconfig import parse_line

DOTCONFIG, CONFIG = ROOT / ".config", ROOT / "config.py"
MADE_FROM = ROOT / ".kablate" / "made.config"  # the .config that config.py is of
UNCONFIGURED = (
    "nothing is configured yet: make list-defconfigs names the presets, make "
    "defconfig-NAME loads one, and make menuconfig starts without"
)

strict = strict_kconfig()


def replace_dotconfig(text: str) -> None:
    """Write .config; what was there is kept as .config.old if it was different."""
    if DOTCONFIG.is_file() and DOTCONFIG.read_bytes() != text.encode("utf-8"):
        keep_old()
        print("Kept the .config that was there as .config.old")
    atomic_write_text(DOTCONFIG, text)


def configured() -> Path:
    """.config, if there is one."""
    if not DOTCONFIG.is_file():
        raise ConfigError(UNCONFIGURED)
    return DOTCONFIG


def generate() -> None:
    """Make config.py from .config, unless it is up to date."""
    if not is_current():
        note_absent(regenerate())


def note_absent(config: Config) -> None:
    """Say how many settings have no line in .config: it may have been cut off, or be
    older than they are. kablate writes all of them."""
    there = set(_names_in(DOTCONFIG.read_text("utf-8")))
    whole = _names_in(strict.render_dotconfig(config))
    if absent := [name for name in whole if name not in there]:
        few = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        print(
            f"note: .config has no line for {counted(len(absent), 'setting')} ({few}), "
            "which are at their defaults: `make olddefconfig` adds them",
            file=sys.stderr,
        )


def _names_in(text: str) -> Iterator[str]:
    found = (parse_line(line, strict.kinds) for line in text.split("\n"))
    return (assigned[0] for assigned in found if assigned)


def is_current() -> bool:
    """Whether config.py was made from this .config. By its contents: one that is put
    back with mv or cp -p is older than config.py."""
    sources = [configured(), KCONFIG, *ROOT.glob("gpt2/**/Kconfig*")]
    sources += ROOT.glob("lib/**/*.kconfig")
    newest = max(source.stat().st_mtime_ns for source in sources)
    is_late = not CONFIG.is_file() or CONFIG.stat().st_mtime_ns < newest
    return (
        not is_late and MADE_FROM.is_file() and filecmp.cmp(DOTCONFIG, MADE_FROM, False)
    )


def regenerate() -> Config:
    """Write config.py from .config; its contents."""
    old = previous()
    config = strict.refresh(configured(), old)
    check_settings(config)
    for edit in edits(old):
        if edit.value != (now := config.values.get(edit.name)):
            back = f"was edited by hand and is {now!r} again, as in .config"
            print(f"{edit} {back}", file=sys.stderr)
    write_config(config)
    return config


@dataclass(frozen=True)
class Edit:
    """A value in config.py that is not the one it was made with."""

    place: str
    name: str
    value: Literal

    def __str__(self) -> str:
        return f"note: {self.place}: CONFIG_{self.name} = {self.value!r}"


def edits(config: Config | None) -> Iterator[Edit]:
    """Values edited by hand in config.py since it was written."""
    if config is None or not MADE_FROM.is_file():
        return
    try:
        made = strict.open([MADE_FROM]).config().values
    except (ConfigError, OSError):  # by another Kconfig
        return
    for name, value in config.values.items():
        if name in made and made[name] != value:
            yield Edit(config.places[name], name, value)


def check_settings(config: Config) -> None:
    """Refuse what the symbols' own ranges allow but the trainer does not.

    Raises ConfigError that also says where the symbols in question were set.
    """
    try:
        settings_from(config)
    except ValueError as error:
        raise ConfigError(config.located(str(error))) from error


def previous() -> Config | None:
    """The last config.py: it knows where values come from. None if unusable."""
    try:
        return read_made()
    except (OSError, ConfigError):
        return None


def read_made() -> Config:
    """config.py, with places as seen from the root; raises as read_config."""
    return read_config(CONFIG, CONFIG.name)


def write_config(config: Config) -> None:
    text = render_config(config, symbol_types())
    try:
        atomic_write_text(CONFIG, text)
        atomic_write_bytes(MADE_FROM, DOTCONFIG.read_bytes())
    except OSError:  # a checkout of another user is of use as long as it is up to date
        if not CONFIG.is_file() or CONFIG.read_text(encoding="utf-8") != text:
            raise


def keep_old() -> None:
    if DOTCONFIG.is_file():
        old = DOTCONFIG.with_name(".config.old")
        atomic_write_bytes(old, DOTCONFIG.read_bytes())
