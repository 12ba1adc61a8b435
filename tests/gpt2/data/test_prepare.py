"""Preparing data: whole documents, exact tokens, and nothing half done."""

import hashlib
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2.data import encode, partial, preparation
from gpt2.data import split as rules
from gpt2.data.corpus import CorpusError
from gpt2.data.encode import Encoded, limit
from gpt2.data.prepare import existing, prepare
from gpt2.data.sources import open_corpus
from gpt2.data.token_files import (
    DataError,
    DataRequest,
    MissingData,
    dataset_folder,
    fingerprint,
    read_meta,
)
from gpt2.data.tokenizer import TokenizerUnavailable, get_encoding
from gpt2.settings.parse import symbol_types
from lib.kconfig.config_py import render_config
from tests.gpt2.helpers import make_config
from tests.gpt2.tinydata import (
    ROOT,
    prepare_texts,
    text_folder,
    text_request,
    texts,
    write_texts,
)
from tests.scratch import Gate, until
from tests.scripts.inprocess import run_script

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
    folder = text_folder(prepare_texts(tmp_path, files, tokenizer), tokenizer)
    train, val = (documents(folder, tokenizer, split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(files.values())
    assert val and not set(train) & set(val)


def test_meta_says_what_the_files_are(tmp_path, tokenizer):
    files = texts(20)
    data_dir = prepare_texts(tmp_path, files, tokenizer)
    meta = read_meta(data_dir, text_request(data_dir, tokenizer))
    folder = text_folder(data_dir, tokenizer)
    assert sorted(os.listdir(folder)) == [
        ".lock",
        "meta.json",
        "sources.json",
        "train.bin",
        "val.bin",
    ]
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
    meta = read_meta(data_dir, text_request(data_dir))
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
    prints = [fingerprint(read_meta(d, text_request(d))) for d in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]
    for split in ("train", "val"):
        here, there = (text_folder(d) / f"{split}.bin" for d in (first, again))
        assert here.read_bytes() == there.read_bytes()


def test_every_tokenizer_holds_out_the_same_documents(tmp_path):
    held_out = []
    for name in ("bytes", "gpt2"):
        try:
            data_dir = prepare_texts(tmp_path / name, texts(60), name)
        except TokenizerUnavailable as error:
            pytest.skip(str(error))
        held_out.append(documents(text_folder(data_dir, name), name, "val"))
    assert held_out[0] == held_out[1]


def test_one_file_trains_on_its_beginning_and_validates_on_its_end(tmp_path):
    text = "".join(f"SPEAKER {n}:\nLine number {n}.\n\n" for n in range(500))
    folder = text_folder(prepare_texts(tmp_path, {"play.txt": text}))
    train, val = (
        "".join(documents(folder, "bytes", split)) for split in ("train", "val")
    )
    assert train + val == text
    assert 0.04 < len(val) / len(text) <= 0.1


def test_limit_takes_whole_documents(tmp_path):
    data_dir = prepare_texts(tmp_path, texts(40), max_tokens=20_000)
    folder = text_folder(data_dir)
    found = documents(folder, "bytes", "train") + documents(folder, "bytes", "val")
    assert set(found) < set(texts(40).values())
    size = sum(os.path.getsize(folder / f"{s}.bin") // 2 for s in ("train", "val"))
    assert 17_000 < size <= 20_000


def test_stdlib_with_a_limit(tmp_path):
    request = DataRequest("stdlib", "bytes", max_tokens=300_000)
    corpus, encoding = open_corpus(request), get_encoding("bytes")
    meta = prepare(request, tmp_path, corpus, encoding)
    assert 200_000 < sum(s["tokens"] for s in meta["splits"].values()) <= 300_000
    assert meta["splits"]["val"]["documents"] >= 1
    assert existing(request, tmp_path, verify=True) == meta


# ---- limits and splits of documents ---------------------------------------------


def test_limit_leaves_out_what_does_not_fit_and_then_stops():
    sizes = [100, 100, 900, 50, *[600] * 100, 10]
    items = [Encoded(b"", 2 * n, np.zeros(n, "<u2")) for n in sizes]
    assert [i.tokens.size for i in limit(items, 500)] == [100, 100, 50]
    assert [i.tokens.size for i in limit(items, 0)] == sizes
    assert [i.tokens.size for i in limit(items[2:], 500, taken=200)] == [50]
    assert list(limit(items, 500, taken=500)) == []
    assert list(limit(items, 200)) == items[:2]  # which are as many as may be


def lines_of(name, count):
    """A text with a blank line after each tenth line."""
    return "".join(
        f"{name}, line {n}.\n{chr(10) * (n % 10 == 9)}" for n in range(count)
    )


def test_few_long_documents_give_their_ends(tmp_path):
    """Four files of 9 MB were refused; here they are small, and so is one more."""
    files = {f"{n}.txt": lines_of(n, 600) for n in range(4)} | {"short.txt": "Short.\n"}
    said: list[str] = []
    data_dir = prepare_texts(tmp_path, files, report=said.append)
    folder, meta = text_folder(data_dir), read_meta(data_dir, text_request(data_dir))
    size = {split: meta["splits"][split]["bytes"] for split in ("train", "val")}
    assert 0.04 < size["val"] / sum(size.values()) < 0.06
    train, val = (documents(folder, "bytes", split) for split in ("train", "val"))
    assert len(train) == 5 and len(val) == 4
    for end in val:
        (beginning,) = (t for t in train if t[:2] == end[:2])
        assert beginning + end in files.values() and beginning.endswith("\n\n")
    assert meta["held_out"] == {"by": "ends", "share": 0.05}
    assert "ends of 4 long documents, cut at blank lines" in said[0]


@pytest.mark.parametrize("count, rule", [(4, "ends"), (1, "tail"), (30, "hash")])
def test_stopped_before_meta_is_written_it_still_says_how_it_divided(
    tmp_path, monkeypatch, count, rule
):
    files = {f"{n}.txt": lines_of(n, 600) for n in range(count)}
    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "finish", None)
        with pytest.raises(TypeError):
            prepare_texts(tmp_path, files)
    said: list[str] = []
    request = text_request(tmp_path / "data")
    words = request, tmp_path / "data", open_corpus(request), get_encoding("bytes")
    meta = prepare(*words, report=said.append)
    assert meta["held_out"]["by"] == rule and "resuming after" in said[0]
    other = prepare_texts(tmp_path / "other", files)
    assert fingerprint(meta) == fingerprint(read_meta(other, text_request(other)))


def test_documents_without_line_ends_stay_whole_and_the_share_is_reported(tmp_path):
    said: list[str] = []
    files = {f"{n}.txt": f"{n}, " * 900 for n in range(3)}
    data_dir = prepare_texts(tmp_path, files, report=said.append)
    folder = text_folder(data_dir)
    train, val = (documents(folder, "bytes", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(files.values()) and len(val) == 1
    assert said == [
        "the validation split is 33.3% of the text instead of 5.0%: there are few "
        "documents, without line ends"
    ]


def test_ends_keep_to_the_limit_on_tokens(tmp_path):
    files = {f"{n}.txt": lines_of(n, 100) for n in range(3)}
    most = sum(len(text) + 1 for text in files.values())  # one more for each cut
    data_dir = prepare_texts(tmp_path, files, max_tokens=most)
    meta = read_meta(data_dir, text_request(data_dir, limit=most))
    assert most - 200 < sum(s["tokens"] for s in meta["splits"].values()) <= most


def test_two_different_documents_are_needed(tmp_path):
    for count, most, advice in ((2, 0, "text$"), (5, 9, "text, or raise GPT2_.*")):
        files = {f"{n}.txt": "the same\n" for n in range(count)}
        why = f"two different ones are needed, .* Give more {advice}"
        with pytest.raises(CorpusError, match=why):
            prepare_texts(tmp_path / str(count), files, max_tokens=most)
        (folder,) = (tmp_path / str(count) / "data").glob("text-*")
        assert not (folder / ".partial").exists()


def test_of_many_documents_each_hash_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "MANY_DOCUMENTS", 60)
    monkeypatch.setattr(partial, "MANY_BYTES", 100)
    files = texts(200, lines=1)
    data_dir = prepare_texts(tmp_path, files)
    val = {t for t in files.values() if rules.is_held_out(digest(t), 0.05)}
    found = documents(text_folder(data_dir), "bytes", "val")
    assert set(found) == val and 2 < len(found) < 25
    train = documents(text_folder(data_dir), "bytes", "train")
    assert sorted(train + found) == sorted(files.values())


def digest(text):
    return hashlib.sha256(text.encode()).digest()


# ---- what is there already --------------------------------------------------------


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(MissingData, match="make data"):
        read_meta(tmp_path, DataRequest("text", "bytes"))
    with pytest.raises(FileNotFoundError, match="make data"):
        read_meta(tmp_path / "nowhere", DataRequest("stdlib", "bytes"))


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
    damage(text_folder(data_dir))
    with pytest.raises(DataError, match=f"{reason}.*make data FORCE=1"):
        read_meta(data_dir, text_request(data_dir))


@pytest.mark.parametrize("name", ["../text", "text/../..", "", "wikipedia"])
def test_names_cannot_lead_elsewhere(tmp_path, name):
    with pytest.raises(DataError, match="GPT2_DATASET="):
        read_meta(tmp_path, DataRequest(name, "bytes"))


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
    text = render_config(make_config(**wanted), symbol_types())
    (tmp_path / "config.py").write_text(text)
    return tmp_path


def command(project, *arguments, preexec_fn=None, **environ):
    line = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *arguments]
    return subprocess.Popen(
        line,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environ},
        preexec_fn=preexec_fn,
    )


def run(project, *arguments):
    """Exit code, output and errors of the command."""
    done = run_script("prepare_data.py", *arguments, cwd=project)
    return done.returncode, done.stdout, done.stderr


def test_command_prepares_once_and_says_so(project):
    code, out, err = run(project)
    assert code == 0, err
    assert "is prepared" in out and "fingerprint" in out
    before = (text_folder(project / "data") / "meta.json").stat().st_mtime_ns
    code, out, err = run(project, "--verify")
    assert (code, "is already there and verified" in out) == (0, True), err
    assert (text_folder(project / "data") / "meta.json").stat().st_mtime_ns == before


def test_command_takes_overrides(project):
    code, out, err = run(
        project, "--overrides", f"DATA_DIR='{project}/other' DATASET_MAX_TOKENS=15000"
    )
    assert code == 0, err
    assert read_meta(project / "other", text_request(project / "other"))["request"][
        "max_tokens"
    ]
    code, _, err = run(project, "--overrides", "DATASET_MAX_TOKENS=few")
    assert code == 2 and "GPT2_DATASET_MAX_TOKENS" in err


def test_command_refuses_data_prepared_to_another_request(project):
    assert run(project)[0] == 0
    code, _, err = run(project, "--overrides", "DATASET_MAX_TOKENS=15000")
    assert code == 1 and "GPT2_DATASET_MAX_TOKENS was 0 and is now 15000" in err
    code, out, err = run(project, "--overrides", "DATASET_MAX_TOKENS=15000", "--force")
    assert code == 0 and "is prepared" in out, err
    meta = read_meta(project / "data", text_request(project / "data"))
    assert meta["request"]["max_tokens"] == 15000


def test_a_changed_token_is_found_by_its_time_or_on_demand(project):
    assert run(project)[0] == 0
    tokens = text_folder(project / "data") / "train.bin"
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
    assert code == 1 and "matches no files" in err and "Traceback" not in err
    assert not text_folder(project / "data").exists()
    overrides = f"DATA_DIR={project}/config.py"
    code, _, err = run(project, "--overrides", overrides)
    assert code == 1 and f"{overrides}: data cannot be stored there" in err


@pytest.mark.parametrize("data_dir", ["data", "texts/../data", "~/data", "/dev/null/x"])
def test_data_that_cannot_be_written_is_a_plain_error(project, monkeypatch, data_dir):
    """A folder for the lock fails as a disk that is mounted read-only does."""
    monkeypatch.setenv("HOME", str(project))
    if "null" not in data_dir:
        place = (project / data_dir.replace("~", ".")).resolve()
        (text_folder(place) / ".lock").mkdir(parents=True)
    code, _, err = run(project, "--force", "--overrides", f"DATA_DIR={data_dir}")
    assert code == 1 and f"DATA_DIR={data_dir}: data cannot be stored there: " in err
    assert "[Errno" not in err and "Choose another DATA_DIR" in err


def big_texts(project):
    for n in range(24):
        line = f"A line of big document {n}, repeated to take its time.\n"
        (project / "texts" / f"big{n}.txt").write_text(f"{n}\n" + line * 2_000)


def halt_after_a_save():
    """Write one document after the first save, and wait for a kill at the next."""
    save, add, left = partial.Partial.save, partial.Partial.add, [math.inf]

    def saving(self):
        save(self)
        left[0] = min(left[0], 1)

    def adding(self, item):
        while not left[0]:
            time.sleep(60)
        left[0] -= 1
        add(self, item)

    partial.Partial.save = saving  # type: ignore[method-assign]
    partial.Partial.add = adding  # type: ignore[method-assign]


def save_often(project, many_bytes, halts):
    """Code of a process: the command, which writes down where it is each 100 kB, and
    divides by hash from so many bytes on."""
    if halts:
        halt_after_a_save()
    encode.BATCH_CHARACTERS, preparation.SAVE_BYTES = 50_000, 100_000
    partial.MANY_DOCUMENTS, partial.MANY_BYTES = 10, many_bytes
    with open(project / "log", "w") as log:
        os.dup2(log.fileno(), 2)
    sys.stderr = sys.__stderr__
    done = run_script("prepare_data.py", "--force", cwd=project)
    print(done.stderr, file=sys.stderr, flush=True)
    os._exit(done.returncode)


class SavingOften:
    """Such a process, forked from this one, which has all libraries already."""

    def __init__(self, project, many_bytes=1 << 30, halts=False):
        self.log = project / "log"
        fork = multiprocessing.get_context("fork")
        words = (project, many_bytes, halts)
        self.process = fork.Process(target=save_often, args=words)
        self.process.start()

    def kill_when(self, holds):
        while not holds():
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.001)
        self.process.kill()
        self.process.join()

    def finish(self):
        """Its errors, once it has come to a good end."""
        self.process.join()
        assert self.process.exitcode == 0, self.log.read_text()
        return self.log.read_text()


def contents(folder):
    meta = json.loads((folder / "meta.json").read_text())
    tokens = [(folder / f"{split}.bin").read_bytes() for split in ("train", "val")]
    return {**meta, "created": None}, tokens


@pytest.mark.parametrize("many_bytes", [1 << 30, 1 << 20])
def test_killed_again_and_again_it_goes_on_to_the_same_bits(project, many_bytes):
    """Documents that wait for their split, and from 1 MB on such as have one. One is
    left out, which is to be counted once."""
    big_texts(project)
    (project / "texts" / "bad.txt").write_bytes(b"\xff")
    SavingOften(project, many_bytes).finish()
    folder = text_folder(project / "data")
    expected, cursor = contents(folder), folder / ".partial" / "cursor.json"
    shutil.rmtree(folder)
    texts_done = []
    for _ in range(3):
        before = stamp(cursor)
        process = SavingOften(project, many_bytes, halts=True)
        process.kill_when(lambda: stamp(cursor) != before)  # noqa: B023
        texts_done.append(json.loads(cursor.read_text())["place"])
        with pytest.raises(MissingData, match="not fully prepared: resume .*make data"):
            read_meta(project / "data", text_request(project / "data"))
    assert texts_done == sorted(set(texts_done)), "it began again"
    assert "resuming after" in SavingOften(project, many_bytes).finish()
    assert contents(folder) == expected and not cursor.parent.exists()
    assert expected[0]["skipped"]["documents"] == 1


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def begun(project):
    """A preparation that was killed behind its first save; its folder."""
    big_texts(project)
    place = text_folder(project / "data") / ".partial"
    halting = SavingOften(project, halts=True)
    halting.kill_when(lambda: (place / "cursor.json").exists())
    return place


def test_a_corpus_that_has_changed_is_not_gone_on_with(project):
    begun(project)
    (project / "texts" / "more.txt").write_text("One more document.\n")
    assert "resuming" not in SavingOften(project).finish()
    meta = read_meta(project / "data", text_request(project / "data"))
    assert sum(s["documents"] for s in meta["splits"].values()) == len(texts()) + 25


@pytest.mark.parametrize("damage", ["shorter", "cursor"])
def test_a_damaged_preparation_is_begun_again(project, damage):
    place = begun(project)
    if damage == "shorter":
        os.truncate(place / "collected.bin", 100)
    else:
        (place / "cursor.json").write_text("{")
    assert "resuming" not in SavingOften(project).finish()


@pytest.mark.parametrize("link", [False, True])
def test_what_no_preparation_writes_is_not_touched(project, link):
    place, theirs = begun(project), project / "theirs.bin"
    name = "collected.bin" if link else "note.txt"
    theirs.write_text("kept" * 1_000_000)
    if link:
        (place / name).unlink()
        (place / name).symlink_to(theirs)
    else:
        (place / "cursor.json").unlink()
        (place / name).write_text("kept")
    code, _, err = run(project)
    assert code == 1 and f"contains {name}, which kablate did not write" in err
    assert (place / name).read_text() in ("kept", "kept" * 1_000_000)


def test_killed_while_files_are_put_in_place_it_needs_no_tokens(project):
    assert run(project)[0] == 0
    folder = text_folder(project / "data")
    expected, place = contents(folder), folder / ".partial"
    place.mkdir()
    for name in ("val.bin", "meta.json"):
        (folder / name).rename(place / name)
    with pytest.raises(MissingData, match="not fully prepared"):
        read_meta(project / "data", text_request(project / "data"))
    assert run(project)[0] == 0
    assert contents(folder) == expected and not place.exists()


def test_interrupted_says_how_to_go_on(project):
    gate = Gate(project / "gate")
    words = ("--overrides", f"DATA_DIR={project}/other")
    process = command(project, *words, **gate.holds("hold-data@0"))
    until(lambda: gate.is_reached() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert f"interrupted; `make data DATA_DIR={project}/other` resumes" in err


def test_full_disk_is_said_and_leaves_nothing(project):
    def no_more_than_8_kib():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    process = command(project, preexec_fn=no_more_than_8_kib)
    _, err = process.communicate()
    assert process.returncode == 6, err
    assert "no space left" in err and "DATA_DIR" in err and "Traceback" not in err
    assert "the unfinished files were removed" in err
    left = {path.name for path in text_folder(project / "data").iterdir()}
    assert left <= {".lock"}


# ---- folders and links ------------------------------------------------------------


def test_two_corpora_have_two_folders(project):
    write_texts(project / "others", texts(15))
    assert run(project)[0] == 0
    other = f"DATASET_TEXT_PATH={project}/others"
    assert run(project, "--overrides", other)[0] == 0
    names = sorted(path.name for path in (project / "data").iterdir())
    assert [re.sub("[0-9a-f]{6}", "#", name) for name in names] == [
        "text-others-#-bytes",
        "text-texts-#-bytes",
    ]
    assert "is already there" in run(project)[1]


def test_a_folder_that_an_earlier_version_named_is_found(project):
    assert run(project)[0] == 0
    folder = text_folder(project / "data")
    folder.rename(project / "data" / "text-bytes")
    assert text_folder(project / "data").name == "text-bytes"
    assert "text-bytes is already there" in run(project)[1]
    other = DataRequest("text", "bytes", "elsewhere")
    assert dataset_folder(project / "data", other).name.startswith("text-elsewhere-")


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_link_to_another_disk_is_written_to_and_stays(project, force):
    folder, disk = text_folder(project / "data"), project / "disk"
    disk.mkdir()
    folder.parent.mkdir()
    folder.symlink_to(disk)
    for _ in range(2):
        code, out, err = run(project, *force)
        assert code == 0, err
    assert folder.is_symlink() and read_meta(
        project / "data", text_request(folder.parent)
    )
    assert {"meta.json", "train.bin", "val.bin"} < {p.name for p in disk.iterdir()}
    assert sorted(p.name for p in project.iterdir()) == [
        "config.py", "data", "disk", "texts"
    ]  # fmt: skip


def test_links_that_lead_to_something_else_are_refused_with_ways_out(project):
    folder, disk = text_folder(project / "data"), project / "disk"
    folder.parent.mkdir()
    folder.symlink_to(disk)
    code, _, err = run(project)
    assert (
        code == 1 and "which does not exist: mount that disk, or remove the link" in err
    )
    disk.mkdir()
    (disk / "train.bin").write_bytes(b"of another project")
    code, _, err = run(project, "--force")
    assert code == 1 and "has a train.bin: remove the link, or move that file" in err
    assert (disk / "train.bin").read_bytes() == b"of another project"


def test_a_linked_partial_folder_is_no_obstacle(project):
    place, theirs = text_folder(project / "data") / ".partial", project / "theirs"
    place.parent.mkdir(parents=True)
    write_texts(theirs, {"cursor.json": "theirs"})
    place.symlink_to(theirs)
    code, _, err = run(project)
    assert code == 0 and "a link to" in err and "the target is unchanged" in err
    assert (theirs / "cursor.json").read_text() == "theirs"


def test_files_that_changed_since_are_named_with_the_command(project):
    assert run(project)[0] == 0
    write_texts(project / "texts", {"new.txt": "new"})
    (project / "texts" / "part0" / "doc00.txt").write_text("changed")
    (project / "texts" / "part1" / "doc01.txt").unlink()
    words = "--overrides", f"DATA_DIR='{project}/data'"
    code, out, err = run(project, *words)
    assert code == 0 and "is already there" in out
    assert (
        "since then: 1 added (new.txt), 1 removed (part1/doc01.txt), 1 changed "
        f"(part0/doc00.txt). `make data DATA_DIR={project}/data FORCE=1` includes them"
    ) in err
    assert run(project, *words, "--force")[0] == 0
    assert run(project, *words)[2] == ""
    shutil.rmtree(project / "texts")
    code, out, err = run(project)
    assert code == 0 and "its text does not exist any more" in err


def test_two_at_once_make_one_data_set(project):
    both = [command(project), command(project)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    request = text_request(project / "data")
    assert existing(request, project / "data", verify=True)
