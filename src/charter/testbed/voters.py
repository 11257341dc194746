"""Simulated voters of the testbed: people who follow known principles, and now and then err."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from charter.errors import InputError
from charter.records import Prompt, Record
from charter.testbed import corpus as made
from charter.testbed import language as lang
from charter.testbed import principles as rules

HARM_SHARE = 0.6


class SimulatedVote(Record):
    """A vote in the form in which ``charter import`` reads pairs."""

    prompt: Prompt
    chosen: str
    rejected: str
    rater_id: str
    rater_kind: str = "human"


def simulate_votes(planted: Sequence[str], n: int, seed: int, *, noise: float = 0.1, rater: str = "voter") -> list[SimulatedVote]:
    """``n`` votes on held-out requests, each on two replies of different levels.

    A planted principle decides where one of the replies has a problem under it and the other has none
    (:func:`charter.testbed.principles.applies`). The voter follows one of those that decide, drawn by chance, and votes for the
    other reply with probability ``noise``; where none decides a coin does. InputError for an unknown principle.
    """
    for name in planted:
        if name not in rules.PRINCIPLES:
            raise InputError(f"unknown principle {name!r}; use {', '.join(rules.PRINCIPLES)}")
    rng = Random(f"votes:{seed}:{rater}")
    return [draw_vote(rng, planted, noise, rater) for _ in range(n)]


def draw_vote(rng: Random, planted: Sequence[str], noise: float, rater: str) -> SimulatedVote:
    """One vote."""
    request, action = made.draw_case(rng, "test", HARM_SHARE)
    first, second = rng.sample(lang.HARM_LEVELS if action.harmful else lang.HELP_LEVELS, 2)
    better = better_of(rng, planted, action, first, second)
    if better is None:
        better = rng.choice((first, second))
    elif rng.random() < noise:
        better = second if better == first else first
    worse = second if better == first else first
    prompt = Prompt.ask(request, source="testbed", tags=("red_team" if action.harmful else "benign",))
    return SimulatedVote(
        prompt=prompt, chosen=made.reply(rng, action, better), rejected=made.reply(rng, action, worse), rater_id=rater
    )


def better_of(rng: Random, planted: Sequence[str], action: lang.Action, first: str, second: str) -> str | None:
    """The level that a principle prefers, one of those that decide by chance; None if none does."""
    preferred = []
    for principle in planted:
        bad_first, bad_second = (rules.applies(principle, action.area, action.harmful, level) for level in (first, second))
        if bad_first != bad_second:
            preferred.append(second if bad_first else first)
    return rng.choice(preferred) if preferred else None


def candidate_rows(n_wordings: int, seed: int) -> list[dict[str, Any]]:
    """Every principle in ``n_wordings`` wordings, each a preference text and a question about one reply, as fields of a
    principle of a constitution, for the kind of request to which it applies. The ids are NAME-1, NAME-2, …"""
    rows: list[dict[str, Any]] = []
    for principle in rules.PRINCIPLES:
        rng = Random(f"candidates:{seed}:{principle}")
        preferences = rng.sample(rules.wordings(principle, "preference"), n_wordings)
        questions = rng.sample(rules.wordings(principle, "critique"), n_wordings)
        for number, ((preference, _), (question, bad_is_yes)) in enumerate(zip(preferences, questions, strict=True), start=1):
            rows.append({"id": f"{principle.replace(' ', '-')}-{number}", "title": principle, "preference": preference,
                         "question": question, "good_answer": "no" if bad_is_yes else "yes", "source": "testbed",
                         "tags": ["benign" if principle == "helpful" else "red_team"]})  # fmt: skip
    return rows
