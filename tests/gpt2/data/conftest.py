"""The GPT-2 tokenizer, where its files are at hand."""

import pytest

from gpt2.data.tokenizer import TokenizerUnavailable, get_encoding


@pytest.fixture(scope="package")
def gpt2():
    try:
        return get_encoding("gpt2")
    except TokenizerUnavailable as error:
        pytest.skip(str(error))
