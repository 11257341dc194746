"""A space of texts in any script: Gymnasium's ``Text`` lists its characters, and a model may write any."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from gymnasium.spaces import Text

from charter.records import Message, clean_text
from charter.models.sampling.sampler import conversation_text

N_CODE_POINTS = 0x110000
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "


class CodePoints:
    """All characters as a sequence that takes no memory, in the order of their numbers."""

    def __len__(self) -> int:
        return N_CODE_POINTS

    def __getitem__(self, number: int) -> str:
        return chr(number)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and len(text) == 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodePoints)

    __hash__ = None  # type: ignore[assignment]


class AnyText(Text):
    """Texts of at most ``max_length`` characters, the empty one included. ``sample`` draws from printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=PRINTABLE)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        if mask is not None or probability is not None:
            raise ValueError("a mask needs a list of characters, and this space has all; sample from gymnasium.spaces.Text")
        return "".join(self.np_random.choice(list(PRINTABLE), size=self.np_random.integers(0, self.max_length + 1)))

    def contains(self, x: Any) -> bool:
        try:
            return isinstance(x, str) and len(clean_text(x)) <= self.max_length
        except ValueError:
            return False

    @property
    def character_set(self) -> Any:
        return CodePoints()

    @property
    def character_list(self) -> Any:
        return CodePoints()

    def character_index(self, char: str) -> Any:
        return ord(char)

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as an observation: a single turn as it is, several as lines `role: content`."""
    return messages[0].content if len(messages) == 1 else conversation_text(messages)
