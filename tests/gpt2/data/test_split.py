"""Held-out text: the share, whole documents, ends of long ones."""

import hashlib

import numpy as np
import pytest

from gpt2.data.split import by_rank, by_tail, cut_end, end_share, is_held_out, meets


def document(number, size):
    return hashlib.sha256(str(number).encode()).digest(), size


def chosen_bytes(documents, share):
    target = share * sum(size for _, size in documents)
    chosen = by_rank(documents, target)
    return sum(size for digest, size in documents if digest in chosen), target


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_share_is_met_as_whole_documents_allow(share):
    rng = np.random.default_rng(0)
    documents = [document(n, int(rng.integers(50, 200))) for n in range(500)]
    size, target = chosen_bytes(documents, share)
    assert target - 0.005 * target / share < size <= target
    cut = by_tail(documents, target)
    size = sum(size for _, size in documents[cut:])
    assert target - 0.005 * target / share < size <= target


def test_two_documents_are_divided_whatever_their_sizes():
    documents = [document(1, 5000), document(2, 4000)]
    assert chosen_bytes(documents, 0.05)[0] == 4000
    assert by_tail(documents, 450) == 1


def test_a_tiny_document_is_not_all_that_is_held_out():
    """It fits the share, which then has room for none of the others."""
    documents = [document(0, 10), *(document(n, 1000) for n in range(1, 13))]
    assert chosen_bytes(documents, 0.05)[0] == 1010


@pytest.mark.parametrize("sizes", [(1, 100), (100, 1)])
def test_one_of_two_documents_is_left_for_training(sizes):
    """Although both together, 101, are nearer to 49.5 than the small one alone."""
    documents = [document(n, size) for n, size in enumerate(sizes)]
    assert chosen_bytes(documents, 49.5 / 101) == (1, 49.5)


def test_equal_documents_stay_together():
    documents = [document(n // 3, 100) for n in range(150)]
    chosen = by_rank(documents, 3000)
    assert sum(digest in chosen for digest, _ in documents) == 30


def test_hashes_of_many_hold_out_the_share():
    held_out = [is_held_out(document(n, 1)[0], 0.1) for n in range(4000)]
    assert 320 < sum(held_out) < 480


@pytest.mark.parametrize("count", [1, 4, 10])
def test_ends_of_long_documents_make_up_the_share(count):
    documents = [document(n, 9_000_000) for n in range(count)]
    documents += [document(99, 1000)]
    total = sum(size for _, size in documents)
    assert end_share(documents, 0.05 * total) * count * 9_000_000 == 0.05 * total
    assert end_share(documents, float(total)) == 0.0


TEXT = "".join(f"Line {n}.\n{chr(10) * (n % 5 == 4)}" for n in range(100))


def test_a_text_is_cut_behind_a_blank_line_else_a_line_else_not():
    at = cut_end(TEXT, 0.2)
    assert TEXT[:at].endswith("\n\n") and meets(len(TEXT) - at, 0.2 * len(TEXT))
    lines = TEXT.replace("\n\n", "\n")
    at = cut_end(lines, 0.2)
    assert lines[:at].endswith("\n") and abs(len(lines) - at - 0.2 * len(lines)) < 10
    # its only blank line is far from the end that is wanted
    mostly = "Title\n\n" + lines
    assert cut_end(mostly, 0.2) > 0.7 * len(mostly)
    for whole in (TEXT.replace("\n", " "), "", "\n\n\n", "one\n", "\n\none\n\n"):
        assert cut_end(whole, 0.2) == 0


def test_neither_part_of_a_cut_text_is_blank():
    text = "\n \n" * 50 + "Some text.\n\nAnd more of it.\n\n" + "\n \n" * 50
    at = cut_end(text, 0.5)
    assert text[:at].strip() == "Some text." and text[at:].strip() == "And more of it."
