"""A reward that abstains: its responses are in no baseline, no update and no mean."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from charter.errors import GateError, InputError
from charter.run.run import Run
from charter.stages.rl.sources import rule_reward
from charter.training.advantages import among_kept, group_advantages, rloo_advantages, share_without_spread
from charter.training.methods.online_dpo import best_and_worst
from charter.training.rewards import RewardShape, RewardSum, SomeScores
from test_rewards import rollout_of, shaped
from test_training import ROLLOUT, run_bandit

SCORES = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=6)


@given(scores=SCORES, places=st.lists(st.integers(0, 6), min_size=1, max_size=3), junk=st.floats(-1e6, 1e6, width=32))
@pytest.mark.parametrize("rule", [rloo_advantages, lambda s: group_advantages(s, scale_by_std=True)])
def test_rows_without_a_score_change_no_other_advantage(rule, scores, places, junk):
    row, kept = list(scores), [True] * len(scores)
    for place in places:
        row.insert(min(place, len(row)), junk)
        kept.insert(min(place, len(kept)), False)
    groups, mask = torch.tensor([row]), torch.tensor([kept])
    advantages = among_kept(rule, groups, mask)
    assert torch.equal(advantages[mask], rule(torch.tensor([scores]))[0])
    assert not advantages[~mask].any()
    assert share_without_spread(groups, mask) == (min(scores) == max(scores))
    best, worst = best_and_worst(groups, mask)
    if len(best):
        assert groups[0, best].item() == max(scores)
        assert groups[0, worst].item() == min(scores)
    else:
        assert min(scores) == max(scores)


def test_a_response_without_a_scored_sibling_has_no_advantage():
    groups, kept = torch.tensor([[1.0, 7.0], [1.0, 2.0]]), torch.tensor([[True, False], [False, False]])
    assert not among_kept(rloo_advantages, groups, kept).any()
    assert share_without_spread(groups, kept) == 1
    assert [len(rows) for rows in best_and_worst(groups, kept)] == [0, 0]


def low_or_silent(rollout) -> SomeScores:
    """The token bandit, silent about every response that begins with an odd token."""
    first = rollout.ids[:, 0]
    return SomeScores(torch.where(first % 2 == 1, 99.0, (first < 40).float()), first % 2 == 1)


@pytest.mark.parametrize("method", ROLLOUT)
def test_every_method_learns_from_the_rest_and_counts(random_llama, stage, method):
    _, metrics = run_bandit(random_llama, stage, method, RewardSum({"low": (1.0, low_or_silent)}), steps=25)
    rows = [json.loads(line) for line in stage.path("rollouts.jsonl").read_text().splitlines()]
    for step, row in enumerate(metrics):
        here = [r["reward"] for r in rows if r["step"] == step]
        scores = [score for score in here if score is not None]
        assert row["abstained"] == here.count(None)
        assert set(scores) <= {0.0, 1.0}  # 99 is in no figure
        assert row["reward"] == row["reward/low"] == pytest.approx(sum(scores) / len(scores))
    assert metrics[0]["abstained"] > 0
    assert metrics[-1]["reward"] > metrics[0]["reward"] + 0.2


def test_what_an_abstaining_row_contains_moves_no_weight(random_llama, tmp_path):
    """The same run twice: what the reward reads in the silent rows, and how they end, differs and nothing else."""

    def weights(folder, junk):
        def silent(rollout):
            odd = rollout.ids[:, 0] % 2 == 1
            return SomeScores(torch.where(odd, junk, rollout.ids[:, 0].float()), odd)

        with Run(tmp_path / folder, quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            trunk, metrics = run_bandit(random_llama, stage, "ppo", RewardSum({"silent": (1.0, silent)}), steps=2)
        assert metrics[0]["abstained"] > 0
        return trunk.parameters("policy"), metrics

    (a, metrics_a), (b, metrics_b) = weights("a", 0.0), weights("b", 1e6)
    assert metrics_a == metrics_b
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_rule_abstains_by_none_and_other_answers_are_refused():
    rollout = rollout_of("a", "bb", "ccc")
    scores = rule_reward(lambda _, text: None if text == "bb" else len(text), "python:m:f")(rollout)
    assert scores.values[~scores.abstained].tolist() == [1, 3]
    assert scores.abstained.tolist() == [False, True, False]
    for answer in (True, "1", [1]):
        with pytest.raises(InputError, match="return a number, or None to abstain"):
            rule_reward(lambda _, __, answer=answer: answer, "python:m:f")(rollout)
    with pytest.raises(GateError, match="is not finite"):
        RewardSum({"nan": (1.0, rule_reward(lambda _, __: float("nan"), "python:m:f"))})(rollout)
    with pytest.raises(GateError, match="abstains from all 3 responses"):
        RewardSum({"mute": (1.0, rule_reward(lambda _, __: None, "python:m:f"))})(rollout)


def test_a_part_that_abstains_takes_the_response_out_of_the_sum_and_of_the_running_deviation():
    rollout = rollout_of("a", "bb", "ccc", "dddd")
    some = rule_reward(lambda _, text: None if text == "bb" else len(text), "python:m:f")
    whole = rule_reward(lambda _, text: 10.0 * len(text), "python:m:g")
    shape = RewardShape(shaped(reward_scale=True))
    scores = RewardSum({"some": (1.0, some), "whole": (1.0, whole)}, shape=shape)(rollout)
    assert scores.kept.tolist() == [True, False, True, True]
    assert scores.means() == {"reward/some": pytest.approx(8 / 3), "reward/whole": pytest.approx(80 / 3)}
    assert (shape.count, shape.mean) == (3, pytest.approx(88 / 3))
