import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charter.training.advantages import gae, group_advantages, importance_weights, rloo_advantages, whiten

REWARDS = torch.tensor([[-0.01, 0.02, -0.03, 1.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.4, 0.3, 0.2]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [(0.95, [0.382575, 0.5185, 0.63, 0.8]), (1.0, [0.48, 0.59, 0.67, 0.8]), (0.0, [-0.11, -0.08, -0.13, 0.8])],
)
def test_gae_golden_vectors(gae_lambda, expected):
    advantages, returns = gae(REWARDS, VALUES, ALL, 1.0, gae_lambda)
    assert advantages[0].tolist() == pytest.approx(expected)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, VALUES[0].tolist(), strict=True)])


def test_lambda_one_is_reward_to_go_minus_value():
    advantages, _ = gae(REWARDS, VALUES, ALL, 1.0, 1.0)
    to_go = REWARDS.flip(1).cumsum(1).flip(1)
    assert torch.allclose(advantages, to_go - VALUES)


@given(st.lists(st.booleans(), min_size=4, max_size=9).filter(lambda m: sum(m) == 4))
def test_gae_is_unchanged_by_masked_tokens_inserted_anywhere(places):
    mask = torch.tensor([places])
    rewards = torch.full(mask.shape, 7.0, dtype=torch.float64)
    values = torch.full(mask.shape, -3.0, dtype=torch.float64)
    rewards[mask], values[mask] = REWARDS[0], VALUES[0]
    spread, returns = gae(rewards, values, mask, 0.9, 0.95)
    packed, packed_returns = gae(REWARDS, VALUES, ALL, 0.9, 0.95)
    assert torch.allclose(spread[mask], packed[0])
    assert torch.allclose(returns[mask], packed_returns[0])
    assert (spread[~mask] == 0).all()


def test_whiten_golden_vectors():
    values = torch.tensor([[0.382575, 0.5185, 0.63, 0.8]], dtype=torch.float64)
    biased = whiten(values, ALL, unbiased=False)
    assert biased[0].tolist() == pytest.approx([-1.3085099875, -0.4200745591, 0.3087137453, 1.4198708012])
    unbiased = whiten(values, ALL)
    assert unbiased[0].tolist() == pytest.approx([-1.1332029508, -0.363795259, 0.2673539602, 1.2296442496])


def test_whitening_looks_at_response_tokens_only():
    values = torch.tensor([[1.0, 2.0, 3.0, 1e6]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    whitened = whiten(values, mask)
    assert whitened[0, 3] == 0
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-12)


def test_rloo_golden_vector_and_two_siblings():
    assert rloo_advantages(torch.tensor([[1.0, 2, 3, 6]]))[0].tolist() == pytest.approx([-8 / 3, -4 / 3, 0, 4])
    assert rloo_advantages(torch.tensor([[1.0, 4.0]]))[0].tolist() == pytest.approx([-3, 3])


@given(st.floats(-10, 10, allow_nan=False), st.integers(2, 16))
def test_a_group_of_equal_scores_has_advantage_exactly_zero(constant, k):
    assert (rloo_advantages(torch.full((3, k), constant)) == 0).all()


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.floats(-5, 5), st.randoms())
def test_rloo_ignores_a_constant_and_follows_a_permutation(scores, constant, random):
    base = rloo_advantages(torch.tensor([scores], dtype=torch.float64))
    shifted = rloo_advantages(torch.tensor([scores], dtype=torch.float64) + constant)
    assert torch.allclose(base, shifted, atol=1e-9)
    order = list(range(len(scores)))
    random.shuffle(order)
    permuted = rloo_advantages(torch.tensor([[scores[i] for i in order]], dtype=torch.float64))
    assert torch.allclose(permuted, base[:, order], atol=1e-9)


def test_rloo_refuses_a_lonely_response():
    with pytest.raises(ValueError, match="at least 2"):
        rloo_advantages(torch.zeros(3, 1))


def test_grpo_and_dr_grpo_golden_vectors():
    scores = torch.tensor([[1.0, 2, 3, 6]], dtype=torch.float64)
    scaled = group_advantages(scores, scale_by_std=True)[0].tolist()
    assert scaled == pytest.approx([-0.9257772446, -0.4628886223, 0, 1.3886658669])
    assert group_advantages(scores, scale_by_std=False)[0].tolist() == pytest.approx([-2, -1, 0, 3])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_rloo_is_dr_grpo_times_k_over_k_minus_one(scores):
    k, group = len(scores), torch.tensor([scores], dtype=torch.float64)
    assert torch.allclose(rloo_advantages(group), group_advantages(group, scale_by_std=False) * k / (k - 1))


@given(st.floats(0.05, 1.2), st.integers(2, 16), st.booleans())
def test_equal_scores_of_any_constant_have_no_advantage_in_float32(constant, k, scaled):
    group = torch.full((1, k), constant, dtype=torch.float32)
    assert (group_advantages(group, scale_by_std=scaled) == 0).all()


@pytest.mark.parametrize("constant", [0.1, 0.3, 0.9])
def test_one_of_eight_stands_out_by_the_same_advantage_whatever_the_constant(constant):
    group = torch.full((1, 8), constant)
    group[0, 3] += 1
    found = group_advantages(group, scale_by_std=True)[0]
    assert found[3].item() == pytest.approx(2.4748, abs=1e-3)
    assert found[0].item() == pytest.approx(-0.3535, abs=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.floats(0.5, 20))
def test_a_scale_of_the_rewards_scales_dr_grpo(scores, scale):
    group = torch.tensor([scores], dtype=torch.float64)
    plain = group_advantages(group, scale_by_std=False)
    assert torch.allclose(group_advantages(group * scale, scale_by_std=False), plain * scale, atol=1e-9)


def test_groups_of_one_are_refused():
    for advantages in (rloo_advantages, lambda s: group_advantages(s, scale_by_std=True)):
        with pytest.raises(ValueError, match="at least 2"):
            advantages(torch.ones(3, 1))


def test_a_token_weighs_how_much_likelier_the_trainer_finds_it_up_to_the_cap():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5, -7.0]])
    sampler = torch.tensor([[-1.0, -2.5, -3.0, -1.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = importance_weights(logprobs, sampler, mask, 2.0)
    assert found[0].tolist() == pytest.approx([1.0, math.exp(0.5), 2.0, 1.0])


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=6), st.integers(0, 1000))
def test_without_a_cap_the_weights_turn_the_samplers_mean_into_the_policys(logits, seed):
    generator = torch.Generator().manual_seed(seed)
    policy = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0)
    sampler = torch.log_softmax(policy + 0.3 * torch.randn(len(logits), generator=generator, dtype=torch.float64), 0)
    values = torch.randn(len(logits), generator=generator, dtype=torch.float64)
    weights = importance_weights(policy, sampler, torch.ones(len(logits), dtype=torch.bool), math.inf)
    assert float((sampler.exp() * weights * values).sum()) == pytest.approx(float((policy.exp() * values).sum()))
