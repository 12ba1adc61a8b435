"""Corpora: which documents come out, in which order, and what is said otherwise."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gpt2.data import text_files
from gpt2.data.corpus import CorpusError, Document, LeftOutDocument, passages
from gpt2.data.hub import HubDataset, hub_documents
from gpt2.data.sources import open_corpus
from gpt2.data.text_files import stdlib_corpus
from gpt2.data.token_files import DataError, DataRequest
from tests.gpt2.tinydata import ROOT, texts, write_texts


def read(corpus):
    """Documents as {name: text}, and {name: reason} of those left out."""
    items = list(corpus.documents(None))
    left_out = {x.name: x.reason for x in items if isinstance(x, LeftOutDocument)}
    found = [(x.name, x.text) for x in items if isinstance(x, Document)]
    assert len(dict(found)) == len(found)
    return dict(found), left_out


def text_corpus(path):
    return open_corpus(DataRequest("text", "bytes", str(path)))


# ---- the standard library ---------------------------------------------------------


def test_stdlib_is_the_library_without_tests_and_packages():
    documents, left_out = read(stdlib_corpus())
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(documents)
    for name in documents:
        parts = set(name.split("/"))
        assert not parts & {"site-packages", "test", "tests", "idle_test"}, name
        assert not parts.pop().startswith("_sysconfigdata")
    root = Path(sysconfig.get_paths()["stdlib"])
    assert documents["argparse.py"].encode() == (root / "argparse.py").read_bytes()
    assert sum(map(len, documents.values())) > 5_000_000
    assert len(left_out) < 10


def test_stdlib_order_is_fixed_and_not_alphabetical():
    first, second = (list(read(stdlib_corpus())[0]) for _ in range(2))
    assert first == second != sorted(first)


# ---- files ------------------------------------------------------------------------


def test_folder_gives_each_file_as_it_is(tmp_path):
    files = {**texts(), "crlf.txt": "one\r\ntwo\r\n", "bom.txt": "\ufeffx"}
    documents, left_out = read(text_corpus(write_texts(tmp_path, files)))
    assert documents == files and left_out == {}


def test_order_does_not_depend_on_place_or_creation(tmp_path):
    files = texts()
    here = write_texts(tmp_path / "a", files)
    there = write_texts(tmp_path / "b" / "c", dict(reversed(files.items())))
    assert list(read(text_corpus(here))[0]) == list(read(text_corpus(there))[0])


def test_undecodable_and_binary_files_are_named_and_left_out(tmp_path):
    bad = {"latin.txt": "naïve".encode("latin-1"), "zip.bin": b"PK\0\0"}
    folder = write_texts(tmp_path, {**texts(3), **bad})
    documents, left_out = read(text_corpus(folder))
    assert documents == texts(3)
    assert left_out["latin.txt"] == "not UTF-8 at byte 2"
    assert "zero bytes" in left_out["zip.bin"]


def test_hidden_files_are_left_out(tmp_path):
    folder = write_texts(tmp_path, {**texts(3), ".git/config": "x", "a/.b": "y"})
    assert read(text_corpus(folder))[0] == texts(3)


def test_glob_takes_what_it_matches(tmp_path):
    folder = write_texts(tmp_path, {**texts(), "part0/readme.md": "# no"})
    documents, _ = read(text_corpus(f"{folder}/**/*.txt"))
    assert sorted(documents.values()) == sorted(texts().values())
    documents, _ = read(text_corpus(f"{folder}/part1/doc*.txt"))
    assert len(documents) == 4


def test_a_name_that_is_there_is_no_glob(tmp_path):
    files = {"x[1].txt": SPEECHES, "x1.txt": "another", "a[b]/c?/d.txt": "one"}
    folder = write_texts(
        tmp_path, {**files, "a[b]/c?/e.txt": "two", "ab/cc/d.txt": "no"}
    )
    documents, _ = read(text_corpus(folder / "x[1].txt"))
    assert "".join(documents.values()).strip() == SPEECHES.strip()
    documents, _ = read(text_corpus(folder / "a[b]/c?/*.txt"))
    assert documents == {"d.txt": "one", "e.txt": "two"}
    documents, _ = read(text_corpus(folder / "a[b]/*/[de].txt"))
    assert documents == {"c?/d.txt": "one", "c?/e.txt": "two"}


def test_the_home_of_nobody_is_an_error():
    with pytest.raises(DataError, match="TEXT_PATH='~nosuchuser/x'.*home"):
        text_corpus("~nosuchuser/x")


def test_a_folder_that_is_a_link_is_left_out_by_name(tmp_path):
    write_texts(tmp_path / "other", {"x.txt": "x"})
    folder = write_texts(tmp_path / "texts", texts(3))
    (folder / "linked").symlink_to(tmp_path / "other")
    documents, left_out = read(text_corpus(folder))
    assert documents == texts(3)
    assert left_out == {"linked": "links to folders are not followed"}


UNREADABLE = """
import os, sys
from gpt2.data.corpus import LeftOutDocument as LeftOut
from gpt2.data.sources import open_corpus
from gpt2.data.token_files import DataRequest as Request
for path in sys.argv[1:]:
    items = list(open_corpus(Request("text", "bytes", path)).documents(None))
    print(*(f"{x.name} {x.reason}" for x in items if isinstance(x, LeftOut)), sep=";")
"""


def test_folders_that_cannot_be_read_are_left_out_by_name(tmp_path):
    """Those that the pattern leads to. Rights count for root too, once given up."""
    folder = write_texts(tmp_path, {**texts(6), "part1/in/x.txt": "x"})
    give_up = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if os.geteuid() == 0 and not shutil.which(give_up[0]):
        pytest.skip("root reads everything, and there is no setpriv")
    for part in ("part0", "part1/in"):
        (folder / part).chmod(0)
    paths = [
        f"{folder}",
        f"{folder}/**/*.txt",
        f"{folder}/*/*.txt",
        f"{folder}/part2/*",
    ]
    try:
        done = subprocess.run(
            [*(give_up if os.geteuid() == 0 else []), sys.executable, "-c", UNREADABLE]
            + paths,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    finally:
        for part in ("part0", "part1/in"):
            (folder / part).chmod(0o755)
    assert done.returncode == 0, done.stderr
    both = "part0/ Permission denied;part1/in/ Permission denied"
    assert [";".join(sorted(line.split(";"))) for line in done.stdout.splitlines()] == [
        both, both, "part0/ Permission denied", ""
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["", "missing", "missing/*.txt"])
def test_no_file_is_an_error(tmp_path, path):
    with pytest.raises(CorpusError, match="GPT2_DATASET_TEXT_PATH.*matches no files"):
        text_corpus(f"{tmp_path}/{path}" if path else "")


# ---- one text ---------------------------------------------------------------------

SPEECHES = "".join(f"SPEAKER {n}:\nWords of line {n}.\n\n" for n in range(400))


def test_one_file_is_cut_at_blank_lines_and_ends_are_held_out(tmp_path):
    corpus = text_corpus(write_texts(tmp_path, {"play.txt": SPEECHES}))
    documents, _ = read(corpus)
    assert "".join(documents.values()) == SPEECHES
    assert len(documents) >= 15 and corpus.held_out == "tail"
    assert all(d.startswith("SPEAKER") for d in documents.values())


def test_shakespeare_may_be_a_local_copy(tmp_path):
    write_texts(tmp_path, {"play.txt": SPEECHES})
    request = DataRequest("shakespeare", "bytes", f"{tmp_path}/play.txt")
    corpus = open_corpus(request)
    assert "".join(read(corpus)[0].values()) == SPEECHES
    assert (corpus.held_out, corpus.val_share) == ("tail", 0.1)


@pytest.mark.parametrize(
    "text", ["a\n" * 100, "a\n\n" * 50, "para\r\n\r\n" * 80, SPEECHES * 40]
)
def test_passages_join_to_the_text_and_are_never_blank(text):
    parts = passages(text)
    assert "".join(parts) == text and len(parts) > 1
    assert all(part.strip() for part in parts)
    assert all(part.endswith("\n") for part in parts)


def test_long_texts_give_passages_of_the_given_size():
    sizes = [len(p) for p in passages(SPEECHES * 40, 5000)]
    assert all(5000 <= size < 5100 for size in sizes[:-1])


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "without text"), ("\n\n\n", "without text"), ("one line\n", "of one line,")],
)
def test_text_that_cannot_be_cut_is_an_error_where_it_must_be(tmp_path, text, why):
    path = str(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text(text)
    assert passages(text) == [text]
    with pytest.raises(CorpusError, match=f"({why}).*: give at least two files"):
        list(text_files.text_corpus(path, 0.1).documents(None))
    corpus = text_files.text_corpus(path, 0.1, must_divide=False)
    assert [document.text for document in corpus.documents(None)] == [text]


# ---- datasets ---------------------------------------------------------------------

ROWS = [f"Row {n}.\nSecond line, é." for n in range(7)]


def make(folder, kind):
    """A local file in one of the formats the hub uses, and how to load it."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), "pyarrow.parquet"
        pytest.importorskip(parquet).write_table(
            arrow.table({"text": ROWS, "score": list(range(len(ROWS)))}), path
        )
    else:
        lines = (json.dumps({"id": n, "text": t}) for n, t in enumerate(ROWS))
        path.write_text("\n".join(lines))
    return HubDataset(kind, data_files=str(path))


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path_factory.mktemp("hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_become_documents(tmp_path, hub_cache, kind, streaming):
    documents = list(hub_documents(make(tmp_path, kind), streaming=streaming))
    assert [d.text for d in documents] == ROWS
    assert len({d.name for d in documents}) == len(ROWS)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_are_read_on_from_the_place_of_any(tmp_path, hub_cache, kind, streaming):
    """The places are plain data, as they are written down; here over two files."""
    names = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        names.append(make(tmp_path / part, kind).data_files)
    source = HubDataset(kind, data_files=tuple(names))
    every = list(hub_documents(source, streaming=streaming))
    assert [d.text for d in every] == ROWS * 2
    for number, document in enumerate(every, 1):
        place = json.loads(json.dumps(document.place))
        rest = hub_documents(source, streaming=streaming, place=place)
        assert [(d.name, d.text) for d in rest] == [
            (d.name, d.text) for d in every[number:]
        ]


def test_files_and_passages_are_read_on_from_the_place_of_any(tmp_path):
    bad = {"bad.txt": b"\xff"}
    for files in ({**texts(5), **bad}, {"play.txt": SPEECHES}):
        corpus = text_corpus(write_texts(tmp_path / str(len(files)), files))
        every = list(corpus.documents(None))
        for number, item in enumerate(every, 1):
            assert list(corpus.documents(item.place)) == every[number:]


def test_a_revision_follows_the_files(tmp_path, hub_cache):
    folder = write_texts(tmp_path / "texts", texts(3))
    first = text_corpus(folder).revision()
    assert text_corpus(folder).revision() == first
    (folder / "part0" / "doc00.txt").write_text("other")
    assert text_corpus(folder).revision() != first
    hub = {"tinystories": make(tmp_path, "json")}
    request = DataRequest("tinystories", "bytes")
    assert len(open_corpus(request, hub).revision()) >= 16


def test_shakespeare_rows_are_one_text_again(tmp_path, hub_cache):
    cut = [SPEECHES[:5003], SPEECHES[5003:5500], SPEECHES[5500:]]
    for number, text in enumerate(cut):
        (tmp_path / f"{number}.json").write_text(json.dumps({"text": text}))
    files = tuple(str(tmp_path / f"{n}.json") for n in range(3))
    hub = {"shakespeare": HubDataset("json", data_files=files)}
    corpus = open_corpus(DataRequest("shakespeare", "bytes"), hub)
    assert "".join(read(corpus)[0].values()) == SPEECHES


@pytest.mark.parametrize("dataset", ["finewebedu", "openwebtext", "tinystories"])
@pytest.mark.parametrize("max_tokens", [0, 100])
def test_hub_corpora_hold_out_by_hash(tmp_path, hub_cache, dataset, max_tokens):
    hub = {dataset: make(tmp_path, "json")}
    corpus = open_corpus(DataRequest(dataset, "bytes", "", max_tokens), hub)
    assert list(read(corpus)[0].values()) == ROWS
    assert corpus.held_out == "hash" and 0 < corpus.val_share < 0.1


def test_missing_column_is_named(tmp_path, hub_cache):
    source = make(tmp_path, "json")
    other = HubDataset("json", data_files=source.data_files, text_field="content")
    with pytest.raises(CorpusError, match="no column 'content' in.*'text'"):
        list(hub_documents(other, streaming=False))


def test_broken_file_is_an_error_with_ways_out(tmp_path, hub_cache):
    (tmp_path / "rows.json").write_text('{"text": "fine"}\n{"text": ')
    source = HubDataset("json", data_files=f"{tmp_path}/rows.json")
    with pytest.raises(CorpusError, match="CONFIG_GPT2_DATASET_STDLIB=y"):
        list(hub_documents(source, streaming=True))


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_no_hub_is_an_error_with_ways_out(tmp_path, environment):
    code = """
from gpt2.data.corpus import CorpusError
from gpt2.data.sources import open_corpus
from gpt2.data.token_files import DataRequest as Request
for dataset in ("finewebedu", "shakespeare", "tinystories"):
    for limit in (0, 1000):
        try:
            next(open_corpus(Request(dataset, "bytes", "", limit)).documents(None))
        except CorpusError as error:
            print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path), "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=600,  # retries would take 23 s for each of the six
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("cannot read") == 6
    assert result.stdout.count("CONFIG_GPT2_DATASET_STDLIB=y") == 6
    assert "HuggingFaceFW/fineweb-edu" in result.stdout
