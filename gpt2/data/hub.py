"""Corpora from the Hugging Face hub with `datasets`: downloaded first, or streamed."""

from __future__ import annotations

import functools
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gpt2.data.corpus import Corpus, CorpusError, Document, one_text_corpus

if TYPE_CHECKING:
    from datasets import DatasetBuilder

REACH_SECONDS = 5
TRUE_VALUES = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubDataset:
    """Arguments of load_dataset; with data_files it reads local files."""

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


def one_text_of(source: HubDataset) -> Corpus:
    """Rows of a data set joined to the one text that was cut into them."""
    return one_text_corpus(
        lambda: "".join(doc.text for doc in hub_documents(source, streaming=False)),
        asdict(source),
        lambda: str(_builder(source).hash),
    )


def hub_corpus(source: HubDataset, *, streaming: bool) -> Corpus:
    """Corpus of a data set on the Hugging Face hub, or of files in its formats."""
    return Corpus(
        lambda place: hub_documents(source, streaming=streaming, place=place),
        asdict(source),
        source.val_share,
        lambda: str(_builder(source).hash),
    )


def hub_documents(
    source: HubDataset, *, streaming: bool, place: Any = None
) -> Iterator[Document]:
    """Rows of a data set as documents, in their order.

    streaming: read over the network as needed, instead of downloading everything first.
    place: of the document after which to start; when streaming, only the file that
    contains it is read again.
    Raises CorpusError with instructions soon if the hub does not answer.
    """
    number = place["row"] if place else 0
    try:
        rows = _rows(source, streaming)
        if place and streaming:
            rows.load_state_dict(place["state"])
        elif place:
            rows = rows.skip(number) if number < len(rows) else ()
        for row in rows:
            text = row[source.text_field] or ""
            state = rows.state_dict() if streaming else None
            name = f"{source.path}[{number}]"
            number += 1
            yield Document(name, text, {"row": number, "state": state})
    except CorpusError:
        raise
    except Exception as error:  # the network or a format may raise anything
        raise _no_rows(source, error) from error


def _rows(source: HubDataset, streaming: bool) -> Any:
    builder = _builder(source)
    if streaming:
        rows: Any = builder.as_streaming_dataset(split=source.split)
    else:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=source.split)
    if source.text_field not in (rows.column_names or [source.text_field]):
        raise ValueError(f"no column {source.text_field!r} in {rows.column_names}")
    return rows.select_columns([source.text_field])


@functools.cache
def _builder(source: HubDataset) -> DatasetBuilder:
    """Dataset builder, which knows the files; its hash identifies their revision."""
    silent = source.data_files is None and not _offline() and not _hub_answers()
    if silent:
        # The cache is still valid, and this avoids half a minute of
        # retries. It must happen before `datasets` is imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from datasets import load_dataset_builder

        given = source.data_files
        files = list(given) if isinstance(given, tuple) else given
        return load_dataset_builder(source.path, source.name, data_files=files)
    except Exception as error:  # `datasets` raises many unrelated types
        cause = TimeoutError("the hub does not answer") if silent else error
        raise _no_rows(source, cause) from error


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in TRUE_VALUES for name in names)


def _hub_answers() -> bool:
    """True if the hub answers within REACH_SECONDS."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urllib.request.urlopen(address, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # Other certificate roots may be configured for `datasets`.
        return isinstance(error.reason, ssl.SSLError)
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
