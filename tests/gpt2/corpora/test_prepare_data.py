"""Preparing data: whole documents, exact tokens, and nothing half done."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2.corpora.corpus import CorpusError, open_corpus
from gpt2.corpora.prepare import Encoded, divide, existing, limit, prepare
from gpt2.corpora.tokenfiles import (
    DataError,
    MissingData,
    Request,
    fingerprint,
    read_meta,
)
from gpt2.corpora.tokenizer import TokenizerUnavailable, get_encoding
from gpt2.reading import symbol_types
from lib.generated import render_config
from lib.kconfig import load_strict
from tests.gpt2.tinydata import ROOT, prepare_texts, texts, write_texts

EOT = "<|endoftext|>"
HOSTILE = {
    "eot.txt": f"before {EOT} after\n",
    "only.txt": EOT,
    "many.txt": EOT * 20 + "\n",
    "split.txt": "<|endof\ntext|>",
}


def documents(folder, tokenizer, split):
    """The texts in a token file, cut at its end-of-text tokens."""
    encoding = get_encoding(tokenizer)
    tokens = np.fromfile(folder / f"{split}.bin", dtype="<u2")
    ends = np.flatnonzero(tokens == encoding.eot_token)
    assert tokens.size and ends[-1] == tokens.size - 1
    starts = [0, *(ends[:-1] + 1)]
    return [
        encoding.decode(tokens[a:b].tolist()) for a, b in zip(starts, ends, strict=True)
    ]


@pytest.fixture(params=["bytes", "gpt2"])
def tokenizer(request):
    try:
        get_encoding(request.param)
    except TokenizerUnavailable as error:
        pytest.skip(str(error))
    return request.param


# ---- what is written --------------------------------------------------------------


def test_every_document_is_whole_in_exactly_one_split(tmp_path, tokenizer):
    files = {**texts(40), **HOSTILE, "accents.txt": "naïve 中文 🎉\r\n"}
    folder = prepare_texts(tmp_path, files, tokenizer) / f"text-{tokenizer}"
    train, val = (documents(folder, tokenizer, split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(files.values())
    assert val and not set(train) & set(val)


def test_meta_says_what_the_files_are(tmp_path, tokenizer):
    files = texts(20)
    data_dir = prepare_texts(tmp_path, files, tokenizer)
    meta = read_meta(data_dir, "text", tokenizer)
    folder = data_dir / f"text-{tokenizer}"
    assert sorted(os.listdir(folder)) == ["meta.json", "train.bin", "val.bin"]
    assert sum(s["bytes"] for s in meta["splits"].values()) == sum(
        len(text.encode()) for text in files.values()
    )
    for split, record in meta["splits"].items():
        found = documents(folder, tokenizer, split)
        assert record["documents"] == len(found)
        assert record["bytes"] == sum(len(text.encode()) for text in found)
        assert record["tokens"] * 2 == (folder / f"{split}.bin").stat().st_size


def test_blank_and_undecodable_files_are_left_out_and_counted(tmp_path):
    said: list[str] = []
    files = {**texts(), "blank.txt": " \n\n", "empty.txt": "", "bad.txt": b"\xff\xfe"}
    data_dir = prepare_texts(tmp_path, files, report=said.append)
    meta = read_meta(data_dir, "text", "bytes")
    assert sum(s["documents"] for s in meta["splits"].values()) == len(texts())
    assert meta["skipped"] == {
        "documents": 1,
        "first": ["bad.txt: not UTF-8 at byte 0"],
    }
    assert said == ["left out bad.txt: not UTF-8 at byte 0"]


def test_same_text_gives_the_same_tokens_and_other_text_does_not(tmp_path):
    first = prepare_texts(tmp_path / "a")
    again = prepare_texts(tmp_path / "b", dict(reversed(texts().items())))
    other = prepare_texts(tmp_path / "c", {**texts(), "more.txt": "one more"})
    prints = [fingerprint(read_meta(d, "text", "bytes")) for d in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]
    for split in ("train", "val"):
        here, there = (d / "text-bytes" / f"{split}.bin" for d in (first, again))
        assert here.read_bytes() == there.read_bytes()


def test_every_tokenizer_holds_out_the_same_documents(tmp_path):
    held_out = []
    for name in ("bytes", "gpt2"):
        try:
            data_dir = prepare_texts(tmp_path / name, texts(60), name)
        except TokenizerUnavailable as error:
            pytest.skip(str(error))
        held_out.append(documents(data_dir / f"text-{name}", name, "val"))
    assert held_out[0] == held_out[1]


def test_one_file_trains_on_its_beginning_and_validates_on_its_end(tmp_path):
    text = "".join(f"SPEAKER {n}:\nLine number {n}.\n\n" for n in range(500))
    folder = prepare_texts(tmp_path, {"play.txt": text}) / "text-bytes"
    train, val = (
        "".join(documents(folder, "bytes", split)) for split in ("train", "val")
    )
    assert train + val == text
    assert 0.04 < len(val) / len(text) <= 0.1


def test_limit_takes_whole_documents(tmp_path):
    data_dir = prepare_texts(tmp_path, texts(40), max_tokens=20_000)
    folder = data_dir / "text-bytes"
    found = documents(folder, "bytes", "train") + documents(folder, "bytes", "val")
    assert set(found) < set(texts(40).values())
    size = sum(os.path.getsize(folder / f"{s}.bin") // 2 for s in ("train", "val"))
    assert 17_000 < size <= 20_000


def test_stdlib_with_a_limit(tmp_path):
    request = Request("stdlib", "bytes", max_tokens=300_000)
    corpus, encoding = open_corpus(request), get_encoding("bytes")
    meta = prepare(request, tmp_path, corpus, encoding)
    assert 200_000 < sum(s["tokens"] for s in meta["splits"].values()) <= 300_000
    assert meta["splits"]["val"]["documents"] >= 1
    assert existing(request, tmp_path, verify=True) == meta


# ---- the split itself -------------------------------------------------------------


def encoded(number, size, copies=1):
    digest = number.to_bytes(32, "big")
    return [Encoded(digest, size, np.zeros(size // 2, "<u2"))] * copies


def share_of(parts, split="val"):
    parts = list(parts)
    return sum(i.bytes for s, i in parts if s == split) / sum(i.bytes for _, i in parts)


@pytest.mark.parametrize("held_out", ["hash", "tail"])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_share_is_met_as_whole_documents_allow(held_out, share):
    rng = np.random.default_rng(0)
    items = [encoded(n, int(rng.integers(50, 200)))[0] for n in range(500)]
    assert share - 0.005 < share_of(divide(iter(items), share, held_out)) <= share


@pytest.mark.parametrize("held_out", ["hash", "tail"])
def test_two_documents_are_enough_and_one_is_not(held_out):
    two = encoded(1, 5000) + encoded(2, 4000)
    assert sorted(s for s, _ in divide(iter(two), 0.05, held_out)) == ["train", "val"]
    for count in (0, 1, 5):
        too_few = encoded(1, 10, copies=count)
        with pytest.raises(CorpusError, match="two different ones are needed"):
            list(divide(iter(too_few), 0.05, held_out))


def test_equal_documents_stay_together():
    items = [i for n in range(50) for i in encoded(n, 100, copies=3)]
    where: dict[bytes, set[str]] = {}
    for split, item in divide(iter(items), 0.2, "hash"):
        where.setdefault(item.digest, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert len({split for splits in where.values() for split in splits}) == 2


def test_large_corpus_is_divided_without_being_held(tmp_path):
    import hashlib

    def endless():
        for n in range(4000):
            digest = hashlib.sha256(str(n).encode()).digest()
            taken.append(n)
            yield Encoded(digest, 1 << 20, np.zeros(4, "<u2"))

    taken: list[int] = []
    parts = divide(endless(), 0.1, "hash")
    next(parts)
    assert len(taken) < 100
    assert 0.08 < share_of(parts) < 0.12


def test_limit_leaves_out_what_does_not_fit_and_then_stops():
    sizes = [100, 100, 900, 50, *[600] * 100, 10]
    items = [encoded(n, 2 * size)[0] for n, size in enumerate(sizes)]
    assert [i.tokens.size for i in limit(items, 500)] == [100, 100, 50]
    assert [i.tokens.size for i in limit(items, 0)] == sizes


# ---- what is there already --------------------------------------------------------


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(MissingData, match="scripts/prepare_data.py --config"):
        read_meta(tmp_path, "text", "bytes")
    with pytest.raises(FileNotFoundError, match="make data"):
        read_meta(tmp_path / "nowhere", "stdlib", "bytes")


def damage_size(folder):
    with open(folder / "val.bin", "ab") as file:
        file.write(b"\0")


def damage_meta(folder):
    (folder / "meta.json").write_text('{"schema": 1}')


def damage_vocabulary(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "vocab_size": 50257}))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (damage_size, "val.bin has .* bytes, but meta.json says"),
        (damage_meta, "bad meta.json"),
        (damage_vocabulary, "vocab_size=50257, not 257"),
        (lambda folder: (folder / "meta.json").unlink(), "meta.json is missing"),
        (lambda folder: (folder / "train.bin").unlink(), "train.bin is missing"),
        (lambda folder: (folder / "meta.json").write_text("{"), "not JSON"),
    ],
)
def test_damaged_data_is_refused_with_the_way_out(tmp_path, damage, reason):
    data_dir = prepare_texts(tmp_path)
    damage(data_dir / "text-bytes")
    with pytest.raises(DataError, match=f"{reason}.*--force"):
        read_meta(data_dir, "text", "bytes")


@pytest.mark.parametrize("name", ["../text", "text/../..", "", "wikipedia"])
def test_names_cannot_lead_elsewhere(tmp_path, name):
    with pytest.raises(DataError, match="GPT2_DATASET="):
        read_meta(tmp_path, name, "bytes")


# ---- the command ------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A folder with texts, a config.py that asks for them, and a data folder."""
    write_texts(tmp_path / "texts", texts())
    wanted = {
        "GPT2_DATASET_TEXT": "y",
        "GPT2_DATASET_TEXT_PATH": str(tmp_path / "texts"),
        "GPT2_TOKENIZER_BYTES": "y",
        "DATA_DIR": str(tmp_path / "data"),
    }
    types = symbol_types()
    config = load_strict(
        ROOT / "Kconfig", [], [f"{k}={v}" for k, v in wanted.items()], types=types
    )
    (tmp_path / "config.py").write_text(render_config(config, types))
    return tmp_path


def command(project, *arguments, **options):
    line = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *arguments]
    return subprocess.Popen(
        line,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        **options,
    )


def run(project, *arguments, **options):
    process = command(project, *arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_command_prepares_once_and_says_so(project):
    code, out, err = run(project)
    assert code == 0, err
    assert "is prepared" in out and "fingerprint" in out
    before = (project / "data" / "text-bytes" / "meta.json").stat().st_mtime_ns
    code, out, err = run(project, "--verify")
    assert (code, "is already there and verified" in out) == (0, True), err
    assert (project / "data" / "text-bytes" / "meta.json").stat().st_mtime_ns == before


def test_command_takes_overrides(project):
    code, out, err = run(
        project, "--overrides", f"DATA_DIR='{project}/other' DATASET_MAX_TOKENS=15000"
    )
    assert code == 0, err
    assert read_meta(project / "other", "text", "bytes")["request"]["max_tokens"]
    code, _, err = run(project, "--overrides", "DATASET_MAX_TOKENS=few")
    assert code == 2 and "GPT2_DATASET_MAX_TOKENS" in err


def test_command_refuses_data_prepared_to_another_request(project):
    assert run(project)[0] == 0
    code, _, err = run(project, "--overrides", "DATASET_MAX_TOKENS=15000")
    assert code == 1 and "GPT2_DATASET_MAX_TOKENS was 0 and is now 15000" in err
    code, out, err = run(project, "--overrides", "DATASET_MAX_TOKENS=15000", "--force")
    assert code == 0 and "is prepared" in out, err
    meta = read_meta(project / "data", "text", "bytes")
    assert meta["request"]["max_tokens"] == 15000


def test_a_changed_token_is_found_by_its_time_or_on_demand(project):
    assert run(project)[0] == 0
    tokens = project / "data" / "text-bytes" / "train.bin"
    before = tokens.stat().st_mtime_ns
    with open(tokens, "r+b") as file:
        file.write(b"\1")
    for as_it_was, words in ((False, ()), (True, ("--verify",))):
        if as_it_was:
            os.utime(tokens, ns=(before, before))
            assert run(project)[0] == 0
        code, _, err = run(project, *words)
        assert code == 1 and "sha256 of train.bin is wrong" in err
        assert "Traceback" not in err


def test_missing_config_and_missing_text_are_plain_errors(project):
    code, _, err = run(project, "--config", "none.py")
    assert code == 2 and "none.py" in err and "Traceback" not in err
    overrides = f"DATASET_TEXT_PATH={project}/nothing"
    code, _, err = run(project, "--overrides", overrides)
    assert code == 1 and "names no file" in err and "Traceback" not in err
    assert not (project / "data" / "text-bytes").exists()
    overrides = f"DATA_DIR={project}/config.py"
    code, _, err = run(project, "--overrides", overrides)
    assert code == 1 and f"{overrides}: data cannot be kept there" in err


def big_texts(project):
    for n in range(24):
        line = f"A line of big document {n}, repeated to take its time.\n"
        (project / "texts" / f"big{n}.txt").write_text(f"{n}\n" + line * 20_000)


def test_killed_in_the_middle_leaves_nothing_that_looks_whole(project):
    big_texts(project)
    partial = project / "data" / ".text-bytes.partial"
    process = command(project)
    while not (partial / "train.bin").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(MissingData):
        read_meta(project / "data", "text", "bytes")
    assert not (partial / "meta.json").exists()
    code, _, err = run(project)
    assert code == 0, err
    meta = read_meta(project / "data", "text", "bytes")
    assert sum(s["documents"] for s in meta["splits"].values()) == len(texts()) + 24
    assert not partial.exists()


def test_interrupted_leaves_nothing(project):
    big_texts(project)
    process = command(project)
    while not (project / "data" / ".text-bytes.partial" / "train.bin").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    left = [name for name in os.listdir(project / "data") if "text-bytes" in name]
    assert left in ([], [".text-bytes.lock"])


def test_full_disk_is_said_and_leaves_nothing(project):
    def no_more_than_8_kib():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    code, _, err = run(project, preexec_fn=no_more_than_8_kib)
    assert code == 6, err
    assert "no space left" in err and "DATA_DIR" in err and "Traceback" not in err
    left = [name for name in os.listdir(project / "data") if "text-bytes" in name]
    assert left in ([], [".text-bytes.lock"])


def test_two_at_once_make_one_data_set(project):
    both = [command(project), command(project)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert existing(
        Request("text", "bytes", str(project / "texts")), project / "data", verify=True
    )
