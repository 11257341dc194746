import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charter.training.losses import (
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_value_loss,
    expectile_loss,
    kl_penalty,
    masked_mean,
    reinforce_loss,
    sft_loss,
    token_kl,
    token_weights,
)

finite = st.floats(-8, 8, allow_nan=False)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_tied_scores_cost_log_two_whatever_the_label():
    for weight in (1.0, 0.8, 0.5):
        assert bradley_terry_loss(row(0.3), row(0.3), weight).item() == pytest.approx(math.log(2))


def test_soft_label_golden_values():
    assert bradley_terry_loss(row(0.7), row(0.0)).item() == pytest.approx(0.403186048885)
    assert bradley_terry_loss(row(0.7), row(0.0), 0.8).item() == pytest.approx(0.543186048885)


@given(finite, finite, finite)
def test_only_the_difference_of_scores_matters(chosen, rejected, shift):
    plain = bradley_terry_loss(row(chosen), row(rejected))
    assert bradley_terry_loss(row(chosen + shift), row(rejected + shift)).item() == pytest.approx(plain.item(), abs=1e-9)


def test_swapping_a_pair_flips_the_gradient():
    a, b = row(0.4).requires_grad_(), row(0.1).requires_grad_()
    bradley_terry_loss(a, b).sum().backward()
    assert a.grad.item() < 0 < b.grad.item()
    assert a.grad.item() == pytest.approx(-b.grad.item())


def test_half_label_has_no_gradient_at_a_tie_and_margin_and_centering_have_one():
    score = row(0.0).requires_grad_()
    bradley_terry_loss(score, row(0.0), 0.5).sum().backward()
    assert score.grad.item() == 0
    for settings in ({"margin": 1.0}, {"centering": 0.1}):
        score = row(0.5).requires_grad_()
        bradley_terry_loss(score, row(0.5), **settings).sum().backward()
        base = row(0.5).requires_grad_()
        bradley_terry_loss(base, row(0.5)).sum().backward()
        assert score.grad.item() != base.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.3, 1, -1.2), (1.3, -1, 1.3), (0.7, 1, -0.7), (0.7, -1, 0.8), (5, -1, 5)]
)
def test_policy_loss_golden_values(ratio, advantage, loss):
    value, _ = clipped_policy_loss(row(math.log(ratio)), row(0.0), row(advantage), torch.tensor([[True]]), 0.2)
    assert value.item() == pytest.approx(loss)


def test_policy_statistics_are_sums_over_response_tokens_only():
    logprobs, mask = row(math.log(1.5), 0.0, 9.0), torch.tensor([[True, True, False]])
    _, stats = clipped_policy_loss(logprobs, row(0, 0, 0), row(1, 1, 1), mask, 0.2)
    assert stats.ratio == pytest.approx(2.5)
    assert (stats.clipped, stats.n_tokens) == (1, 2)
    assert stats.approx_kl == pytest.approx(0.5 * math.log(1.5) ** 2)


def test_a_clipped_token_has_no_gradient():
    logprobs = row(math.log(1.5), math.log(1.1)).requires_grad_()
    loss, _ = clipped_policy_loss(logprobs, row(0, 0), row(1, 1), torch.tensor([[True, True]]), 0.2)
    loss.backward()
    assert logprobs.grad[0, 0] == 0
    assert logprobs.grad[0, 1] < 0


def test_value_loss_golden_values():
    one = torch.tensor([[True]])
    assert clipped_value_loss(row(1.0), row(0.5), row(1.2), one, 0.2).item() == pytest.approx(0.125)
    assert clipped_value_loss(row(1.23), row(1.23), row(1.87), one, 0.2).item() == pytest.approx(0.5 * 0.64**2)


def test_reinforce_takes_the_response_as_one_action():
    logprobs = row(-1.0, -2.0, -7.0).requires_grad_()
    loss = reinforce_loss(logprobs, torch.tensor([2.0]), torch.tensor([[True, True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(6.0)
    assert logprobs.grad.tolist() == [[-2.0, -2.0, 0.0]]


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=2, max_size=6), st.data())
def test_micro_batches_weighted_by_tokens_add_up_to_the_batch(rows, data):
    values = torch.tensor(rows, dtype=torch.float64)
    mask = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3),
                                           min_size=len(rows), max_size=len(rows))))  # fmt: skip
    cut = data.draw(st.integers(1, len(rows) - 1))
    n = int(mask.sum())
    parts = sft_loss(values[:cut], mask[:cut], n) + sft_loss(values[cut:], mask[cut:], n)
    assert parts.item() == pytest.approx(sft_loss(values, mask).item(), abs=1e-9)


def test_an_empty_mask_costs_nothing():
    values = row(1.0, 2.0).requires_grad_()
    loss = masked_mean(values, torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert values.grad.abs().sum() == 0


def test_token_kl_is_k1_on_response_tokens():
    kl = token_kl(row(-1, -2, -0.5), row(-1.2, -1.5, -0.5), torch.tensor([[True, True, False]]))
    assert kl.tolist()[0] == pytest.approx([0.2, -0.5, 0.0])


def test_k1_in_the_reward_has_the_gradient_of_the_exact_kl_and_k1_in_the_loss_has_none():
    theta = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    truth = torch.tensor([-0.1731814013, -0.0755708152, 0.2487522165], dtype=torch.float64)
    logprobs = torch.log_softmax(theta, 0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    assert exact.item() == pytest.approx(0.1202094428)
    assert torch.allclose(torch.autograd.grad(exact, theta, retain_graph=True)[0], truth, atol=1e-9)
    one = torch.ones(3, dtype=torch.bool)
    kl = token_kl(logprobs, reference, one)
    in_reward = (logprobs.exp().detach() * kl.detach() * logprobs).sum()
    assert torch.allclose(torch.autograd.grad(in_reward, theta, retain_graph=True)[0], truth, atol=1e-9)
    in_loss = (logprobs.exp().detach() * kl).sum()
    assert torch.autograd.grad(in_loss, theta)[0].abs().max() < 1e-12


# -- the gradient of each KL estimator, by enumeration ----------------------------------------------------------------------

THETA, REFERENCE = (0.2, -0.1, 0.4), (0.5, 0.3, 0.2)
TRUTH = [-0.1731814013, -0.0755708152, 0.2487522165]


def enumerated(term):
    """Expected value and gradient of ``term(logprobs, reference, rollout)`` over the three tokens, drawn from the policy."""
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(theta, 0)
    reference = torch.tensor(REFERENCE, dtype=torch.float64).log()
    drawn = logprobs.detach()
    value = (drawn.exp() * term(logprobs, reference, drawn)).sum()
    return value.item(), torch.autograd.grad(value, theta)[0].tolist()


def in_the_loss(estimator):
    def term(logprobs, reference, drawn):
        mask = torch.ones(1, 3, dtype=torch.bool)
        return kl_penalty(logprobs[None], reference[None], drawn[None], mask, estimator)[0]

    return term


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k2", 0.1380989198, TRUTH),
        ("weighted_k3", 0.1202094428, TRUTH),
        ("forward_kl", 0.1202094428, [-0.1624154622, -0.0499112234, 0.2123266856]),
    ],
)
def test_what_each_kl_estimator_in_the_loss_really_pulls_at(estimator, value, gradient):
    found, pulled = enumerated(in_the_loss(estimator))
    assert found == pytest.approx(value, abs=1e-9)
    assert pulled == pytest.approx(gradient, abs=1e-9)


def test_k1_in_the_reward_has_the_right_gradient_and_in_the_loss_none():
    def in_the_reward(logprobs, reference, drawn):  # score function: the reward is a constant to the gradient
        return token_kl(drawn[None], reference[None], torch.ones(1, 3, dtype=torch.bool))[0] * logprobs

    assert enumerated(in_the_reward)[1] == pytest.approx(TRUTH, abs=1e-9)
    assert enumerated(lambda logprobs, reference, _: logprobs - reference)[1] == pytest.approx([0, 0, 0], abs=1e-12)
    with pytest.raises(ValueError, match="expected gradient zero"):
        enumerated(in_the_loss("k1"))


def test_kl_estimators_golden_values_and_zero_outside_the_mask():
    logprobs, reference = row(-1, -2, -0.5, 3.0), row(-1.2, -1.5, -0.5, 9.0)
    mask = torch.tensor([[True, True, True, False]])
    assert kl_penalty(logprobs, reference, logprobs, mask, "k2")[0].tolist() == pytest.approx([0.02, 0.125, 0, 0])
    for estimator in ("weighted_k3", "forward_kl"):
        k3 = kl_penalty(logprobs, reference, logprobs, mask, estimator)[0].tolist()
        assert k3 == pytest.approx([0.0187307531, 0.1487212707, 0, 0])


@given(finite, finite)
def test_k3_is_never_negative(logprob, reference):
    one = torch.tensor([[True]])
    assert kl_penalty(row(logprob), row(reference), row(logprob), one, "forward_kl").item() >= -1e-12


def test_the_mean_of_sampled_k1_and_k3_is_the_kl_of_the_whole_vocabulary():
    generator = torch.Generator().manual_seed(0)
    policy = torch.log_softmax(torch.randn(50, generator=generator, dtype=torch.float64), 0)
    reference = torch.log_softmax(torch.randn(50, generator=generator, dtype=torch.float64), 0)
    exact = (policy.exp() * (policy - reference)).sum().item()
    drawn = torch.multinomial(policy.exp(), 40_000, replacement=True, generator=generator)
    mask = torch.ones(1, len(drawn), dtype=torch.bool)
    chosen, other = policy[drawn][None], reference[drawn][None]
    for samples in (token_kl(chosen, other, mask), kl_penalty(chosen, other, chosen, mask, "forward_kl")):
        error = samples.std().item() / len(drawn) ** 0.5
        assert abs(samples.mean().item() - exact) < 3 * error


# -- what a token weighs ------------------------------------------------------------------------------------------------------


def test_token_weights_of_the_three_averages():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    counts = {"n_tokens": 3, "n_responses": 2, "max_new_tokens": 4}
    assert token_weights(mask, "token", **counts)[mask].tolist() == pytest.approx([1 / 3] * 3)
    assert token_weights(mask, "response", **counts)[mask].tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert token_weights(mask, "constant", **counts)[mask].tolist() == pytest.approx([1 / 8] * 3)


def test_weights_by_token_are_the_mean_over_tokens_and_the_upper_clip_is_its_own():
    logprobs, mask = row(math.log(1.3), math.log(0.5)), torch.tensor([[True, True]])
    weights = token_weights(mask, "token", n_tokens=2, n_responses=1, max_new_tokens=2)
    plain, _ = clipped_policy_loss(logprobs, row(0, 0), row(1, -1), mask, 0.2)
    weighted, _ = clipped_policy_loss(logprobs, row(0, 0), row(1, -1), mask, 0.2, weights=weights)
    assert plain.item() == pytest.approx(weighted.item())
    wider, stats = clipped_policy_loss(logprobs, row(0, 0), row(1, -1), mask, 0.2, clip_coef_high=0.4)
    assert wider.item() == pytest.approx((-1.3 + 0.8) / 2)
    assert stats.clipped == 1


def test_weights_of_tokens_scale_their_part_of_the_reinforce_gradient():
    logprobs = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    weights = torch.tensor([[0.5, 2.0], [1.0, 9.0]])
    reinforce_loss(logprobs, torch.tensor([2.0, -1.0]), mask, weights=weights).backward()
    assert logprobs.grad.tolist() == [[-0.5, -2.0], [0.5, 0.0]]


def test_an_expectile_weighs_targets_above_the_value_by_tau_and_those_below_by_the_rest():
    mask = torch.tensor([[True, True, False]])
    loss = expectile_loss(row(0.0, 0.0, 0.0), row(2.0, -1.0, 9.0), mask, 0.9)
    assert loss.item() == pytest.approx((0.9 * 4 + 0.1 * 1) / 2)
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for tau, best in ((0.5, 0.5), (0.9, 1.7), (0.99, 1.97)):  # of the targets 2 and -1: (1 - τ)(v + 1) = τ (2 - v)
        expectile_loss(value.expand(1, 3) + best, row(2.0, -1.0, 9.0), mask, tau).backward()
        assert value.grad.item() == pytest.approx(0, abs=1e-6)
