"""Tokens back to text while they come: pieces that are never taken back, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from charter.models.chat_template import decode_response, end_ids

HALF = "\ufffd"  # what a token that ends in the middle of a character decodes to


class Pieces:
    """The text that each token adds. A token in the middle of a character adds nothing; the one that completes it adds it all."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.begin = self.end = (
            0  # the text of tokens before ``end`` is out; tokens from ``begin`` on are decoded again with the next
        )

    def add(self, token: int) -> str:
        self.ids.append(token)
        whole = self._decode(len(self.ids))
        return "" if whole.endswith(HALF) else self._new(whole)

    def rest(self) -> str:
        """The rest at the end: half a character."""
        return self._new(self._decode(len(self.ids)))

    def _new(self, whole: str) -> str:
        new = whole[len(self._decode(self.end)) :]
        self.begin, self.end = self.end, len(self.ids)
        return new

    def _decode(self, end: int) -> str:
        # A token that ends a response would be decoded as text here; the caller keeps it away.
        ids = self.ids[self.begin : end]
        return str(decode_response(self.tokenizer, [*ids, end_ids(self.tokenizer)[0]])) if ids else ""


class Writer:
    """The text of a response, up to the first stop string. ``stopped`` once one was met."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.pieces, self.stop = Pieces(tokenizer), [text for text in stop if text]
        self.text = ""
        self.sent = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """The text to send now: the part in which no stop string can still begin."""
        return self._advance(self.pieces.add(token), last=False)

    def finish(self) -> str:
        """The rest of the text."""
        return "" if self.stopped else self._advance(self.pieces.rest(), last=True)

    def _advance(self, piece: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self.text += piece
        places = [place for stop in self.stop if (place := self.text.find(stop, self.sent)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
        end = len(self.text) if last or self.stopped else len(self.text) - self._withheld()
        new, self.sent = self.text[self.sent : end], max(end, self.sent)
        return new

    def _withheld(self) -> int:
        """Characters at the end with which a stop string begins."""
        return max((n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0)


def token_text(tokenizer: Any, token: int) -> str:
    """A single token as text, control tokens by their name."""
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
