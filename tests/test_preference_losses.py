"""The DPO family: values computed by hand, symmetries, gradients, limits."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.stages.rl.settings import DPOSettings
from charter.training.methods.dpo import pair_losses, reference_point, sequence_logprobs
from charter.training.preference_losses import (
    LOSSES,
    REFERENCE_FREE,
    PairLogprobs,
    dpo_loss,
    kto_loss,
    kto_reference_point,
    simpo_loss,
)
from conftest import save_random_model

logprob = st.floats(-30, -0.1)
NAMES = sorted(LOSSES)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden(**changes: torch.Tensor) -> PairLogprobs:
    values = {
        "chosen": vector(-10.0), "rejected": vector(-14.0), "reference_chosen": vector(-11.0),
        "reference_rejected": vector(-12.0), "chosen_tokens": vector(5.0), "rejected_tokens": vector(8.0),
    }  # fmt: skip
    return PairLogprobs(**(values | changes))


@pytest.mark.parametrize(
    ("name", "weight", "beta", "expected"),
    [
        ("dpo", 1.0, 0.1, 0.554355244469),
        ("dpo", 0.9, 0.1, 0.584355244469),
        ("robust", 1.0, 0.1, 0.516855244469),
        ("ipo", 1.0, 0.1, 4.0),
        ("hinge", 1.0, 0.1, 0.7),
        ("ipo_per_token", 1.0, 0.1, 20.7025),
        ("simpo", 1.0, 2.0, 1.313261687518),
    ],
)
def test_golden_values(name, weight, beta, expected):
    assert LOSSES[name](golden(), vector(weight), beta).item() == pytest.approx(expected, rel=1e-9)


def test_golden_gradient_of_dpo():
    chosen = vector(-10.0).requires_grad_()
    dpo_loss(golden(chosen=chosen), vector(1.0), 0.1).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.0425557483)


def test_at_the_reference_dpo_is_log_two_and_ipo_its_square_target():
    at_reference = golden(chosen=vector(-11.0), rejected=vector(-12.0))
    assert dpo_loss(at_reference, vector(1.0), 0.3).item() == pytest.approx(math.log(2))
    assert LOSSES["ipo"](at_reference, vector(1.0), 0.3).item() == pytest.approx((1 / 0.6) ** 2)


def test_gradient_at_the_reference_is_half_beta_times_the_difference_of_scores():
    chosen, rejected = vector(-11.0).requires_grad_(), vector(-12.0).requires_grad_()
    dpo_loss(golden(chosen=chosen, rejected=rejected), vector(1.0), 0.1).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


@given(st.sampled_from(NAMES), logprob, logprob, logprob, logprob, st.sampled_from([0.0, 0.1, 0.8, 1.0]))
def test_swapping_the_pair_and_its_label_changes_nothing(name, c, r, rc, rr, p):
    pair = PairLogprobs(vector(c), vector(r), vector(rc), vector(rr), vector(4.0), vector(7.0))
    swapped = PairLogprobs(vector(r), vector(c), vector(rr), vector(rc), vector(7.0), vector(4.0))
    assert LOSSES[name](pair, vector(p), 0.2).item() == pytest.approx(
        LOSSES[name](swapped, vector(1 - p), 0.2).item(), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_down_the_gradient_prefers_the_chosen_response(name):
    chosen, rejected = vector(-11.0).requires_grad_(), vector(-12.0).requires_grad_()
    LOSSES[name](golden(chosen=chosen, rejected=rejected), vector(1.0), 0.1).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@given(st.sampled_from([name for name in NAMES if name != "ipo_per_token"]), st.floats(-5, 5))
def test_a_constant_added_to_policy_and_reference_changes_nothing(name, constant):
    moved = golden(
        chosen=vector(-10 + constant), rejected=vector(-14 + constant), reference_chosen=vector(-11 + constant),
        reference_rejected=vector(-12 + constant),
    )  # fmt: skip
    same = LOSSES[name](moved, vector(1.0), 0.1).item() == pytest.approx(LOSSES[name](golden(), vector(1.0), 0.1).item())
    assume(name not in REFERENCE_FREE or abs(constant) > 1e-3)  # less is lost in float32
    assert same == (name not in REFERENCE_FREE)


@pytest.mark.parametrize("name", get_args(DPOSettings.model_fields["loss"].annotation))
def test_a_pair_pulls_in_proportion_to_how_sure_its_label_is(name):
    settings = DPOSettings(loss=name, gamma=0.0 if name == "simpo" else None, label_smoothing=0.1 if name == "robust" else 0.0)

    def pull(weight):
        chosen, rejected = (vector(-11.0).requires_grad_() for _ in range(2))
        same = {"reference_chosen": vector(-11.0), "reference_rejected": vector(-11.0), "rejected_tokens": vector(5.0)}
        pair_losses(golden(chosen=chosen, rejected=rejected, **same), vector(weight), vector(0.0), settings).sum().backward()
        return rejected.grad.item()

    sure = pull(1.0)
    assert [pull(p) / sure for p in (0.5, 0.55, 0.75)] == pytest.approx([0.0, 0.1, 0.5], abs=1e-9)


def test_the_reference_matters_exactly_where_it_is_said_to():
    for name, loss in LOSSES.items():
        reference = vector(-11.0).requires_grad_()
        out = loss(golden(reference_chosen=reference), vector(1.0), 0.1).sum()
        gradient = torch.autograd.grad(out, reference, allow_unused=True)[0] if out.requires_grad else None
        assert (gradient is None or gradient.item() == 0) == (name in REFERENCE_FREE), name


def test_the_margin_of_simpo_is_read():
    assert simpo_loss(golden(), vector(1.0), 2.0, 1.0).item() > simpo_loss(golden(), vector(1.0), 2.0, 0.0).item()


def test_kto_by_hand_and_at_its_reference_point():
    ratios, wanted = vector(1.0, 1.0, -2.0), vector(1.0, 0.0, 0.0)
    loss = kto_loss(ratios, wanted, vector(0.5), 0.1)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert loss.tolist() == pytest.approx([1 - sigmoid(0.05), 1 - sigmoid(-0.05), 1 - sigmoid(0.25)])
    assert kto_loss(vector(0.0), vector(1.0), vector(0.0), 0.1).item() == 0.5


def test_the_reference_point_of_kto_is_never_negative_and_carries_no_gradient():
    assert kto_reference_point(vector(-1.0, -3.0)).item() == 0
    ratios = vector(1.0, 3.0).requires_grad_()
    point = kto_reference_point(ratios)
    assert (point.item(), point.requires_grad) == (2.0, False)


def test_kto_pushes_wanted_responses_up_and_unwanted_ones_down():
    ratios = vector(0.0, 0.0).requires_grad_()
    kto_loss(ratios, vector(1.0, 0.0), vector(0.0), 0.1).sum().backward()
    assert ratios.grad[0] < 0 < ratios.grad[1]


def test_the_reference_point_of_kto_reads_no_row_that_is_longer_than_the_model_can(tmp_path):
    trunk = load_trunk(str(save_random_model(tmp_path / "model", "gpt2")))  # learned positions end with the context
    trunk.add_role("policy")
    room = trunk.room
    assert room is not None
    rows = [Tokens([5] * (room - 2), [6, 7]), Tokens([5, 6], [7] * (room - 2))]
    settings = DPOSettings(method="dpo", loss="kto")
    assert reference_point(trunk, rows, settings).item() == 0  # the policy is still its reference
    with torch.no_grad():
        for parameter in trunk.parameters("policy").values():
            parameter.mul_(1.5)
    assert reference_point(trunk, rows[:1], settings).item() == 0  # its own answer would say how far the policy moved there
    same = [Tokens([5, 6], [7, 8]), Tokens([5, 6], [9])]
    assert reference_point(trunk, same, settings).item() == 0  # and so would an answer to the same prompt
    other = Tokens([8], [7])
    moved = reference_point(trunk, [*same, other], settings)
    crossed = [Tokens([8], [7, 8]), Tokens([8], [9]), Tokens([5, 6], [7])]
    ratios = sequence_logprobs(trunk, "policy", crossed, 4096) - sequence_logprobs(trunk, REFERENCE, crossed, 4096)
    assert moved.item() == pytest.approx(max(ratios.mean().item(), 0.0))
