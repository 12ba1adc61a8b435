"""Corpora: where the documents of a data set come from. No torch here.

A corpus yields whole documents, one at a time, in an order that depends only on
its content and names, so that preparing it twice gives the same tokens.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import ssl
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2.corpora.tokenfiles import Request

PASSAGE = 8192  # characters, at least, of a passage of a one-file corpus
ONE_TEXT_SHARE = 0.1  # as nanoGPT's tiny Shakespeare
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
NOT_SOURCE = re.compile(r"_sysconfigdata_")  # this build's paths and flags
PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
LINE_END = re.compile(r"\n")
REACH_SECONDS = 5
TRUE_VALUES = {"1", "ON", "YES", "TRUE"}

Skip = Callable[[str, str], None]  # told the name of a document left out, and why


class CorpusError(RuntimeError):
    """The documents cannot be had; the message names the ways out."""


@dataclass(frozen=True)
class Document:
    """One text with a name for messages; never cut between the splits."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """A source of documents and how it is divided.

    held_out: "hash" holds out documents by the hash of their text; "tail" holds
    out the last ones, for one text cut into passages, where neighbours of a
    training passage would give its continuation away.
    """

    documents: Callable[[Skip], Iterator[Document]]
    source: Mapping[str, Any]
    val_share: float
    held_out: Literal["hash", "tail"] = "hash"
    total_bytes: int | None = None


@dataclass(frozen=True)
class HubDataset:
    """What load_dataset is told; with data_files it reads local files."""

    path: str
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    data_files: str | tuple[str, ...] | None = None
    val_share: float = 0.005


# OpenWebText's own repository still needs a loading script, which `datasets` no
# longer runs; this is the same 8,013,769 documents as Parquet.
HUB: dict[str, HubDataset] = {
    "shakespeare": HubDataset(
        "karpathy/tiny_shakespeare", split="train+validation+test"
    ),
    "finewebedu": HubDataset("HuggingFaceFW/fineweb-edu", name="sample-10BT"),
    "openwebtext": HubDataset("dylanebert/openwebtext"),
    "tinystories": HubDataset("roneneldan/TinyStories", val_share=0.01),
}


def open_corpus(
    request: Request, hub: Mapping[str, HubDataset] | None = None
) -> Corpus:
    """The corpus that a configuration asks for; documents are read later.

    hub: what stands for each hub name, if not the table HUB. Raises CorpusError
    if there is nothing to read.
    """
    if request.dataset == "stdlib":
        return stdlib_corpus()
    if request.dataset == "text" or (
        request.dataset == "shakespeare" and request.text_path
    ):
        share = ONE_TEXT_SHARE if request.dataset == "shakespeare" else 0.05
        return text_corpus(request.text_path, share)
    source = (HUB if hub is None else hub)[request.dataset]
    if request.dataset == "shakespeare":
        return one_text_corpus(lambda: _joined(source), asdict(source))
    return hub_corpus(source, streaming=request.max_tokens > 0)


# ---- files ----------------------------------------------------------------------


def stdlib_corpus() -> Corpus:
    """The sources of the running Python's standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = list(_library_files(root))
    if not files:
        raise CorpusError(
            f"this Python's standard library has no sources in {root}: use another "
            "Python, or GPT2_DATASET_TEXT_PATH with a folder of text"
        )
    return files_corpus(files, {"python": platform.python_version()}, 0.05)


def _library_files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in NOT_LIBRARY]
        for name in names:
            path = Path(folder, name)
            if not name.endswith(".py") or NOT_SOURCE.match(name):
                continue
            if not path.is_symlink():  # some distributions link to their own files
                yield path.relative_to(root).as_posix(), path


def text_corpus(path: str, val_share: float) -> Corpus:
    """The files of a folder, a glob, or one file, each a document.

    A file or folder of just that name comes before a glob, as do the first parts of a
    path. One file alone is cut into passages, see one_text_corpus. Hidden files are
    left out. Raises CorpusError if nothing is there.
    """
    try:
        files = _text_files(Path(path).expanduser()) if path else []
    except RuntimeError as error:  # ~ of nobody, or without HOME
        raise CorpusError(f"GPT2_DATASET_TEXT_PATH={path!r}: {error}") from None
    if not files:
        raise CorpusError(
            f"GPT2_DATASET_TEXT_PATH={path!r} names no file: give a folder, a file "
            "or a glob such as 'books/**/*.txt' (seen from the present folder)"
        )
    if len(files) == 1:
        ((name, file),) = files
        return one_text_corpus(lambda: _only_text(name, file), {"path": path})
    return files_corpus(files, {"path": path}, val_share)


def _text_files(path: Path) -> list[tuple[str, Path]]:
    if path.is_dir():
        root, found = path, (Path(f) for f in path.rglob("*"))
    elif path.exists():
        root, found = path.parent, (file for file in (path,))
    else:
        root = _fixed_part(path)
        names = glob.iglob(str(path.relative_to(root)), root_dir=root, recursive=True)
        found = (root / name for name in names)
    files = [(file.relative_to(root), file) for file in set(found) if file.is_file()]
    return [
        (name.as_posix(), file)
        for name, file in files
        if not any(part.startswith(".") for part in name.parts)
    ]


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part of a glob that is not there by just that name."""
    return next(folder for folder in pattern.parents if folder.exists())


def files_corpus(
    files: Sequence[tuple[str, Path]], source: Mapping[str, Any], val_share: float
) -> Corpus:
    """Each (name, file) a document, in the order of the hashes of their names.

    That order is the same everywhere, and a limit on tokens then takes a fair
    sample, not the beginning of the alphabet.
    """
    ordered = sorted(files, key=lambda f: hashlib.sha256(os.fsencode(f[0])).digest())

    def documents(skip: Skip) -> Iterator[Document]:
        for name, path in ordered:
            try:
                yield Document(name, _decode(path.read_bytes()))
            except (OSError, ValueError) as error:
                skip(name, _reason(error))

    total = sum(path.stat().st_size for _, path in files)
    return Corpus(documents, dict(source), val_share, total_bytes=total)


def _decode(data: bytes) -> str:
    """Strictly UTF-8, line ends as they are; ValueError otherwise."""
    text = data.decode("utf-8")
    if "\0" in text:
        raise ValueError("holds zero bytes: not text")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return str(error)


# ---- one long text --------------------------------------------------------------


def one_text_corpus(read: Callable[[], str], source: Mapping[str, Any]) -> Corpus:
    """One text cut at its blank lines into passages, which are the documents.

    The validation split is the end of the text, as is usual for tiny
    Shakespeare: passages taken from its middle have their context in training.
    """

    def documents(skip: Skip) -> Iterator[Document]:
        for number, passage in enumerate(passages(read())):
            yield Document(f"passage {number}", passage)

    return Corpus(documents, dict(source), ONE_TEXT_SHARE, held_out="tail")


def passages(text: str, size: int = PASSAGE) -> list[str]:
    """Cut a text at blank lines, failing that at line ends; the parts join to it.

    size: characters a passage has at least, less for a text under 20 passages.
    Raises CorpusError for a text that cannot be cut.
    """
    size = min(size, max(1, len(text) // 20))
    for boundary in (PARAGRAPH_END, LINE_END):
        parts = _cut(text, boundary, size)
        if len(parts) > 1:
            return parts
    raise CorpusError(
        "the corpus is one text of one line: it cannot be divided into training "
        "and validation. Give at least two files, or a text with line ends"
    )


def _cut(text: str, boundary: re.Pattern[str], size: int) -> list[str]:
    parts, start = [], 0
    for match in boundary.finditer(text):
        if match.end() - start >= size and text[match.end() :].strip():
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]


def _only_text(name: str, path: Path) -> str:
    try:
        return _decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{name}: {_reason(error)}; nothing else to read") from None


def _joined(source: HubDataset) -> str:
    return "".join(doc.text for doc in hub_documents(source, streaming=False))


# ---- the hub --------------------------------------------------------------------


def hub_corpus(source: HubDataset, *, streaming: bool) -> Corpus:
    """A data set of the Hugging Face hub (or files in one of its formats)."""
    return Corpus(
        lambda skip: hub_documents(source, streaming=streaming),
        asdict(source),
        source.val_share,
    )


def hub_documents(source: HubDataset, *, streaming: bool) -> Iterator[Document]:
    """The rows of a data set as documents, in its own order.

    streaming: read over the network as needed, instead of all to disk first.
    Raises CorpusError, soon and with the ways out, if the hub does not answer.
    """
    rows = _rows(source, streaming)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # whatever the network or a format throws
            raise _no_rows(source, error) from error
        if row is None:
            return
        yield Document(f"{source.path}[{number}]", row[source.text_field] or "")
        number += 1


def _rows(source: HubDataset, streaming: bool) -> Iterator[Mapping[str, Any]]:
    silent = source.data_files is None and not _offline() and not _hub_answers()
    if silent:
        # What is in the cache is still good, and this stops half a minute of
        # retries. It must happen before `datasets` is imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from datasets import load_dataset

        rows = load_dataset(
            source.path,
            source.name,
            split=source.split,
            data_files=_data_files(source.data_files),
            streaming=streaming,
        )
        if source.text_field not in (rows.column_names or [source.text_field]):
            raise ValueError(f"no column {source.text_field!r} in {rows.column_names}")
        return iter(rows.select_columns([source.text_field]))
    except Exception as error:  # `datasets` raises many unrelated types
        cause = TimeoutError("the hub does not answer") if silent else error
        raise _no_rows(source, cause) from error


def _data_files(files: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(files) if isinstance(files, tuple) else files


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in TRUE_VALUES for name in names)


def _hub_answers() -> bool:
    """Whether the hub gives any answer at all within REACH_SECONDS."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urllib.request.urlopen(address, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # others have other roots
    except (OSError, ValueError):
        return False
    return True


def _no_rows(source: HubDataset, error: Exception) -> CorpusError:
    first_line = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return CorpusError(
        f"cannot read {source.path} ({type(error).__name__}: {first_line}). "
        "Do one of these:\n"
        "  check the network and HF_ENDPOINT, and that HF_HUB_OFFLINE is not set, "
        "then start again\n"
        "  set HF_HOME to a cache that has this data set\n"
        "  choose a corpus that needs no download: CONFIG_GPT2_DATASET_STDLIB=y, or "
        "CONFIG_GPT2_DATASET_TEXT=y with GPT2_DATASET_TEXT_PATH"
    )
