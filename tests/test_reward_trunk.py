"""Training on from a reward model: one of Charter's own, whole or an adapter, or a sequence classifier with one label."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.heads import Scorers, ScoreScale
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_trunk, reward_folder
from charter.recipe.settings import LoRASettings
from charter.records import Generation, Pair, Prompt, Response
from charter.stages.reward_model.settings import RewardModelSettings
from charter.tasks.own_files import features_of, response_features
from charter.training.methods.reward_model import score_rows, train_reward_model
from conftest import HARMFUL, save_random_classifier, save_random_encoder, save_random_model

PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]
PAIRS = [Pair(prompt=p, chosen="No, I mend.", rejected=f"Yes {i}.", group_id=p.id) for i, p in enumerate(PROMPTS)]


def rows_of(trunk) -> list[Tokens]:
    texts = [(prompt, text) for prompt in PROMPTS for text in ("No, I mend the door.", "Yes.")]
    return [Tokens(encode_prompt(trunk.tokenizer, p.messages), encode_response(trunk.tokenizer, text)) for p, text in texts]


def trained(folder, stage, lora=None):
    """A reward model that learned from PAIRS, and its scores of ``rows_of``."""
    trunk = load_reward_trunk(str(folder), lora=lora)
    scorers = train_reward_model(trunk, PAIRS, RewardModelSettings(epochs=3, learning_rate=1e-2, pairs_per_step=4), stage)
    return trunk, scorers, score_rows(trunk, rows_of(trunk), 4096)


FULL, ADAPTER = None, LoRASettings(rank=4)


@pytest.mark.parametrize(
    ("architecture", "lora", "next_lora"),
    [
        ("llama", FULL, FULL), ("llama", ADAPTER, FULL), ("llama", FULL, ADAPTER), ("llama", ADAPTER, ADAPTER),
        ("gpt2", ADAPTER, FULL), ("bert", FULL, FULL), ("bert", ADAPTER, FULL), ("t5", FULL, FULL),
    ],
)  # fmt: skip
def test_training_starts_from_the_scores_of_a_reward_model_of_charter(architecture, lora, next_lora, stage, tmp_path):
    save = save_random_encoder if architecture == "bert" else save_random_model
    trunk, scorers, scores = trained(save(tmp_path / "base", architecture), stage, lora)
    trunk.save_scorers(scorers, tmp_path / "reward")
    other = load_reward_trunk(str(tmp_path / "reward"), lora=next_lora)
    other.add_role("reward", head=True)
    assert scores.std() > 1e-3
    torch.testing.assert_close(score_rows(other, rows_of(other), 4096), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("llama", True), ("gpt2", False), ("qwen2", True)])
def test_training_starts_from_the_scores_of_a_sequence_classifier(architecture, tied, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = save_random_model(tmp_path / "reward", architecture)
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(folder, num_labels=1, tie_word_embeddings=tied)
    model = AutoModelForSequenceClassification.from_config(config)
    model.score.weight.data.normal_()
    model.eval().save_pretrained(folder)
    trunk = load_reward_trunk(str(folder))
    trunk.add_role("reward", head=True)
    expected = [model(torch.tensor([[*row.prompt, *row.response]])).logits.item() for row in rows_of(trunk)]
    assert score_rows(trunk, rows_of(trunk), 4096).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_head_of_an_encoder_with_several_layers_is_not_used_and_that_is_reported(tmp_path):
    lines = []
    trunk = load_reward_trunk(str(save_random_classifier(tmp_path / "kind", labels=("kind",))), say=lines.append)
    assert trunk.stored_head is None
    words = "the head of RobertaForSequenceClassification has several layers and is not used; the encoder gets a new head"
    assert lines == [f"  {words}"]


def test_a_second_training_of_the_command_line_continues_the_first(random_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": text, "chosen": "No, I mend it.", "rejected": f"Yes, {i}."} for i, text in enumerate(HARMFUL)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["reward", "train", "pairs.jsonl", "--epochs", "4", "--learning-rate", "0.01", "--precision", "float32"]
    assert run_command([*train, "--model", str(random_llama), "--out", "first"]) == 0
    capsys.readouterr()
    assert run_command([*train, "--model", "first/train/model", "--out", "second"]) == 0
    assert "training starts from the reward head of" in "".join(capsys.readouterr())
    losses = [[json.loads(line)["loss"] for line in (tmp_path / run / "train/metrics.jsonl").read_text().splitlines()]
              for run in ("first", "second")]  # fmt: skip
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-3)  # log 2: a new head scores 0
    assert losses[1][0] < losses[0][-1] + 0.05


def test_reward_models_that_cannot_be_a_start_are_refused(random_llama, stage, tmp_path):
    trunk = load_reward_trunk(str(random_llama), lora=LoRASettings(rank=2))
    settings = RewardModelSettings(epochs=1, ensemble=2, lora=LoRASettings(rank=2))
    trunk.save_scorers(train_reward_model(trunk, PAIRS, settings, stage), tmp_path / "two")
    with pytest.raises(InputError, match="an ensemble of 2 reward models; name a single one"):
        load_reward_trunk(str(tmp_path / "two"))
    trunk = load_reward_trunk(str(random_llama))
    trunk.add_role("reward", head=True)
    trunk.save_scorers(Scorers(("reward",), (ScoreScale(0.0, 1.0),)), tmp_path / "whole")
    with pytest.raises(InputError, match="not in 4 bits; leave quantization out"):
        load_reward_trunk(str(tmp_path / "whole"), quantization="nf4")
    weights = load_file(tmp_path / "whole/reward_model.safetensors")
    del weights["reward/head.weight"]
    save_file(weights, tmp_path / "whole/reward_model.safetensors")
    with pytest.raises(InputError, match="the reward head is missing"):
        load_reward_trunk(str(tmp_path / "whole"))


@pytest.mark.parametrize("lora", [FULL, ADAPTER])
def test_features_are_those_of_the_model_that_the_reward_model_was_trained_from(lora, stage, tmp_path):
    """Without naming that model: a reward model knows its base, which need not be the testbed's or that of a run."""
    trunk, scorers, _ = trained(save_random_model(tmp_path / "base", "llama"), stage, lora)
    trunk.save_scorers(scorers, tmp_path / "reward")
    prompt = PROMPTS[0]
    responses = [Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop",
                          generation=Generation(seed=0, temperature=1.0)) for text in ("No, I mend.", "Yes.")]  # fmt: skip
    true, _ = features_of(trunk, "reward", [(prompt, response.text) for response in responses], 512)
    read = response_features(tmp_path / "reward", None, {prompt.id: prompt}, responses)
    assert read == pytest.approx(true, abs=1e-4)


def test_the_reward_model_of_a_run_is_that_of_its_last_round(tmp_path):
    for name in ("reward_model", "reward_model-2", "reward_model-2-gold", "reward_model-flipped"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/reward_model.json").write_text("{}")
    assert reward_folder(tmp_path) == tmp_path / "reward_model-2/model"
    stages = [{"name": "reward_model", "done": True}]  # of a recipe with one round, in a folder that had more
    (tmp_path / "report.json").write_text(json.dumps({"stages": stages}))
    assert reward_folder(tmp_path) == tmp_path / "reward_model/model"
    (tmp_path / "file.csv").write_text("a")
    with pytest.raises(InputError, match=r"reward_model\.json is missing"):
        reward_folder(tmp_path / "file.csv")
