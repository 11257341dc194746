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
    work.sample_from(settings.generator, shapes, n_asked * k, lengths.prompt, settings.max_new_tokens, together)
    if settings.asks_judge:
        judging(work, counted, settings)
    return work


def judging(work: Load, counted: Counted, settings: FeedbackSettings) -> int:
    """Add the questions to the judge about every comparison and every labelled pair; how many they are."""
    question = counted.lengths.comparison + 2 * settings.max_new_tokens
    protocols = 2 if settings.protocol == "auto" else 1
    n = 2 * (counted.n_pairs + counted.labelled * protocols)  # each comparison in both orders, or each of its responses
    work.choose_with(settings.judge, counted.shapes, n, question, counted.written(settings.judge))
    return n
