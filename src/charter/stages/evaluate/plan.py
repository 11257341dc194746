"""Tokens and memory of the evaluation: answers of each arm, read by the models and by the scorer."""

from __future__ import annotations

from charter.judging.protocols import REASON_TOKENS
from charter.stages.evaluate.settings import EvaluationSettings
from charter.stages.load import Counted, Load


def load(counted: Counted, settings: EvaluationSettings) -> Load:
    work, shape, lengths = counted.load("evaluate"), counted.shape, counted.lengths
    n_test = counted.n_prompts("test") * settings.samples_per_prompt
    row = lengths.prompt + settings.max_new_tokens + 1
    n_arms = 1 + (counted.recipe.sft is not None) + (counted.recipe.rl is not None) + len(counted.recipe.controls)
    work.hold(shape, n_arms)
    work.hold_classifiers(counted, (measure.source for measure in settings.measures.values()))
    for _ in range(n_arms):
        work.sample(shape, n_test, lengths.prompt, settings.max_new_tokens, counted.recipe.batch_size)
    if settings.best_of is not None:
        work.hold(counted.reward_shape, 1)  # the reward model's own
        work.sample(shape, n_test * settings.best_of, lengths.prompt, settings.max_new_tokens, counted.recipe.batch_size)
        work.score(shape, n_test * settings.best_of * row)
    # Each arm under itself and the base, the policy under the SFT model too.
    work.score(shape, (2 * n_arms + (n_arms == 3)) * n_test * row)
    if settings.judge is not None:  # in both orders
        n_judged = 2 * (n_arms - 1 + (settings.best_of is not None)) * n_test
        question = row + settings.max_new_tokens + lengths.question
        if counted.recipe.feedback is not None and counted.recipe.feedback.protocol == "reasoned":
            work.sample_from(settings.judge, counted.shapes, n_judged, question, REASON_TOKENS, 2 * counted.recipe.batch_size)
            question += REASON_TOKENS
        work.choose_with(settings.judge, counted.shapes, n_judged, question, counted.written(settings.judge))
    if settings.adherence is not None:  # about each prompt that is sorted under a principle, so about all at most
        n_asked = (n_arms + (settings.best_of is not None)) * n_test
        work.choose_with(settings.adherence, counted.shapes, n_asked, row + lengths.question,
                         counted.written(settings.adherence))  # fmt: skip
    work.ask_scorer(counted, (n_arms + (settings.best_of is not None)) * n_test, row)
    return work
