"""A reward model as a sequence classifier of transformers: equal scores there, alone and in a padded batch."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from charter.commands.app import run_command
from charter.models.cut import answer_rows
from charter.models.heads import Scorers, ScoreScale
from charter.models.reward_trunk import SCALE, load_reward_model, load_reward_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Prompt
from charter.training.methods.reward_model import score_rows
from conftest import HARMFUL, save_random_model

TEXTS = [(f"{text} Please!" * (i % 3 + 1), "No, I mend it." if i % 2 else "Yes") for i, text in enumerate(HARMFUL[:5])]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def save_reward(base, folder, *, lora=None, members=1):
    """A reward model with random heads and adapters; its scores of TEXTS before they are standardised."""
    trunk = load_reward_trunk(str(base), lora=lora)
    torch.manual_seed(7)
    for name in (roles := [f"reward{n}" for n in range(members)]):
        trunk.add_role(name, head=True)
        for parameter in trunk.parameters(name).values():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    trunk.save_scorers(Scorers(tuple(roles), (ScoreScale(0.25, 2.0),) * members), folder)
    rows = [row for prompt, text in TEXTS for row in answer_rows(trunk.tokenizer, Prompt.ask(prompt).messages, [text], None)]
    return score_rows(trunk, rows, 4096, roles[0]).tolist()


def plain_scores(folder, batch):
    """The scores of TEXTS as anybody computes them with transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.num_labels == 1
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in TEXTS]
    texts = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
    scores = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores += model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].tolist()
    return scores


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("architecture", "more"), [("llama", {"pad_is_eos": True}), ("qwen2", {}), ("gpt2", {"template": False})]
)
def test_plain_transformers_gives_the_scores_of_charter(architecture, more, lora, tmp_path):
    base, out = save_random_model(tmp_path / "base", architecture, **more), tmp_path / "out"
    if architecture == "qwen2":
        (base / "chat_template.jinja").write_text(CHATML)
    scores = save_reward(base, tmp_path / "reward/model", lora=lora)
    assert max(scores) - min(scores) > 0.01
    assert run_command(["model", "merge", str(tmp_path / "reward"), "--out", str(out)]) == 0
    for batch in (1, len(TEXTS)):
        assert plain_scores(out, batch) == pytest.approx(scores, abs=1e-5)
    assert json.loads((out / "config.json").read_text())[SCALE] == {"mean": 0.25, "std": 2.0}
    assert AutoTokenizer.from_pretrained(out).pad_token_id != AutoTokenizer.from_pretrained(out).eos_token_id

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in TEXTS))
    words = ["reward", "score", str(tmp_path / "rows.jsonl"), "--model", str(out), "--precision", "float32"]
    assert run_command([*words, "--out", str(tmp_path / "scored.jsonl")]) == 0
    rows = [json.loads(line)["reward"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert rows == pytest.approx([(score - 0.25) / 2 for score in scores], abs=1e-5)
    trunk = load_reward_trunk(str(out))  # reward_model.model
    trunk.add_role("reward", head=True)
    again = [row for p, r in TEXTS for row in answer_rows(trunk.tokenizer, Prompt.ask(p).messages, [r], None)]
    assert score_rows(trunk, again, 4096).tolist() == pytest.approx(scores, abs=1e-5)


def test_reward_models_without_such_a_form_are_one_line(tmp_path, capsys):
    llama, t5 = save_random_model(tmp_path / "llama", "llama"), save_random_model(tmp_path / "t5", "t5")
    save_reward(llama, tmp_path / "two", lora=LoRASettings(rank=2), members=2)
    save_reward(t5, tmp_path / "pair")
    (llama / "chat_template.jinja").write_text(CHATML.replace("<|end|>", ""))
    save_reward(llama, tmp_path / "open")
    for folder, words in (
        ("two", "an ensemble of 2 reward models"),
        ("pair", "an encoder-decoder; Charter writes"),
        ("open", "the chat template does not write a finished conversation as Charter scores it"),
    ):
        capsys.readouterr()
        assert run_command(["model", "merge", str(tmp_path / folder), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_scale_that_is_not_a_number_is_refused(tmp_path):
    save_reward(save_random_model(tmp_path / "base", "llama"), tmp_path / "reward")
    assert run_command(["model", "merge", str(tmp_path / "reward"), "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {SCALE: {"mean": "high", "std": 1}}))
    with pytest.raises(Exception, match=f"{SCALE}.*must have a finite mean"):
        load_reward_model(tmp_path / "out")
