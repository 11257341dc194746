"""Published votes that say who gave them, so that raters and groups of raters can be told apart: PRISM, Community Alignment,
MultiPref and HelpSteer3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from charter.reading.forms import LeftOut
from charter.records import Message, Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import NO_TEXT, UNKNOWN, Answer, Part, Unique, Vote, ranks_of_scores
from charter.votes.winners import NO_VERDICT, RANKS

FEW_SCORES = "a turn with fewer than two scored answers"
NOT_SCORED = "an answer without a score"
NOT_MARKED = "turns after one whose chosen answer is not marked"
REPEATED = "the id of an earlier row"
GAP = "turns after one that is missing"
ATTRIBUTES = "ratings of attributes (performance_attributes, choice_attributes), which are about no single answer"
ASPECTS = "preferences by aspect (helpful, truthful, harmless) beside the overall one"
NO_SINGLE_VOTES = "no preference of a single annotator"
PARTS = ("helpful", "truthful", "harmless")
TURNS, LETTERS = ("first", "second", "third", "fourth"), "abcd"
END = "<|end_of_text|>"  # at the end of some answers of Community Alignment: a token of the model and no text
STEPS = {"A-is-clearly-better": 3, "A-is-slightly-better": 2, "Tie": 0, "B-is-slightly-better": -2, "B-is-clearly-better": -3}
NOTCHES = {1: 2, 2: 3, 3: 4}
"""Notches of HelpSteer3's slightly better, better and much better: the weakest notch is what its 0, about the same, is for."""


def read_prism(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A row of ``conversations.jsonl`` (Kirk et al. 2024): the answers to each turn of ``conversation_history`` are ranked by
    their ``score`` (1 to 100), equal scores are a tie, and the dialogue continues from the answer with ``if_chosen``. An answer
    without a score was not compared and is left out. The comment of the last vote is ``open_feedback``, written at the end."""
    _check_new(row["conversation_id"], ids)
    turns: dict[Any, list[Part]] = {}
    for message in row["conversation_history"]:
        turns.setdefault(message["turn"].value, []).append(message)
    votes: list[Vote] = []
    dialogue: tuple[Message, ...] = ()
    user = row["user_id"].name()
    for number, messages in turns.items():
        asked = next((message for message in messages if message["role"].value == "user"), None)
        if asked is None:
            raise row["conversation_history"].bad(f"turn {number} has no message of the role user")
        answers = [message for message in messages if message is not asked]
        question = asked["content"].text()
        if not question.strip():
            raise asked["content"].left_out(NO_TEXT)
        dialogue = (*dialogue, Message(role="user", content=question))
        scored = [(message, score) for message in answers if (score := _score(message["score"])) is not None]
        if len(scored) < 2:
            yield asked.left_out(FEW_SCORES)
        else:
            yield from [asked.left_out(NOT_SCORED)] * (len(answers) - len(scored))
            votes.append(Vote(
                row=row.row, prompt=asked.prompt_of(dialogue, "prism"), ranks=ranks_of_scores([score for _, score in scored]),
                answers=tuple(Answer(one["content"].text(), one["model_name"].name() or UNKNOWN) for one, _ in scored),
                rater=Rater(user, rater.kind) if user else rater,
            ))  # fmt: skip
        chosen = next((message for message in answers if message["if_chosen"].value is True), None)
        if chosen is None:
            if number != next(reversed(turns)):
                yield asked.left_out(NOT_MARKED)
            break
        dialogue = (*dialogue, Message(role="assistant", content=chosen["content"].text()))
    if row["performance_attributes"].value or row["choice_attributes"].value:
        yield row.left_out(ATTRIBUTES)
    feedback = row["open_feedback"].name().strip()
    yield from votes[:-1]
    yield from (Vote(**{**vars(vote), "comment": feedback}) for vote in votes[-1:])


def read_community(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A row of Community Alignment (Zhang et al. 2025): up to four turns, each with four answers, the letter of the preferred one
    and the annotator's reason. The preferred answer is ranked and the others are not, so it beats each of them, and two
    others are not compared."""
    _check_new(row["conversation_id"], ids)
    dialogue: tuple[Message, ...] = ()
    annotator = row["annotator_id"].name()
    for place, turn in enumerate(TURNS):
        asked, preferred = (_filled(row[f"{turn}_turn_{name}"]) for name in ("prompt", "preferred_response"))
        texts = [_filled(row[f"{turn}_turn_response_{letter}"]).removesuffix(END) for letter in LETTERS]
        if not asked or not preferred or not all(texts):
            if not place:
                yield row[f"{turn}_turn_preferred_response"].left_out(NO_VERDICT if asked and all(texts) else NO_TEXT)
            elif any(_filled(row[f"{later}_turn_preferred_response"]) for later in TURNS[place:]):
                yield row[f"{turn}_turn_prompt"].left_out(GAP)
            break
        chosen = LETTERS.find(preferred.removeprefix("response_"))
        if chosen < 0 or len(preferred.removeprefix("response_")) != 1:
            raise row[f"{turn}_turn_preferred_response"].bad(f"is {preferred[:40]!r}; use response_a to response_d")
        dialogue = (*dialogue, Message(role="user", content=asked))
        ranks: tuple[Rank | None, ...] = tuple(1 if place == chosen else None for place in range(len(texts)))
        yield Vote(
            row=row.row, prompt=row[f"{turn}_turn_prompt"].prompt_of(dialogue, "community-alignment"), ranks=ranks,
            answers=tuple(map(Answer, texts)), comment=_filled(row[f"{turn}_turn_feedback"]),
            rater=Rater(f"annotator-{annotator}", rater.kind) if annotator else rater,
        )  # fmt: skip
        dialogue = (*dialogue, Message(role="assistant", content=texts[chosen]))


def read_multipref(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A row of MultiPref (Miranda et al. 2024): a vote for each annotation with an ``overall_pref``. Raters are named
    ``normal-`` or ``expert-`` and their ``evaluator``; the reasons that they wrote or ticked are the comment."""
    _check_new(row["comparison_id"], ids)
    prompt = row["text"].prompt("multipref")
    answers = tuple(Answer(row[f"completion_{side}"].text(), row[f"model_{side}"].name() or UNKNOWN) for side in "ab")
    for kind in ("normal", "expert"):
        given = row[f"{kind}_worker_annotations"]
        for annotation in given if given.value is not None else ():
            preferred = annotation["overall_pref"].value
            if preferred in (None, ""):
                yield annotation.left_out(NO_VERDICT)
                continue
            if preferred not in STEPS:
                raise annotation["overall_pref"].bad(f"is {str(preferred)[:40]!r}; use {', '.join(STEPS)}")
            evaluator = annotation["evaluator"].name()
            if any(annotation[f"{aspect}_pref"].value for aspect in PARTS):
                yield annotation.left_out(ASPECTS)
            who = Rater(f"{kind}-{evaluator}", rater.kind) if evaluator else rater
            yield _graded(row, prompt, answers, STEPS[preferred], who, comment=_reasons(annotation),
                          seconds=_score(annotation["time_spent"]))  # fmt: skip


def read_helpsteer3(row: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row of HelpSteer3-Preference (Wang et al. 2025): a vote for each of ``individual_preference``, whose ``score`` runs from
    -3, response 1 is much better, to 3; the ``reasoning`` is the comment. The file does not name its annotators: the raters
    ``helpsteer3-1``, ``-2`` … are places in the list. ``overall_preference`` is made from these votes and not read."""
    prompt = row["context"].prompt("helpsteer3")
    answers = tuple(Answer(row[f"response{n}"].text()) for n in (1, 2))
    given = row["individual_preference"]
    if not given.value:
        yield given.left_out(NO_SINGLE_VOTES)
        return
    for place, preference in enumerate(given, start=1):
        score = preference["score"].value
        if score is None:
            yield preference.left_out(NO_VERDICT)
            continue
        if not isinstance(score, (int, float)) or score not in range(-3, 4):
            raise preference["score"].bad(f"is {score!r}; a score is a whole number from -3 to 3")
        step = NOTCHES.get(abs(int(score)), 0) * (1 if score < 0 else -1)
        yield _graded(row, prompt, answers, step, Rater(f"{rater.id}-{place}", rater.kind),
                      comment=preference["reasoning"].name().strip())  # fmt: skip


def _graded(row: Part, prompt: Any, answers: tuple[Answer, ...], step: int, rater: Rater, **more: Any) -> Vote:
    """A vote on two answers, in notches for the first of them; 0 is a tie."""
    ranks = RANKS[(step > 0) - (step < 0)]
    return Vote(row=row.row, prompt=prompt, answers=answers, ranks=ranks, rater=rater, kind="pair", strength=step or None, **more)


def _score(part: Part) -> float | None:
    """A number of at least 0, None where there is none."""
    value = part.value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf") else None


def _filled(part: Part) -> str:
    """A text; "" where the cell is empty or says so."""
    text = part.name().strip()
    return "" if text == "EMPTY STRING" else text


def _reasons(annotation: Part) -> str:
    """The reasons of an annotation, ticked or written, by aspect in one text."""
    rows = []
    for aspect in ("overall", *PARTS):
        cells = [annotation[f"{aspect}_{kind}"] for kind in ("checked_reasons", "own_reason")]
        words = [one.name().strip() for cell in cells if cell.value for one in (cell if isinstance(cell.value, list) else [cell])]
        if any(words):
            rows.append(f"{aspect}: {', '.join(filter(None, words))}")
    return "; ".join(rows)


def _check_new(part: Part, ids: Unique) -> None:
    """LeftOut if an earlier row had this id."""
    if part.value is not None and ids.known(part.name()):
        raise part.left_out(REPEATED)
