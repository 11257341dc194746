"""Defects of other alignment tools. The docstring of each test names one of them; the test shows that Charter does not have it.

Where a whole test file covers the subject, the test here is the shortest that would have caught the defect.
"""

import ast
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
from charter.records import Filters, Generation, Message, Prompt, Response
from charter.run.run import Run
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import METHODS
from charter.training import losses
from charter.training.advantages import gae, group_advantages, rloo_advantages, whiten
from charter.training.methods.reward_model import train_reward_model
from charter.training.rollouts import collect
from conftest import save_random_model, settings_classes
from test_training import PROMPTS, ROLLOUT, bandit, pairs, run_bandit

SOURCE = Path(charter.__file__).parent


def response(prompt: Prompt, text: str) -> Response:
    return Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop",
                    generation=Generation(seed=0, temperature=1.0))  # fmt: skip


@pytest.mark.parametrize("honest", [True, False])
def test_the_judges_answer_decides_the_label(honest):
    """The label came from the position of the response; the judge's answer was never used."""

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


def test_the_planned_number_of_updates_is_made(random_llama, stage):
    """A loop over epochs and minibatches left early, so fewer updates ran than the settings said."""
    _, metrics = run_bandit(random_llama, stage, "ppo", steps=3, epochs=3, minibatches=4)
    assert [row["updates"] for row in metrics] == [12, 12, 12]


def test_statistics_are_sums_with_counts(random_llama, stage):
    """A mean over a preallocated table counted slots that no update had filled."""
    _, metrics = run_bandit(random_llama, stage, "ppo", steps=1, epochs=1, minibatches=4, learning_rate=1e-9)
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)  # and not 1/4 for slots that were never filled


def test_every_setting_is_read():
    """A setting was accepted and documented, but no code read it."""
    read = {node.attr for file in SOURCE.rglob("*.py") if file.name != "settings.py" and file.parent.name != "recipe"
            for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}  # fmt: skip
    read |= {"red_team", "benign"}  # through PromptSettings.sources
    read |= {"training", "sampling"}  # through Recipe.share_settings
    read |= {"variant"}  # by GRPOSettings.fill_in_the_variant
    read |= {"stop_kl"}  # by methods that may stop early, through getattr
    read |= {"more_urls"}  # through EndpointSettings.servers
    for kind in settings_classes():
        assert set(kind.model_fields) <= read, (kind.__name__, set(kind.model_fields) - read)


def test_pad_may_be_the_end_token():
    """A mask made of token ids dropped the end token when pad and end were the same id."""
    rows = [Tokens([5, 6], [0, 7, 0]), Tokens([5], [8, 0])]  # 0 is end and pad
    packed = pack(rows)
    assert packed.mask.sum(dim=1).tolist() == [3, 2]
    assert packed.targets[packed.mask].tolist() == [0, 7, 0, 8, 0]


def test_rollouts_count_every_token_when_pad_is_end(tmp_path):
    """The same defect in a rollout: end tokens were missing from the mask."""
    model = save_random_model(tmp_path / "model", "llama", pad_is_eos=True)
    trunk = load_trunk(str(model))
    trunk.add_role("policy")
    rollout = collect(trunk, PROMPTS, bandit("rloo", max_new_tokens=6), seed=0)
    assert int(rollout.mask.sum()) == rollout.n_tokens


def test_entropy_covers_response_tokens_only(random_llama):
    """The mean entropy included prompt and padding positions, or a filler value at masked positions."""
    trunk = load_trunk(str(random_llama))
    packed = trunk.pack([Tokens([5, 6], [7, 0]), Tokens([5], [8] * 20)])
    _, entropies = trunk.logprobs("reference", packed, entropy=True)
    assert (entropies[~packed.mask] == 0).all()
    assert (entropies[packed.mask] > 0).all()


def test_every_argument_of_a_loss_has_an_effect():
    """A loss accepted a margin or a weight and ignored it."""
    for settings in ({}, {"margin": 1.0}, {"centering": 0.5}, {"weight": 0.7}):
        score = torch.tensor([0.4], requires_grad=True)
        losses.bradley_terry_loss(score, torch.tensor([0.1]), **settings).sum().backward()
        plain = torch.tensor([0.4], requires_grad=True)
        losses.bradley_terry_loss(plain, torch.tensor([0.1])).sum().backward()
        assert (score.grad.item() == plain.grad.item()) == (not settings)


def test_a_checkpoint_keeps_the_adaptive_kl_coefficient(random_llama, tmp_path):
    """A resumed run started again from the first KL coefficient, not from the adapted one."""
    from charter.training.checkpoints import load_checkpoint

    with Run(tmp_path / "run", quiet=True) as run, run.stage("rl", {}, {}, []) as stage:
        _, metrics = run_bandit(
            random_llama, stage, "rloo", steps=3, kl_coef=0.1, kl_target=0.1, kl_horizon=64.0, checkpoint_every=1
        )
        step, extra = load_checkpoint(stage.path("checkpoint.safetensors"), {})
    assert step == 3
    assert metrics[0]["kl_coef"] == 0.1
    assert extra["kl_coef"] not in (0.1, metrics[2]["kl_coef"])  # moved, and the price that step 3 would pay


@pytest.mark.parametrize("text", ["Say: this: that", "line one\nline two", "Human: hi\n\nAssistant: ho", "assistant: x"])
def test_nothing_of_a_prompt_is_lost(tmp_path, random_llama, text):
    """A prompt was cut at ": ", at a line break, or at a role word in its text."""
    import json

    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    (prompt,) = read_prompts(tmp_path / "p.jsonl", tags=("red_team",))
    assert prompt.last_turn == text
    tokenizer = load_trunk(str(random_llama)).tokenizer
    assert text in tokenizer.decode(encode_prompt(tokenizer, [Message(role="user", content=text)]))


def test_no_verdict_is_neither_a_win_nor_a_loss():
    """A comparison without a verdict counted as a win for one side, or as a score of 0."""
    prompt = PROMPTS[0]
    asked = Comparison(prompt, response(prompt, "a"), response(prompt, "b"), Principle(id="p", title="p", preference="Which?"))
    label = judgment(asked, Preference(float("nan"), float("nan")), rater_id="j", abstain_below=0.1)
    assert (label.has_verdict, label.margin, label.ranks) == (False, None, {})
    assert pairs_of([label], {prompt.id: prompt}, {r.id: r for r in (asked.first, asked.second)}) == []


def test_excluded_pairs_are_counted(tmp_path):
    """The reader dropped pairs without a word."""
    rows = ['{"prompt": "q", "chosen": "a", "rejected": "b"}', '{"prompt": "q", "chosen": "same", "rejected": "same"}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    found = read_pairs(tmp_path / "pairs.jsonl")
    assert (len(found.pairs), sum(found.excluded.values())) == (1, 1)


def test_weights_stay_in_float32_under_bfloat16(random_llama, stage):
    """Weights were cast to bfloat16, where small updates round to nothing."""
    trunk = load_trunk(str(random_llama), precision="bfloat16")
    train_reward_model(trunk, pairs(), RewardModelSettings(epochs=1), stage)
    assert {p.dtype for p in trunk.parameters("reward").values()} == {torch.float32}
    assert {p.dtype for p in trunk.model.parameters()} == {torch.float32}


def test_rollouts_are_of_the_whole_distribution():
    """Responses were sampled with top-k or top-p, but scored under the full distribution."""
    for file in (SOURCE / "training").rglob("*.py"):
        assert "filters" not in file.read_text(), f"{file.name} may filter what is learned from by its log-probabilities"
    assert not {name for kind in METHODS.values() for name in kind.model_fields} & set(Filters.model_fields)


@pytest.mark.parametrize("method", ROLLOUT)
def test_greedy_rollouts_are_refused(method):
    """Rollouts at temperature 0 gave equal responses, so there was nothing to learn from."""
    with pytest.raises(ValueError, match="greater than 0"):
        METHODS[method](temperature=0)


@pytest.mark.parametrize("constant", [0.05, 0.1, 0.3, 0.7, 0.9, 1.2])
@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_equal_rewards_give_no_advantage(constant, k):
    """Rounding errors divided by a tiny deviation became advantages of any size."""
    group = torch.full((2, k), constant)
    for found in (rloo_advantages(group), group_advantages(group, scale_by_std=True)):
        assert (found == 0).all()


def test_padding_does_not_change_the_whitening():
    """Mean and deviation of the advantages included padded positions."""
    values = torch.tensor([[1.0, 2.0, 4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False, False]])
    assert torch.equal(whiten(values, mask)[:, :3], whiten(values[:, :3], mask[:, :3]))
    advantages, _ = gae(values, torch.zeros_like(values), mask, 1.0, 1.0)
    assert advantages[0].tolist() == [7.0, 6.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("limit", [1, 2])
def test_every_response_has_a_token_to_train(random_llama, limit):
    """A response of one token was left without any position in the mask, and its loss was 0 / 0."""
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    rollout = collect(trunk, PROMPTS, bandit("grpo", max_new_tokens=limit), seed=0)
    assert (rollout.mask.sum(dim=1) >= 1).all()
