"""Strings become token ids here and nowhere else.

A training example is the prompt rendered by the model's chat template up to where the assistant begins, then the
tokens of the response, then one end-of-turn token. The two halves are tokenised apart and joined as ids, so the mask
between them is known by construction and never searched for: a pad id, an end id or a role word inside a response
cannot move it. The same ids serve generation, scoring and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

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


MARK = "\ue000"  # stands for a text in a template that is tried out; of the private use area, so in no template


def prepare_tokenizer(
    tokenizer: Any, *, template: str = TRANSCRIPT_TEMPLATE, ends: Sequence[int] = (), bos_id: int | None = None
) -> Any:
    """Give a tokenizer what the rest relies on: an end token, a pad token, a chat template (``template`` where it has none).

    ``ends``: the ids that the model's own files name as ends of a response; ``bos_id``: what they name as beginning of a text.
    A missing end token is the first of ``ends``. A missing pad token becomes the end token; that is safe because no mask here
    is ever made by comparing ids with the pad id. InputError where there is no end token at all: a response could then never
    end; and where the chat template writes a beginning that the model knows and the tokenizer does not.
    """
    # Only tokens that are control tokens: an id that a configuration has by default may be a word of this tokenizer.
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [number for number in ends if number in control]
    if tokenizer.eos_token_id is None and template == PAIR_TEMPLATE:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        begin = "{{ bos_token }}" if template == TRANSCRIPT_TEMPLATE and begins_with_bos(tokenizer) else ""
        tokenizer.chat_template = begin + template
    elif tokenizer.bos_token is None and bos_id is not None and MARK in render(tokenizer, "a", bos_token=MARK):
        raise InputError(
            f"the chat template begins with bos_token, which config.json knows as id {bos_id} and the tokenizer does not; "
            "set bos_token in tokenizer_config.json"
        )
    own = tokenizer.eos_token_id
    tokenizer.charter_ends = tuple(dict.fromkeys((closing_id(tokenizer, {own, *ends}) if ends else own, own, *ends)))
    return tokenizer


def render(tokenizer: Any, *texts: str, **values: str) -> str:
    """A conversation of these turns, the user's first, under the chat template; empty where the template takes no such one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **values))
    except TemplateError:
        return ""


def closing_id(tokenizer: Any, ends: set[int]) -> int:
    """The one of ``ends`` with which the chat template closes the assistant's turn; the end-of-sequence token where it writes
    none of them (Gemma's template writes <end_of_turn> and its tokenizer ends with <eos>)."""
    after = render(tokenizer, "a", MARK).rpartition(MARK)[2]
    ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"] if after else []
    return int(next((number for number in ids if number in ends), tokenizer.eos_token_id))


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """What ends a response: first the token that closes one in training, then the others at which the model also stops."""
    return getattr(tokenizer, "charter_ends", None) or (tokenizer.eos_token_id,)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer would put BOS before a text of its own accord. Some say so, some (Llama 3) only do it."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    return bool(getattr(tokenizer, "add_bos_token", False)) or tokenizer("a", verbose=False)["input_ids"][:1] == [bos]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation up to and including the marker that opens the assistant's turn. InputError where the template
    refuses it: some take no system message, some no two turns of one side."""
    try:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InputError(
            f"the model's chat template does not take a conversation of {', '.join(m.role for m in messages)}: {error}"
        ) from None
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
    return [bos, *ids] if ids[:1] != [bos] and begins_with_bos(tokenizer) else list(ids)


def encode_response(tokenizer: Any, text: str, *, end: bool = True) -> list[int]:
    """Ids of a response in the place where the assistant speaks, closed by the end-of-turn token unless ``end`` is
    False. Special tokens spelled out inside the text are encoded as plain text, never as control tokens."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*ids, end_ids(tokenizer)[0]] if end else list(ids)


def decode_response(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of sampled response ids, without the end token that closed it. A NUL byte, which no record may hold,
    becomes the replacement character."""
    kept = list(ids[:-1]) if ids and ids[-1] in end_ids(tokenizer) else list(ids)
    text = str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return text.replace("\x00", "\ufffd")
