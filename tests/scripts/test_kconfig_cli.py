"""scripts/kconfig.py as a user meets it: real processes in a copy of the tree."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from lib.kconfig.config_py import Config, read_config
from lib.output import EXIT_DISK, EXIT_OK
from tests.scratch import PATIENT, copy_files, run

PARTS = ("Kconfig", "gpt2", "lib", "scripts", "defconfigs")
# Parts of these that no test here needs.
TORCH = ("train", "model", "infer", "verify", "audit")


NAME = "a [x]* tree"  # with a blank and a pattern: nothing may break on them


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = (*PARTS, *(f":!gpt2/{name}" for name in TORCH))
    root = copy_files(tmp_path_factory.mktemp("pristine") / NAME, parts)
    (root / "defconfigs/one").write_text(
        "# One: a first line\n# and a second\nCONFIG_GPT2_MAX_ITERS=700\n"
    )
    return root


@pytest.fixture(scope="module")
def loaded(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("loaded") / NAME))
    done(root, "defconfig", "one")
    return root


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / NAME))


@pytest.fixture
def mine(loaded: Path, tmp_path: Path) -> Path:
    """The tree after ``make defconfig-one``."""
    return Path(shutil.copytree(loaded, tmp_path / NAME))


def kconfig(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(tree, sys.executable, "scripts/kconfig.py", *words)


def done(tree: Path, *words: str) -> str:
    ended = kconfig(tree, *words)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


def refused(tree: Path, *words: str) -> str:
    ended = kconfig(tree, *words)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


def config(tree: Path) -> Config:
    return read_config(tree / "config.py")


def test_a_preset_becomes_dotconfig_and_config_py(tree: Path) -> None:
    said = done(tree, "defconfig", "one", "--overrides", "SEEDS='1,2' LR=1e-3")
    assert "Loaded defconfigs/one and 2 settings from the command line" in said
    saved = "Saved in .config, for all later commands: SEEDS, LEARNING_RATE\n"
    assert said.startswith(saved)
    assert "make dry-run" in said
    assert "CONFIG_GPT2_MAX_ITERS=700\n" in (tree / ".config").read_text()
    loaded = config(tree)
    assert loaded.values["GPT2_MAX_ITERS"] == 700
    assert loaded.values["LEARNING_RATE"] == 1e-3
    assert loaded.origins == {
        "GPT2_MAX_ITERS": "defconfigs/one:3",
        "SEEDS": "saved from the command line",
        "LEARNING_RATE": "saved from the command line",
    }


def test_a_preset_that_replaces_a_configuration_keeps_it_and_says_so(tree: Path):
    said = done(tree, "defconfig", "one")
    mine = (tree / ".config").read_text().replace("MAX_ITERS=700", "MAX_ITERS=9")
    (tree / ".config").write_text(mine)
    kept = "Kept the .config that was there as .config.old\n"
    assert kept not in said and kept in done(tree, "defconfig", "one")
    assert kept not in done(tree, "defconfig", "one")  # or mine would be gone
    assert (tree / ".config.old").read_text() == mine


def test_presets_merge(tree: Path) -> None:
    (tree / "defconfigs/two").write_text(
        'CONFIG_GPT2_MAX_ITERS=900\nCONFIG_SEEDS="5"\nCONFIG_GPT2_WARMUP_STEPS=1\n'
    )
    (tree / "defconfigs/one").write_text(
        "CONFIG_GPT2_MAX_ITERS=700\nCONFIG_BATCH_SIZE=3\n"
    )
    assert "defconfigs/one + defconfigs/two" in done(tree, "defconfig", "one+two")
    found = config(tree).values
    assert (found["GPT2_MAX_ITERS"], found["BATCH_SIZE"], found["SEEDS"]) == (
        900,
        3,
        "5",
    )


def test_an_unknown_preset_is_refused_with_the_nearest(tree: Path) -> None:
    for name, nearest in (
        ("gpt2-quikstart", "; nearest: gpt2-quickst"),
        ("../Kconfig", ""),
        ("one+", ""),
        ("", ""),
    ):
        missing = name.removeprefix("one+")
        message = refused(tree, "defconfig", name)
        assert f"there is no preset {missing!r}{nearest}" in message
    assert not (tree / ".config").exists()


def test_steps_that_do_not_exist_are_not_saved(mine: Path) -> None:
    before = (mine / ".config").read_text()
    for words, why in (
        ("STEPS=0,99", "there is no step 99; steps are 0 to "),
        ("STEPS_FILE=gone.toml", "there is no such file"),
    ):
        quick = ("defconfig", "gpt2-quickstart", "--overrides", words)
        assert why in refused(mine, *quick)
    assert (mine / ".config").read_text() == before


def test_files_that_cannot_be_written_say_what_to_do(mine: Path) -> None:
    before = (mine / ".config").read_text(), (mine / "config.py").read_text()
    words = [sys.executable, "-B", "scripts/kconfig.py", "defconfig", "one"]
    small = ["sh", "-c", 'ulimit -f 1; exec "$0" "$@"', *words]
    full = subprocess.run(small, cwd=mine, stderr=subprocess.PIPE, text=True)
    assert full.returncode == EXIT_DISK
    assert full.stderr.startswith("kconfig: no space left while writing")
    (mine / ".config.old").unlink(missing_ok=True)
    (mine / ".config.old").mkdir()
    said = refused(mine, "defconfig", "one", "--overrides", "LR=1e-3")
    assert (
        said.startswith("kconfig: cannot write ") and "Move what is in the way" in said
    )
    assert before == ((mine / ".config").read_text(), (mine / "config.py").read_text())


def test_a_faulty_preset_leaves_the_old_configuration(mine: Path) -> None:
    before = (mine / ".config").read_text(), (mine / "config.py").read_text()
    (mine / "defconfigs/bad").write_text(
        'CONFIG_GPT2_BIAS = y\n\nCONFIG_GPT2_MIN_LR="1"\nCONFIG_GPT2_DROPOUT="2"\n'
    )
    said = refused(mine, "defconfig", "bad")
    assert said.startswith("defconfigs/bad:1: ")
    (mine / "defconfigs/bad").write_text('\nCONFIG_GPT2_DROPOUT="2"\n')
    assert "defconfigs/bad:2: CONFIG_GPT2_DROPOUT" in refused(mine, "defconfig", "bad")
    assert before == ((mine / ".config").read_text(), (mine / "config.py").read_text())


def test_list_has_purpose_hardware_and_time_of_each(tree: Path) -> None:
    (tree / "defconfigs/bare").write_text("# CONFIG_GPT2_BIAS is not set\n")
    said = done(tree, "list-defconfigs")
    names = [x for x in said.splitlines() if x and x[0] != " " and "Next:" not in x]
    assert names == sorted(p.name for p in (tree / "defconfigs").iterdir())
    assert "\none\n    One: a first line\n" in said and "\nbare\n" in f"\n{said}"
    assert "    on any CPU with 2 cores: about 4 minutes\n" in said
    assert "    on one H100 (80 GB): about 8 hours for one seed" in said
    assert "\nNext: make defconfig-NAME" in said
    assert max(map(len, said.splitlines())) <= 80


def test_savedefconfig_is_minimal_and_keeps_the_comment(tree: Path) -> None:
    done(tree, "defconfig", "gpt2-quickstart")
    before = (tree / "defconfigs/gpt2-quickstart").read_text()
    done(tree, "savedefconfig", "gpt2-quickstart")
    assert (tree / "defconfigs/gpt2-quickstart").read_text() == before
    done(tree, "savedefconfig", "mine")
    mine = (tree / "defconfigs/mine").read_text()
    assert mine.startswith("# mine: say what it is for\n# Hardware: say which. Time: ")
    assert mine.split("\n", 2)[2] == before[before.index("CONFIG_") :]


def test_savedefconfig_stays_in_its_folder(mine: Path) -> None:
    before = sorted(mine.rglob("*"))
    for name in ("", "../x", "a/b", ".hidden", "a+b", str(mine / "x"), "a b"):
        assert "a preset's name" in refused(mine, "savedefconfig", name), name
    assert sorted(mine.rglob("*")) == before


def test_without_a_configuration_the_way_out_is_named(tree: Path) -> None:
    for command in (["generate"], ["olddefconfig"], ["savedefconfig", "x"]):
        assert "make list-defconfigs" in refused(tree, *command)
    assert "nothing is configured yet" in done(tree, "explain", "GPT2_BIAS")


def test_a_checkout_that_cannot_be_written_serves_as_it_is(mine: Path) -> None:
    """A file in the place of a folder stands for it: no rights are above that."""
    (mine / ".kablate" / "made.config").unlink()
    (mine / ".kablate").rmdir()
    (mine / ".kablate").touch()
    before = (mine / "config.py").read_text()
    done(mine, "generate")
    assert (mine / "config.py").read_text() == before


def test_generate_follows_an_edited_dotconfig(mine: Path) -> None:
    written = (mine / "config.py").stat().st_mtime_ns
    done(mine, "generate")
    assert (mine / "config.py").stat().st_mtime_ns == written
    text = (mine / ".config").read_text().replace("BATCH_SIZE=8", "BATCH_SIZE=4")
    edit(mine, text)
    done(mine, "generate")
    line = text.split("\n").index("CONFIG_BATCH_SIZE=4") + 1
    assert config(mine).values["BATCH_SIZE"] == 4
    assert config(mine).origins == {
        "GPT2_MAX_ITERS": "defconfigs/one:3",
        "BATCH_SIZE": f".config:{line}",
    }


def test_settings_without_a_line_are_noted(mine: Path) -> None:
    """As in a .config that was cut off, or that is older than a setting."""
    whole = (mine / ".config").read_text()
    edit(mine, whole.replace("CONFIG_BATCH_SIZE=8\n", ""))
    said = kconfig(mine, "generate").stderr
    assert "no line for 1 setting (BATCH_SIZE), which" in said
    edit(mine, whole[: whole.index("CONFIG_SEEDS")] + "# later")
    said = kconfig(mine, "generate").stderr
    assert re.search(r"no line for \d\d+ settings \(SEEDS, .*, \.\.\.\), which", said)
    done(mine, "olddefconfig")
    edit(mine, (mine / ".config").read_text() + "\n")
    assert "no line" not in kconfig(mine, "generate").stderr


def edit(tree: Path, text: str) -> None:
    """As an editor would, later than config.py."""
    (tree / ".config").write_text(text)
    later = (tree / "config.py").stat().st_mtime + 1
    os.utime(tree / ".config", (later, later))


def test_an_edit_of_config_py_is_shown_where_it_counts_and_where_it_ends(
    mine: Path,
) -> None:
    text = (mine / "config.py").read_text()
    assert "'GPT2_MAX_ITERS': ('defconfigs/one:3', 700)" in text
    places, lost = {}, set()
    for name, was, now in (("GPT2_MAX_ITERS", "700", "9"), ("SEEDS", "'1337'", "'8'")):
        before, _, after = text.partition(f"CONFIG_{name} = {was}\n")
        text = f"{before}CONFIG_{name} = {now}\n{after}"
        places[name] = f"config.py:{before.count(chr(10)) + 1}"
        lost.add(
            f"note: {places[name]}: CONFIG_{name} = {now} was edited by hand and is "
            f"{was} again, as in .config"
        )
    (mine / "config.py").write_text(text)
    for name, place in places.items():
        assert f"\n  origin      {place}\n" in done(mine, "explain", name)
    command = (sys.executable, "scripts/run_test_matrix.py", "--list")
    listed = " ".join(run(mine, *command).stdout.split())
    assert f" GPT2_MAX_ITERS 9 {places['GPT2_MAX_ITERS']} " in listed
    assert f" SEEDS 8 {places['SEEDS']} " in listed

    saved = kconfig(mine, "savedefconfig", "mine").stderr
    assert f"note: {places['SEEDS']}: CONFIG_SEEDS = '8' was edited by hand" in saved
    assert "and is not in mine" in saved and "SEEDS" not in (
        (mine / "defconfigs/mine").read_text()
    )
    edit(mine, (mine / ".config").read_text().replace("BATCH_SIZE=8", "BATCH_SIZE=4"))
    ended = kconfig(mine, "generate")
    assert (ended.returncode, set(ended.stderr.splitlines())) == (0, lost)
    assert config(mine).values["GPT2_MAX_ITERS"] == 700


def test_a_fault_in_dotconfig_is_refused_and_olddefconfig_drops_it(mine: Path) -> None:
    edit(mine, "CONFIG_GONE=1\n" + (mine / ".config").read_text())
    said = refused(mine, "generate")
    assert said.startswith(".config:1: unknown symbol CONFIG_GONE")
    assert "make olddefconfig drops such lines" in said
    said = done(mine, "olddefconfig")
    assert "dropped .config:1: unknown symbol CONFIG_GONE" in said
    assert config(mine).origins == {"GPT2_MAX_ITERS": "defconfigs/one:3"}
    assert "GONE" not in (mine / ".config").read_text()
    assert "GONE" in (mine / ".config.old").read_text()
    assert "dropped" not in done(mine, "olddefconfig")


def test_a_fault_that_olddefconfig_cannot_fix_is_told_without_it(mine: Path) -> None:
    good = (mine / ".config").read_text()
    edit(mine, good.replace('_DEVICE="auto"', '_DEVICE="gpu"'))
    said = refused(mine, "generate")
    assert said.startswith("DEVICE='gpu' must be") and "(DEVICE: .config:" in said
    assert "olddefconfig" not in said
    (mine / ".config").write_bytes(b"# a comment\n\xff" + good.encode())
    assert (
        refused(mine, "generate") == ".config:2: not UTF-8 text (invalid start byte)\n"
    )


def test_oldconfig_asks_about_new_symbols_only(mine: Path) -> None:
    with open(mine / "Kconfig", "a") as file:
        file.write('\nconfig NEW_ONE\n\tint "A new one"\n\tdefault 3\n')
    command = [sys.executable, "scripts/kconfig.py", "oldconfig"]
    ended = subprocess.run(
        command, cwd=mine, input="5\n", capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("A new one") == 1
    assert "Peak learning rate" not in ended.stdout
    assert config(mine).values["NEW_ONE"] == 5
    assert config(mine).origin("GPT2_MAX_ITERS") == "defconfigs/one:3"


@pytest.mark.parametrize("unread", ["reader that left", "/dev/full"])
def test_oldconfig_that_cannot_print_has_no_traceback(mine: Path, unread: str) -> None:
    if unread == "/dev/full":
        output = os.open(unread, os.O_WRONLY)
    else:
        read, output = os.pipe()
        os.close(read)
    ended = subprocess.run(
        [sys.executable, "-u", "scripts/kconfig.py", "oldconfig"],
        cwd=mine,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(output)
    full = "kconfig: cannot write: No space left on device\n"
    expected = (EXIT_DISK, full) if unread == "/dev/full" else (EXIT_OK, "")
    assert (ended.returncode, ended.stderr) == expected


def test_oldconfig_that_gets_no_answer_saves_nothing(mine: Path) -> None:
    before = (mine / ".config").read_text(), (mine / "config.py").read_text()
    with open(mine / "Kconfig", "a") as file:
        file.write('\nconfig NEW_ONE\n\tint "A new one"\n\tdefault 3\n')
    said = refused(mine, "oldconfig")
    assert "not all questions were answered, so nothing was saved" in said
    assert before == ((mine / ".config").read_text(), (mine / "config.py").read_text())


def test_explain_finds_symbols_as_overrides_do(mine: Path) -> None:
    for name in ("CONFIG_GPT2_MAX_ITERS", "GPT2_MAX_ITERS", "MAX_ITERS", "max_iters"):
        said = done(mine, "explain", name)
        assert "CONFIG_GPT2_MAX_ITERS = 700\n  origin      defconfigs/one:3\n" in said
        assert "1 to " in said and "gpt2/Kconfig.training:" in said
    said = done(mine, "explain", "LR", "--overrides", "LR=0.5")
    assert "CONFIG_LEARNING_RATE = 0.5\n  origin      command line\n" in said
    assert "#" not in done(mine, "explain", "STEPS"), "no marker of a generator"
    assert "nearest: MAX_ITERS" in refused(mine, "explain", "MAX_ITRS")


def test_explain_alone_lists_all_that_is_not_a_default(tree: Path) -> None:
    assert "Every setting has its default." in done(tree, "explain", "")
    (tree / "defconfigs/one").write_text(
        "CONFIG_RA_MLA_ABLATION_MODE=y\nCONFIG_GPT2_MAX_ITERS=700\n"
    )
    done(tree, "defconfig", "one", "--overrides", "STEPS=0,5,31")
    text = (tree / ".config").read_text()
    edit(tree, text.replace("BATCH_SIZE=8", "BATCH_SIZE=4"))
    said = done(tree, "explain", "", "--overrides", "ra_window=9")
    rows = [line.split() for line in said.splitlines()]
    assert ["GPT2_MAX_ITERS", "700", "5000", "defconfigs/one:2"] in rows
    saved = "saved from the command line".split()
    assert ["RA_MLA_ABLATION_STEPS", "0,5,31", "0-18", *saved] in rows
    assert ["RA_MLA_RA_WINDOW", "9", "64", "command", "line"] in rows
    (mine,) = (row for row in rows if row[:1] == ["BATCH_SIZE"])
    assert mine[1:3] == ["4", "8"] and mine[3].startswith(".config:")
    assert "  step 5 ra, as step 0 and: RA_MLA_RA=y\n" in said
    assert "GPT2_N_HEAD=3/2 of the parent's" in said
    assert "make explain SYMBOL=NAME" in said
    assert max(map(len, said.splitlines())) <= 80


def test_menuconfig_without_a_terminal_says_so(tree: Path) -> None:
    assert "needs a terminal" in refused(tree, "menuconfig")


def test_menuconfig_saves_a_change(mine: Path) -> None:
    """kconfiglib's own menuconfig, driven by keys: find a symbol, toggle, save."""
    before = config(mine)
    assert before.values["COMPILE_MODEL"] is False
    status, screen = type_keys(
        mine,
        [
            ("Mode", "/"),
            ("Jump to", "^COMPILE_MODEL$"),
            ("compile", "\n"),
            ("[ ] Compile the model", " "),
            ("*", "q"),
            ("Save configuration?", "y"),
        ],
    )
    assert status == 0, screen
    assert "Saved .config and config.py" in screen
    after = config(mine)
    opened = {"COMPILE_MODEL": True, "COMPILE_MODE_DEFAULT": True}
    assert after.values == before.values | opened  # a choice that depends on it
    lines = (mine / ".config").read_text().split("\n")
    line = lines.index("CONFIG_COMPILE_MODEL=y") + 1
    assert after.origins == before.origins | {"COMPILE_MODEL": f".config:{line}"}


def test_menuconfig_left_without_saving_says_so(mine: Path) -> None:
    before = (mine / ".config").read_bytes()
    status, screen = type_keys(mine, [("Mode", "q"), ("No changes to save", "")])
    assert status == 0 and "Nothing was changed in .config" in screen
    assert (mine / ".config").read_bytes() == before


def test_menuconfig_ends_when_its_terminal_has_gone(mine: Path) -> None:
    """Without a signal, as of a terminal that is not the controlling one."""
    before = (mine / ".config").read_text()
    status, screen = type_keys(mine, [("Mode", "/")], leaves=True)
    assert status != 0, screen
    assert (mine / ".config").read_text() == before


def test_menuconfig_on_an_unknown_terminal_says_so(mine: Path) -> None:
    status, said = type_keys(mine, [], TERM="nowhere")
    assert status == 2 and "Traceback" not in said
    assert "menuconfig: setupterm: could not find terminal: TERM=nowhere" in said


def test_menuconfig_with_an_unknown_locale(mine: Path) -> None:
    status, screen = type_keys(mine, [("Mode", "q")], LC_ALL="xx_YY.UTF-8")
    assert status == 0, screen


@pytest.mark.skipif(find_spec("tkinter") is None, reason="this Python has no tkinter")
def test_guiconfig_without_a_display_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    said = refused(tree, "guiconfig")
    assert "guiconfig: " in said and "DISPLAY names; or use menuconfig" in said


def type_keys(
    tree: Path, script: list[tuple[str, str]], leaves: bool = False, **environ: str
) -> tuple[int, str]:
    """Run menuconfig in a terminal of its own; send keys once the screen shows a text.

    leaves: close the terminal after that. Returns its exit status and all that it
    printed.
    """
    master, slave = pty.openpty()
    size = {"TERM": "xterm", "LINES": "40", "COLUMNS": "120"}
    environment = {**os.environ, **size, **environ}
    process = subprocess.Popen(
        [sys.executable, "scripts/kconfig.py", "menuconfig"],
        cwd=tree,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    seen = ""
    try:
        for awaited, keys in script:
            fresh = read_until(master, awaited)
            seen += fresh
            assert awaited in fresh, f"no {awaited!r} in {seen!r}"
            os.write(master, keys.encode())
        if leaves:
            os.close(master)
        else:
            seen += read_until(master, None)
        return process.wait(), seen
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # menuconfig is its child
        process.wait()
        if not leaves:
            os.close(master)


def read_until(terminal: int, awaited: str | None) -> str:
    """Terminal output up to a text, or (None) up to its end."""
    text, end = "", time.monotonic() + PATIENT
    while time.monotonic() < end and (awaited is None or awaited not in text):
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                read = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            text += read.decode(errors="replace")
    return text
