"""lib/atomic_files.py: whole files, records, full disks, killed writers."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from pathlib import Path

import pytest

from lib import atomic_files
from tests.lib.processes import end, first_line, start

# ---- whole files ----------------------------------------------------------------


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = """
import sys
from lib.atomic_files import atomic_write_json
value = 0
while True:
    value += 1
    atomic_write_json(sys.argv[1], {"n": value, "pad": [value] * 3000})
    if value == 1:
        print("go", flush=True)
"""
    writer = start(code, path)
    assert first_line(writer) == "go"
    for _ in range(200):
        found = json.loads(path.read_text())
        assert set(found["pad"]) == {found["n"]}
    end(writer)
    assert json.loads(path.read_text())["n"] >= 1
    atomic_files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_atomic_write_obeys_the_umask_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    atomic_files.atomic_write_text(path, "h\u00e9\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.read_bytes() == "h\u00e9\n".encode()
    assert path.stat().st_mode == plain.stat().st_mode


def test_nan_is_refused_and_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    atomic_files.atomic_write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        atomic_files.atomic_write_json(path, {"a": float("nan")})
    assert atomic_files.read_json(path) == {"a": 1}


def test_read_json_names_the_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": ')
    with pytest.raises(atomic_files.DamagedFile, match="x.json"):
        atomic_files.read_json(path)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="] [A-Z][a-z ]+: '/proc/below'$"):
        atomic_files.atomic_write_bytes("/proc/below/x.json", b"x")


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    in_the_way = "Move what is in the way, or name another place"
    for path, why in (
        (tmp_path / "folder", f"Is a directory. {in_the_way}"),
        (tmp_path / "file/x.json", f"(File exists|Not a directory). {in_the_way}"),
        (Path("/sys/kernel/x.json"), "Permission denied. Make its folder writable"),
    ):
        said = f"^cannot write {path}: {why}"
        with pytest.raises(atomic_files.NotWritable, match=said):
            atomic_files.atomic_write_bytes(path, b"x")
        with pytest.raises(atomic_files.NotWritable, match=said):
            atomic_files.require_json_place(path)
    (tmp_path / "ours.json").write_text('{"schema": 1}')
    for ours in ("new/x.json", "ours.json", "file"):
        atomic_files.require_json_place(tmp_path / ours)
    for text in ("# README", '{"a": 1}', "[1]", b"\x89PNG\xff"):
        theirs = tmp_path / "theirs"
        theirs.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(atomic_files.NotWritable, match="of another kind is there"):
            atomic_files.require_json_place(theirs)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdout")):
        if special.is_file():
            continue  # where the output of the tests goes
        with pytest.raises(atomic_files.NotWritable, match="of another kind is there"):
            atomic_files.require_json_place(special)
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(atomic_files.NotWritable, match="Read-only file system. Make"):
        with atomic_files.clear_write_errors(tmp_path):
            raise OSError(errno.EROFS, "Read-only file system", "x.tmp")


def test_a_limit_of_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(atomic_files.DiskFull, match="x; it was not there before"):
            atomic_files.atomic_write_bytes(tmp_path / "x", b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_said_and_damages_nothing(small_disk: Path) -> None:
    path = small_disk / "model.bin"
    atomic_files.atomic_write_bytes(path, b"old" * 100)
    with pytest.raises(
        atomic_files.DiskFull, match="^no space left.*model.bin; its old content is un"
    ) as caught:
        atomic_files.atomic_write_bytes(path, b"new" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" * 100
    assert [p.name for p in small_disk.iterdir()] == ["model.bin"]


def test_metrics_on_a_full_disk_keep_every_whole_record(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    written = 0
    with pytest.raises(atomic_files.DiskFull):
        while True:
            atomic_files.append_jsonl(path, {"step": written, "pad": "x" * 3000})
            written += 1
    assert written > 5
    assert [r["step"] for r in atomic_files.read_jsonl(path)] == list(range(written))
    assert path.read_bytes().endswith(b"\n")


# ---- records --------------------------------------------------------------------


def test_a_torn_last_line_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        atomic_files.append_jsonl(path, {"kind": "train", "step": step})
    with open(path, "ab") as file:
        file.write(b'{"kind": "train", "st')
    assert [r["step"] for r in atomic_files.read_jsonl(path)] == [0, 1, 2]
    atomic_files.append_jsonl(path, {"kind": "train", "step": 3})
    assert [r["step"] for r in atomic_files.read_jsonl(path)] == [0, 1, 2, 3]


def test_a_torn_only_line_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}')  # whole JSON, but its newline is missing
    assert atomic_files.read_jsonl(path) == []
    atomic_files.append_jsonl(path, {"step": 2})
    assert atomic_files.read_jsonl(path) == [{"step": 2}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in (b'{"st', 100_000 * b"["):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(atomic_files.DamagedFile, match="metrics.jsonl:2"):
            atomic_files.read_jsonl(path)


def test_bad_lines_are_dropped_and_named_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1,  "loss": 0.1}', b'{"step": 3}', b'{"step": 4}']
    path.write_bytes(b"\n".join([good[0], b'{"st', b"7", *good[1:], b'{"torn']))
    assert atomic_files.drop_bad_lines(path) == ["line 2, b'{\"st'", "line 3, b'7'"]
    assert path.read_bytes() == b"\n".join([*good, b""])
    before = path.stat().st_ino
    assert atomic_files.drop_bad_lines(path) == [] and path.stat().st_ino == before
    assert atomic_files.drop_bad_lines(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["", "{", 100_000 * "[", 5_000 * "9"])
def test_what_is_no_json_is_told_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(atomic_files.DamagedFile, match="status.json: not JSON"):
        atomic_files.read_json(path)


def test_nan_and_infinity_are_recorded_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    atomic_files.append_jsonl(path, {"loss": float("inf")})
    atomic_files.append_jsonl(path, {"loss": [float("nan"), 1.5]})
    assert atomic_files.read_jsonl(path) == [{"loss": None}, {"loss": [None, 1.5]}]


def test_killed_writers_leave_only_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = """
import sys
from lib.atomic_files import append_jsonl, read_jsonl
step = len(read_jsonl(sys.argv[1]))
while True:
    append_jsonl(sys.argv[1], {"step": step, "pad": "x" * 500})
    step += 1
    if step % 20 == 0:
        print(step, flush=True)
"""
    for _ in range(3):
        writer = start(code, path)
        first_line(writer)
        end(writer)
    steps = [record["step"] for record in atomic_files.read_jsonl(path)]
    assert steps == list(range(len(steps))) and len(steps) >= 60


def test_truncate_metrics_drops_what_comes_after_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    atomic_files.append_jsonl(path, {"kind": "note"})
    for step in range(1, 6):
        atomic_files.append_jsonl(path, {"kind": "train", "step": step, "loss": 0.1})
    before = path.read_bytes()
    assert atomic_files.truncate_metrics(path, 5) == 0 and path.read_bytes() == before
    with open(path, "ab") as file:
        file.write(b'{"torn')
    assert atomic_files.truncate_metrics(path, 3) == 2
    records = atomic_files.read_jsonl(path)
    assert [r.get("step") for r in records] == [None, 1, 2, 3]
    assert path.read_bytes() == b"".join(before.splitlines(True)[:4])
    assert atomic_files.truncate_metrics(tmp_path / "none.jsonl", 3) == 0
