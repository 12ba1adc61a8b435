"""Text from tokens as they come: whole characters, up to a stop text."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass

import tiktoken
import torch

from gpt2.data.tokenizer import END_OF_TEXT
from gpt2.infer.sampling import Sampling, next_tokens
from gpt2.infer.trained import TrainedModel


class TextStream:
    """Turns tokens into text, withholding what may yet become part of ``stop``.

    ended: empty, or why no further token counts.
    """

    def __init__(self, encoding: tiktoken.Encoding, stop: str = "") -> None:
        self.encoding, self.stop = encoding, stop
        self.bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.ended = ""

    def add(self, token: int) -> str:
        """The text that a token completes; often empty within a character."""
        if token == self.encoding.eot_token:
            self.ended = END_OF_TEXT
            return self.rest()
        self.held += self.bytes.decode(self.encoding.decode_single_token_bytes(token))
        return self._release()

    def rest(self) -> str:
        """Rest of the text, with an unfinished character as U+FFFD."""
        self.held += self.bytes.decode(b"", final=True)
        shown = self._release()
        shown, self.held = shown + self.held, ""
        return shown

    def _release(self) -> str:
        at = self.held.find(self.stop) if self.stop else -1
        if at >= 0:
            self.ended = "STOP"
            shown, self.held = self.held[:at], ""
            return shown
        keep = _overlap(self.held, self.stop)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Generation request: at most ``count`` tokens, up to ``stop`` if it is not
    empty."""

    count: int = 200
    sampling: Sampling = Sampling()
    seed: int = 1
    stop: str = ""


class Continuation:
    """The text after a prompt; iterating over it generates it, piece by piece, and
    "".join() gives all of it.

    tokens, seconds: generated so far. ended: why it ended; empty while it runs.
    """

    def __init__(
        self, trained: TrainedModel, prompt: str, request: Request | None = None
    ) -> None:
        """An empty prompt begins a new document. Raises ValueError if the prompt does
        not leave room for a token."""
        self.trained, self.request = trained, request or Request()
        encoding = trained.encoding
        self.prompt = encoding.encode_ordinary(prompt) or [encoding.eot_token]
        context = trained.model.block_size
        if len(self.prompt) >= context:
            raise ValueError(
                f"PROMPT has {len(self.prompt)} tokens, but {trained.label} has a "
                f"context of {context}: at most {context - 1} leave room for one more"
            )
        self.tokens, self.seconds, self.ended = 0, 0.0, ""

    def __iter__(self) -> Iterator[str]:
        request, device = self.request, self.trained.device
        generator = torch.Generator(device).manual_seed(request.seed)
        prompt = torch.tensor([self.prompt], device=device)
        text = TextStream(self.trained.encoding, request.stop)
        new = next_tokens(self.trained.decoder, prompt, request.sampling, generator)
        while not text.ended:
            begun = time.monotonic()
            token = next(new, None)
            if token is None:
                text.ended = f"the context of {self.trained.model.block_size} is full"
                yield text.rest()
                break
            piece = text.add(int(token))
            self.seconds += time.monotonic() - begun
            self.tokens += 1
            if self.tokens == request.count and not text.ended:
                text.ended = f"COUNT={request.count}"
                piece += text.rest()
            yield piece
        self.ended = text.ended
