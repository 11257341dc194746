"""Q-learning on text: an enumerated problem whose values are known, and what the saved model says."""

import json
from itertools import combinations

import pytest
import torch
from pydantic import ValidationError

from charter.errors import InputError
from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Pair, Prompt
from charter.stages.rl.settings import ILQLSettings
from charter.training.methods.ilql import add_q_heads, read_actions, shift, train_ilql
from charter.training.methods.reward_model import pair_tokens
from conftest import save_random_model

PROMPT = Prompt.ask("Say two letters.")
BEST_FIRST = ("bb", "aa", "ab", "ba")
"""Each response against each other: rewards of +1, +1/3, -1/3 and -1 on average. Both first letters are worth 0 on average, and
the better one is the first letter of the best response and of the worst."""
ORDERED = [Pair(prompt=PROMPT, chosen=a, rejected=b, group_id="g") for a, b in combinations(BEST_FIRST, 2)]
REWARD = {text: 1 - 2 * place / 3 for place, text in enumerate(BEST_FIRST)}
LEARN = {"epochs": 250, "pairs_per_step": 6, "learning_rate": 3e-3, "value_learning_rate": 3e-2, "cql_coef": 0.0, "gamma": 1.0,
         "target_share": 0.2, "beta": 8.0}  # fmt: skip


def learned(random_llama, stage, **changes):
    trunk = load_trunk(str(random_llama))
    trunk.add_role("policy")
    train_ilql(trunk, ORDERED, ILQLSettings(**LEARN | changes), stage)
    return trunk


def q_of(trunk, text):
    """Q of the tokens of a response: its letters and its end."""
    row, _ = pair_tokens(trunk, Pair(prompt=PROMPT, chosen=text, rejected="?", group_id="g"))
    with torch.no_grad():
        return read_actions(trunk, trunk.value_heads["policy"], trunk.pack([row])).slow_q[0].tolist()


def expectile(low, high, tau):
    """Of two equally frequent numbers: (1 - τ)(v - low) = τ (high - v)."""
    return (1 - tau) * low + tau * high


def mean_reward(trunk):
    """Of 200 sampled responses; another text than the four is worth -1."""
    sampler = LocalSampler(trunk, "policy", role="policy")
    (group,) = sampler.generate([PROMPT.messages], [list(range(200))], temperature=1.0, max_new_tokens=4)
    return sum(REWARD.get(one.text, -1.0) for one in group) / len(group)


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_q_of_an_enumerated_problem_is_known_and_beats_the_behaviour_it_learned_from(random_llama, stage, tau):
    trunk = learned(random_llama, stage, expectile=tau)
    after = {first: sorted(REWARD[first + second] for second in "ab") for first in "ab"}
    for text, reward in REWARD.items():
        first, second, end = q_of(trunk, text)
        assert end == pytest.approx(reward, abs=0.1)
        assert second == pytest.approx(reward, abs=0.1)
        assert first == pytest.approx(expectile(*after[text[0]], tau), abs=0.1)
    learned_policy = mean_reward(trunk)
    shift(trunk, trunk.value_heads["policy"], 0.0)
    assert mean_reward(trunk) == pytest.approx(0.0, abs=0.2)  # the mixed behaviour of the pairs
    # Half of the best responses begin as the worst do, so the mean does not tell the first letters apart and the expectile does.
    assert learned_policy > 0.9 if tau == 0.9 else 0.4 < learned_policy < 0.9


def test_the_saved_folder_is_a_plain_model_that_draws_from_the_reference_times_exp_of_the_advantage(
    random_llama, stage, tmp_path
):
    trunk = learned(random_llama, stage, epochs=4, beta=2.0)
    trunk.save_language_model("policy", tmp_path / "model")
    heads, model = trunk.value_heads["policy"], trunk.copies["policy"]
    packed = trunk.pack([Tokens(encode_prompt(trunk.tokenizer, PROMPT.messages), [5])])
    with torch.no_grad():
        hidden = trunk.hidden(model, packed, packed.before[packed.mask])
        reference = torch.log_softmax(hidden @ heads.language.t(), dim=1)
        advantage = hidden @ heads.slow.mean(dim=0).t() - heads(hidden).unsqueeze(1)
        expected = torch.log_softmax(reference + 2.0 * advantage, dim=1)
        saved = load_trunk(str(tmp_path / "model"))
        assert saved.model.get_output_embeddings().weight is not saved.model.get_input_embeddings().weight
        logits = saved.model(torch.tensor([packed.ids[:-1].tolist()])).logits[0, -1:]
    assert float((expected - reference).abs().max()) > 0.01
    assert torch.allclose(torch.log_softmax(logits, dim=1), expected, atol=1e-5)
    base = load_trunk(str(random_llama)).model
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), trunk.model.parameters(), strict=True))


def test_before_the_first_update_the_policy_is_the_reference_and_a_cut_gradient_leaves_the_layers_alone(random_llama, stage):
    trunk = learned(random_llama, stage, epochs=3, value_gradient=0.0, sft_coef=0.0)
    first = stage.metrics()[0]
    # r = ±1 at the last token alone, and all else is about 0.
    n = sum(len(row.response) for pair in ORDERED for row in pair_tokens(trunk, pair))
    assert first["q_loss"] == pytest.approx(2 * 12 / n, rel=0.02)
    assert first["q_margin"] == pytest.approx(0.0, abs=0.02)
    trained = dict(trunk.copies["policy"].named_parameters())
    for name, value in trunk.model.named_parameters():
        if name != "lm_head.weight":
            assert torch.equal(value, trained[name]), name


@pytest.mark.parametrize("kept", ["last", "best"])
def test_a_run_learns_from_pairs_and_every_arm_samples_from_the_shifted_model(tmp_path, write_recipe, random_llama, kept):
    gold = {"source": "python:gold_rules:letters", "every": 2, "prompts": 4, "max_new_tokens": 8}
    rl = {"method": "ilql", "pairs_per_step": 8, "gold": gold, "keep": kept, "value_learning_rate": 0.01}
    recipe = write_recipe(random_llama)
    values = recipe.read_text()
    recipe.write_text(values)
    report = run_recipe(load_recipe(write_recipe(random_llama, rl=rl)), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in report["metrics"]} == {"base", "sft", "policy"}
    assert rows
    assert "lm_head.weight" in str(load_trunk(str(tmp_path / "run/rl/model")).model.state_dict().keys())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stop": {"reward": 1.0}}, "ilql samples no responses"),
        ({"stop": {"kl": 1.0}}, "ilql knows its KL only from the answers of gold"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        ILQLSettings(**changes)


def test_a_model_whose_logits_are_more_than_a_product_is_refused(tmp_path):
    trunk = load_trunk(str(save_random_model(tmp_path / "model", "t5")))
    trunk.add_role("policy")
    with pytest.raises(InputError, match="a bias, a scale or a cap"):
        add_q_heads(trunk, 0.1)
