"""Tokens and memory of fine-tuning: examples, revisions and helpful answers, once per epoch."""

from __future__ import annotations

from charter.stages.load import Counted, Load
from charter.stages.sft.settings import SFTSettings


def load(counted: Counted, settings: SFTSettings) -> Load:
    work, lengths, revise = counted.load("sft"), counted.lengths, counted.recipe.revise
    n, row, response = counted.examples.n, counted.examples.row, counted.examples.response
    tokens = n * row
    if revise is not None:
        revised_row = lengths.prompt + revise.max_new_tokens + 1
        tokens += (counted.n_learned + counted.n_helpful) * revised_row
        row, response = max(row, revised_row), max(response, revise.max_new_tokens + 1)
    work.hold(counted.shape, 1)
    work.train(counted.shape, settings.lora, roles=1)
    work.activate(counted.shape, settings, settings.responses_per_step, row, response, copies=3)
    work.learn(counted.shape, settings.epochs * tokens)
    return work
