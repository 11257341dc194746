"""The place of a row in its file, found again when a model's template refuses the conversation that was read there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from charter.errors import InputError
from charter.models.chat_template import TemplateRefusal
from charter.reading.demonstrations import row_demonstration
from charter.reading.pairs import row_pair
from charter.reading.prompts import row_to_prompt
from charter.reading.ratings import row_rating
from charter.reading.rows import Row, read_rows
from charter.records import Message, Pair, Rating


@contextmanager
def naming_the_row(files: Iterable[Path]) -> Iterator[None]:
    """Within the block a refusal of the chat template becomes an InputError with file and line of the first row of ``files`` that
    gives the refused conversation."""
    try:
        yield
    except TemplateRefusal as error:
        for row in (row for file in files for row in read_rows(file)):
            if error.messages in _prompts_of(row):
                raise row.bad(error.words) from None
        raise


def _prompts_of(row: Row) -> list[tuple[Message, ...]]:
    """The prompts that the readers make of a row."""
    prompts = []
    for read in (row_pair, row_demonstration, row_rating, row_to_prompt):
        try:
            record = read(row)
        except InputError:
            continue  # not a row of that kind
        if isinstance(record, (Pair, Rating)):
            prompts.append(record.prompt.messages)
        elif not isinstance(record, str):
            prompts.append((record[0] if isinstance(record, tuple) else record).messages)
    return prompts
