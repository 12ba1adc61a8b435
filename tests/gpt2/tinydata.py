"""Small real data sets for tests: folders of text, prepared as a user would."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.data.prepare import prepare
from gpt2.data.sources import open_corpus
from gpt2.data.token_files import DataRequest, dataset_folder
from gpt2.data.tokenizer import get_encoding

ROOT = Path(__file__).resolve().parents[2]


def texts(count: int = 12, lines: int = 30) -> dict[str, str]:
    """File name to text: documents that differ, of a few hundred bytes."""
    return {
        f"part{n % 3}/doc{n:02}.txt": "".join(
            f"Document {n}, line {k}: the square of {k} is {k * k}.\n"
            for k in range(lines + n)
        )
        for n in range(count)
    }


def write_texts(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(data)
    return folder


def prepare_texts(
    root: Path,
    files: Mapping[str, str | bytes] | None = None,
    tokenizer: str = "bytes",
    **options: Any,
) -> Path:
    """Write the files, prepare them, and return the data folder (DATA_DIR)."""
    folder = write_texts(root / "texts", texts() if files is None else files)
    request = DataRequest("text", tokenizer, str(folder), options.pop("max_tokens", 0))
    encoding = get_encoding(tokenizer, root / "tiktoken")
    prepare(request, root / "data", open_corpus(request), encoding, **options)
    return root / "data"


def text_request(
    data_dir: Path, tokenizer: str = "bytes", limit: int = 0
) -> DataRequest:
    """Arguments of prepare_texts."""
    return DataRequest("text", tokenizer, str(data_dir.parent / "texts"), limit)


def text_folder(data_dir: Path, tokenizer: str = "bytes") -> Path:
    """The data set that prepare_texts made in a data folder."""
    return dataset_folder(data_dir, text_request(data_dir, tokenizer))
