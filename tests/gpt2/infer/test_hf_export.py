"""gpt2/infer/hf_export.py: folders that transformers loads, from models at hand."""

from __future__ import annotations

import json
import resource
from functools import partial
from pathlib import Path

import pytest
import torch

from gpt2.data.tokenizer import get_encoding
from gpt2.infer import hf_export
from gpt2.infer.decoder import Decoder
from gpt2.infer.hf_export import NotTheSame, export_hf, is_native
from gpt2.infer.hf_tokenizer import tokenizer_files
from gpt2.infer.model_card import model_card
from gpt2.infer.sampling import Sampling, generate
from gpt2.infer.trained import TrainedModel
from gpt2.model.gpt import GPT
from gpt2.plan.jobs import Job
from gpt2.settings.schema import SYMBOL_OF, Settings
from lib.atomic_files import DiskFull, NotWritable
from tests.gpt2.helpers import (
    deviation,
    generic,
    tiny,
    tiny_model,
    tiny_step,
    tokens_of,
)

transformers = pytest.importorskip("transformers")


def trained(
    folder: Path, settings: Settings, heads: tuple[int, ...] | None = None
) -> TrainedModel:
    origins = dict.fromkeys(SYMBOL_OF, "default")
    run_dir = folder / "results/cell/seed1"
    run_dir.mkdir(parents=True)
    words = {"name": "cell", "title": "A title", "seed": 1, "run_dir": "cell/seed1"}
    model = generic(settings, dtype=torch.float32)
    if heads is not None:
        model = GPT(settings, heads).eval()
    return TrainedModel(
        run_dir=run_dir,
        job=Job(**words, settings=settings, origins=origins),
        model=model,
        heads=heads,
        encoding=get_encoding(settings.data.tokenizer),
        decoder=Decoder(model),
    )


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Where transformers copies custom code to, for these tests alone."""
    cache = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.syspath_prepend(cache)
        yield


def load(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True
    ).eval()


@pytest.mark.parametrize(("number", "heads"), [(16, None), (28, None), (0, (3, 1, 4))])
def test_custom_code_decodes_and_generates(tmp_path, apart, number, heads) -> None:
    settings = tiny_model() if heads else tiny_step(number)
    mine, folder = trained(tmp_path, settings, heads), tmp_path / "out"
    folder.mkdir()
    hf_export.write_folder(mine, folder, native=False)
    theirs, tokens = load(folder), tokens_of(settings, 2, 5)
    with torch.no_grad():
        # transformers maps the file, and products over other alignments round so.
        assert deviation(theirs(tokens).logits, mine.model.logits(tokens)) < 1e-6
    how = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    expected = generate(mine.model, tokens, 8, Sampling(temperature=0.0))
    assert torch.equal(theirs.generate(tokens, **how), expected)
    assert torch.equal(theirs.generate(tokens, use_cache=False, **how), expected)
    mask = torch.ones_like(tokens)  # as a tokenizer gives it
    assert torch.equal(theirs.generate(tokens, attention_mask=mask, **how), expected)
    beams = [
        theirs.generate(tokens, num_beams=3, use_cache=cached, **how)
        for cached in (True, False)
    ]
    assert torch.equal(*beams)


def test_custom_code_scores_trains_and_refuses(tmp_path, apart) -> None:
    settings = tiny_step(5)
    mine, folder = trained(tmp_path, settings), tmp_path / "out"
    folder.mkdir()
    hf_export.write_folder(mine, folder, native=False)
    theirs, tokens = load(folder), tokens_of(settings, 2, 7)
    loss = theirs(tokens, labels=tokens).loss
    assert loss.item() == pytest.approx(
        mine.model(tokens[:, :-1], tokens[:, 1:]).item()
    )
    theirs.train()(tokens, labels=tokens, use_cache=True).loss.backward()
    assert all(p.grad is not None for p in theirs.parameters())
    theirs.eval()
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="padded batches are not supported"):
        theirs(tokens, attention_mask=mask)
    with pytest.raises(ValueError, match="17 tokens do not fit the context of 16"):
        theirs(tokens_of(settings, 1, 17))
    with pytest.raises(ValueError, match="does not support output_attentions"):
        theirs(tokens, output_attentions=True)
    # Else transformers' Trainer would give a number of tokens, which is refused.
    assert theirs.accepts_loss_kwargs is False
    # What is saved again loads again.
    theirs.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        again = load(tmp_path / "again")(tokens).logits
        assert deviation(again, theirs(tokens).logits) < 1e-6


def test_no_path_of_this_machine_is_published(tmp_path) -> None:
    secret = "/home/somebody/secret"
    places = {"text_path": secret, "data_dir": secret, "output_dir": secret}
    mine, folder = trained(tmp_path, tiny_step(5).replace(**places)), tmp_path / "out"
    folder.mkdir()
    hf_export.write_folder(mine, folder, native=False)
    for path in folder.iterdir():
        assert secret.encode() not in path.read_bytes(), path
    # All files have the permissions of a new file, also the weights.
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}, modes


def test_native_is_what_gpt2_is() -> None:
    plain = {"n_embd": 12, "n_head": 4, "head_dim": 3}
    assert is_native(tiny(**plain), None)
    assert is_native(tiny(**plain, bias=False), None)
    assert not is_native(tiny(**plain), (4, 4, 3))
    assert not is_native(tiny(**{**plain, "n_embd": 10}), None)
    assert not is_native(tiny(**plain, ra=True, ra_alpha=0.5), None)


def test_a_native_model_without_biases_is_one_with_zeros(tmp_path) -> None:
    settings = tiny(n_embd=12, n_head=4, head_dim=3, mlp_width=20, bias=False)
    mine, folder = trained(tmp_path, settings), tmp_path / "out"
    folder.mkdir()
    hf_export.write_folder(mine, folder, native=True)
    theirs, tokens = load(folder), tokens_of(settings, 2, 9)
    assert type(theirs) is transformers.GPT2LMHeadModel
    with torch.no_grad():
        found = theirs(tokens).logits
        assert (found - mine.model.logits(tokens)).abs().max() < 1e-5


def test_what_computes_something_else_is_refused_and_not_kept(
    tmp_path, monkeypatch
) -> None:
    mine = trained(tmp_path, tiny_step(5))
    folder = tmp_path / "out"

    def write(model, where, native):
        hf_export_write(model, where, native)
        config = json.loads((where / "config.json").read_text())
        config["settings"]["mechanisms"]["ra_alpha"] *= 1.01
        (where / "config.json").write_text(json.dumps(config))

    hf_export_write = hf_export.write_folder
    monkeypatch.setattr(hf_export, "write_folder", write)
    with pytest.raises(NotTheSame, match="logits of KablateForCausalLM differ by"):
        export_hf(mine, folder)
    assert not folder.exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "results"
    ]


def test_a_folder_of_something_else_stays_as_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hf_export, "check_folder", lambda *_: 0.0)
    mine, folder = trained(tmp_path, tiny_step(5)), tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="holds thesis.tex, .* OUT="):
        export_hf(mine, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    (folder / "thesis.tex").unlink()
    first, again = export_hf(mine, folder), export_hf(mine, folder)
    assert first == again and (folder / "config.json").is_file()
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(FileExistsError):
        export_hf(mine, link)
    assert (folder / "config.json").is_file()


def test_a_full_disk_is_named_while_writing_and_while_loading(
    tmp_path, monkeypatch
) -> None:
    mine = trained(tmp_path, tiny_step(5))
    write, limits = hf_export.write_folder, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*given, after: bool) -> None:
        if after:
            write(*given)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, limits[1]))
        if not after:
            write(*given)

    for after in (False, True):
        monkeypatch.setattr(hf_export, "write_folder", partial(fill, after=after))
        try:
            with pytest.raises(DiskFull, match=r"while writing .*out; it is not kept"):
                export_hf(mine, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_the_card_takes_what_it_can_from_a_damaged_summary(tmp_path) -> None:
    mine = trained(tmp_path, tiny_step(0))
    own = {"step": None, "name": "cell", "at_equal_steps": {"grade": "TIE"}}
    for listed, words in (([1, None, own], "**TIE**"), ({}, "None: no report")):
        text = json.dumps({"verdicts": {"comparisons": listed}})
        (tmp_path / "results" / "summary.json").write_text(text)
        assert words in model_card(mine, native=True)


def test_an_impossible_place_is_named(tmp_path) -> None:
    mine = trained(tmp_path, tiny_step(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"OUT=.*file is a file or a link"):
        export_hf(mine, tmp_path / "file")
    with pytest.raises(NotWritable, match=r"^cannot write .*file/x: Not a directory"):
        export_hf(mine, tmp_path / "file/x")
    with pytest.raises(ValueError, match=r"OUT=\. has no name"):
        export_hf(mine, Path("."))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "results"]


TEXTS = ("def f(x):\n\treturn x  # ÄÖ 日本 🙂", " a  b ", "", "1234 it's\r\n\x00\x7f")


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_tokenizers_agree_on_every_kind_of_text(tmp_path, name: str) -> None:
    encoding = get_encoding(name)
    for file, data in tokenizer_files(encoding, 16).items():
        (tmp_path / file).write_bytes(data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == encoding.encode_ordinary(text)
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == encoding.eot_token
    assert len(theirs) == encoding.n_vocab
