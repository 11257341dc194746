import pytest
import torch

from charter.training.rewards import AdaptiveKL, FixedKL, apply_missing_eos_penalty, at_last_token, last_token


def test_score_lands_on_the_last_response_token_wherever_the_padding_is():
    mask = torch.tensor([[False, True, True, False], [True, False, False, False], [False, False, True, True]])
    assert last_token(mask).tolist() == [2, 0, 3]
    assert at_last_token(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 3]]


def test_a_row_without_response_tokens_gets_no_reward():
    assert at_last_token(torch.tensor([5.0]), torch.zeros(1, 3, dtype=torch.bool)).sum() == 0


def test_missing_eos_costs_the_penalty():
    scores = apply_missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 2.0)
    assert scores.tolist() == [1.0, -1.0]


def test_adaptive_kl_golden_trace():
    controller = AdaptiveKL(coef=0.2, target=6, horizon=1e4)
    seen = []
    for kl in (12, 3, 6, 7):
        controller.update(kl, 256)
        seen.append(controller.coef)
    assert seen == pytest.approx([0.201024, 0.19999475712, 0.19999475712, 0.200848068084])


def test_fixed_kl_stays():
    controller = FixedKL(0.05)
    controller.update(100.0, 64)
    assert controller.coef == 0.05
