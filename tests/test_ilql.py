"""Q-learning on text: an enumerated problem whose values are known, and what the saved model says."""

import json
import shutil
from itertools import product

import pytest
import torch
import yaml

from charter.errors import InputError
from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.plan.loads import count, loads_with
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.records import Pair, Prompt, Rating
from charter.run.run import Run
from charter.stages.rl.settings import ILQLSettings
from charter.training.advantages import gae
from charter.training.gold import Gold
from charter.training.losses import expectile_loss, masked_mean
from charter.training.methods.ilql import add_q_heads, language_projection, shift, train_ilql, with_rewards
from charter.training.rewards import at_last_token
from conftest import save_random_model

PROMPT = Prompt.ask("Say two letters.")
SCORES = {"bb": 3.0, "aa": 1.0, "ab": -1.0, "ba": -3.0}
"""Of all responses of two letters. Both first letters are worth 0 on average; the better one begins the best and the worst."""
RATED = [Rating(prompt=PROMPT, response=text, score=score, group_id="g") for text, score in SCORES.items()]
DEVIATION = 5**0.5  # of the scores, whose mean is 0


def learned(model, stage, lora=None, asked=None, **changes):
    trunk = load_trunk(str(model), lora=lora)
    trunk.add_role("policy")
    settings = {"epochs": 80, "pairs_per_step": 2, "learning_rate": 6e-3, "value_learning_rate": 3e-2, "cql_coef": 0.0,
                "gamma": 1.0, "td_lambda": 0.0, "target_share": 0.3, "beta": 8.0, "value_gradient": 1.0,
                "checkpoint_every": 1000}  # fmt: skip
    train_ilql(trunk, RATED, ILQLSettings(**settings | changes), stage, gold=asked)
    return trunk, trunk.value_heads["policy"]


def mean_score(trunk):
    """Of 200 sampled responses; another text than the four scores -3."""
    sampler = LocalSampler(trunk, "policy", role="policy")
    (group,) = sampler.generate([PROMPT.messages], [list(range(200))], temperature=1.0, max_new_tokens=4)
    return sum(SCORES.get(one.text, -3.0) for one in group) / len(group)


def test_q_of_the_enumerated_problem_becomes_the_optimal_one_and_beats_the_behaviour_that_it_learned_from():
    """A number for every state and token: the losses and the credit of the trainer without a model."""
    tau, gamma, beta = 0.99, 0.9, 8.0
    tokens, texts = ("a", "b", ""), tuple(SCORES)
    states = ("", "a", "b", *texts)
    paths = torch.tensor([[states.index(text[:t]) for t in range(3)] for text in texts])  # (4, 3)
    actions = torch.tensor([[tokens.index(token) for token in (*text, "")] for text in texts])
    mask, rewards = (
        torch.ones(4, 3, dtype=torch.bool),
        at_last_token(torch.tensor(list(SCORES.values())), torch.ones(4, 3).bool()),
    )
    q, v = torch.zeros(len(states), 3, requires_grad=True), torch.zeros(len(states), requires_grad=True)
    slow = torch.zeros(len(states), 3)
    optimizer = torch.optim.Adam([q, v], lr=0.1)
    for _ in range(600):
        _, targets = gae(rewards, v[paths].detach(), mask, gamma, 0.0)
        loss = masked_mean((q[paths, actions] - targets) ** 2, mask) + expectile_loss(v[paths], slow[paths, actions], mask, tau)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slow.lerp_(q.detach(), 0.3)
    for text, score in SCORES.items():
        best = max(SCORES[text[0] + second] for second in "ab")
        path = slow[paths[texts.index(text)], actions[texts.index(text)]].tolist()
        assert path == pytest.approx([gamma**2 * best, gamma * score, score], abs=0.15)
    # The behaviour takes either letter with probability ½; what it is worth, and what the policy is worth, is enumerated.
    shifted = torch.softmax(beta * (slow - v.detach().unsqueeze(1))[:, :2], dim=1)
    worth = sum(
        float(shifted[0, actions[i, 0]] * shifted[paths[i, 1], actions[i, 1]]) * SCORES[text] for i, text in enumerate(texts)
    )
    assert worth == pytest.approx(3.0, abs=0.05)
    assert sum(SCORES.values()) == 0


def test_a_model_that_learned_from_mixed_behaviour_is_better_than_it(random_llama, stage):
    trunk, heads = learned(random_llama, stage, expectile=0.9)
    learned_policy = mean_score(trunk)
    shift(trunk, heads, 0.0)
    assert learned_policy > mean_score(trunk) + 1.5


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)])
def test_the_saved_folder_is_a_plain_model_that_draws_from_the_reference_times_exp_of_the_advantage(
    random_llama, stage, tmp_path, lora
):
    trunk, heads = learned(random_llama, stage, lora, epochs=6, beta=2.0)
    trunk.save_language_model("policy", tmp_path / "model")
    assert not (tmp_path / "adapter").exists()  # it would lack Q
    packed = trunk.pack([Tokens(encode_prompt(trunk.tokenizer, PROMPT.messages), [5])])
    with torch.no_grad():
        hidden = trunk.through("policy", lambda model: trunk.hidden(model, packed, packed.before[packed.mask]))
        reference = torch.log_softmax(hidden @ language_projection(trunk).t(), dim=1)
        advantage = hidden @ heads.slow.mean(dim=0).t() - heads(hidden).unsqueeze(1)
        expected = torch.log_softmax(reference + 2.0 * advantage, dim=1)
        saved = load_trunk(str(tmp_path / "model"))
        logits = saved.model(packed.ids[:-1].unsqueeze(0)).logits[0, -1:]
    assert float((expected - reference).abs().max()) > 0.01
    assert torch.allclose(torch.log_softmax(logits, dim=1), expected, atol=1e-5)
    texts = [
        LocalSampler(one, "x", role=role).generate([PROMPT.messages], [[0, 1, 2]], temperature=1.0, max_new_tokens=8)
        for one, role in ((trunk, "policy"), (saved, "reference"))
    ]
    assert texts[0] == texts[1]
    base = load_trunk(str(random_llama))
    with trunk.as_role("reference") as model:  # is what it was, its vocabulary projection too
        ids = packed.ids.unsqueeze(0)
        assert torch.equal(model(ids).logits, base.model(ids).logits)


@pytest.mark.parametrize(("td_lambda", "paid"), [(0.0, 1), (1.0, 3)])
def test_at_first_q_is_about_zero_and_a_cut_gradient_leaves_the_layers_alone(random_llama, stage, td_lambda, paid):
    trunk, _ = learned(random_llama, stage, epochs=3, value_gradient=0.0, sft_coef=0.0, td_lambda=td_lambda)
    first = stage.metrics()[0]
    # The rewards have variance 1; they are the target of the last token alone, or of all three. Two heads.
    assert first["q_loss"] == pytest.approx(2 * paid / 3, rel=0.02)
    assert first["q_better"] == pytest.approx(first["q_worse"], abs=0.02)
    trained = dict(trunk.copies["policy"].named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in trunk.model.named_parameters())


def test_rewards_of_pairs_are_those_of_the_soft_label_and_ratings_are_standardised(random_llama):
    trunk = load_trunk(str(random_llama))
    pairs = [Pair(prompt=PROMPT, chosen="a", rejected="b", group_id="g", weight=weight) for weight in (1.0, 0.75)]
    pairs.append(Pair(prompt=PROMPT, chosen="a", rejected="a", group_id="g"))  # equal rows are left out and counted
    rewarded = with_rewards(trunk, pairs, None)
    assert rewarded.rewards.tolist() == pytest.approx([1, -1, 0.5, -0.5])
    assert rewarded.items == [[0, 1], [2, 3]]
    assert rewarded.cut.equal_pairs == 1
    rated = with_rewards(trunk, [r.model_copy(update={"score": 10 + r.score}) for r in RATED], None)
    assert (rated.rewards * DEVIATION).tolist() == pytest.approx(list(SCORES.values()), abs=1e-5)


class Stopped(Exception):
    pass


def test_a_stopped_training_resumes_to_the_same_weights_and_the_best_heads_are_put_back(random_llama, tmp_path):
    calls = []

    def score(_, texts):
        calls.append(len(texts))
        if len(calls) == 3 and stops:
            raise Stopped
        return [float(len(calls) == 2)] * len(texts)

    weights, gold = [], Gold([PROMPT, Prompt.ask("Say more.")], score)
    changes = {"epochs": 6, "checkpoint_every": 1, "gold": {"source": "python:charter.evaluation.overlap:rouge_l", "every": 2}}
    for stops, keep in ((False, "last"), (True, "last"), (False, "best")):
        calls.clear()
        with Run(tmp_path / f"run {stops} {keep}", quiet=True) as run, run.stage("training", {}, {}, []) as stage:
            if stops:
                with pytest.raises(Stopped):
                    learned(random_llama, stage, asked=gold, keep=keep, **changes)
            trunk, heads = learned(random_llama, stage, asked=gold, keep=keep, **changes)
        weights.append({**trunk.parameters("policy"), "projection": trunk.projections["policy"].weight})
        assert torch.equal(weights[-1]["projection"], heads.perturbed(language_projection(trunk), 8.0))
    last, resumed, best = weights
    assert all(torch.equal(value, resumed[name]) for name, value in last.items())
    assert not torch.equal(last["projection"], best["projection"])


@pytest.mark.parametrize("source", ["pairs", "ratings"])
def test_a_run_learns_offline_and_the_report_samples_from_the_shifted_model(
    tmp_path, write_recipe, random_llama, before_rl, source
):
    shutil.copytree(before_rl, tmp_path / "run")
    changes = {"rl": {"method": "ilql", "pairs_per_step": 8, "lora": {"rank": 2}}}
    if source == "ratings":
        rows = [{"prompt": f"Question {i}?", "response": f"Answer {j}", "score": j} for i, j in product(range(8), range(3))]
        rows.append({"prompt": [{"role": "assistant", "content": "Hello."}], "response": "Hi.", "score": 1})
        (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes = {"rl": {"method": "ilql", "pairs_per_step": 4, "ratings": ["rated.jsonl"]}, "feedback": None}
    path = write_recipe(random_llama, **changes)
    report = run_recipe(load_recipe(path), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["cql_loss"] > 0
    assert {row["arm"] for row in report["metrics"]} == {"base", "sft", "policy"}
    result = json.loads((tmp_path / "run/rl/manifest.json").read_text())["result"]
    assert sum(result.get("excluded", {}).values()) == (1 if source == "ratings" else 0)
    if source == "ratings":
        assert len(rows) == 3  # 24 rated responses, 8 at a time
    model = load_trunk(str(tmp_path / "run/rl/model")).model
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert all(stage["skipped"] for stage in run_recipe(load_recipe(path), tmp_path / "run", quiet=True)["stages"])


def test_the_plan_counts_the_matrices_of_the_q_heads(random_llama, write_recipe):
    loads = {}
    for method in ("dpo", "ilql"):
        counted = count(load_recipe(write_recipe(random_llama, rl={"method": method})), "cpu")
        loads[method] = next(load for load in loads_with(counted, counted.recipe) if load.stage == "rl")
    table = 4 * counted.shape.vocabulary * counted.shape.hidden
    more = {key: loads["ilql"].memory[key] - loads["dpo"].memory.get(key, 0) for key in ("q_heads", "gradients", "adam")}
    assert more == {"q_heads": 5 * table, "gradients": 2 * table, "adam": 4 * table}
    assert loads["ilql"].checkpoint - loads["dpo"].checkpoint == 8 * table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl": {"method": "ilql", "stop": {"reward": 1.0}}}, "ilql samples no responses"),
        ({"rl": {"method": "ilql", "stop": {"kl": 1.0}}}, "ilql knows its KL only from the answers of gold"),
        ({"rl": {"method": "ilql", "ratings": ["r.jsonl"]}}, "set feedback: null"),
        ({"rl": {"method": "ilql"}, "parallel": "fsdp"}, "use parallel: ddp"),
        ({"rl": {"method": "ilql"}, "quantization": "nf4"}, "leave out quantization"),
        ({"rl": {"method": "ilql"}, "feedback": None}, "feedback is null"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(write_recipe, random_llama, changes, words):
    path = write_recipe(random_llama)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(InputError, match=words):
        load_recipe(path)


def test_a_model_whose_logits_are_more_than_a_product_is_refused(tmp_path):
    trunk = load_trunk(str(save_random_model(tmp_path / "model", "t5")))
    trunk.add_role("policy")
    with pytest.raises(InputError, match="a bias, a scale or a cap"):
        add_q_heads(trunk, 0.1)
