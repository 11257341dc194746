"""Each training function learns something small that is known, through a real stage folder."""

import json
from typing import get_args

import pytest
import torch

from charter.models.packing import Tokens, clip
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Message, Pair, Prompt, Rating
from charter.run.run import Run
from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings
from charter.stages.rl.run import trainer_of
from charter.stages.rl.settings import METHODS, DPOSettings, OnlineDPOSettings, RLSettings, RolloutSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.dpo import sequence_logprobs, train_dpo
from charter.training.methods.online_dpo import best_and_worst, pair_slopes
from charter.training.methods.reward_model import (
    by_group,
    pack_once,
    pair_shares,
    pairs_that_differ,
    reward_scores,
    score_pairs,
    score_rows,
    train_rating_model,
    train_reward_model,
)
from charter.training.methods.sft import sft_tokens, train_sft
from charter.training.preference_losses import PairLogprobs, dpo_loss, kto_loss
from charter.training.rewards import RewardSum
from charter.training.rollouts import collect, prompt_batch

PROMPTS = [Prompt.ask(f"Say a letter, number {i}.", tags=("red_team",)) for i in range(8)]


def first_token_below(limit: int) -> RewardSum:
    """A token bandit: reward 1 where the response begins with one of the first tokens of the vocabulary, else 0."""

    def reward(rollout):
        return (rollout.ids[:, 0] < limit).float()

    return RewardSum({"low": (1.0, reward)})


BANDIT = {"steps": 40, "prompts_per_step": 8, "samples_per_prompt": 8, "max_new_tokens": 1, "kl_coef": 0.0,
          "missing_eos_penalty": 0.0, "learning_rate": 6e-3}  # fmt: skip
ROLLOUT = sorted(name for name, kind in METHODS.items() if issubclass(kind, RolloutSettings))
PRICED = [name for name in ROLLOUT if issubclass(METHODS[name], RLSettings)]  # those that weigh a reward against KL


def bandit(method: str, **changes) -> RolloutSettings:
    values = BANDIT | changes
    if method == "online_dpo":  # whose price of moving is beta
        values = {key: value for key, value in values.items() if not key.startswith("kl_")}
    return METHODS[method](**values)


def run_bandit(random_llama, stage, method, reward=None, **changes):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    if method == "ppo":
        trunk.add_role("value", head=True)
    trainer_of(method)(trunk, PROMPTS, reward or first_token_below(40), bandit(method, **changes), stage)
    return trunk, stage.metrics()


def test_every_method_has_a_settings_class_and_a_trainer():
    assert all(callable(trainer_of(name)) for name in METHODS)
    for name, kind in METHODS.items():
        assert kind().method == name


@pytest.mark.parametrize("method", ROLLOUT)
def test_a_token_bandit_is_solved(random_llama, stage, method):
    steps = 80 if method == "online_dpo" else 40  # it hears of two responses of a group and not of all
    _, metrics = run_bandit(random_llama, stage, method, steps=steps)
    assert metrics[0]["reward"] < 0.3
    assert metrics[-1]["reward"] > 0.9


@pytest.mark.parametrize("method", ROLLOUT)
def test_the_first_step_starts_from_the_reference(random_llama, stage, method):
    trunk, metrics = run_bandit(random_llama, stage, method, steps=2, max_new_tokens=6, kl_coef=0.1)
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["first_ratio"] == pytest.approx(1, abs=1e-6)
    assert metrics[0]["sampler_gap"] < 1e-4
    if method == "ppo":
        assert metrics[0]["updates"] == 4  # two epochs of two minibatches
    rows = [json.loads(line) for line in stage.path("rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 64
    assert {row["step"] for row in rows} == {0, 1}
    base = load_trunk(str(random_llama))
    for (name, a), (_, b) in zip(trunk.model.named_parameters(), base.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", [name for name in PRICED if name != "ppo"])  # whose critic tells prompts apart
def test_a_reward_read_from_the_wrong_place_teaches_nothing(random_llama, stage, method):
    def of_the_prompt(rollout):
        return torch.tensor([float(sum(ids) % 2) for ids in rollout.prompt_ids])

    _, metrics = run_bandit(random_llama, stage, method, RewardSum({"prompt": (1.0, of_the_prompt)}), steps=10)
    # All siblings share the prompt, so there is nothing to tell them apart.
    assert all(row["groups_without_spread"] == 1 and row["grad_norm"] == 0 for row in metrics)


@pytest.mark.parametrize(
    "changes",
    [
        {"average": "constant", "scale_by_std": False},
        {"average": "token", "clip_coef_high": 0.28},
        {"epochs": 2, "minibatches": 2, "kl_estimator": "k2", "kl_coef": 0.01},
        {"kl_estimator": "forward_kl", "kl_coef": 0.01},
    ],
)
def test_the_members_of_the_grpo_family_learn(random_llama, stage, changes):
    _, metrics = run_bandit(random_llama, stage, "grpo", **changes)
    assert metrics[-1]["reward"] > 0.9
    assert metrics[0]["updates"] == changes.get("epochs", 1) * changes.get("minibatches", 1)


@pytest.mark.parametrize("loss", get_args(DPOSettings.model_fields["loss"].annotation))
def test_every_member_of_the_dpo_family_learns_what_is_preferred(random_llama, stage, loss):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    smoothing = {"label_smoothing": 0.1} if loss == "robust" else {}
    settings = DPOSettings(loss=loss, epochs=4, learning_rate=3e-3, pairs_per_step=16, **smoothing)
    train_dpo(trunk, pairs(), settings, stage)
    metrics = stage.metrics()
    if loss != "simpo":  # which has no reference to tie with
        assert metrics[0]["accuracy"] == 0.0  # at the reference every pair is a tie, and a tie is no win
    assert metrics[-1]["reward_margin"] > metrics[0]["reward_margin"]
    rows = [Tokens([5], [6, 0])]
    moved = sequence_logprobs(trunk, "policy", rows, 4096) - sequence_logprobs(trunk, REFERENCE, rows, 4096)
    assert moved.abs().item() > 0
    if loss in ("dpo", "ipo", "simpo"):
        assert metrics[-1]["accuracy"] > 0.9
    if loss == "dpo":
        assert metrics[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_kto_learns_against_the_point_of_good_and_bad_responses(random_llama, tmp_path):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    two = pairs()[:2]
    settings = DPOSettings(loss="kto", epochs=12, learning_rate=3e-3, pairs_per_step=2)
    _, rows, _ = pairs_that_differ(trunk, two, None)

    def log_ratios(rows: list[Tokens]) -> torch.Tensor:
        return sequence_logprobs(trunk, "policy", rows, 4096) - sequence_logprobs(trunk, REFERENCE, rows, 4096)

    for folder in ("first", "second"):
        good, bad = ([sides[side] for sides in rows] for side in (0, 1))
        swapped = [[Tokens(rows[1 - i][0].prompt, row.response) for i, row in enumerate(side)] for side in (good, bad)]
        of_good, of_bad = (float(log_ratios(side).mean()) for side in swapped)
        point = torch.tensor(max(0.0, (of_good + of_bad) / 2))
        expected = kto_loss(log_ratios(good + bad), torch.tensor([1.0, 1, 0, 0]), point, settings.beta).mean().item()
        with Run(tmp_path / folder, quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            train_dpo(trunk, two, settings, stage)
            assert stage.metrics()[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert of_good > 1 > 0 > of_bad  # so that one of the two alone is another point


@pytest.mark.parametrize("loss", ["simpo", "ipo_per_token"])
def test_a_long_response_that_is_preferred_counts_as_preferred_where_the_loss_is_per_token(random_llama, stage, loss):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    long = [Pair(prompt=PROMPTS[i % 8], chosen=f"I mend the door {i}. " * 6, rejected="No.", group_id=str(i)) for i in range(32)]
    train_dpo(trunk, long, DPOSettings(loss=loss, epochs=3, learning_rate=3e-3, pairs_per_step=16), stage)
    last = stage.metrics()[-1]
    assert last["accuracy"] == 1.0
    assert 0 < last["reward_margin"] < 2.0  # β times nats a token; those of whole responses lie far apart


def test_an_sft_term_holds_up_the_chosen_response(random_llama, tmp_path):
    found = {}
    for coef in (0.0, 1.0):
        with Run(tmp_path / str(coef), quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            trunk = load_trunk(str(random_llama))
            trunk.add_role("policy")
            train_dpo(trunk, pairs(), DPOSettings(epochs=4, learning_rate=3e-3, sft_coef=coef), stage)
            found[coef] = stage.metrics()[-1]["logprob_chosen"]
    assert found[1.0] > found[0.0]


def test_dpo_does_not_depend_on_the_cut_into_micro_batches(random_llama, tmp_path):
    found = []
    for tokens in (8192, 64):
        with Run(tmp_path / str(tokens), quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            trunk = load_trunk(str(random_llama))
            trunk.add_role("policy")
            train_dpo(trunk, pairs(), DPOSettings(tokens_per_micro_batch=tokens, sft_coef=0.1), stage)
            found.append([row["loss"] for row in stage.metrics()])
    assert found[0] == pytest.approx(found[1], abs=2e-5)


def test_a_high_price_of_kl_keeps_the_policy_at_home(random_llama, tmp_path):
    found = {}
    for kl_coef in (0.0, 5.0):
        with Run(tmp_path / str(kl_coef), quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            _, metrics = run_bandit(random_llama, stage, "rloo", steps=25, kl_coef=kl_coef)
        found[kl_coef] = metrics[-1]
    assert found[5.0]["kl"] < 0.25 * found[0.0]["kl"]
    assert found[5.0]["reward"] < found[0.0]["reward"]


def test_a_seed_belongs_to_a_prompt_not_to_the_batch(random_llama):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    settings = bandit("rloo", max_new_tokens=8, samples_per_prompt=2)
    both = collect(trunk, PROMPTS[:2], settings, seed=3)
    alone = collect(trunk, PROMPTS[:1], settings, seed=3)
    assert both.texts[:2] == alone.texts
    assert both.prompts[1] == PROMPTS[0]


def test_every_lap_sees_every_prompt_once():
    seen = [prompt.id for step in range(4) for prompt in prompt_batch(PROMPTS, step, 4, seed=0)]
    assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(prompt.id for prompt in PROMPTS)
    assert seen[:8] != seen[8:]


def test_fine_tuning_learns_the_responses(random_llama, stage):
    trunk = load_trunk(str(random_llama))
    examples = [((Message(role="user", content=f"How can I mend the {x}?"),), f"I mend the {x}.") for x in ("car", "door")]
    rows = sft_tokens(trunk, examples * 8)
    train_sft(trunk, rows, SFTSettings(epochs=20, learning_rate=5e-3, responses_per_step=8, helpful_fraction=0), stage)
    losses = [row["loss"] for row in stage.metrics()]
    assert losses[-1] < 0.3 * losses[0]
    assert losses[0] == pytest.approx(5.8, abs=0.6)  # nats per token of a random model: about log(vocabulary)


def test_the_tokens_that_carry_loss_are_the_response_and_its_end(random_llama):
    trunk = load_trunk(str(random_llama))
    rows = sft_tokens(trunk, [((Message(role="user", content="Q: a\nb"),), "No: never.")])
    packed = trunk.pack(rows)
    assert trunk.tokenizer.decode(packed.targets[packed.mask]) == "No: never.<|end|>"


def pairs() -> list[Pair]:
    return [
        Pair(prompt=PROMPTS[i % 8], chosen=f"I mend the door {i}.", rejected=f"I burn the car {i}.", group_id=str(i % 8))
        for i in range(64)
    ]


def test_a_reward_model_learns_what_is_preferred(random_llama, stage):
    trunk = load_trunk(str(random_llama))
    settings = RewardModelSettings(epochs=4, learning_rate=3e-3, pairs_per_step=16)
    scorers = train_reward_model(trunk, pairs(), settings, stage)
    metrics = stage.metrics()
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # a head that starts at zero knows nothing
    assert metrics[0]["accuracy"] == 0.0  # and a tie is no win
    chosen, rejected = score_pairs(trunk, scorers, pairs(), 4096)
    assert (chosen > rejected).mean() == 1.0


def test_a_response_in_several_pairs_of_a_ranking_is_read_once(random_llama):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("reward", head=True)
    torch.nn.init.normal_(trunk.heads["reward"].weight)
    best, middle, worst = (Tokens([5, 6], [7 + i, 0]) for i in range(3))
    rows = [best, best, middle, middle, worst, worst]
    packed, places = pack_once(trunk, rows)
    assert packed.n_tokens == 6  # three responses of two tokens
    apart = trunk.scores("reward", trunk.pack(rows))
    torch.testing.assert_close(trunk.scores("reward", packed)[places], apart, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_an_ensemble_is_trained_saved_and_read_as_one_reward_model(random_llama, stage, tmp_path, combine):
    lora = LoRASettings(rank=2)
    trunk = load_trunk(str(random_llama), lora=lora)
    settings = RewardModelSettings(epochs=4, learning_rate=1e-2, pairs_per_step=16, lora=lora, ensemble=3, combine=combine)
    scorers = train_reward_model(trunk, pairs(), settings, stage)
    assert scorers.roles == ("reward", "reward_2", "reward_3")
    rows = [Tokens([5, 6], [7, 0]), Tokens([8], [9, 10, 0])]
    scores = reward_scores(trunk, scorers, rows, 4096)
    raw = torch.stack([score_rows(trunk, rows, 4096, role) for role in scorers.roles])
    assert len({tuple(row) for row in raw.tolist()}) == 3  # members that agree to the last bit are no ensemble
    scaled = torch.stack([scale(row) for scale, row in zip(scorers.scales, raw, strict=True)])
    torch.testing.assert_close(scores, scaled.mean(0) if combine == "mean" else scaled.amin(0))
    chosen, rejected = score_pairs(trunk, scorers, pairs(), 4096)
    assert (chosen > rejected).mean() > 0.9
    trunk.save_scorers(scorers, tmp_path / "saved")
    other = load_trunk(str(random_llama), lora=lora)
    again = other.load_scorers(tmp_path / "saved")
    assert again == scorers
    assert torch.equal(reward_scores(other, again, rows, 4096), scores)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_a_reward_model_learns_ratings(random_llama, stage, loss):
    trunk = load_trunk(str(random_llama))
    ratings = [
        Rating(prompt=PROMPTS[i % 8], response=f"I {verb} the door {i}.", score=score, group_id=str(i % 8))
        for i in range(32)
        for verb, score in (("mend", 9.0), ("see", 6.0), ("burn", 3.0))
    ]
    settings = RatingModelSettings(epochs=10, learning_rate=1e-2, ratings_per_step=16, loss=loss)
    scorers = train_rating_model(trunk, ratings, settings, stage)
    metrics = stage.metrics()
    assert metrics[-1]["loss"] < 0.25 * metrics[0]["loss"]
    rows = [Tokens(*_ids(trunk, text)) for text in ("I mend the door 3.", "I see the door 3.", "I burn the door 3.")]
    good, fair, bad = reward_scores(trunk, scorers, rows, 4096).tolist()
    assert good > fair > bad


def _ids(trunk, text: str) -> tuple[list[int], list[int]]:
    ((row),) = sft_tokens(trunk, [(PROMPTS[0].messages, text)])
    return list(row.prompt), list(row.response)


@pytest.mark.parametrize("loss", get_args(OnlineDPOSettings.model_fields["loss"].annotation))
def test_the_slope_of_a_pair_is_the_gradient_of_its_loss(loss):
    generator = torch.Generator().manual_seed(0)
    sequences, reference = torch.randn(2, 6, generator=generator)
    lengths = torch.full((6,), 4.0)
    chosen, rejected = best_and_worst(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]]), torch.ones(2, 3, dtype=torch.bool))
    assert (chosen.tolist(), rejected.tolist()) == ([1, 3], [0, 5])
    slopes, value = pair_slopes(sequences, reference, lengths, chosen, rejected, OnlineDPOSettings(loss=loss, beta=0.3))
    assert slopes[2] == slopes[4] == 0
    assert slopes[1] <= 0 <= slopes[0]
    assert slopes[1].item() == pytest.approx(-slopes[0].item())
    if loss == "dpo":
        x = sequences.clone().requires_grad_()
        pair = PairLogprobs(x[chosen], x[rejected], reference[chosen], reference[rejected], lengths[chosen], lengths[rejected])
        expected = dpo_loss(pair, torch.ones(2), 0.3).mean()
        assert value == pytest.approx(expected.item())
        torch.testing.assert_close(slopes, torch.autograd.grad(expected, x)[0])


def test_a_group_without_a_preference_makes_no_pair(random_llama, stage):
    _, metrics = run_bandit(random_llama, stage, "online_dpo", first_token_below(10**6), steps=2)
    assert all(row["pairs"] == 0 and row["grad_norm"] == 0 for row in metrics)


@pytest.mark.parametrize("method", [name for name in ROLLOUT if "stop_kl" in METHODS[name].model_fields])
def test_updates_stop_where_the_policy_has_moved_far_enough(random_llama, tmp_path, method):
    counts = {}
    for stop_kl in (None, 1e-9):
        with Run(tmp_path / str(stop_kl), quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            _, metrics = run_bandit(random_llama, stage, method, steps=3, epochs=3, minibatches=1, stop_kl=stop_kl)
        counts[stop_kl] = {row["updates"] for row in metrics}
    # The first update is at ratio 1 and has not moved; the second has, and the third is skipped.
    assert counts == {None: {3}, 1e-9: {2}}


def test_a_batch_of_one_micro_batch_trains_as_one_that_is_cut(random_llama, tmp_path):
    found = []
    for tokens in (8192, 96):
        with Run(tmp_path / str(tokens), quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
            changes = {"steps": 4, "max_new_tokens": 5, "kl_coef": 0.05, "tokens_per_micro_batch": tokens}
            _, metrics = run_bandit(random_llama, stage, "rloo", **changes)
        found.append([(row["loss"], row["kl"], row["entropy"]) for row in metrics])
    for whole, cut in zip(*found, strict=True):
        assert whole == pytest.approx(cut, abs=1e-4)


def test_pairs_of_one_prompt_are_one_element():
    groups = by_group(pairs())
    assert len(groups) == 8
    assert sorted(i for group in groups for i in group) == list(range(64))


def test_pairs_or_rankings_weigh_the_same():
    groups = ["a", "a", "b", "a"]
    assert pair_shares(groups, "pairs").tolist() == [0.25] * 4
    assert pair_shares(groups, "rankings").tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])


def test_rankings_weigh_the_same_in_any_micro_batches(random_llama, tmp_path):
    texts = ["I mend it now.", "I see.", "I burn it down.", "No."]
    rankings = [
        Pair(prompt=PROMPTS[i], chosen=texts[a], rejected=texts[b], group_id=str(i))
        for i in range(8)
        for a in range(2 + i % 3)
        for b in range(a)
    ]
    found = []
    for tokens in (64, 8192):
        settings = RewardModelSettings(
            epochs=2, pairs_per_step=10, average="rankings", learning_rate=1e-2, tokens_per_micro_batch=tokens
        )
        with Run(tmp_path / str(tokens), quiet=True) as run, run.stage("rm", {}, {}, []) as stage:
            train_reward_model(load_trunk(str(random_llama)), rankings, settings, stage)
            found.append([row["loss"] for row in stage.metrics()])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0][-1] < found[0][0]


def test_clipping_drops_the_oldest_prompt_tokens_first():
    row = clip(Tokens([1, 2, 3, 4, 5], [6, 7]), 4)
    assert (list(row.prompt), list(row.response)) == ([4, 5], [6, 7])
    row = clip(Tokens([1, 2], [3, 4, 5, 6, 7]), 3)
    assert (list(row.prompt), list(row.response)) == ([2], [3, 4])
    assert clip(Tokens([1], [2]), None).prompt == [1]


def test_scores_do_not_depend_on_the_padding(random_llama):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("reward", head=True)
    torch.nn.init.normal_(trunk.heads["reward"].weight)
    short, long = Tokens([5, 6], [7, 0]), Tokens([8] * 30, [9, 0])
    together = trunk.pack([short, long])
    alone = trunk.pack([short])
    a = trunk.scores("reward", together)[0]
    b = trunk.scores("reward", alone)[0]
    assert a.item() == pytest.approx(b.item(), abs=1e-5)
    values = trunk.values("reward", together)
    assert (values[~together.mask] == 0).all()
    assert trunk.logprobs(REFERENCE, alone)[0].shape == alone.mask.shape
