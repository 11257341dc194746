"""Encoders as reward models: trained on pairs, read back, used on another model's texts, refused where one must write."""

import json

import pytest
import torch

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.heads import Scorers, ScoreScale
from charter.models.packing import Tokens, clip
from charter.models.trunk import load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Message, Pair, Prompt, Rollout
from charter.stages.reward_model.settings import RewardModelSettings
from charter.training.methods.reward_model import pair_tokens, reward_scores, score_rows, train_reward_model
from charter.training.rollouts import RewardModelReward
from conftest import ENCODER_FAMILIES, HARMFUL, save_random_classifier, save_random_encoder

PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]


@pytest.fixture(scope="module", params=sorted(ENCODER_FAMILIES))
def folder(request, tmp_path_factory):
    return save_random_encoder(tmp_path_factory.mktemp(request.param), request.param)


def rows_of(trunk) -> list[Tokens]:
    return [
        Tokens(encode_prompt(trunk.tokenizer, p.messages), encode_response(trunk.tokenizer, text))
        for p in PROMPTS
        for text in ("No, I mend the door.", "Yes.")
    ]


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=4)], ids=["full", "lora"])
def test_an_encoder_learns_to_score_and_is_read_back(folder, stage, tmp_path, lora):
    trunk = load_trunk(str(folder), lora=lora, writes=False)
    pairs = [Pair(prompt=p, chosen="No, I mend.", rejected=f"Yes {i}.", group_id=p.id) for i, p in enumerate(PROMPTS)]
    settings = RewardModelSettings(epochs=8, learning_rate=1e-2, pairs_per_step=4)
    scorers = train_reward_model(trunk, pairs, settings, stage, limit=trunk.room)
    assert stage.metrics()[-1]["loss"] < stage.metrics()[0]["loss"]
    trunk.save_scorers(scorers, tmp_path / "saved")
    other = load_trunk(str(folder), lora=lora, writes=False)
    again = reward_scores(other, other.load_scorers(tmp_path / "saved"), rows_of(other), 4096)
    torch.testing.assert_close(again, reward_scores(trunk, scorers, rows_of(trunk), 4096), rtol=0, atol=1e-6)


def test_a_row_is_what_the_model_itself_would_read(folder):
    trunk = load_trunk(str(folder), writes=False)
    trunk.add_role("reward", head=True)
    torch.nn.init.normal_(trunk.heads["reward"].weight)
    tokenizer, encoder = trunk.tokenizer, trunk.copies["reward"]
    expected = []
    for p in PROMPTS:
        for text in ("No, I mend the door.", "Yes."):
            types = getattr(encoder.config, "type_vocab_size", 0) > 1
            inputs = tokenizer(p.last_turn, text, return_tensors="pt", return_token_type_ids=types)
            expected.append(trunk.heads["reward"](encoder(**inputs).last_hidden_state[:, 0]).item())
    found = trunk.scores("reward", trunk.pack(rows_of(trunk))).tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_long_rows_keep_the_first_token_and_the_response(folder):
    trunk = load_trunk(str(folder), writes=False)
    trunk.add_role("reward", head=True)
    torch.nn.init.normal_(trunk.heads["reward"].weight)
    row = clip(Tokens([7] * 100, [8, 9, 3]), trunk.room)
    assert len(row) == trunk.room
    assert torch.isfinite(trunk.scores("reward", trunk.pack([row]))).all()


def test_an_encoder_that_should_write_is_refused(folder):
    with pytest.raises(InputError, match="an encoder cannot write; use it as a reward model"):
        load_trunk(str(folder))


def test_three_families_of_tokenizers_meet_in_one_run(write_recipe, random_llama, tmp_path):
    """A policy on byte-level BPE, a reward model on WordPiece, a classifier with a tokenizer of its own."""
    bert = save_random_encoder(tmp_path / "bert", "bert")
    kind = save_random_classifier(tmp_path / "kind")
    recipe = write_recipe(
        random_llama,
        reward_model={"model": str(bert)},
        rl={"reward": {"reward_model": {}, "kind": {"source": f"classifier:{kind}:kind", "weight": 0.5}}},
        evaluation={"best_of": 2},
    )
    assert run_command(["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert all({"reward/kind", "reward/reward_model"} <= row.keys() for row in rows)
    assert (tmp_path / "run/reward_model/model/reward_model.json").exists()


def test_reward_train_takes_an_encoder(folder, tmp_path):
    rows = [{"prompt": text, "chosen": f"No, {text}", "rejected": "Yes."} for text in HARMFUL[:12]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["reward", "train", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out"), "--model", str(folder), "--quiet"]
    assert run_command(words) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n"] == 3


def test_a_reward_reads_a_long_conversation_as_the_training_of_its_model_did(tmp_path):
    trunk = load_trunk(str(save_random_encoder(tmp_path / "model", "bert")), writes=False)
    trunk.add_role("reward", head=True)
    torch.manual_seed(0)
    trunk.heads["reward"].weight.data.normal_()
    turns = [Message(role=("user", "assistant")[i % 2], content=f"{HARMFUL[i]} {i} " * 4) for i in range(7)]
    pair = Pair(prompt=Prompt(messages=turns), chosen="I mend the door.", rejected="No.", group_id="g")
    rows = list(pair_tokens(trunk, pair, trunk.room))
    assert rows[0].lost == "prompt"
    rollout = Rollout(
        prompt_ids=(), ids=torch.zeros(2, 1), mask=torch.ones(2, 1), logprobs=torch.zeros(2, 1), finished=torch.ones(2),
        n_tokens=0, texts=(pair.chosen, pair.rejected), prompts=(pair.prompt, pair.prompt),
    )  # fmt: skip
    reward = RewardModelReward(trunk, Scorers(("reward",), (ScoreScale(0.0, 1.0),)), 4096)(rollout)
    assert torch.allclose(reward, score_rows(trunk, rows, 4096), atol=1e-5)
