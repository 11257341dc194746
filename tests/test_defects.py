"""Defects that were found in other tools, each under its number in the list we keep, each as a test of this one.

Where a whole file is about one of them, the test here is the shortest that would have caught it.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

import charter
from charter.constitution.constitution import Constitution, Principle
from charter.judging.judge import Comparison, Preference, comparisons_of, judgment, pairs_of
from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens, pack
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs
from charter.reading.prompts import read_prompts
from charter.recipe import settings as config
from charter.records import Generation, Message, Prompt, Response
from charter.run.run import Run
from charter.training import losses
from charter.training.advantages import gae, group_advantages, rloo_advantages, whiten
from charter.training.reward_model import train_reward_model
from charter.training.rollouts import collect
from conftest import save_random_model
from test_training import PROMPTS, bandit, pairs, run_bandit

SOURCE = Path(charter.__file__).parent


def response(prompt: Prompt, text: str) -> Response:
    return Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop",
                    generation=Generation(seed=0, temperature=1.0))  # fmt: skip


@pytest.mark.parametrize("honest", [True, False])
def test_b01_the_answer_of_the_judge_reaches_the_label(honest):
    def judge(comparisons):  # prefers, or shuns, the response that says `good`
        logits = [(5.0 if "good" in c.first.text else -5.0) * (1 if honest else -1) for c in comparisons]
        return [Preference(x, x) for x in logits]

    principle = Principle(id="p", title="t", preference="Which is better?", tags=())
    rules = Constitution(title="c", principles=(principle,))
    groups = [[response(p, "bad"), response(p, "good")] if i % 2 else [response(p, "good"), response(p, "bad")]
              for i, p in enumerate(PROMPTS)]  # fmt: skip
    asked: list[Comparison] = comparisons_of(PROMPTS, groups, rules, seed=0)
    labels = [judgment(c, v, rater_id="planted", abstain_below=0.1) for c, v in zip(asked, judge(asked), strict=True)]
    made = pairs_of(labels, {p.id: p for p in PROMPTS}, {r.id: r for group in groups for r in group})
    assert [pair.chosen for pair in made] == ["good" if honest else "bad"] * len(PROMPTS)


def test_b02_as_many_updates_are_made_as_are_planned(random_llama, stage):
    _, metrics = run_bandit(random_llama, stage, "ppo", steps=3, epochs=3, minibatches=4)
    assert [row["updates"] for row in metrics] == [12, 12, 12]


def test_b03_statistics_are_sums_with_counts(random_llama, stage):
    _, metrics = run_bandit(random_llama, stage, "ppo", steps=1, epochs=1, minibatches=4, learning_rate=1e-9)
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)  # and not 1/4 for slots that were never filled


def test_b04_every_setting_is_read_somewhere():
    read = {node.attr for file in SOURCE.rglob("*.py") if file.name not in ("recipe/settings.py", "recipe/files.py")
            for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}  # fmt: skip
    read |= {"red_team", "benign"}  # through PromptSettings.sources
    read |= {"more_urls"}  # through EndpointSettings.servers
    kinds = [kind for kind in vars(config).values() if inspect.isclass(kind) and issubclass(kind, config.Settings)]
    for kind in kinds:
        assert set(kind.model_fields) <= read, (kind.__name__, set(kind.model_fields) - read)


def test_b05_pad_may_be_the_end_token_and_stand_inside_an_answer():
    rows = [Tokens([5, 6], [0, 7, 0]), Tokens([5], [8, 0])]  # 0 is end and pad
    packed = pack(rows)
    assert packed.mask.sum(dim=1).tolist() == [3, 2]
    assert packed.targets[packed.mask].tolist() == [0, 7, 0, 8, 0]


def test_b05_a_run_with_pad_as_end_counts_every_token(tmp_path):
    model = save_random_model(tmp_path / "model", "llama", pad_is_eos=True)
    trunk = load_trunk(str(model))
    trunk.add_role("policy")
    rollout = collect(trunk, PROMPTS, bandit("rloo", max_new_tokens=6), seed=0)
    assert int(rollout.mask.sum()) == rollout.n_tokens


def test_b06_entropy_is_of_response_tokens_and_holds_no_sentinel(random_llama):
    trunk = load_trunk(str(random_llama))
    packed = trunk.pack([Tokens([5, 6], [7, 0]), Tokens([5], [8] * 20)])
    _, entropies = trunk.logprobs("reference", packed, entropy=True)
    assert (entropies[~packed.mask] == 0).all()
    assert (entropies[packed.mask] > 0).all()


def test_b07_every_argument_of_every_loss_has_an_effect():
    for settings in ({}, {"margin": 1.0}, {"centering": 0.5}, {"weight": 0.7}):
        score = torch.tensor([0.4], requires_grad=True)
        losses.bradley_terry_loss(score, torch.tensor([0.1]), **settings).sum().backward()
        plain = torch.tensor([0.4], requires_grad=True)
        losses.bradley_terry_loss(plain, torch.tensor([0.1])).sum().backward()
        assert (score.grad.item() == plain.grad.item()) == (not settings)


def test_b08_the_price_of_kl_outlives_a_stop(random_llama, tmp_path):
    from charter.training.optimizer import load_checkpoint

    with Run(tmp_path / "run", quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
        _, metrics = run_bandit(random_llama, stage, "rloo", steps=3, kl_coef=0.1, kl_target=0.1, kl_horizon=64.0)
        step, extra = load_checkpoint(stage.path("checkpoint.safetensors"), {})
    assert step == 3
    assert metrics[0]["kl_coef"] == 0.1
    assert extra["kl_coef"] not in (0.1, metrics[2]["kl_coef"])  # moved, and the price that step 3 would pay


@pytest.mark.parametrize("text", ["Say: this: that", "line one\nline two", "Human: hi\n\nAssistant: ho", "assistant: x"])
def test_b09_nothing_of_a_prompt_is_lost(tmp_path, random_llama, text):
    import json

    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    (prompt,) = read_prompts(tmp_path / "p.jsonl", tags=("red_team",))
    assert prompt.last_turn == text
    tokenizer = load_trunk(str(random_llama)).tokenizer
    assert text in tokenizer.decode(encode_prompt(tokenizer, [Message(role="user", content=text)]))


def test_b10_no_verdict_is_neither_a_win_nor_a_loss_nor_a_zero():
    prompt = PROMPTS[0]
    asked = Comparison(prompt, response(prompt, "a"), response(prompt, "b"), "p", "Which?")
    label = judgment(asked, Preference(float("nan"), float("nan")), rater_id="j", abstain_below=0.1)
    assert (label.has_verdict, label.margin, label.ranks) == (False, None, {})
    assert pairs_of([label], {prompt.id: prompt}, {r.id: r for r in (asked.first, asked.second)}) == []


def test_b11_pairs_that_are_left_out_are_counted(tmp_path):
    rows = ['{"prompt": "q", "chosen": "a", "rejected": "b"}', '{"prompt": "q", "chosen": "same", "rejected": "same"}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    found = read_pairs(tmp_path / "pairs.jsonl")
    assert (len(found.pairs), sum(found.excluded.values())) == (1, 1)


def test_b12_weights_stay_in_float32_under_bfloat16(random_llama, stage):
    trunk = load_trunk(str(random_llama), precision="bfloat16")
    train_reward_model(trunk, pairs(), config.RewardModelSettings(epochs=1), stage)
    assert {p.dtype for p in trunk.parameters("reward").values()} == {torch.float32}
    assert {p.dtype for p in trunk.model.parameters()} == {torch.float32}


def test_b13_what_is_sampled_is_the_whole_distribution():
    text = (SOURCE / "models/generate.py").read_text()
    assert not re.search(r"top_[kp]\b", "".join(line for line in text.splitlines() if "#" not in line and '"' not in line))
    assert not any(name.startswith("top_") for kind in config.METHODS.values() for name in kind.model_fields)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_b14_greedy_rollouts_are_refused(method):
    with pytest.raises(ValueError, match="greater than 0"):
        config.METHODS[method](temperature=0)


@pytest.mark.parametrize("constant", [0.05, 0.1, 0.3, 0.7, 0.9, 1.2])
@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_b15_equal_rewards_are_no_advantage(constant, k):
    group = torch.full((2, k), constant)
    for found in (rloo_advantages(group), group_advantages(group, scale_by_std=True)):
        assert (found == 0).all()


def test_b16_padding_has_no_part_in_the_whitening():
    values = torch.tensor([[1.0, 2.0, 4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False, False]])
    assert torch.equal(whiten(values, mask)[:, :3], whiten(values[:, :3], mask[:, :3]))
    advantages, _ = gae(values, torch.zeros_like(values), mask, 1.0, 1.0)
    assert advantages[0].tolist() == [7.0, 6.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("limit", [1, 2])
def test_b17_every_answer_has_a_token_that_can_be_trained(random_llama, limit):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    rollout = collect(trunk, PROMPTS, bandit("grpo", max_new_tokens=limit), seed=0)
    assert (rollout.mask.sum(dim=1) >= 1).all()
