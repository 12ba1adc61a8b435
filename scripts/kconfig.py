"""Load, edit, save and explain the configuration, by kconfiglib.

.config is what the user edits and config.py is made from it. Exit codes: 0 done; 2 the
configuration or the command line is wrong (`file:line: reason` on stderr).
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import indent

from gpt2.data.token_files import DataError, check_if_prepared
from gpt2.plan.planning import steps_from
from gpt2.plan.steps import STEPS
from gpt2.settings.config_files import (
    DOTCONFIG,
    check_settings,
    configured,
    edits,
    generate,
    is_current,
    keep_old,
    previous,
    read_made,
    regenerate,
    replace_dotconfig,
    strict,
    write_config,
)
from gpt2.settings.configuration import (
    DEFCONFIGS,
    ROOT,
    note_environment,
    preset,
    preset_names,
)
from gpt2.settings.parse import settings_from
from gpt2.settings.rerun_commands import show_next
from gpt2.settings.schema import SYMBOL_OF
from gpt2.settings.shown import text_of
from lib.atomic_files import DiskFull, NotWritable, atomic_write_text
from lib.human import counted
from lib.json_answer import add_json, answer, answers_json, fail, refuse
from lib.kconfig.config_py import Config, ConfigError
from lib.kconfig.dotconfig import (
    COMMAND_LINE,
    SAVED,
    leading_comments,
    split_overrides,
)
from lib.output import exit_code
from lib.terminal import PAGE, aligned, paragraph

PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HARDWARE = re.compile(r"Hardware: (.+?)\. Time: (.+?)[.;]?(?:;.*)?")
EDITOR = ROOT / "lib/kconfig/editor.py"
COLUMNS = 26, 9, 7  # widths at most


def defconfig(names: str, overrides: str) -> None:
    """Load presets, merged from left to right, into .config and config.py."""
    files = [preset(name) for name in names.split("+")]
    tree = strict.open(files, split_overrides(overrides))
    config = tree.config()
    note_environment(config, overrides)
    check_settings(config)
    steps_from(config)
    replace_dotconfig(tree.dotconfig())
    changed = strict.changed(config).items()
    typed = [name for name, (*_, origin) in changed if origin == COMMAND_LINE]
    write_config(as_saved(config))
    loaded = " + ".join(str(f.relative_to(ROOT)) for f in files)
    also = (
        f" and {counted(len(typed), 'setting')} from the command line" if typed else ""
    )
    if typed:
        kept = f"Saved in .config, for all later commands: {', '.join(typed)}"
        print(paragraph(kept, indent=0))
    print(f"Loaded {loaded}{also}. {next_commands(config)}")


def as_saved(config: Config) -> Config:
    """The configuration for later commands, which were not given these settings."""
    origins = {
        name: SAVED if origin == COMMAND_LINE else origin
        for name, origin in config.origins.items()
    }
    return dataclasses.replace(config, origins=origins)


def next_commands(config: Config) -> str:
    """The next commands; with `make data` where the data is missing."""
    missing = ""
    with suppress(DataError, OSError):  # unfit data: make dry-run explains it
        missing = check_if_prepared(settings_from(config))
    return f"Next: {'make data, ' * bool(missing)}make dry-run, then make"


def list_defconfigs() -> None:
    """Print each preset with its hardware and time, and what it is for below."""
    presets = []
    for name in preset_names():
        comments = [line.lstrip("# ") for line in comments_of(DEFCONFIGS / name)]
        found = [m for m in map(HARDWARE.fullmatch, comments) if m]
        hardware = [{"on": m[1], "takes": m[2]} for m in found]
        presets.append(
            {"name": name, "text": " ".join(comments[:1]), "hardware": hardware}
        )
        print(name)
        for text in (*comments[:1], *(f"on {m[1]}: {m[2]}" for m in found)):
            print(indent(paragraph(text, PAGE - 4), " " * 4))
    answer(presets=presets)
    print()
    show_next("make defconfig-NAME", "loads one; KEY=VALUE after it is kept with it")


def comments_of(path: Path) -> list[str]:
    """The comment lines at the top of a preset."""
    return leading_comments(path.read_text(encoding="utf-8").splitlines())


def savedefconfig(name: str) -> None:
    """Write .config to a preset, without what is default; its comment stays."""
    if not PRESET_NAME.fullmatch(name):
        raise ConfigError(
            f"NAME={name!r}: a preset's name has letters, digits, '.', '_' and '-', "
            "as in make savedefconfig NAME=gpt2-mine"
        )
    tree = strict.open([configured()])
    path = DEFCONFIGS / name
    comments = comments_of(path) if path.is_file() else []
    comments = comments or [
        f"# {name}: say what it is for",
        "# Hardware: say which. Time: say how long.",
    ]
    text = "\n".join([*comments, tree.minimal()])
    check_minimal(path, text, tree.config())
    for edit in edits(previous()):
        print(f"{edit} was edited by hand and is not in {name}", file=sys.stderr)
    atomic_write_text(path, text)
    print(f"Saved {path.relative_to(ROOT)}: say at its top what it is for, and on what")
    show_next(f"make defconfig-{name}")


def check_minimal(path: Path, text: str, wanted: Config) -> None:
    """Assert that a preset loads to what it was saved from, before it is written."""
    trial = path.with_name(f".{path.name}.trial")
    try:
        atomic_write_text(trial, text)
        loaded = strict.open([trial]).config().values
    finally:
        trial.unlink(missing_ok=True)
    lost = [n for n, value in wanted.values.items() if loaded.get(n) != value]
    assert not lost, f"{path.name} would lose {lost}"


# ---- editing --------------------------------------------------------------------


def edit(tool: str) -> None:
    """Run menuconfig, guiconfig or oldconfig of kconfiglib on .config."""
    if tool == "guiconfig" and importlib.util.find_spec("tkinter") is None:
        raise ConfigError(
            "guiconfig needs tkinter, which this Python lacks: make menuconfig"
        )
    if tool == "menuconfig" and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menuconfig needs a terminal; or edit .config and run make")
    before = b""
    if DOTCONFIG.is_file():
        keep_old()
        drop_unusable()
        before = DOTCONFIG.read_bytes()
    environment = {
        **os.environ,
        "KCONFIG_CONFIG": str(DOTCONFIG),
        "srctree": str(ROOT),
        "MENUCONFIG_STYLE": os.environ.get("MENUCONFIG_STYLE", "default"),
    }
    command = [sys.executable, "-P", str(EDITOR), tool]
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if done.returncode:
        raise ConfigError(f"{tool} ended with status {done.returncode}")
    if not DOTCONFIG.is_file():
        print("Nothing was saved")
        return
    config = regenerate()
    what = "Saved" if DOTCONFIG.read_bytes() != before else "Nothing was changed in"
    print(f"{what} .config and config.py. {next_commands(config)}")


def olddefconfig() -> None:
    """Update an old .config to the present Kconfig: name lines that are dropped, set
    new symbols to their defaults."""
    configured()
    keep_old()
    drop_unusable()
    atomic_write_text(DOTCONFIG, strict.open([DOTCONFIG]).dotconfig())
    config = regenerate()
    print(f".config and config.py are up to date. {next_commands(config)}")


def is_droppable() -> bool:
    """Whether .config has lines that olddefconfig would drop."""
    try:
        return bool(strict.unusable_lines(DOTCONFIG))
    except (ConfigError, OSError):
        return False


def drop_unusable() -> None:
    """Remove lines without effect from .config, and print each."""
    dropped = strict.unusable_lines(DOTCONFIG)
    for reason in dropped.values():
        print(f"dropped {reason}", flush=True)
    if dropped:
        lines = enumerate(DOTCONFIG.read_text(encoding="utf-8").split("\n"), 1)
        kept = [line for number, line in lines if number not in dropped]
        atomic_write_text(DOTCONFIG, "\n".join(kept))


def explain(name: str, overrides: str) -> None:
    """Print all about one symbol, as it is configured now or by default; without a
    name, all that differs from the defaults."""
    if DOTCONFIG.is_file():
        if is_current():
            config = strict.require_possible(read_made())
        else:
            config = strict.refresh(DOTCONFIG, previous())
    else:
        print("(nothing is configured yet: these are defaults)")
        config = strict.open([]).config()
    note_environment(config, overrides)
    config = strict.override(config, split_overrides(overrides))
    if name:
        answer(symbol=f"CONFIG_{strict.symbol_for(name)}")
        answer(**strict.facts(config, name))
        print(strict.explain(config, name))
        print(set_by_steps(strict.symbol_for(name)), end="")
        command = f"make dry-run {name}=VALUE"
        show_next(command, "for one command; make menuconfig: for all")
    else:
        print(all_changes(config))
        show_next("make explain SYMBOL=NAME", "range, conditions and help of one")


def set_by_steps(symbol: str) -> str:
    """A line with the steps that set a symbol themselves; "" if there are none."""
    fields = [field for field, name in SYMBOL_OF.items() if name == symbol]
    steps = [str(s.id) for s in STEPS.values() if {*fields} & s.changes.keys()]
    line = f"  set by      step{'s' * (len(steps) > 1)} {', '.join(steps)}\n"
    return line if steps else ""


def all_changes(config: Config) -> str:
    """Settings that are not at their defaults, with origins, and those of the steps."""
    changed = strict.changed(config)
    names = ("value", "default", "origin")
    answer(
        changes=[
            {"symbol": f"CONFIG_{name}", **dict(zip(names, facts, strict=True))}
            for name, facts in changed.items()
        ]
    )
    rows = [
        (name, text_of(value), default or "empty", origin)
        for name, (value, default, origin) in changed.items()
    ]
    lines = ["Every setting has its default."]
    if rows:
        rows.insert(0, ("Not at its default", "value", "default", "origin"))
        lines = list(aligned(rows, COLUMNS))
    lines += steps_lines(config)
    return "\n".join(lines)


def steps_lines(config: Config) -> Iterator[str]:
    """Settings that the configured steps set besides those of their parents."""
    if config.values.get("KABLATE_MODE") != "ablation":
        return
    settings, registry = steps_from(config)
    yield "\nSet by the steps, on top of these:"
    for step in (registry[int(number)] for number in settings.matrix.steps):
        on = "" if step.parent is None else f", as step {step.parent} and"
        sets = [f"{SYMBOL_OF[f]}={text_of(v)}" for f, v in step.changes.items()]
        text = f"  step {step.id} {step.name}{on}: {', '.join(sets) or 'nothing'}"
        yield paragraph(text, indent=8)
    yield ""


# ---- command line ---------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("defconfig", "load defconfigs/NAME; NAME+NAME merges"),
        ("menuconfig", "edit .config by menus"),
        ("guiconfig", "edit .config in a window"),
        ("oldconfig", "bring .config up to date, asking about new symbols"),
        ("olddefconfig", "bring .config up to date, new symbols at their defaults"),
        ("savedefconfig", "write .config to defconfigs/NAME, without defaults"),
        ("list-defconfigs", "list the presets"),
        ("explain", "print value, origin, range and conditions of a symbol"),
        ("generate", "make config.py from .config, if that has changed"),
        ("help", "print this"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name in ("defconfig", "savedefconfig"):
            command.add_argument("name", metavar="NAME")
        if name == "explain":
            command.add_argument("name", metavar="SYMBOL")
        if name in ("explain", "list-defconfigs"):
            add_json(command)
        if name in ("defconfig", "explain"):
            command.add_argument("--overrides", default="", metavar="'KEY=VALUE ...'")
    return result


def act(given: argparse.Namespace) -> None:
    if given.command in ("menuconfig", "guiconfig", "oldconfig"):
        edit(given.command)
    elif given.command == "defconfig":
        defconfig(given.name, given.overrides)
    elif given.command == "savedefconfig":
        savedefconfig(given.name)
    elif given.command == "explain":
        explain(given.name, given.overrides)
    else:
        {
            "list-defconfigs": list_defconfigs,
            "olddefconfig": olddefconfig,
            "generate": generate,
            "help": parser().print_help,
        }[given.command]()


@answers_json("kconfig")
def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    answer(command=given.command)
    try:
        act(given)
    except KeyboardInterrupt:
        return 130
    except (DiskFull, NotWritable) as error:
        return refuse("kconfig", error)
    except OSError as error:
        return fail(f"{error.filename or given.command}: {error.strerror}", 2)
    except ValueError as error:  # ConfigError and what settings_from refuses
        fail(error, 2)
        if f"{DOTCONFIG.name}:" in str(error) and is_droppable():
            print("(make olddefconfig drops such lines)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
