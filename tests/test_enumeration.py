"""A world of nine answers, where the expectation of a gradient is a sum and the best policy is known."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

from charter.training.advantages import gae, rloo_advantages
from charter.training.losses import clipped_policy_loss, reinforce_loss, token_kl

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import enumerated_optimum as toy

MASK = torch.ones(1, 2, dtype=torch.bool)


def policies() -> tuple[toy.TablePolicy, toy.TablePolicy]:
    """A policy and another one as its reference."""
    return toy.TablePolicy(seed=1), toy.TablePolicy(seed=0)


def exact_gradient(policy: toy.TablePolicy, reference: toy.TablePolicy) -> list[torch.Tensor]:
    value = toy.objective(policy.distribution(), reference.distribution().detach())
    return list(torch.autograd.grad(value, list(policy.parameters())))


def assert_ascends(policy: toy.TablePolicy, loss: torch.Tensor, expected: list[torch.Tensor]) -> None:
    for found, wanted in zip(torch.autograd.grad(loss, list(policy.parameters())), expected, strict=True):
        assert torch.allclose(-found, wanted, atol=1e-10)


def test_the_expected_rloo_estimate_is_the_gradient_of_the_objective():
    policy, reference = policies()
    probability = policy.distribution().detach()
    logprobs, base = policy(toy.ANSWERS), reference(toy.ANSWERS).detach()
    total = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(range(9), repeat=2):
        rows = torch.tensor(pair)
        mask = torch.ones(2, 2, dtype=torch.bool)
        kl = token_kl(logprobs[rows].detach(), base[rows], mask).sum(dim=1)
        advantages = rloo_advantages((toy.REWARDS[rows] - toy.BETA * kl)[None]).view(-1)
        total = total + probability[rows].prod() * reinforce_loss(logprobs[rows], advantages, mask)
    assert_ascends(policy, total, exact_gradient(policy, reference))


@pytest.mark.parametrize("gae_lambda", [1.0, 0.95])
def test_the_expected_ppo_estimate_at_ratio_one_is_the_gradient_of_the_objective(gae_lambda):
    policy, reference = policies()
    probability = policy.distribution().detach()
    logprobs, base = policy(toy.ANSWERS), reference(toy.ANSWERS).detach()
    kl = token_kl(logprobs.detach(), base, torch.ones(9, 2, dtype=torch.bool))
    rewards = -toy.BETA * kl
    rewards[:, 1] += toy.REWARDS
    if gae_lambda == 1.0:  # any baseline will do
        after = torch.tensor([0.3, -1.2, 4.0], dtype=torch.float64)
        start = torch.tensor(0.7, dtype=torch.float64)
    else:  # between one-step and whole returns only the true values are unbiased
        second = torch.softmax(policy.second.detach(), 1)
        after = (second * rewards[:, 1].view(3, 3)).sum(dim=1)
        start = torch.tensor(0.0, dtype=torch.float64)
    values = torch.stack([start.expand(9), after[toy.ANSWERS[:, 0]]], dim=1)
    advantages, _ = gae(rewards, values, torch.ones(9, 2, dtype=torch.bool), 1.0, gae_lambda)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        row = slice(i, i + 1)
        loss, stats = clipped_policy_loss(logprobs[row], logprobs[row].detach(), advantages[row], MASK, 0.2, n_tokens=1)
        assert stats.ratio == 2
        total = total + probability[i] * loss
    assert_ascends(policy, total, exact_gradient(policy, reference))


def test_ppo_rloo_and_dpo_of_one_preference_end_at_the_same_enumerated_optimum():
    reference = toy.TablePolicy()
    goal = toy.optimum(reference.distribution().detach())
    assert toy.distance(reference.distribution().detach(), goal) > 0.3
    assert toy.distance(toy.train_dpo(reference), goal) < 1e-3
    assert toy.distance(toy.train_rloo(reference), goal) < 0.02
    assert toy.distance(toy.train_ppo(reference), goal) < 0.02


def test_the_optimum_is_the_best_policy_and_has_the_value_of_the_formula():
    base = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    best = toy.optimum(base, rewards, 0.5)
    assert best.tolist() == pytest.approx([0.0366667118, 0.1625594345, 0.8007738537])
    assert toy.objective(best, base, rewards, 0.5).item() == pytest.approx(1.3063693946)
    assert (best * (best / base).log()).sum().item() == pytest.approx(0.9154754944)
    assert (best * rewards).sum().item() == pytest.approx(1.7641071418)


def test_best_of_n_has_its_own_distribution_and_stays_below_its_kl_bound():
    reference = toy.TablePolicy()
    base = reference.distribution().detach()
    for n in (1, 2, 4, 16):
        analytic = toy.best_of_n(base, n)
        assert analytic.sum().item() == pytest.approx(1)
        assert toy.distance(toy.sample_best_of_n(reference, n), analytic) < 0.02
        kl = torch.special.entr(analytic).sum().neg() - (analytic * base.log()).sum()
        assert kl.item() <= torch.tensor(float(n)).log().item() - (n - 1) / n + 1e-9
