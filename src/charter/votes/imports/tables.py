"""Tables of pairs, of votes, of single responses with a label, and of grouped rankings: TRL's, hh-rlhf's and our own exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from charter.reading.forms import LeftOut, good_by_label, usual_columns
from charter.reading.pairs import SPOKEN, answer_text, decided_pair, number, prompt_column
from charter.reading.prompts import row_messages
from charter.reading.rows import Row
from charter.records import Pair, Prompt, Rank, RaterKind
from charter.votes.imports.formats import PAIR_NAMES, Rater
from charter.votes.imports.votes import NO_PROMPT, NO_TEXT, UNKNOWN, Answer, Part, Unique, Vote, shown_by_coin
from charter.votes.rankings import MARGINS, margin_of
from charter.votes.winners import FIRST, NO_VERDICT, RANKS, RATER, SECOND, outcome_of

NOTCHES = {round(margin, 6): strength for strength, margin in MARGINS.items() if margin}
UNLABELLED = "a completion without a label"


def read_pair(part: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row with chosen and rejected (see :func:`charter.reading.pairs.read_pairs`). Our columns ``strength``, ``rater_id``,
    ``rater_kind``, ``reason`` and ``decided`` are read where they are, and RewardBench's ``chosen_model`` and
    ``rejected_model``; a margin of a third, two thirds or one is a strength. ``weight`` becomes a margin in nats; a weight of one
    half prefers neither and is a tie."""
    row = part.row
    for field in ("chosen", "rejected"):
        if field in row.values and row.values[field] is None:
            raise part[field].left_out(NO_TEXT)
    pair = decided_pair(row)
    if not isinstance(pair, Pair):
        raise part.left_out(pair)
    models = [row.optional(f"{side}_model") or UNKNOWN for side in ("chosen", "rejected")]
    p = number(row, "p")
    if p is not None and p < 0.5 and number(row, "weight") is None:
        models.reverse()  # as the answers were
    is_tie = pair.weight == 0.5
    yield shown_by_coin(
        Vote(
            row=row,
            prompt=pair.prompt,
            answers=(Answer(pair.chosen, models[0]), Answer(pair.rejected, models[1])),
            ranks=(1, 1) if is_tie else (1, 2),
            rater=rater_of(row, rater),
            kind="pair",
            set_id=pair.group_id,
            principle=row.optional("principle"),  # a pair without one has those that the rater named
            strength=None if is_tie else _strength(row, pair.margin),
            margin=None if is_tie else margin_of(pair.weight),
            **why_of(row),
        )
    )


def read_choice(part: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row with prompt, two answers (``PAIR_NAMES``) and ``winner``, whose words are those of
    :func:`charter.votes.winners.outcome_of`. The first answer is taken to have stood first. ``rater`` or another column of
    ``RATER`` names who judged; ``model_a`` and ``model_b`` the models."""
    names = next((pair for pair in PAIR_NAMES if part.fields().keys() >= set(pair)), None)
    if names is None:
        raise part.bad("the two answers are missing; name their columns answer_a and answer_b")
    question = usual_columns(part.row)
    for field, reason in (("prompt", NO_PROMPT), (names[0], NO_TEXT), (names[1], NO_TEXT)):
        if question.values.get(field) in (None, ""):
            raise part[field].left_out(reason)
    prompt = prompt_column(question)
    if prompt is None:
        raise part["prompt"].left_out(SPOKEN)
    winner = part["winner"].value
    outcome = (FIRST, SECOND)[names.index(winner)] if winner in names else outcome_of(part.row)
    if outcome is None:
        raise part["winner"].left_out(NO_VERDICT)
    models = [part[f"model_{side}"].name() or UNKNOWN for side in "ab"]
    yield Vote(
        row=part.row,
        prompt=prompt,
        answers=tuple(Answer(answer_text(question, name, prompt), model) for name, model in zip(names, models, strict=True)),
        ranks=RANKS[outcome],
        rater=rater_of(part.row, rater),
        kind="pair",
        principle=part.row.optional("principle"),
        **why_of(part.row),
    )


def read_label(part: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row with prompt, completion and label, as KTO takes them."""
    row, label = part.row, part["label"].value
    for field, reason in (("prompt", NO_PROMPT), ("completion", NO_TEXT), ("label", UNLABELLED)):
        if row.values.get(field) is None or (field != "completion" and row.values[field] == ""):
            raise part[field].left_out(reason)
    is_good = good_by_label(label)
    if is_good is None:
        raise part["label"].bad(f"is {label!r}; a label is true or false")
    prompt = prompt_column(row)
    if prompt is None:
        raise part["prompt"].left_out(SPOKEN)
    yield Vote(
        row=row,
        prompt=prompt,
        answers=(Answer(answer_text(row, "completion", prompt)),),
        ranks=(1 if is_good else "F",),
        rater=rater_of(row, rater),
        kind="thumbs",
        set_id=row.optional("group_id") or "",
        principle=row.optional("principle"),
        **why_of(row),
    )


def read_group(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """Our row of one prompt with all its responses and rankings."""
    messages = row_messages(row.row, "prompt") if row["prompt"].value is not None else ()
    prompt = row["prompt"].prompt_of(messages, "")
    answers: dict[str, Answer] = {}
    for response in row["responses"]:
        key = response["id"].text()
        if key in answers:
            raise response["id"].bad(f"duplicate id {key!r}; give every response a different id")
        answers[key] = Answer(response["text"].text(), response["model"].name())
    for ranking in row["rankings"]:
        ids.check(ranking["judgment_id"])
        yield _ranking(ranking, prompt, answers, rater)


def _ranking(part: Part, prompt: Prompt, answers: dict[str, Answer], rater: Rater) -> Vote:
    order = [key.text() for key in part["order"]]
    cells = list(part["ranks"])
    if len(cells) != len(order) or not order:
        raise part["ranks"].bad(f"has {len(cells)} entries where order has {len(order)}")
    for key in order:
        if key not in answers:
            raise part["order"].bad(f"unknown response {key!r}; give it among the responses")
    if len(set(order)) < len(order):
        raise part["order"].bad("duplicate response; list every response once")
    ranks: list[Rank | None] = []
    for cell in cells:
        digits = isinstance(cell.value, str) and cell.value.isdecimal() and len(cell.value) < 10
        number_cell = Part(part.row, int(cell.value), cell.field) if digits else cell
        ranks.append(None if cell.value == "" else "F" if cell.value == "F" else number_cell.rank())
    row = Row(part.fields(), part.row.file, part.row.line)
    strength = number(row, "strength") or 0.0
    weight = number(row, "weight")
    if not strength.is_integer() or abs(strength) > 4:
        raise part["strength"].bad(f"is {strength:g}; a strength is a whole number from -4 to 4")
    if weight is not None and not 0.5 <= weight <= 1:
        raise part["weight"].bad(f"is {weight:g}; a weight is between 0.5 and 1")
    margin = margin_of(weight) if weight is not None else None
    if margin is not None and len(ranks) == 2 and not _first_is_better(ranks):
        margin = -margin
    return Vote(
        row=part.row,
        prompt=prompt,
        answers=tuple(answers[key] for key in order),
        ranks=tuple(ranks),
        rater=rater_of(row, rater),
        set_id=row.optional("set_id") or "",
        principle=row.optional("principle"),
        strength=int(strength) or None,
        margin=margin,
    )


def _first_is_better(ranks: list[Rank | None]) -> bool:
    first, second = ranks
    return isinstance(first, int) and (not isinstance(second, int) or first <= second)


def rater_of(row: Row, default: Rater) -> Rater:
    """One of the columns ``RATER``, and rater_kind, else the default."""
    name = next((name for field in RATER if (name := Part(row, row.values.get(field), field).name())), "")
    kind = row.optional("rater_kind")
    if kind is not None and kind not in get_args(RaterKind):
        raise row.bad(f"is {kind!r}; one of {', '.join(get_args(RaterKind))}", "rater_kind")
    return Rater(name or default.id, kind or default.kind)  # type: ignore[arg-type]  # checked above


def why_of(row: Row) -> dict[str, Any]:
    """Comment and principles of a vote, from the columns ``reason`` and ``decided`` where these are texts, as ours are."""
    reason, decided = (value if isinstance(value := row.values.get(name), str) else "" for name in ("reason", "decided"))
    return {"comment": reason, "decided": tuple(key.strip() for key in decided.split(",") if key.strip())}


def _strength(row: Row, margin: float) -> int | None:
    strength = number(row, "strength")
    if strength:
        if not strength.is_integer() or not 1 <= strength <= 4:
            raise row.bad(f"is {strength:g}; a strength is 1 to 4 notches for chosen, or 0", "strength")
        return int(strength)
    return NOTCHES.get(round(margin, 6))
