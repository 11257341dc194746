import math
from dataclasses import replace

import pytest
import torch

from charter.errors import GateError
from charter.records import Prompt, Rollout
from charter.stages.rl.settings import CostSettings, RLOOSettings
from charter.training.rewards import (
    KLController,
    RewardShape,
    RewardSum,
    Scores,
    apply_missing_eos_penalty,
    at_last_token,
    last_token,
    make_kl_controller,
    response_length,
)
from charter.training.rollouts import describe_rollout


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
    controller = KLController(coef=0.2, target=6, horizon=1e4)
    seen = []
    for kl in (12, 3, 6, 7):
        controller.update(kl, 256)
        seen.append(controller.coef)
    assert seen == pytest.approx([0.201024, 0.19999475712, 0.19999475712, 0.200848068084])


def test_fixed_kl_stays():
    controller = KLController(0.05, target=None, horizon=1e4)
    controller.update(100.0, 64)
    assert controller.coef == 0.05


def rollout_of(*texts: str) -> Rollout:
    """Responses of as many tokens as they have words."""
    width = max(len(text.split()) for text in texts) + 1
    mask = torch.tensor([[i < len(text.split()) for i in range(width)] for text in texts])
    return Rollout(
        prompt_ids=((1, 2),) * len(texts), ids=torch.zeros(mask.shape, dtype=torch.long), mask=mask,
        logprobs=torch.zeros(mask.shape),
        finished=torch.ones(len(texts), dtype=torch.bool), texts=texts,
        prompts=tuple(Prompt.ask("Say something.") for _ in texts), n_tokens=int(mask.sum()),
    )  # fmt: skip


def test_the_log_has_the_mean_reward_of_the_scored_responses_by_principle():
    rollout = rollout_of("one", "two", "three", "four")
    kl, kept = torch.zeros(rollout.mask.shape), torch.tensor([True, False, True, True])
    scores = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert not [key for key in describe_rollout(rollout, scores, kept, kl) if "principle" in key]
    prompts = tuple(Prompt.ask("Say something.", principle=name) for name in ("peace", "peace", "peace", None))
    row = describe_rollout(replace(rollout, prompts=prompts), scores, kept, kl)
    assert {key: value for key, value in row.items() if "principle" in key} == {"reward_by_principle/peace": 1.5}


def constant(*values: float):
    return lambda _: torch.tensor(values)


def test_a_reward_is_the_weighted_sum_of_its_parts_each_with_a_curve():
    reward = RewardSum({"good": (2.0, constant(1.0, 3.0)), "words": (-0.5, response_length)})
    scores = reward(rollout_of("one two", "one"))
    assert scores.total.tolist() == [1.0, 5.5]
    assert scores.means() == {"reward/good": 2.0, "reward/words": 1.5}
    assert reward.state() == {}


def test_the_multiplier_of_a_cost_finds_back_from_either_end():
    def after(costs: list[float]) -> float:
        reward = RewardSum({"length": (1.0, response_length)}, CostSettings(part="length", budget=60.0))
        for cost in costs:
            scores = torch.tensor([cost])
            reward.update(Scores({"length": scores}, scores, torch.tensor([True])))
        return reward.multiplier

    assert after([10.0] * 160) == pytest.approx(math.exp(-20))
    assert after([10.0] * 160 + [100.0] * 10) > math.exp(19)
    assert after([9000.0] * 160) == pytest.approx(math.exp(20))
    assert after([9000.0] * 160 + [10.0] * 10) < math.exp(-19)


def test_a_cost_is_weighed_by_its_multiplier_which_moves_towards_the_budget():
    cost = CostSettings(part="harm", budget=0.25, learning_rate=0.1, initial=1.0)
    reward = RewardSum({"good": (1.0, constant(2.0, 4.0)), "harm": (99.0, constant(1.0, 0.0))}, cost)
    scores = reward(rollout_of("a", "b"))
    assert scores.total.tolist() == [0.5, 2.0]  # (r - λc) / (1 + λ); the weight of a cost is unused
    reward.update(scores)
    assert reward.multiplier == pytest.approx(math.exp(0.1 * 0.25))  # the mean cost is .5, a quarter above the budget
    again = RewardSum({"good": (1.0, constant(0.0)), "harm": (1.0, constant(0.0))}, cost)
    again.restore(reward.state())
    assert again.multiplier == reward.multiplier


@pytest.mark.parametrize(("horizon", "fits"), [(25.6, False), (25.7, True)])
def test_a_price_of_kl_never_becomes_negative(horizon, fits):
    values = {"kl_target": 1.0, "kl_horizon": horizon}  # a step has 128 responses
    if not fits:
        with pytest.raises(ValueError, match=r"could make kl_coef negative; use more than 25\.6"):
            RLOOSettings(**values)
        return
    controller = make_kl_controller(RLOOSettings(**values), {})
    controller.update(0.0, 128)
    assert controller.coef > 0


def test_a_cost_below_the_budget_gets_cheaper():
    cost = CostSettings(part="harm", budget=0.5)
    reward = RewardSum({"good": (1.0, constant(0.0)), "harm": (1.0, constant(0.0))}, cost)
    reward.update(reward(rollout_of("a")))
    assert reward.multiplier < 1


def test_a_score_that_failed_is_an_error_and_not_a_number():
    with pytest.raises(GateError, match="'broken' is not finite"):
        RewardSum({"broken": (1.0, constant(math.nan))})(rollout_of("a"))


def shaped(**changes) -> RLOOSettings:
    return RLOOSettings(**changes)


def test_a_reward_is_a_sigmoid_against_the_answers_of_the_reference():
    rollout = rollout_of("a", "b")
    references = {prompt.id: 1.0 for prompt in rollout.prompts}
    shape = RewardShape(shaped(sigmoid_against=2), references)
    scores = RewardSum({"good": (1.0, constant(1.0, 3.0))}, shape=shape)(rollout)
    assert scores.total.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert scores.means() == {"reward/good": 2.0}  # the curve of a part is that of its own numbers


def test_scores_are_divided_by_their_running_deviation_and_then_cut():
    seen: list[float] = []
    shape = RewardShape(shaped(reward_scale=True, reward_clip=1.5))
    generator = torch.Generator().manual_seed(0)
    for size in (3, 5, 2):
        values = 7 + 4 * torch.randn(size, generator=generator)
        seen += values.tolist()
        found = shape(values, rollout_of("a"))
        deviation = torch.tensor(seen).std(unbiased=False)
        torch.testing.assert_close(found, (values / deviation).clamp(-1.5, 1.5), rtol=1e-4, atol=1e-4)
        again = RewardShape(shaped(reward_scale=True))
        again.restore(shape.state())
        assert again.state() == shape.state()


def test_what_is_not_asked_for_is_not_done():
    shape = RewardShape(shaped(reward_clip=10.0))
    scores = torch.tensor([1.0, -3.0, 40.0])
    assert shape(scores, rollout_of("a", "b", "c")).tolist() == [1.0, -3.0, 10.0]
    assert shape.state() == {}
    with pytest.raises(ValueError, match="needs the rewards of the reference"):
        RewardShape(shaped(sigmoid_against=1))
