"""A folder of data in one zip file with the hash of each file, and back again.

What comes back may be a stranger's: plain files with names that the caller allows, of a
bounded size, each as its hash says, and nothing else. Nothing is executed, and nothing
is written outside of the one folder that is made.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from lib.atomic_files import clear_write_errors, refuse_other_kind, replacing
from lib.files import hidden_name
from lib.safe_json import clean

SUMS_FILE = "SHA256SUMS"  # as sha256sum writes it and checks it
MAX_FILES = 50_000
MAX_FILE_BYTES = 512 << 20
MAX_TOTAL_BYTES = 2 << 30
CHUNK = 1 << 20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
EPOCH = (1980, 1, 1, 0, 0, 0)  # of each file, so that equal folders give equal bundles

# What zipfile raises for a damaged or encrypted file.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # also an encrypted file, or a method that is not known
    UnicodeError,
)


class BadBundle(ValueError):
    """A file that is not a whole bundle; the message names what is wrong."""


def write_bundle(path: Path, root: Path, names: Iterable[str]) -> int:
    """Write files of a folder into one zip, atomically; its size in bytes.

    names: paths within root, as "a/b". Raises ValueError for what is not a plain file
    of a bounded size, lib.atomic_files.DiskFull, and NotWritable, also where there is
    anything but a bundle.
    """
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_other_kind(path, _is_bundle)
        with (
            replacing(path) as partial,
            zipfile.ZipFile(partial, "x", zipfile.ZIP_DEFLATED) as bundle,
        ):
            _write(bundle, root, names)
        return path.stat().st_size


def _is_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as found:
            return SUMS_FILE in found.namelist()
    except UNREADABLE:
        return False


def _write(bundle: zipfile.ZipFile, root: Path, names: Iterable[str]) -> None:
    sums = ""
    for name in sorted(names):
        file = root / name
        if file.is_symlink() or not file.is_file():
            raise ValueError(f"{file} is not a plain file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = file.read_bytes()
        sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        _add(bundle, name, data)
    _add(bundle, SUMS_FILE, sums.encode("utf-8"))


def _add(bundle: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    bundle.writestr(info, data, zipfile.ZIP_DEFLATED)


def unpack_bundle(path: Path, folder: Path, allowed: re.Pattern[str]) -> bool:
    """Unpack into a folder that is made for it; False if it is there already, from the
    same bundle.

    allowed: of the paths in it, whole. Raises BadBundle; ValueError if something else
    has the folder's name.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            members = _members(bundle, allowed)
            sums = _read_sums(bundle, members)
            if folder.exists() or folder.is_symlink():
                _require_same(folder, bundle, path)
                return False
            _unpack(bundle, members, sums, folder)
    except BadBundle as error:
        raise BadBundle(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise BadBundle(f"{path} is not a readable zip file: {clean(error)}") from None
    return True


def _members(
    bundle: zipfile.ZipFile, allowed: re.Pattern[str]
) -> dict[str, zipfile.ZipInfo]:
    """The files of a bundle by name; raises BadBundle for any that is not allowed."""
    found: dict[str, zipfile.ZipInfo] = {}
    listed = bundle.infolist()
    if len(listed) > MAX_FILES:
        raise BadBundle(f"has {len(listed)} files, more than {MAX_FILES}")
    for info in listed:
        name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG)  # 0: written without a kind
        is_named = name == SUMS_FILE or (_is_inside(name) and allowed.fullmatch(name))
        if not plain or not is_named:
            raise BadBundle(f"{clean(name, 80)!r} is nothing that belongs in a bundle")
        if name in found:
            raise BadBundle(f"has {clean(name, 80)!r} twice")
        if info.compress_type not in METHODS:
            raise BadBundle(f"{clean(name, 80)!r} is neither stored nor deflated")
        found[name] = info
    folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
    if both := sorted(folders & found.keys()):
        raise BadBundle(f"{clean(both[0], 80)!r} is both a file and a folder")
    if sum(info.file_size for info in found.values()) > MAX_TOTAL_BYTES:
        raise BadBundle(f"is larger than {MAX_TOTAL_BYTES >> 20} MiB when unpacked")
    return found


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    odd = name.startswith("/") or any(c in name for c in "\\:\0")
    return bool(parts) and not odd and not any(part in ("..", ".") for part in parts)


def _read_sums(
    bundle: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> dict[str, str]:
    """Hash of each file by name; raises BadBundle unless each file has one."""
    if SUMS_FILE not in members:
        raise BadBundle(f"has no {SUMS_FILE}, as every bundle has")
    data = _bounded(bundle, members[SUMS_FILE])
    lines = [line for line in data.decode("utf-8", "replace").split("\n") if line]
    sums = {line[66:]: line[:64] for line in lines}
    if odd := sorted(sums.keys() ^ (members.keys() - {SUMS_FILE})):
        raise BadBundle(f"{SUMS_FILE} and files differ: {clean(odd[0], 80)!r}")
    return sums


def _bounded(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a file, whatever its header says of its size."""
    parts, size = [], 0
    with bundle.open(info) as file:
        while part := file.read(CHUNK):
            size += len(part)
            if size > min(MAX_FILE_BYTES, info.file_size):
                raise BadBundle(f"{clean(info.filename, 80)!r} is larger than allowed")
            parts.append(part)
    return b"".join(parts)


def _unpack(
    bundle: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    sums: Mapping[str, str],
    folder: Path,
) -> None:
    """Into a hidden folder, which gets its name once every hash was right."""
    partial = hidden_name(folder)
    with clear_write_errors(folder):
        try:
            for name, info in members.items():
                data = _bounded(bundle, info)
                if name != SUMS_FILE and hashlib.sha256(data).hexdigest() != sums[name]:
                    raise BadBundle(f"{clean(name, 80)!r} is not as its hash says")
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _require_same(folder: Path, bundle: zipfile.ZipFile, path: Path) -> None:
    own = folder / SUMS_FILE
    is_own = not folder.is_symlink() and own.is_file()
    if not is_own or own.read_bytes() != bundle.read(SUMS_FILE):
        raise ValueError(
            f"{path} would be unpacked to {folder}, where something else is: move "
            "either of them"
        )
