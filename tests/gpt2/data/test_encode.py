"""Tokens of odd texts: long runs of white space, and what cannot be encoded."""

import random

import numpy as np
import pytest

from gpt2.data.corpus import Document, LeftOutDocument
from gpt2.data.encode import encode_documents, encode_text

SPACES = [" ", "\n", "\r\n", "\t", "\xa0", "\u3000", " \n", "\x0b\x0c\x85\u2028"]
AROUND = [
    "{}",
    "word{}",
    "{}word",
    "it's{}'s",
    "a{}1{}!{}b",
    "1{}2",
    "é{}中",
    "\x1c{}\x1f",
]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("around", AROUND)
def test_a_run_that_is_cut_out_gives_the_same_tokens(gpt2, space, around):
    for count in (1, 2, 3, 4, 7, 8, 33, 100):
        text = around.replace("{}", space * count)
        expected = gpt2.encode_ordinary(text)
        for long_run in (2, 5, 64):
            assert encode_text(gpt2, text, long_run).tolist() == expected, repr(text)


def test_white_space_is_what_the_tokenizer_takes_for_it(gpt2):
    """Mixed with all characters that Python or Unicode count as such."""
    rng = random.Random(0)
    odd = [chr(n) for n in range(0x3100) if chr(n).isspace()] + [
        "\u200b",
        "\ufeff",
        "\u180e",
    ]
    for _ in range(300):
        text = "".join(rng.choice([*odd, "a", "1", "."]) for _ in range(60))
        assert encode_text(gpt2, text, 2).tolist() == gpt2.encode_ordinary(text)


@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\xa0"])
def test_a_million_blanks_are_no_obstacle(gpt2, space):
    text = f"before{space * 1_000_000}after"
    tokens = encode_text(gpt2, text)
    assert gpt2.decode(tokens.tolist()) == text
    shorter = f"before{space * 100_000}after"
    assert encode_text(gpt2, shorter).tolist() == gpt2.encode_ordinary(shorter)


def test_what_cannot_be_encoded_is_left_out_by_name(gpt2):
    """A lone surrogate, as JSON of the web has them; the others go on."""
    items = [
        Document("first", "One.", 1),
        LeftOutDocument("bad.txt", "not UTF-8 at byte 0", 2),
        Document("blank", " \n", 3),
        Document("broken", "half \ud800", 4),
        Document("last", "Two.", 5),
    ]
    found = list(encode_documents(items, gpt2, 2))
    assert [item.place for item in found] == [1, 2, 4, 5]
    assert found[1] == items[1]
    assert found[2] == LeftOutDocument(
        "broken", "not Unicode at character 5; 6 characters", 4
    )
    assert np.array_equal(found[3].tokens, [*gpt2.encode_ordinary("Two."), 50256])


def test_a_document_that_the_tokenizer_fails_on_is_named(gpt2, monkeypatch):
    """As long runs did, here not cut out."""
    monkeypatch.setattr(encode_text, "__defaults__", (1 << 40,))
    (found,) = encode_documents([Document("x.txt", "a" + " " * 10**6 + "b")], gpt2, 1)
    assert found.name == "x.txt" and "the gpt2 tokenizer fails on it" in found.reason
    assert "1,000,002 characters" in found.reason
