"""lib/bundle.py: what is packed comes back; what somebody else packed harms nothing."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from lib import bundle
from lib.atomic_files import NotWritable
from lib.bundle import SUMS_FILE, BadBundle, unpack_bundle, write_bundle

ALLOWED = re.compile(r"[a-z]+\.(md|json)|[a-z]+/[a-z]+\.json")
FILES = {"report.md": b"# A report\n", "run/job.json": b"{}", "run/status.json": b"[]"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "root"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_packed_comes_back_with_sums_that_sha256sum_checks(
    root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.zip"
    assert write_bundle(path, root, FILES) == path.stat().st_size
    assert unpack_bundle(path, tmp_path / "x", ALLOWED)
    found = contents(tmp_path / "x")
    found.pop(SUMS_FILE)
    assert found == FILES
    check = ["sha256sum", "--strict", "-c", SUMS_FILE]
    assert subprocess.run(check, cwd=tmp_path / "x", stdout=subprocess.DEVNULL)
    # The same folder gives the same bytes, and the same bundle is unpacked once.
    write_bundle(tmp_path / "y.zip", root, reversed(FILES))
    assert (tmp_path / "y.zip").read_bytes() == path.read_bytes()
    assert not unpack_bundle(path, tmp_path / "x", ALLOWED)


@pytest.mark.parametrize("kind", ["text", "zip"])
def test_a_file_of_something_else_is_not_replaced(root, tmp_path, kind) -> None:
    theirs = tmp_path / "photos.zip"
    theirs.write_text("not a zip")
    if kind == "zip":
        with zipfile.ZipFile(theirs, "w") as photos:
            photos.writestr("me.jpg", "x")
    before = theirs.read_bytes()
    with pytest.raises(NotWritable, match="a file of another kind is there"):
        write_bundle(theirs, root, FILES)
    assert theirs.read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    write_bundle(path, root, FILES)
    before = contents(root)
    with pytest.raises(ValueError, match="where something else is"):
        unpack_bundle(path, root, ALLOWED)
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ValueError, match="where something else is"):
        unpack_bundle(path, tmp_path / "link", ALLOWED)
    assert contents(root) == before


def test_links_and_large_files_are_not_packed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "link.md").symlink_to(root / "report.md")
    with pytest.raises(ValueError, match="link.md is not a plain file"):
        write_bundle(tmp_path / "x.zip", root, ["link.md"])
    monkeypatch.setattr(bundle, "MAX_FILE_BYTES", 5)
    with pytest.raises(ValueError, match="report.md is larger than"):
        write_bundle(tmp_path / "x.zip", root, ["report.md"])
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def forge(path: Path, files: dict[str, bytes], *extra: zipfile.ZipInfo) -> Path:
    """A zip with sums of all files, as somebody who means harm would write it."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    sums |= {info.filename: hashlib.sha256(b"x").hexdigest() for info in extra}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
        for info in extra:
            made.writestr(info, b"x")
        lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        made.writestr(SUMS_FILE, lines)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.md", "/tmp/evil.md", "run/../../evil.json", "run/../evil.json"),
        *("C:\\evil.md", "run\\evil.json", "report.md/", "run/", "a/b/c.json"),
        *("model.safetensors", ".evil.md", "run/evil.py", "evil.json\n"),
    ],
)
def test_a_name_that_does_not_belong_is_refused(tmp_path: Path, name: str) -> None:
    path = forge(tmp_path / "x.zip", {"report.md": b"", name: b"x"})
    with pytest.raises(BadBundle, match="nothing that belongs in a bundle"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_other_compression_is_refused_before_it_is_decoded(
    tmp_path: Path, method: int
) -> None:
    path = tmp_path / "x.zip"
    lines = f"{hashlib.sha256(b'x' * 99).hexdigest()}  report.md\n"
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr("report.md", b"x" * 99)
        made.writestr(SUMS_FILE, lines)
    if method == zipfile.ZIP_STORED:
        assert unpack_bundle(path, tmp_path / "x", ALLOWED)
        return
    data = bytearray(path.read_bytes())
    data[40:60] = bytes(20)  # of lzma's own header, or the data
    path.write_bytes(data)
    with pytest.raises(BadBundle, match=r"'report.md' is neither stored nor deflated"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    allowed = re.compile(r"a(/b\.md)?")
    path = forge(tmp_path / "x.zip", {"a": b"x", "a/b.md": b"x"})
    with pytest.raises(BadBundle, match="'a' is both a file and a folder"):
        unpack_bundle(path, tmp_path / "x", allowed)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device_is_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("report.md")
    info.external_attr = (kind | 0o777) << 16
    path = forge(tmp_path / "x.zip", {}, info)
    with pytest.raises(BadBundle, match="'report.md' is nothing that belongs"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)


def test_sizes_are_bounded_whatever_the_headers_say(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forge(tmp_path / "x.zip", {"report.md": bytes(1 << 20)})
    for limit, value in [
        ("MAX_TOTAL_BYTES", 1 << 19),
        ("MAX_FILE_BYTES", 1 << 19),
        ("MAX_FILES", 1),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(bundle, limit, value)
            with pytest.raises(BadBundle, match=r"large|more than"):
                unpack_bundle(path, tmp_path / "x", ALLOWED)
    # A header that claims 9 bytes for a file that has a million.
    data = path.read_bytes()
    size = (1 << 20).to_bytes(4, "little")
    assert data.count(size) >= 2
    path.write_bytes(data.replace(size, (9).to_bytes(4, "little")))
    with pytest.raises(BadBundle):
        unpack_bundle(path, tmp_path / "x", ALLOWED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "x.zip"]


def test_what_is_damaged_is_refused_and_leaves_nothing(
    root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.zip"
    write_bundle(path, root, FILES)
    whole = path.read_bytes()
    for wrong in (b"", b"PK", whole[:-30], whole[: len(whole) // 2], b"\0" * 99):
        path.write_bytes(wrong)
        with pytest.raises(BadBundle, match=r"x\.zip is not a readable zip file"):
            unpack_bundle(path, tmp_path / "x", ALLOWED)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("report.md", b"")
    with pytest.raises(BadBundle, match="has no SHA256SUMS"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("report.md", b"other")
        digest = hashlib.sha256(b"mine").hexdigest()
        made.writestr(SUMS_FILE, f"{digest}  report.md\n")
    with pytest.raises(BadBundle, match=r"'report\.md' is not as its hash says"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("report.md", b"")
        made.writestr("notes.md", b"")
        made.writestr(SUMS_FILE, f"{digest}  report.md\n")
    with pytest.raises(BadBundle, match=r"SHA256SUMS and files differ: 'notes\.md'"):
        unpack_bundle(path, tmp_path / "x", ALLOWED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "x.zip"]
