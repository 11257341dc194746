"""Rows that do not fit: whole turns go first, the system turn stays, and every loss is counted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.errors import GateError, InputError
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.classifier import Classifier
from charter.models.cut import Cut, answer_rows
from charter.models.load import load_tokenizer
from charter.models.trunk import load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Message, Pair, Prompt
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import DPOSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.dpo import train_dpo
from charter.training.methods.reward_model import pairs_that_differ, train_reward_model
from charter.training.methods.sft import sft_tokens, train_sft
from conftest import save_random_encoder, save_random_model

SYSTEM = Message(role="system", content="Be kind.")


def user(text):
    return Message(role="user", content=text)


def assistant(text):
    return Message(role="assistant", content=text)


TALK = [
    SYSTEM,
    user("How do I mend a lamp?"),
    assistant("Ask Anna."),
    user("And a door?"),
    assistant("Ask Ben."),
    user("A fence?"),
]


@pytest.fixture(scope="module")
def tokenizer(random_llama):
    return load_tokenizer(str(random_llama))


def test_a_row_that_fits_is_prompt_and_answer(tokenizer):
    (row,) = answer_rows(tokenizer, TALK, ["Ask me."], 400)
    assert (row.prompt, row.response, row.lost) == (encode_prompt(tokenizer, TALK), encode_response(tokenizer, "Ask me."), None)


@pytest.mark.parametrize("kept", [TALK[3:], TALK[5:]], ids=["two turns of the user", "one"])
def test_the_oldest_turns_go_whole_and_the_system_turn_stays(tokenizer, kept):
    answer = encode_response(tokenizer, "Ask me.")
    expected = encode_prompt(tokenizer, [SYSTEM, *kept])
    (row,) = answer_rows(tokenizer, TALK, ["Ask me."], len(expected) + len(answer))
    assert (row.prompt, row.response, row.lost) == (expected, answer, "prompt")


def test_of_a_last_turn_that_is_too_long_the_beginning_goes(tokenizer):
    long = "Mend the lamp of Anna, then the door of Ben, then the fence of the neighbour."
    (row,) = answer_rows(tokenizer, [SYSTEM, user(long)], ["Ask me."], 60)
    assert len(row) == 60
    text = tokenizer.decode(row.prompt)
    begin, end = "<|system|>Be kind.<|end|><|user|>", "<|end|><|assistant|>"
    assert text.startswith(begin)
    assert text.endswith(end)
    assert long.endswith(text.removeprefix(begin).removesuffix(end))
    assert list(row.response) == encode_response(tokenizer, "Ask me.")


def test_an_answer_loses_its_end_where_nothing_else_can_go(tokenizer):
    answer = "Ask " + "Anna or Ben or " * 10
    (row,) = answer_rows(tokenizer, [SYSTEM, user("How do I mend a lamp?")], [answer], 64)
    assert tokenizer.decode(row.prompt).startswith("<|system|>Be kind.<|end|><|user|>")
    assert (len(row), row.lost) == (64, "answer")
    assert list(row.response) == encode_response(tokenizer, answer)[: len(row.response)]


def test_both_answers_of_a_pair_follow_the_same_prompt(tokenizer):
    rows = answer_rows(tokenizer, TALK, ["No.", "Ask Anna, who has mended many lamps."], 70)
    assert rows[0].prompt == rows[1].prompt
    assert max(map(len, rows)) <= 70
    assert [row.lost for row in rows] == ["prompt", "prompt"]


def pairs_of(n_equal: int, n_different: int) -> list[Pair]:
    """Pairs whose answers differ after forty words, or at once."""
    long = "mend the lamp " * 14
    texts = [(long + "now", long + "never")] * n_equal + [("Yes: " + long, "No: " + long)] * n_different
    prompts = [Prompt.ask(f"Lamp {i}?") for i in range(len(texts))]
    return [Pair(prompt=p, chosen=a, rejected=b, group_id=p.id) for p, (a, b) in zip(prompts, texts, strict=True)]


def test_pairs_that_the_limit_makes_equal_are_left_out_and_counted(random_llama, stage):
    trunk = load_trunk(str(random_llama))
    kept, rows, cut = pairs_that_differ(trunk, pairs_of(3, 5), 48)
    assert kept == pairs_of(3, 5)[3:]
    assert all(chosen.response != rejected.response for chosen, rejected in rows)
    assert cut == Cut(rows=16, ends=16, equal_pairs=3)
    scorers = train_reward_model(trunk, pairs_of(3, 5), RewardModelSettings(epochs=1, pairs_per_step=8), stage, limit=48)
    assert scorers.roles == ("reward",)
    assert len(stage.metrics()) == 1
    with pytest.raises(GateError, match="no pairs to learn from: 6 rows were cut to 48 tokens"):
        train_reward_model(trunk, pairs_of(3, 0), RewardModelSettings(), stage, limit=48)


def test_dpo_learns_from_the_pairs_that_differ_and_returns_the_count(random_llama, stage):
    trunk = load_trunk(str(random_llama), lora=LoRASettings(rank=4))
    trunk.add_role("policy")
    assert train_dpo(trunk, pairs_of(2, 4), DPOSettings(epochs=1), stage, limit=48) == Cut(rows=12, ends=12, equal_pairs=2)
    with pytest.raises(GateError, match="chosen and rejected are the same tokens"):
        train_dpo(trunk, pairs_of(2, 0), DPOSettings(epochs=1), stage, limit=48)


def test_sft_returns_what_its_rows_lost(random_llama, stage):
    trunk = load_trunk(str(random_llama), lora=LoRASettings(rank=4))
    rows = sft_tokens(trunk, [(TALK, "Ask me."), (TALK[:2], "Ask " * 80), (TALK[:2], "No.")], 40)
    assert train_sft(trunk, rows, SFTSettings(epochs=1), stage).figures == {"rows": 2, "ends": 1, "equal_pairs": 0}


def test_reward_train_reports_pairs_that_the_limit_makes_equal(tmp_path, random_llama, capsys):
    rows = [{"prompt": pair.prompt.last_turn, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs_of(4, 12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["reward", "train", str(tmp_path / "p.jsonl"), "--model", str(random_llama), "--max-tokens", "48", "--quiet"]
    assert run_command([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "excluded: {'chosen and rejected are the same tokens when cut to 48': 4}" in printed
    assert "cut to 48 tokens: 32 rows, 32 of them without the end of the answer" in printed
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["cut"] == {"rows": 32, "ends": 32, "equal_pairs": 4}
    assert metrics["train_pairs"] + metrics["n"] == 12
    equal = [{**rows[0], "prompt": f"Lamp {i}?"} for i in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in equal))
    assert run_command([*words, "--out", str(tmp_path / "none")]) == 2
    assert "0 usable pairs (left out: {'chosen and rejected are the same tokens when cut to 48': 12})" in capsys.readouterr().err


def test_a_published_reward_model_is_not_taken_for_a_classifier(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = save_random_model(tmp_path / "llama", "llama")
    config = LlamaConfig.from_pretrained(folder, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"is a reward model \(LlamaForSequenceClassification with one label\)"):
        Classifier(str(folder), "LABEL_0")


@pytest.fixture(scope="module")
def pair_tokenizer(tmp_path_factory):
    return load_trunk(str(save_random_encoder(tmp_path_factory.mktemp("bert"), "bert")), writes=False).tokenizer


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["lamp", "mend the door", "of Anna " * 9, "漢字"]), min_size=1, max_size=5),
    answers=st.lists(st.sampled_from(["No.", "Yes, " * 20, "Ask Ben."]), min_size=1, max_size=2),
    limit=st.integers(4, 90), system=st.booleans(), pair=st.booleans(),
)  # fmt: skip
def test_every_row_fits_and_says_what_it_lost(tokenizer, pair_tokenizer, words, answers, limit, system, pair):
    tokens = pair_tokenizer if pair else tokenizer
    turns = [(user, assistant)[i % 2](text) for i, text in enumerate(words[: len(words) - 1 + len(words) % 2] or words)]
    messages = [SYSTEM, *turns] if system else turns
    whole = encode_prompt(tokens, messages)
    for row, text in zip(answer_rows(tokens, messages, answers, limit), answers, strict=True):
        response = encode_response(tokens, text)
        assert len(row) <= limit
        assert len(row.prompt) > 0
        assert list(row.response) == response[: len(row.response)]
        assert (row.lost == "answer") == (len(row.response) < len(response))
        assert (row.lost is None) == (list(row.prompt) == whole and list(row.response) == response)
