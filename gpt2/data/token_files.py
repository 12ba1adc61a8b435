"""Prepared data set on disk: <DATA_DIR>/<dataset>-<tokenizer>/.

train.bin and val.bin contain token ids, unsigned 16-bit little-endian; meta.json
describes them, with counts and sha256 hashes, and exists only if the data set is
complete. The folder of a user's own text includes its name, see dataset_folder.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.settings.rerun_commands import assignments
from gpt2.settings.schema import VOCAB_SIZES, Settings
from lib.atomic_files import DamagedFile, read_json
from lib.hashing import file_sha256, identity
from lib.kconfig.dotconfig import split_overrides

SCHEMA = 1
DATASETS = ("stdlib", "shakespeare", "finewebedu", "openwebtext", "tinystories", "text")
SPLITS = ("train", "val")
META_FILE = "meta.json"
FILES = (*(f"{split}.bin" for split in SPLITS), META_FILE)
PARTIAL = ".partial"  # subfolder with an unfinished preparation
TOKEN_BYTES = 2
PREPARE = "`make data`"
REBUILD = "`make data FORCE=1`"


class MissingData(FileNotFoundError):
    """The data set was not prepared; the message names the command."""


class DataError(ValueError):
    """The data set cannot be used as requested; the message says how to fix it."""


@dataclass(frozen=True)
class DataRequest:
    """Data settings of a configuration; stored in meta.json and compared."""

    dataset: str
    tokenizer: str
    text_path: str = ""
    max_tokens: int = 0

    def __post_init__(self) -> None:
        _allow("GPT2_DATASET", self.dataset, DATASETS)
        _allow("GPT2_TOKENIZER", self.tokenizer, tuple(VOCAB_SIZES))


def _allow(symbol: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"{symbol}={value!r}: allowed are {', '.join(allowed)}")


def request_of(settings: Settings) -> DataRequest:
    """Data request of these settings."""
    data = settings.data
    return DataRequest(data.dataset, data.tokenizer, data.text_path, data.max_tokens)


def with_settings(message: object, overrides: str) -> str:
    """Message whose commands (`make data`) repeat the settings of the command line.

    overrides: as given to --overrides; without them the command would prepare another
    data set.
    """
    try:
        words = assignments(split_overrides(overrides))
    except ValueError:  # which the message is about, then
        words = []
    return str(message).replace("`make data", " ".join(["`make data", *words]))


def expand(path: str | Path, symbol: str) -> Path:
    """Path with ~ expanded; raises DataError with the symbol if that fails."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{symbol}={str(path)!r}: {error}") from None


def dataset_folder(data_dir: str | Path, request: DataRequest) -> Path:
    """Folder of a data set, prepared or not.

    With a text_path its name includes the last part and a hash of that path, so that
    different texts have different folders: text-books-1a2b3c-gpt2. A folder text-gpt2
    of an earlier version is identified by its meta.json.
    """
    base = expand(data_dir, "DATA_DIR")
    named = base / name_of(request)
    if not request.text_path or named.exists():
        return named
    plain = base / f"{request.dataset}-{request.tokenizer}"
    return plain if _text_path_of(plain) == request.text_path else named


def name_of(request: DataRequest) -> str:
    """Name of a data set, and usually of its folder."""
    tag = [_tag(request.text_path)] if request.text_path else []
    return "-".join([request.dataset, *tag, request.tokenizer])


def _tag(text_path: str) -> str:
    literal = [part for part in Path(text_path).parts if not glob.has_magic(part)]
    last = Path(literal[-1]).stem if literal else ""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", last).strip("-")[:32]
    number = hashlib.sha256(os.fsencode(text_path)).hexdigest()[:6]
    return f"{name}-{number}" if name else number


def _text_path_of(folder: Path) -> Any:
    try:
        return read_json(folder / META_FILE)["request"]["text_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def split_file(folder: Path, split: str) -> Path:
    """Token file of "train" or "val"."""
    _allow("split", split, SPLITS)
    return folder / f"{split}.bin"


def read_meta(data_dir: str | Path, request: DataRequest) -> dict[str, Any]:
    """meta.json, checked against the files' sizes and the tokenizer's vocabulary.

    Raises MissingData if there is no such data set, DataError if it is incomplete or
    does not match its name.
    """
    folder = dataset_folder(data_dir, request)
    _require_begun(folder)
    try:
        meta = read_json(folder / META_FILE)
        _check_meta(meta, request)
        for split in SPLITS:
            _check_size(split_file(folder, split), meta["splits"][split]["tokens"])
    except FileNotFoundError as error:
        raise _unusable(folder, f"{error.filename} is missing") from None
    except (DamagedFile, KeyError, TypeError, AttributeError) as error:
        raise _unusable(folder, f"bad {META_FILE} ({error})") from None
    except DataError as error:
        raise _unusable(folder, str(error)) from None
    return dict(meta)


def require_reachable(folder: Path) -> None:
    """Raise DataError if a data set's folder is a broken link."""
    if folder.is_symlink() and not folder.exists():
        raise DataError(
            f"{folder} is a link to {os.readlink(folder)!r}, which does not exist: "
            "mount that disk, or remove the link"
        )


def _require_begun(folder: Path) -> None:
    """Raise MissingData if a folder has no part of a finished data set."""
    require_reachable(folder)
    if (folder / PARTIAL).is_dir() and not (folder / META_FILE).exists():
        raise MissingData(f"{folder} is not fully prepared: resume with {PREPARE}")
    if not any((folder / name).exists() for name in FILES):
        raise MissingData(f"{folder} does not exist: prepare the data with {PREPARE}")


def _check_meta(meta: Mapping[str, Any], request: DataRequest) -> None:
    expected = {
        "schema": SCHEMA,
        "dataset": request.dataset,
        "tokenizer": request.tokenizer,
        "vocab_size": VOCAB_SIZES[request.tokenizer],
        "eot": VOCAB_SIZES[request.tokenizer] - 1,
        "dtype": "uint16",
    }
    for key, value in expected.items():
        if meta[key] != value:
            raise DataError(f"{META_FILE} has {key}={meta[key]!r}, not {value!r}")
    for split in SPLITS:
        record = meta["splits"][split]
        for key in ("tokens", "documents", "bytes"):
            if type(record[key]) is not int or record[key] < 1:
                raise DataError(f"{META_FILE} has {split}.{key}={record[key]!r}")
        if not isinstance(record["sha256"], str) or len(record["sha256"]) != 64:
            raise DataError(f"{META_FILE} has no sha256 of {split}")


def _check_size(path: Path, tokens: int) -> None:
    size = path.stat().st_size
    if size != TOKEN_BYTES * tokens:
        raise DataError(
            f"{path.name} has {size:,} bytes, but {META_FILE} says "
            f"{tokens:,} tokens of {TOKEN_BYTES} bytes"
        )


def _unusable(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder} is not a complete data set: {reason}. Remove it or "
        f"prepare it again with {REBUILD}"
    )


def check_request(meta: Mapping[str, Any], request: DataRequest) -> None:
    """Raise DataError, field by field, if the data was prepared for another request."""
    had, asked = meta.get("request", {}), asdict(request)
    differing = [
        f"{symbol} was {had.get(field)!r} and is now {asked[field]!r}"
        for field, symbol in (
            ("text_path", "GPT2_DATASET_TEXT_PATH"),
            ("max_tokens", "GPT2_DATASET_MAX_TOKENS"),
        )
        if had.get(field) != asked[field]
    ]
    if differing:
        raise DataError(
            f"{name_of(request)} was prepared differently: "
            f"{'; '.join(differing)}. Restore the setting, choose another DATA_DIR, or "
            f"prepare it again with {REBUILD}"
        )


def prepared(settings: Settings) -> dict[str, Any]:
    """meta.json of the data for these settings, checked before a runner starts.

    Raises MissingData or DataError, as read_meta, check_request and check_windows do.
    """
    request = request_of(settings)
    meta = read_meta(settings.resources.data_dir, request)
    check_request(meta, request)
    name, context = name_of(request), settings.model.block_size
    check_windows(name, meta, context, settings.data.eval_samples)
    return meta


def check_if_prepared(settings: Settings) -> str:
    """Like prepared(), but accepts missing data: for commands that only list jobs, and
    for jobs that run on another machine.

    Returns what is missing and how to prepare it, "" if nothing is.
    """
    try:
        prepared(settings)
    except MissingData as missing:
        return str(missing)
    return ""


def check_windows(
    name: str, meta: Mapping[str, Any], block_size: int, samples: int
) -> None:
    """Raise DataError, with the name of the data set, unless each split has a window of
    block_size + 1 tokens, and the validation split as many different windows as are
    evaluated."""
    for split in SPLITS:
        tokens = meta["splits"][split]["tokens"]
        if tokens < block_size + 1:
            raise DataError(
                f"the {split} split of {name} has {tokens:,} tokens, too few for "
                f"GPT2_BLOCK_SIZE={block_size}: prepare more text or reduce the block "
                "size"
            )
    windows = meta["splits"]["val"]["tokens"] - block_size
    if samples > windows:
        raise DataError(
            f"the val split of {name} has {windows:,} windows of GPT2_BLOCK_SIZE="
            f"{block_size}, fewer than GPT2_EVAL_SAMPLES={samples}: prepare more text "
            f"or use at most {windows}"
        )


def check_hashes(folder: Path, meta: Mapping[str, Any]) -> None:
    """Raise DataError if the hash of a token file differs from meta.json."""
    for split in SPLITS:
        found = file_sha256(split_file(folder, split))
        if found != meta["splits"][split]["sha256"]:
            raise _unusable(folder, f"the sha256 of {split}.bin is wrong")


def check_untouched(folder: Path, meta: Mapping[str, Any]) -> None:
    """Call check_hashes if a token file is newer than meta.json, which is written last:
    reading many GB is avoided otherwise."""
    written = (folder / META_FILE).stat().st_mtime_ns
    newest = max(split_file(folder, split).stat().st_mtime_ns for split in SPLITS)
    if newest > written:
        check_hashes(folder, meta)


def fingerprint(meta: Mapping[str, Any]) -> str:
    """Fingerprint of the tokens, 16 hex digits: equal means the same data."""
    sums = {split: meta["splits"][split]["sha256"] for split in SPLITS}
    return identity({"tokenizer": meta["tokenizer"], "sha256": sums})
