"""A prepared data set on disk: <DATA_DIR>/<dataset>-<tokenizer>/.

train.bin and val.bin hold token ids, unsigned 16-bit little-endian; meta.json
says what they are, with counts and sha256 sums, and is there only if all of it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.schema import VOCAB_SIZES, Settings
from lib.identity import file_sha256, identity
from lib.rundir import DamagedFile, read_json

SCHEMA = 1
DATASETS = (
    "stdlib",
    "shakespeare",
    "finewebedu",
    "openwebtext",
    "tinystories",
    "text",
)
SPLITS = ("train", "val")
META_FILE = "meta.json"
TOKEN_BYTES = 2
PREPARE = "`make data` or `python scripts/prepare_data.py --config config.py`"
REBUILD = "`python scripts/prepare_data.py --config config.py --force`"


class MissingData(FileNotFoundError):
    """The data set was never prepared; the message names the command."""


class DataError(ValueError):
    """A data set that cannot be used as asked; the message says the way out."""


@dataclass(frozen=True)
class Request:
    """What a configuration asks of the data; kept in meta.json and compared."""

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


def request_of(settings: Settings) -> Request:
    """What these settings ask of the data."""
    data = settings.data
    return Request(data.dataset, data.tokenizer, data.text_path, data.max_tokens)


def dataset_folder(data_dir: str | Path, dataset: str, tokenizer: str) -> Path:
    """The folder of a data set; DataError for a name that is none."""
    Request(dataset, tokenizer)  # names from a table cannot lead elsewhere
    return Path(data_dir).expanduser() / f"{dataset}-{tokenizer}"


def split_file(folder: Path, split: str) -> Path:
    """The token file of "train" or "val"."""
    _allow("split", split, SPLITS)
    return folder / f"{split}.bin"


def read_meta(data_dir: str | Path, dataset: str, tokenizer: str) -> dict[str, Any]:
    """meta.json, checked against the files' sizes and the tokenizer's vocabulary.

    Raises MissingData if there is no such data set, DataError if it is not whole
    or not what its name says.
    """
    folder = dataset_folder(data_dir, dataset, tokenizer)
    if not folder.is_dir():
        raise MissingData(f"{folder} does not exist: prepare the data with {PREPARE}")
    try:
        meta = read_json(folder / META_FILE)
        _check_meta(meta, dataset, tokenizer)
        for split in SPLITS:
            _check_size(split_file(folder, split), meta["splits"][split]["tokens"])
    except FileNotFoundError as error:
        raise _unusable(folder, f"{error.filename} is missing") from None
    except (DamagedFile, KeyError, TypeError, AttributeError) as error:
        raise _unusable(folder, f"bad {META_FILE} ({error})") from None
    except DataError as error:
        raise _unusable(folder, str(error)) from None
    return dict(meta)


def _check_meta(meta: Mapping[str, Any], dataset: str, tokenizer: str) -> None:
    expected = {
        "schema": SCHEMA,
        "dataset": dataset,
        "tokenizer": tokenizer,
        "vocab_size": VOCAB_SIZES[tokenizer],
        "eot": VOCAB_SIZES[tokenizer] - 1,
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
        f"{folder} is not a whole data set: {reason}. Remove it or "
        f"prepare it anew with {REBUILD}"
    )


def check_request(meta: Mapping[str, Any], request: Request) -> None:
    """DataError, field by field, if the data was prepared to another request."""
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
            f"{request.dataset}-{request.tokenizer} was prepared differently: "
            f"{'; '.join(differing)}. Set it back, choose another DATA_DIR, or "
            f"prepare it anew with {REBUILD}"
        )


def prepared(settings: Settings) -> dict[str, Any]:
    """meta.json of the data that these settings ask for.

    Raises MissingData or DataError, as read_meta and check_request do: what a
    runner asks before it starts anything.
    """
    request = request_of(settings)
    meta = read_meta(settings.resources.data_dir, request.dataset, request.tokenizer)
    check_request(meta, request)
    return meta


def check_hashes(folder: Path, meta: Mapping[str, Any]) -> None:
    """DataError if a token file is not, byte for byte, the one meta.json names."""
    for split in SPLITS:
        found = file_sha256(split_file(folder, split))
        if found != meta["splits"][split]["sha256"]:
            raise _unusable(folder, f"the sha256 of {split}.bin is wrong")


def check_untouched(folder: Path, meta: Mapping[str, Any]) -> None:
    """check_hashes, if a token file is newer than meta.json, which is written last:
    without reading what may be many GB for nothing."""
    written = (folder / META_FILE).stat().st_mtime_ns
    newest = max(split_file(folder, split).stat().st_mtime_ns for split in SPLITS)
    if newest > written:
        check_hashes(folder, meta)


def fingerprint(meta: Mapping[str, Any]) -> str:
    """16 hex digits that name the tokens themselves: equal means the same data."""
    sums = {split: meta["splits"][split]["sha256"] for split in SPLITS}
    return identity({"tokenizer": meta["tokenizer"], "sha256": sums})
