"""Tokens and memory of the reward model: both sides of every pair, trained on in each epoch and read to measure."""

from __future__ import annotations

from charter.stages.load import Counted, Load
from charter.stages.reward_model.settings import RewardModelSettings


def load(counted: Counted, settings: RewardModelSettings) -> Load:
    work, shape, n_pairs = counted.load("reward_model"), counted.reward_shape, counted.n_pairs
    row, response = counted.pair_row
    n_train = round(n_pairs * (1 - settings.test_fraction))
    work.hold(shape, 1)
    work.train(shape, settings.lora, roles=settings.ensemble, scores=True)
    work.activate(
        shape, settings, 2 * min(settings.pairs_per_step, n_pairs), row, response, copies=0, read=n_pairs * 2 * row, siblings=2
    )
    work.learn(shape, settings.ensemble * settings.epochs * n_train * 2 * row)
    work.score(shape, settings.ensemble * (n_pairs + counted.labelled) * 2 * row)
    return work
