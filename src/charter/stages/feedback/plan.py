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
        ask_judge(counted, settings, work, counted.labelled * (2 if settings.protocol == "auto" else 1))
    return work


def load_judgments(counted: Counted, settings: FeedbackSettings) -> Load:
    """The comparisons judged once more, of responses that are there."""
    work = counted.load("feedback")
    work.hold_named(counted, settings.judge)
    ask_judge(counted, settings, work, 0)
    return work


def ask_judge(counted: Counted, settings: FeedbackSettings, work: Load, labelled: int) -> None:
    """Each comparison in both orders, or each of its responses; and ``labelled`` pairs of the gate."""
    question = counted.lengths.comparison + 2 * settings.max_new_tokens
    written = counted.written(settings.judge)
    work.choose_with(settings.judge, counted.shapes, 2 * (counted.n_pairs + labelled), question, written)
