"""Invariants of a run of RL: each is broken on purpose, and the run stops with the likely cause."""

import math
from dataclasses import replace

import pytest
import torch

from charter.errors import GateError
from charter.models.trunk import load_trunk
from charter.run.run import Run
from charter.training.loop import steps
from charter.training.losses import policy_stats
from charter.training.rollouts import collect
from charter.training.watch import Watch, warnings_of
from test_training import PROMPTS, bandit, first_token_below


@pytest.fixture
def scene(random_llama, tmp_path):
    """A watch at step 0 and a true rollout: (watch, rollout, log-probabilities, KL)."""
    with Run(tmp_path / "run", quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
        trunk = load_trunk(str(random_llama))
        trunk.add_role("policy")
        settings = bandit("rloo", max_new_tokens=6)
        rollout = collect(trunk, PROMPTS, settings, seed=0)
        watch = Watch(stage, trunk, settings, updates=1, first=0)
        yield watch, rollout, rollout.logprobs.clone(), torch.zeros(rollout.mask.shape)


def test_a_sound_rollout_passes(scene):
    watch, rollout, logprobs, kl = scene
    watch.rollout(0, rollout, logprobs, kl)
    watch.first_minibatch(0, 1.0)
    assert watch.sampler_gap == 0


def test_masks_that_lose_a_token_stop_the_run(scene):
    watch, rollout, logprobs, kl = scene
    with pytest.raises(GateError, match=r"the sampler drew .*token ids instead of lengths"):
        watch.rollout(0, replace(rollout, n_tokens=rollout.n_tokens + 1), logprobs, kl)


def test_another_temperature_in_training_stops_the_run(scene):
    watch, rollout, logprobs, kl = scene
    with pytest.raises(GateError, match="another temperature"):
        watch.rollout(0, rollout, logprobs + 0.01 * rollout.mask, kl)


def test_a_kl_before_the_first_update_stops_the_run_at_step_0_alone(scene):
    watch, rollout, logprobs, kl = scene
    moved = kl + 0.01 * rollout.mask
    watch.rollout(3, rollout, logprobs, moved)
    with pytest.raises(GateError, match="before the first update"):
        watch.rollout(0, rollout, logprobs, moved)


def test_a_negative_kl_beyond_four_standard_errors_stops_the_run(scene):
    watch, rollout, logprobs, kl = scene
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(kl.shape, generator=generator) * rollout.mask
    watch.rollout(5, rollout, logprobs, noise - 0.01 * rollout.mask)
    with pytest.raises(GateError, match="top-k or top-p"):
        watch.rollout(5, rollout, logprobs, noise - 2.0 * rollout.mask)


@pytest.mark.parametrize("ratio", [1.0002, 0.99, math.nan])
def test_a_first_ratio_other_than_one_stops_the_run(scene, ratio):
    with pytest.raises(GateError, match="dropout"):
        scene[0].first_minibatch(2, ratio)


def test_a_policy_that_changed_since_it_was_scored_is_stopped_before_its_weights_move(random_llama, stage):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    settings = bandit("rloo", max_new_tokens=6, tokens_per_micro_batch=64)
    step = next(steps(trunk, PROMPTS, first_token_below(40), settings, stage, {"policy": 0.1}))
    weights = trunk.parameters("policy").values()
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.5)
    changed = [weight.clone() for weight in weights]

    def learn():
        for cut, policy in step.updates:
            stats = policy_stats(policy.logprobs, cut.of(step.logprobs), cut.packed.mask)
            step.updates.learn(policy.logprobs.sum(), stats, entropy=float(policy.entropies.detach().sum()))

    with pytest.raises(GateError, match="the ratio before the first update"):
        learn()
    assert all(torch.equal(before, after) for before, after in zip(changed, weights, strict=True))


def row(**changes):
    return {"step": 0, "updates": 1, "reward": 0.0, "kl": 0.0, "entropy": 1.0, "loss": 0.0} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"updates": 2}, "2 updates were made and 1 planned"), ({"loss": math.inf}, "loss is not finite"),
     ({"kl": math.nan}, "kl is not finite")],
)  # fmt: skip
def test_what_a_step_logs_is_checked(scene, changes, words):
    watch = scene[0]
    watch.step_done(0, row())
    with pytest.raises(GateError, match=words):
        watch.step_done(1, row(**changes))


def test_weights_that_change_their_type_stop_the_run(scene):
    watch = scene[0]
    watch.trunk.copies["policy"].bfloat16()
    with pytest.raises(GateError, match=r"became torch\.bfloat16"):
        watch.step_done(0, row())


def test_empty_responses_and_equal_rewards_are_reported_at_the_first_step():
    """Both were reported after 30 steps or not at all."""
    assert set(warnings_of([row(response_tokens=1.0, missing_eos=0.0, reward_sem=0.1)])) == {"empty"}
    assert set(warnings_of([row(response_tokens=7.5, missing_eos=0.0, reward_sem=0.0)])) == {"equal"}
    assert set(warnings_of([row(groups_without_spread=1.0, reward_sem=0.3)])) == {"equal"}
    assert warnings_of([row(reward_sem=0.0), row(reward_sem=0.2)]) == {}
    assert warnings_of([row(response_tokens=1.0, missing_eos=0.5)]) == {}


def test_collapse_explosion_and_standstill_are_warned_of():
    flat = [row(reward=0.1 * (-1) ** i) for i in range(40)]
    assert set(warnings_of(flat)) == {"reward"}
    rising = [row(reward=0.1 * i + 0.1 * (-1) ** i) for i in range(40)]
    assert warnings_of(rising) == {}
    assert set(warnings_of([*rising, row(reward=9.0, entropy=0.01)])) == {"entropy"}
    critic = [row(reward=0.1 * i + 0.1 * (-1) ** i, value_loss=0.1) for i in range(40)]
    assert set(warnings_of([*critic, row(reward=9.0, value_loss=50.0)])) == {"value_loss"}
    assert warnings_of(flat[:4]) == {}
