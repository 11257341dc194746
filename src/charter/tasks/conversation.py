"""Talk to a model in the terminal, or through a pipe: one line in, one answer out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from charter.errors import InputError
from charter.measuring.models import load_writer
from charter.models.chat_template import encode_prompt
from charter.models.marks import refuse_flipped
from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.generate import context_length
from charter.models.sampling.sampler import LocalSampler
from charter.records import Filters, Message
from charter.run.hashes import derive_seed
from charter.serving.serve import model_place


def chat_with(
    where: str, model: str | None, *, temperature: float, max_new_tokens: int, seed: int, filters: Filters = ALL_TOKENS,
    understood: bool = False,
) -> None:  # fmt: skip
    """Read lines from standard input and print the answers of a model, until an empty line or the end.

    ``where``: folder or hub name of a model, or a run, of which ``model`` names one (:func:`~charter.serving.serve.model_place`).
    The conversation is kept; its oldest turns are dropped when it no longer fits the model. ``/reset`` forgets it, ``/quit``
    ends. InputError if the model is missing, or where the answer alone would fill the model's context.
    """
    folder, name = model_place(where, model)
    refuse_flipped(folder, understood)
    trunk = load_writer(folder, "float32")
    limit = context_length(trunk.model)
    room = None if limit is None else limit - max_new_tokens
    if room is not None and room < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: the context of the model is {limit} tokens; give fewer")
    sampler = LocalSampler(trunk, name)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        note(f"{name}: /reset forgets the conversation, /quit or an empty line ends.")
    history: list[Message] = []
    number = 0
    while (line := read_line("you> " if interactive else "")) not in (None, "", "/quit"):
        if line == "/reset":
            history = []
            note("the conversation is forgotten")
            continue
        try:
            conversation = [*history, Message(role="user", content=line)]
        except ValidationError as error:
            note(error.errors()[0]["msg"].removeprefix("Value error, "))
            continue
        kept = fitting(trunk.tokenizer, conversation, room)
        if not kept:
            note(f"too long: the context is {limit} tokens and the answer may take {max_new_tokens}; write less")
            continue
        if len(kept) < len(conversation):
            note(f"the oldest {len(conversation) - len(kept)} messages no longer fit and are forgotten")
        number += 1
        seeds = [[derive_seed(seed, "chat", number)]]
        sample = sampler.generate(
            [kept], seeds, temperature=temperature, max_new_tokens=max_new_tokens, filters=filters
        )[0][0]  # fmt: skip
        print(f"{name}> {escape_controls(sample.text)}" if interactive else escape_controls(sample.text), flush=True)
        if sample.finish_reason == "length":
            note(f"cut off after {max_new_tokens} tokens")
        history = [*kept, Message(role="assistant", content=sample.text)]


def fitting(tokenizer: Any, conversation: Sequence[Message], room: int | None) -> list[Message]:
    """The conversation without its oldest questions and answers, so that it has at most ``room`` tokens. Empty if the last
    message alone is longer; all of it where ``room`` is None."""
    kept = list(conversation)
    while kept and room is not None and len(encode_prompt(tokenizer, kept)) > room:
        kept = kept[2:]
    return kept


def read_line(question: str) -> str | None:
    """The next line without the white space around it, None at the end of the input."""
    try:
        if question:
            import readline  # noqa: F401 - gives input() its line editing

            return input(question).strip()
        line = sys.stdin.readline()
    except EOFError:
        return None
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8; convert it with iconv") from None
    return line.strip() if line else None


def note(text: str) -> None:
    """Print a remark of Charter on standard error, so that a pipe carries the answers alone."""
    print(f"[{escape_controls(text)}]", file=sys.stderr, flush=True)


def escape_controls(text: str) -> str:
    """The text with every control character but line breaks and tabs spelled out: a model's text must not move the cursor or
    recolour the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
