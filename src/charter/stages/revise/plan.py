"""Tokens and memory of the revise stage: answers, then a critique and a revision per round, or one more answer."""

from __future__ import annotations

import math

from charter.stages.load import Counted, Load
from charter.stages.revise.settings import ReviseSettings


def load(counted: Counted, settings: ReviseSettings) -> Load:
    work, lengths, shapes = counted.load("revise"), counted.lengths, counted.shapes
    limit = counted.shape.positions or math.inf
    rows, reply, n = counted.recipe.batch_size, settings.max_new_tokens, counted.n_revised
    work.sample_from(settings.generator, shapes, n + counted.n_helpful, lengths.prompt, reply, rows)
    n_rounds = settings.rounds if settings.context is None else 1
    if settings.context is not None:
        work.hold_named(counted, settings.generator)
        work.sample_from(settings.generator, shapes, n, lengths.prompt + lengths.context, reply, rows)
    else:
        work.hold_named(counted, settings.generator, settings.critic)
        criticised = lengths.few_shots + lengths.prompt + reply + lengths.critique
        revised = criticised + reply + lengths.revision
        for _ in range(settings.rounds):
            work.sample_from(settings.critic, shapes, n, min(criticised, limit), reply, rows)
            work.sample_from(settings.critic, shapes, n, min(revised, limit), reply, rows)
    work.ask_scorer(counted, n * (n_rounds + 1), lengths.prompt + reply)
    return work
