"""The manifest of a run directory."""

import errno
import json

import pytest

from gpt2.train import manifest
from gpt2.train.manifest import Manifest

EARLIER = {"hash": "h", "provenance": {"host": "a"}, "pairing": {"batches": {}}}


def test_a_manifest_that_cannot_be_read_is_not_replaced(tmp_path, monkeypatch):
    """A disk that fails for a moment must not cost the provenance."""

    def failing(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    here = Manifest(tmp_path, "h", writes=True)
    here.path.write_text(json.dumps(EARLIER))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "read_json", failing)
        with pytest.raises(OSError, match="Input/output"):
            here.note_batches({"1": "a"})
    assert here.read() == EARLIER


@pytest.mark.parametrize("text", [None, "{", "[]", '{"hash": "another"}'])
def test_no_manifest_of_this_run_reads_as_an_empty_one(tmp_path, text):
    here = Manifest(tmp_path, "h", writes=True)
    if text is not None:
        here.path.write_text(text)
    assert here.read() == {}
