"""lib/files.py: links are not followed, and only what is ours is deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lib import atomic_files
from lib.files import Linked, open_to_append, own_folder, remove_folder, safe_join
from lib.jobs.pulse import PULSE_FILE, statement
from lib.jobs.run_files import METRICS_FILE
from lib.jobs.run_log import RunProgress
from lib.kconfig.config_py import read_config

OURS = re.compile(r"a|b/c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of our own files, and next to it "else", which is not ours."""
    for name in ("mine/a", "mine/b/c", "else/a"):
        atomic_files.atomic_write_text(tmp_path / name, name)
    return tmp_path / "mine"


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_folder_of_ours_goes_and_nothing_beside_it(folder: Path) -> None:
    assert remove_folder(folder, OURS) == []
    assert names(folder.parent) == ["else", "else/a"]


@pytest.mark.parametrize("name", ["note", "b/note", "b/c2", ".hidden"])
def test_a_file_of_somebody_else_keeps_the_whole_folder(
    folder: Path, name: str
) -> None:
    (folder / name).write_text("precious")
    before = names(folder)
    assert remove_folder(folder, OURS) == [name]
    assert names(folder) == before


@pytest.mark.parametrize("target", ["else", "else/a", "nowhere"])
def test_a_link_is_never_ours_whatever_its_name(folder: Path, target: str) -> None:
    (folder / "a").unlink()
    (folder / "a").symlink_to(folder.parent / target)
    assert remove_folder(folder, OURS) == ["a"]
    assert names(folder.parent / "else") == ["a"] and (folder / "a").is_symlink()


def test_a_folder_that_is_a_link_stays_with_what_it_leads_to(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert remove_folder(link, OURS) == ["link"]
    assert names(folder) == ["a", "b", "b/c"] and link.is_symlink()
    assert remove_folder(folder.parent / "none", OURS) == ["none"]


def test_a_file_that_is_written_replaces_a_link_and_not_its_target(
    folder: Path,
) -> None:
    link, target = folder / "link", folder.parent / "else" / "a"
    link.symlink_to(target)
    atomic_files.atomic_write_text(link, "new")
    assert (link.read_text(), target.read_text()) == ("new", "else/a")
    assert not link.is_symlink()


@pytest.mark.parametrize("target", ["else/a", "else/new"])
def test_nothing_is_appended_behind_a_link(folder: Path, target: str) -> None:
    link = folder / "metrics.jsonl"
    link.symlink_to(folder.parent / target)
    with pytest.raises(Linked, match="metrics.jsonl is a link to .*remove the link"):
        atomic_files.append_jsonl(link, {"step": 1})
    assert names(folder.parent / "else") == ["a"]
    assert (folder.parent / "else" / "a").read_text() == "else/a"


def test_appending_makes_a_file_and_keeps_what_is_there(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        with open_to_append(tmp_path / "log") as file:
            file.write(line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_folder_to_write_into_is_no_link(folder: Path) -> None:
    assert own_folder(folder / "new").is_dir() and own_folder(folder / "new").is_dir()
    (folder / "link").symlink_to(folder.parent / "else")
    with pytest.raises(Linked, match="link is a link to"):
        own_folder(folder / "link")


def test_safe_join_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    inside = safe_join(tmp_path, "step05-ra/seed1")
    assert inside == tmp_path / "step05-ra" / "seed1"
    for bad in ("../x", "/etc/passwd", "a/../../x", "link/passwd", "a\0b"):
        with pytest.raises(ValueError):
            safe_join(tmp_path, bad)


def test_a_run_moved_away_and_linked_back_is_refused_with_ways_out(
    folder: Path,
) -> None:
    (folder / "step05-ra").symlink_to(folder.parent / "else")
    for name in ("step05-ra", "step05-ra/seed1"):
        with pytest.raises(ValueError, match="leads out of") as error:
            safe_join(folder, name)
        text = str(error.value)
        assert f"{folder / 'step05-ra'} is a link to" in text
        assert f"Or move the whole folder, and make {folder} a link" in text


@pytest.mark.parametrize("target", ["pipe", "link to a pipe", "/dev/zero", "folder"])
def test_what_could_block_its_reader_or_never_end_is_refused(
    tmp_path: Path, target: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to a pipe").symlink_to("pipe")
    for read in (atomic_files.read_json, read_config):
        with pytest.raises(OSError, match="directory|plain file"):
            read(tmp_path / target)
    run = tmp_path / "run"
    run.mkdir()
    for name in (METRICS_FILE, PULSE_FILE):
        (run / name).symlink_to(tmp_path / target)
    assert statement(run) == (0, 0.0)
    assert RunProgress(run, 10).step == 0
