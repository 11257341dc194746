"""Strings become token ids here and nowhere else.

A training example is the prompt rendered by the model's chat template up to where the assistant begins, then the
tokens of the response, then one end-of-turn token. The two halves are tokenised apart and joined as ids, so the mask
between them is known by construction and never searched for: a pad id, an end id or a role word inside a response
cannot move it. The same ids serve generation, scoring and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from charter.errors import InputError
from charter.records import Message

# For base models that carry no chat template: the transcript form of the HH data (Bai et al. 2022).
TRANSCRIPT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\\n\\nHuman: ' if message.role == 'user' else '\\n\\nAssistant: ' if message.role == 'assistant'"
    " else '\\n\\n' }}{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)


# For encoder-decoders that carry none: the encoder reads the conversation as it stands, closed by its own special tokens.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ '' if loop.last else '\\n' }}{% endfor %}"
# For encoders that read the response too: the same, without the first token, which the model puts before the whole row.
PAIR_TEMPLATE = PLAIN_TEMPLATE + "{# and then the response #}"


def prepare_tokenizer(tokenizer: Any, *, template: str = TRANSCRIPT_TEMPLATE) -> Any:
    """Give a tokenizer what the rest relies on: an end token, a pad token, a chat template (``template`` where it has none).

    A missing pad token becomes the end token; that is safe because no mask here is ever made by comparing ids with
    the pad id. InputError where there is no end token at all: a response could then never end.
    """
    if tokenizer.eos_token_id is None and template == PAIR_TEMPLATE:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        tokenizer.chat_template = template
    return tokenizer


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation up to and including the marker that opens the assistant's turn."""
    text = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
    )
    return encode_text(tokenizer, text)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands, without a chat template: how a base model reads a document. Special tokens spelled out in it
    are control tokens, since whoever writes the whole text also writes its template."""
    if tokenizer.chat_template == PLAIN_TEMPLATE:
        return list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    if tokenizer.chat_template == PAIR_TEMPLATE:
        return [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    # A base model's own tokenizer would have begun with BOS; a chat template that writes it itself must not get two.
    begin = bos is not None and getattr(tokenizer, "add_bos_token", False) and ids[:1] != [bos]
    return [bos, *ids] if begin else list(ids)


def encode_response(tokenizer: Any, text: str, *, end: bool = True) -> list[int]:
    """Ids of a response in the place where the assistant speaks, closed by the end-of-turn token unless ``end`` is
    False. Special tokens spelled out inside the text are encoded as plain text, never as control tokens."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if end else list(ids)


def decode_response(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of sampled response ids, without the end-of-turn token that closed it. A NUL byte, which no record may hold,
    becomes the replacement character."""
    kept = list(ids[:-1]) if ids and ids[-1] == tokenizer.eos_token_id else list(ids)
    text = str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return text.replace("\x00", "\ufffd")
