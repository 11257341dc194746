"""Strings become token ids here and nowhere else.

A training example is the prompt rendered by the model's chat template up to where the assistant begins, then the
tokens of the response, then one end-of-turn token. The two halves are tokenised apart and joined as ids, so the mask
between them is known by construction and never searched for: a pad id, an end id or a role word inside a response
cannot move it. The same ids serve generation, scoring and training.

The prompt ends where the template itself begins the answer of a finished turn, so that history, training and sampling read the
same bytes. Control tokens are the template's alone: where a message spells one, it is ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
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
STAND_INS = 0xF0000  # the first of the characters that stand for spelled control tokens while a template is rendered
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)  # what a template raises on purpose or by mistake


@dataclass(frozen=True)
class Opening:
    """The difference between a template's generation prompt and the beginning of a finished turn.

    ``surplus``: the end of the generation prompt that a finished turn lacks (an open think block). ``missing``: what a finished
    turn has in addition (an empty think block; the role, where the template ignores add_generation_prompt). ``space``: what parts
    the answer from it and is of the answer's first token. ``joined``: the tokenizer would put a space of its own before an
    answer that is encoded alone.
    """

    surplus: str = ""
    missing: str = ""
    space: str = ""
    joined: bool = False


class TemplateRefusal(InputError):
    """The chat template does not take these ``messages``."""

    def __init__(self, words: str, messages: Sequence[Message]) -> None:
        super().__init__(f"{words} (the conversation begins {messages[0].content[:40]!r})" if messages else words)
        self.words, self.messages = words, tuple(messages)


def prepare_tokenizer(
    tokenizer: Any, *, template: str = TRANSCRIPT_TEMPLATE, ends: Sequence[int] = (), bos_id: int | None = None
) -> Any:
    """Give a tokenizer what the rest relies on: an end token, a pad token, a chat template (``template`` where it has none).

    ``ends``: the ids that the model's own files name as ends of a response; ``bos_id``: what they name as beginning of a text.
    A missing end token is the first of ``ends``. A missing pad token becomes the end token; that is safe because no mask here
    is ever made by comparing ids with the pad id. InputError if there is no end token at all: a response could then never
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
    elif tokenizer.bos_token is None and bos_id is not None and MARK in render_turns(tokenizer, "a", bos_token=MARK):
        raise InputError(
            f"the chat template begins with bos_token, which config.json knows as id {bos_id} and the tokenizer does not; "
            "set bos_token in tokenizer_config.json"
        )
    eos = tokenizer.eos_token_id
    tokenizer.charter_ends = tuple(dict.fromkeys((closing_id(tokenizer, {eos, *ends}) if ends else eos, eos, *ends)))
    if tokenizer.chat_template not in (PLAIN_TEMPLATE, PAIR_TEMPLATE):
        tokenizer.charter_opening = find_opening(tokenizer)
    return tokenizer


def render_turns(tokenizer: Any, *texts: str, **values: Any) -> str:
    """A conversation of these turns, the user's first, under the chat template; empty if the template takes no such one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **values))
    except REFUSALS:
        return ""


def find_opening(tokenizer: Any) -> Opening:
    """The generation prompt compared with a finished turn under the template, as texts and as ids."""
    question, answer = "Name a soup", "Bread"
    prompt, finished = render_turns(tokenizer, question, add_generation_prompt=True), render_turns(tokenizer, question, answer)
    before, answered, _ = finished.rpartition(answer)
    if question not in prompt or not answered:
        return Opening()  # it takes no such conversation; :func:`encode_prompt` refuses what it does not render
    common = common_length(prompt, before)
    surplus, missing = prompt[common:], before[common:].rstrip(" ")
    if question in surplus + missing:
        return Opening()  # it renders a turn that was answered differently from one that waits
    space = before[common + len(missing) :]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    whole, head = ids(before + answer), ids(before.removesuffix(space) if space else before)
    for opening in (Opening(surplus, missing, gap, joined) for joined in (False, True) for gap in dict.fromkeys(("", space))):
        if head + plain_ids(tokenizer, opening.space + answer, joined=opening.joined) == whole:
            return opening
    return Opening(surplus, missing, space)


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The length of the common beginning of two sequences."""
    differences = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def opening_of(tokenizer: Any) -> Opening:
    return getattr(tokenizer, "charter_opening", None) or Opening()


def plain_ids(tokenizer: Any, text: str, *, joined: bool = False) -> list[int]:
    """Ids of a text in which special tokens are plain text. ``joined``: as if other text stood before it, where a tokenizer would
    else put a space there."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])

    line = ids("\n") if joined else []  # no tokenizer joins a line break with a letter
    both = ids("\n" + text) if joined else []
    return both[len(line) :] if joined and both[: len(line)] == line else ids(text)


def control_tokens(tokenizer: Any) -> tuple[re.Pattern[str], Mapping[str, Any]]:
    """The tokenizer's special tokens by their texts, and what finds one of them in a text."""
    known = getattr(tokenizer, "charter_control", None)
    if known is None:
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        known = {token: added.get(token) for token in (*added, *tokenizer.all_special_tokens) if token}
        longest_first = sorted(known, key=len, reverse=True)
        known = tokenizer.charter_control = (re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"), known)
    return known


def closing_id(tokenizer: Any, ends: set[int]) -> int:
    """The one of ``ends`` with which the chat template closes the assistant's turn; the end-of-sequence token where it writes
    none of them (Gemma's template writes <end_of_turn> and its tokenizer ends with <eos>)."""
    after = render_turns(tokenizer, "a", MARK).rpartition(MARK)[2]
    ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"] if after else []
    return int(next((number for number in ids if number in ends), tokenizer.eos_token_id))


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: first the token that closes it in training, then the others at which the model stops."""
    return getattr(tokenizer, "charter_ends", None) or (tokenizer.eos_token_id,)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS before a text. Some tokenizers declare it, some (Llama 3) only do it."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    return bool(getattr(tokenizer, "add_bos_token", False)) or tokenizer("a", verbose=False)["input_ids"][:1] == [bos]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation up to where the assistant's answer begins. TemplateRefusal where the template does not take it
    (some take no system message, some no two turns of one side) or leaves out a message."""
    pattern, _ = control_tokens(tokenizer)
    words = "\0".join(message.content for message in messages)  # which no record contains
    spelled = dict.fromkeys(pattern.findall(words))
    unused = (character for number in count(STAND_INS) if (character := chr(number)) not in words)
    stand_ins = dict(zip(spelled, unused, strict=False))
    turns = [message.model_dump() for message in messages]
    for turn in turns if spelled else ():
        turn["content"] = pattern.sub(lambda match: stand_ins[match[0]], turn["content"])
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except REFUSALS as error:
        roles = ", ".join(message.role for message in messages)
        raise TemplateRefusal(f"the model's chat template does not take a conversation of {roles}: {error}", messages) from None
    for turn in turns:
        # Templates of reasoning models leave out what an earlier answer thought, and no more.
        if turn["content"].strip() not in text and not (turn["role"] == "assistant" and "</think>" in turn["content"]):
            hint = "set a chat_template that renders it as text"
            hint += ", or put its words into the user's turn" if turn["role"] == "system" else ""
            raise TemplateRefusal(f"the model's chat template leaves out the {turn['role']} message; {hint}", messages)
    opening = opening_of(tokenizer)
    text = text.removesuffix(opening.surplus) + opening.missing
    return encode_text(tokenizer, text, {stand_in: token for token, stand_in in stand_ins.items()})


def encode_text(tokenizer: Any, text: str, spelled: Mapping[str, str] | None = None) -> list[int]:
    """Ids of a text as it stands, without a chat template: how a base model reads a document. Special tokens spelled out in it
    are control tokens, since whoever writes the whole text also writes its template; but for those of ``spelled``, the texts
    that single characters stand for."""
    split = {"split_special_tokens": True} if spelled else {}
    if spelled and tokenizer.chat_template not in (PLAIN_TEMPLATE, PAIR_TEMPLATE):
        ids = _ids_by_parts(tokenizer, text, spelled)
    else:
        for stand_in, token in (spelled or {}).items():
            text = text.replace(stand_in, token)
        special = tokenizer.chat_template == PLAIN_TEMPLATE
        ids = list(tokenizer(text, add_special_tokens=special, verbose=False, **split)["input_ids"])
        if special:
            return ids
    if tokenizer.chat_template == PAIR_TEMPLATE:
        return [*ids, tokenizer.eos_token_id]
    bos = tokenizer.bos_token_id
    # A base model's own tokenizer would have begun with BOS; a chat template that writes it itself must not get two.
    return [bos, *ids] if ids[:1] != [bos] and begins_with_bos(tokenizer) else ids


def _ids_by_parts(tokenizer: Any, text: str, spelled: Mapping[str, str]) -> list[int]:
    """Ids of a rendered text between whose control tokens all is plain text. A tokenizer parts a text at them itself."""
    pattern, known = control_tokens(tokenizer)
    first = next(iter(known))
    apart = [tokenizer.convert_tokens_to_ids(first), *plain_ids(tokenizer, "a")]
    joined = tokenizer(first + "a", add_special_tokens=False, verbose=False)["input_ids"] != apart
    ids: list[int] = []
    parts = re.split(f"({pattern.pattern})", text)  # plain text and control tokens in turn
    for place, part in enumerate(parts):
        if place % 2:
            ids.append(tokenizer.convert_tokens_to_ids(part))
            continue
        if place and getattr(known[parts[place - 1]], "rstrip", False):
            part = part.lstrip()
        if place + 1 < len(parts) and getattr(known[parts[place + 1]], "lstrip", False):
            part = part.rstrip()
        for stand_in, token in spelled.items():
            part = part.replace(stand_in, token)
        ids += plain_ids(tokenizer, part, joined=joined and place > 0) if part else []
    return ids


def encode_response(tokenizer: Any, text: str, *, end: bool = True) -> list[int]:
    """Ids of a response in the place where the assistant speaks, closed by the end-of-turn token unless ``end`` is
    False. Special tokens spelled out inside the text are encoded as plain text, never as control tokens."""
    opening = opening_of(tokenizer)
    ids = plain_ids(tokenizer, opening.space + text, joined=opening.joined)
    return [*ids, end_ids(tokenizer)[0]] if end else ids


def decode_response(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of sampled response ids, without the end token that closed it and the space that parts it from the prompt. A NUL byte,
    which no record may contain, becomes the replacement character."""
    kept = list(ids[:-1]) if ids and ids[-1] in end_ids(tokenizer) else list(ids)
    text = str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return text.replace("\x00", "\ufffd").removeprefix(opening_of(tokenizer).space)
