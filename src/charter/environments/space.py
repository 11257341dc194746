"""A space of texts in any script: Gymnasium's ``Text`` lists its characters, and a model may write any."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, NoReturn

from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Text
from gymnasium.vector.utils import create_shared_memory

from charter.models.sampling.sampler import conversation_text
from charter.records import Message, clean_text

PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "


class AnyText(Text):
    """Texts of at most ``max_length`` characters, the empty one included. ``sample`` draws printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=PRINTABLE)

    def contains(self, x: Any) -> bool:
        try:
            return isinstance(x, str) and len(clean_text(x)) <= self.max_length
        except ValueError:
            return False


@create_shared_memory.register
def _refuse_shared_memory(space: AnyText, n: int = 1, ctx: Any = None) -> NoReturn:  # noqa: ARG001 - as Gymnasium calls it
    # Gymnasium 1.4 reads a text from shared memory once, as the environments are made, and returns that text ever after.
    raise CustomSpaceError('texts need vector_kwargs={"shared_memory": False}; or wrap each environment in WordsObservation')


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as an observation: a single turn as it is, several as lines `role: content`."""
    return messages[0].content if len(messages) == 1 else conversation_text(messages)
