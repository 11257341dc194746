import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charter.training.losses import (
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_value_loss,
    masked_mean,
    reinforce_loss,
    sft_loss,
    token_kl,
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
    assert bradley_terry_loss(row(chosen + shift), row(rejected + shift)).item() == pytest.approx(
        plain.item(), abs=1e-9
    )


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
