"""Tokens and memory of the feedback stage: responses, and a judge that reads every two of them in both orders."""

from __future__ import annotations

from charter.stages.feedback.settings import FeedbackSettings
from charter.stages.load import Counted, Load


def load(counted: Counted, settings: FeedbackSettings) -> Load:
    work, lengths, shapes = counted.load("feedback"), counted.lengths, counted.shapes
    if not settings.samples:
        return work
    n_asked, k = counted.n_asked, settings.responses_per_prompt
    together = max(1, counted.recipe.batch_size // k) * k
    work.hold_named(counted, settings.generator, *((settings.judge,) if settings.asks_judge else ()))
    work.sample_from(settings.generator, shapes, n_asked * k, lengths.prompt + lengths.stance, settings.max_new_tokens, together)
    if settings.asks_judge:
        judging(work, counted, settings)
    return work


def load_judgments(counted: Counted, settings: FeedbackSettings) -> Load:
    """The comparisons judged once more, of responses that are there."""
    work = counted.load("feedback")
    work.hold_named(counted, settings.judge)
    judging(work, counted, settings, 0)
    return work


def load_exchanged(counted: Counted, _: FeedbackSettings) -> Load:
    """Pairs with other sides: no model works."""
    return counted.load("feedback")


def judging(work: Load, counted: Counted, settings: FeedbackSettings, labelled: int | None = None) -> int:
    """Add the questions to the judge about every comparison and ``labelled`` pairs (those of the gate, by each protocol, unless
    given), each in both orders or about each of its responses; how many they are. With priorities as many as if every principle
    that applies were asked."""
    asked = 1.0
    if labelled is None:
        labelled = counted.labelled * counted.lengths.protocols
        if settings.priorities:
            asked = max(1.0, counted.lengths.applying)
            labelled += round(counted.labelled * asked)
    question = counted.lengths.comparison + 2 * settings.max_new_tokens
    each = counted.lengths.criteria if settings.protocol == "rubric" else 1
    n = round(2 * (round(counted.n_pairs * asked) + labelled) * each)
    work.compare_with(counted, settings.judge, n, question)
    return n
