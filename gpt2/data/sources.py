"""Select the configured corpus."""

from __future__ import annotations

from collections.abc import Mapping

from gpt2.data.corpus import ONE_TEXT_SHARE, Corpus
from gpt2.data.hub import HUB, HubDataset, hub_corpus, one_text_of
from gpt2.data.text_files import stdlib_corpus, text_corpus
from gpt2.data.token_files import DataRequest


def open_corpus(
    request: DataRequest, hub: Mapping[str, HubDataset] | None = None
) -> Corpus:
    """Open the configured corpus; its documents are read later.

    hub: data sets by name, by default the table HUB. Raises CorpusError if there is
    nothing to read.
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
        return one_text_of(source)
    return hub_corpus(source, streaming=request.max_tokens > 0)
