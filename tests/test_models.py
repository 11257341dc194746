"""Sampling and scoring agree, and neither depends on what else is in the batch."""

import copy
import math

import pytest
import torch

from charter.errors import InputError
from charter.models.heads import Scorers, ScoreScale
from charter.models.load import load_model, load_tokenizer
from charter.models.packing import Tokens
from charter.models.sampling.generate import pick, sample
from charter.models.sampling.sampler import LocalSampler, fill
from charter.models.trunk import REFERENCE, Trunk, load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Message, Prompt
from charter.stages.rl.settings import RLOOSettings
from charter.training.batches import by_tokens, epoch_batches
from charter.training.losses import sft_loss
from charter.training.vllm_rollouts import engine_for
from conftest import save_random_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [20]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def folder(request, tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def trunk(folder):
    return load_trunk(str(folder))


def generate(trunk, prompts, seeds, **changes):
    settings = {"ends": [0], "max_new_tokens": 24, "temperature": 1.0, **changes}
    return sample(trunk.model, prompts, seeds, **settings)


def test_a_response_depends_on_its_seed_alone(trunk):
    together = generate(trunk, PROMPTS, [[1, 2], [3, 4], [5, 6]])
    alone = generate(trunk, PROMPTS[1:2], [[4]])
    assert together[1][1].ids == alone[0][0].ids
    assert together[0][0].ids != together[0][1].ids


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_from_sampling_are_those_of_the_trainer(trunk, temperature):
    sampled = [one for group in generate(trunk, PROMPTS, [[1], [2], [3]], temperature=temperature) for one in group]
    packed = trunk.pack([Tokens(p, s.ids) for p, s in zip(PROMPTS, sampled, strict=True)])
    logprobs, _ = trunk.logprobs(REFERENCE, packed, temperature=temperature)
    expected = torch.tensor([x for s in sampled for x in s.logprobs])
    assert torch.allclose(logprobs[packed.mask], expected, atol=1e-5)
    assert int(packed.mask.sum()) == sum(len(s.ids) for s in sampled)


def test_greedy_sampling_is_that_of_transformers(trunk):
    ours = generate(trunk, [PROMPTS[1]], [[1]], temperature=0.0)[0][0].ids
    theirs = trunk.model.generate(
        torch.tensor([PROMPTS[1]]), attention_mask=torch.ones(1, len(PROMPTS[1]), dtype=torch.long), do_sample=False,
        max_new_tokens=24, pad_token_id=1, eos_token_id=0,
    )[0, len(PROMPTS[1]) :].tolist()  # fmt: skip
    assert list(ours) == theirs


def test_picking_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(20_000, 1)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    choice, logprobs = pick(logits, uniform, 1.0)
    assert (torch.bincount(choice) / 20_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-3)
    assert logprobs[0].exp().item() == pytest.approx(0.5)


def test_a_prompt_that_leaves_no_room_is_refused(trunk):
    with pytest.raises(InputError, match="do not fit"):
        generate(trunk, [[5] * 500], [[1]])


def test_a_prompt_that_leaves_no_room_is_refused_before_the_first_step_of_rl(trunk):
    prompts = [Prompt.ask("Hello"), Prompt.ask("how " * 400)]
    with pytest.raises(InputError, match="do not fit"), engine_for(trunk, prompts, RLOOSettings()):
        pass


def gradient(trunk, rows, groups):
    trunk = Trunk(copy.deepcopy(trunk.model), trunk.tokenizer)
    trunk.add_role("policy")
    n = sum(len(row.response) for row in rows)
    total = 0.0
    for group in groups:
        packed = trunk.pack([rows[i] for i in group])
        logprobs, _ = trunk.logprobs("policy", packed)
        loss = sft_loss(logprobs, packed.mask, n)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in trunk.parameters("policy").values()])


def test_padding_order_and_micro_batches_change_neither_loss_nor_gradient(trunk):
    rows = [Tokens([5, 6], [7, 8, 0]), Tokens([9], [10, 0]), Tokens([11, 12, 13, 14], [15, 16, 17, 18, 0])]
    loss, grad = gradient(trunk, rows, [[0, 1, 2]])
    for groups in ([[0], [1], [2]], [[2, 1], [0]], [[1, 0, 2]]):
        other_loss, other = gradient(trunk, rows, groups)
        assert other_loss == pytest.approx(loss, abs=1e-6)
        assert torch.allclose(grad, other, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)])
def test_a_fresh_role_is_the_reference_and_training_it_leaves_the_reference_alone(folder, lora):
    trunk = load_trunk(str(folder), lora=lora)
    for name in ("policy", "reward", "value"):
        trunk.add_role(name, head=name != "policy")
    packed = trunk.pack([Tokens([5, 6], [7, 8, 0])])
    before, _ = trunk.logprobs(REFERENCE, packed)
    policy, _ = trunk.logprobs("policy", packed)
    assert torch.equal(before, policy)
    policy.sum().backward()
    touched = {name for role in ("policy", "reward", "value") for name, p in trunk.parameters(role).items()
               if p.grad is not None and role != "policy"}  # fmt: skip
    assert touched == set()
    for parameter in trunk.parameters("policy").values():
        assert parameter.grad is not None
        parameter.data += 0.01
    after, _ = trunk.logprobs(REFERENCE, packed)
    moved, _ = trunk.logprobs("policy", packed)
    assert torch.equal(before, after)
    assert not torch.allclose(before, moved)
    if lora is not None:
        assert trunk.trainable_share("policy") < 0.5


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)])
def test_a_reward_model_scores_the_same_after_a_round_trip(folder, tmp_path, lora):
    trunk = load_trunk(str(folder), lora=lora)
    trunk.add_role("reward", head=True)
    torch.manual_seed(1)
    for parameter in trunk.parameters("reward").values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    packed = trunk.pack([Tokens([5, 6], [7, 8, 0]), Tokens([5], [0])])
    scores = trunk.scores("reward", packed).detach()
    scorers = Scorers(("reward",), (ScoreScale(0.5, 2.0),))
    trunk.save_scorers(scorers, tmp_path / "reward")
    other = load_trunk(str(folder), lora=lora)
    assert other.load_scorers(tmp_path / "reward") == scorers
    again = other.scores("reward", packed).detach()
    assert torch.equal(scores, again)
    assert torch.allclose(scorers(again.unsqueeze(0)), (scores - 0.5) / 2.0)
    assert torch.allclose(scorers(again.unsqueeze(0), standardise=False), scores - 0.5)


@pytest.mark.parametrize("of_policy", [LoRASettings(rank=2, alpha=4), LoRASettings(rank=4)])
def test_a_reward_model_keeps_its_scale_on_a_trunk_whose_policy_has_another(folder, tmp_path, of_policy):
    trunk = load_trunk(str(folder), lora=LoRASettings(rank=2))
    trunk.add_role("reward", head=True)
    torch.manual_seed(0)
    for parameter in trunk.parameters("reward").values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    packed = trunk.pack([Tokens([5, 6], [7, 8, 0]), Tokens([5], [0])])
    scores = trunk.scores("reward", packed).detach()
    trunk.save_scorers(Scorers(("reward",), (ScoreScale(0.0, 1.0),)), tmp_path / "reward")
    other = load_trunk(str(folder), lora=of_policy)
    other.add_role("policy")
    other.load_scorers(tmp_path / "reward")
    other.add_role("value", head=True, start_from="reward")
    assert torch.allclose(other.scores("reward", packed), scores)
    assert torch.allclose(other.scores("value", packed), scores)
    assert other.adapters.peft_config["policy"].r == of_policy.rank


def test_a_reward_model_without_its_head_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    trunk = load_trunk(str(folder))
    trunk.add_role("reward", head=True)
    trunk.save_scorers(Scorers(("reward",), (ScoreScale(0.0, 1.0),)), tmp_path / "r")
    tensors = load_file(tmp_path / "r/reward_model.safetensors")
    del tensors["reward/head.weight"]
    save_file(tensors, tmp_path / "r/reward_model.safetensors")
    with pytest.raises(InputError, match="head is missing"):
        load_trunk(str(folder)).load_scorers(tmp_path / "r")


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)])
def test_a_saved_policy_is_a_plain_model_with_the_same_log_probabilities(folder, tmp_path, lora):
    trunk = load_trunk(str(folder), lora=lora)
    trunk.add_role("policy")
    torch.manual_seed(1)
    for parameter in trunk.parameters("policy").values():
        parameter.data += 0.02 * torch.randn_like(parameter)
    packed = trunk.pack([Tokens([5, 6], [7, 8, 0])])
    expected, _ = trunk.logprobs("policy", packed)
    trunk.save_language_model("policy", tmp_path / "policy")
    loaded = Trunk(load_model(str(tmp_path / "policy")), load_tokenizer(str(tmp_path / "policy")))
    found, _ = loaded.logprobs(REFERENCE, packed)
    assert torch.allclose(expected, found, atol=1e-6)


def test_a_question_longer_than_the_model_reads_gets_no_verdict_and_moves_no_other(folder):
    sampler = LocalSampler(load_trunk(str(folder)), "judge")
    short, long = ((Message(role="user", content="How are you? " * n),) for n in (1, 400))
    options = ("Yes", "No")
    alone = sampler.option_logprobs([short], [options])[0]
    first, second, third = sampler.option_logprobs([long, short, short], [options, options, ("Yes", "No " * 600)])
    assert all(map(math.isnan, first))
    assert second == pytest.approx(alone, abs=1e-5)
    assert math.isfinite(third[0])
    assert math.isnan(third[1])


def test_options_are_compared_as_whole_strings(trunk):
    sampler = LocalSampler(trunk, "m")
    dialogue = [Message(role="user", content="Which?")]
    options = ["A", "A longer answer", "b"]
    together = sampler.option_logprobs([dialogue], [options])[0]
    for option, value in zip(options, together, strict=True):
        from charter.models.chat_template import encode_prompt, encode_response

        row = Tokens(encode_prompt(trunk.tokenizer, dialogue), encode_response(trunk.tokenizer, option))
        packed = trunk.pack([row])
        logprobs, _ = trunk.logprobs(REFERENCE, packed)
        assert value == pytest.approx(logprobs.sum().item(), abs=1e-4)  # "A" begins "A longer answer": the end counts
    short = sampler.option_logprobs([dialogue, dialogue], [["A", "B"], ["B", "A"]])
    assert short[0] == pytest.approx(short[1][::-1], abs=1e-6)


def test_a_template_is_filled_once():
    assert fill("{a} {b} {c}\n", a="{b}", b="x") == "{b} x {c}"


def test_token_batches_hold_their_budget_and_every_row_once():
    lengths = [3, 50, 7, 7, 1, 20]
    groups = by_tokens(lengths, 40)
    assert sorted(i for group in groups for i in group) == list(range(6))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 40


def test_each_epoch_sees_every_row_once_in_its_own_order():
    steps = epoch_batches(10, 3, 2, seed=1)
    assert sorted(i for step in steps[:4] for i in step) == sorted(i for step in steps[4:] for i in step) == list(range(10))
    assert steps[:4] != steps[4:]
    assert steps == epoch_batches(10, 3, 2, seed=1)
