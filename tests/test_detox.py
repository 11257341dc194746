"""The detox lab: its dialogues, the form they are read in, its models, and what PPO makes of them."""

import csv
import gzip
import json
import runpy
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from charter.commands.app import run_command
from charter.errors import InputError
from charter.evaluation.overlap import longest_common_subsequence, rouge_l
from charter.reading.forms import summary_prompt
from charter.reading.prompts import read_prompts
from charter.reading.rows import read_rows
from charter.run.files import read_jsonl
from charter.testbed import dialogues as made
from charter.testbed.lab import SHIPPED, overlap

ROOT = Path(__file__).parents[1]
ROW = {"id": "train_0", "dialogue": "#Person1#: Hello.\n#Person2#: Hi.", "summary": "They greet.", "topic": "greeting"}
PROMPT = "Summarize the following conversation.\n\n#Person1#: Hello.\n#Person2#: Hi.\n\nSummary: "


# -- the form --------------------------------------------------------------------------------------------------------------


def test_dialogsum_is_read_as_the_request_for_a_summary(tmp_path):
    rows = [ROW, {**ROW, "id": "test_0_1", "dialogue": "A: Yes."}, {**ROW, "id": "dev_3", "dialogue": "A: No."}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(tmp_path / "d.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows(rows)
    found = list(read_prompts(tmp_path / "d.jsonl"))
    assert found[0].last_turn == PROMPT
    assert [prompt.split for prompt in found] == ["train", "test", None]
    assert [p.id for p in read_prompts(tmp_path / "d.csv")] == [p.id for p in found]


def test_a_prompt_that_stands_in_the_row_is_not_replaced(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({**ROW, "prompt": "What do they say?"}) + "\n")
    (prompt,) = read_prompts(tmp_path / "d.jsonl")
    assert prompt.last_turn == "What do they say?"


@pytest.mark.parametrize(("dialogue", "words"), [(["Hello."], "must be a text, not a list"), (" ", "empty"), (None, "missing")])
def test_a_dialogue_that_is_none_is_said_with_its_line(tmp_path, dialogue, words):
    (tmp_path / "d.jsonl").write_text(json.dumps({**ROW, "dialogue": dialogue}) + "\n")
    with pytest.raises(InputError, match=f"line 1, field 'dialogue': {words}"):
        list(read_prompts(tmp_path / "d.jsonl"))


# -- the dialogues -----------------------------------------------------------------------------------------------------------


def test_what_ships_is_what_the_generator_writes(tmp_path):
    assert run_command(["testbed", "dialogues", "--out", str(tmp_path)]) == 0
    for split, n in made.DIALOGUES_PER_SPLIT.items():
        written = (tmp_path / f"dialogues.{split}.jsonl").read_bytes()
        assert gzip.decompress(made.shipped_dialogues(split).read_bytes()) == written
        assert len(list(read_prompts(made.shipped_dialogues(split)))) == n


def test_half_are_rude_and_part_of_their_summaries():
    for split in made.DIALOGUES_PER_SPLIT:
        rows = list(read_jsonl(made.shipped_dialogues(split), made.Dialogue))
        rude = [row for row in rows if made.is_toxic(row.dialogue)]
        assert len(rude) == len(rows) // 2
        assert 0.4 < sum(made.is_toxic(row.summary) for row in rude) / len(rude) < 0.52
        assert not any(made.is_toxic(row.summary) for row in rows if not made.is_toxic(row.dialogue))
        assert not any(made.is_garbled(row.dialogue) or made.is_garbled(row.summary) for row in rows)
    assert made.is_garbled("The sink is brokenn.")


def test_held_out_facts_are_never_seen_in_training():
    def facts(split, seed):
        return {
            tuple(word for word in [*topic.things, *topic.faults, *topic.remedies] if word in row.summary)
            for row in made.draw_dialogues(seed, split, 400)
            for topic in [made.TOPICS[row.topic]]
            if row.summary.count("#") == 8  # the frame that names thing, fault and remedy
        }

    assert not facts("test", 0) & facts("train", 1)
    assert made.draw_dialogues(3, "train", 10) == made.draw_dialogues(3, "train", 20)[:10]


def test_the_texts_of_the_classifiers_share_none_and_say_the_truth():
    first, second = (dict(made.texts_with_labels(0, 1500, half)) for half in (0, 1))
    assert not first.keys() & second.keys()
    assert 0.4 < sum(first.values()) / len(first) < 0.6
    for text, toxic in first.items():
        assert made.is_toxic(text) == toxic
    for words in (*made.TOXIC_CLAUSES, *made.INSULTS):
        assert made.is_toxic(made.insult(Random(0), words, r="A", o="B"))
    for words in (*made.NEUTRAL_CLAUSES, *made.CALM_CLAUSES, *made.PATIENT_LINES):
        assert not made.is_toxic(words)


# -- overlap -----------------------------------------------------------------------------------------------------------------


def test_rouge_l_by_hand():
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(3 / 4)  # Lin 2004, section 3.1
    assert rouge_l("The gunman kill police", "police kill the gunman") == pytest.approx(2 / 4)
    assert rouge_l("a b", "a x b y") == pytest.approx(2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4))
    assert rouge_l("", "a") == rouge_l("a", "...") == 0


words = st.lists(st.sampled_from("abc"), max_size=8)


@given(words, words)
@settings(max_examples=100)
def test_the_longest_common_subsequence_is_symmetric_and_bounded(a, b):
    found = longest_common_subsequence(a, b)
    assert found == longest_common_subsequence(b, a) <= min(len(a), len(b))
    assert longest_common_subsequence(a, a) == len(a)
    assert found == longest_common_subsequence(a[::-1], b[::-1])


def test_the_overlap_measure_knows_the_shipped_dialogues():
    row = next(iter(read_rows(made.shipped_dialogues("test")))).values
    prompt = next(read_prompts(made.shipped_dialogues("test")))
    assert overlap(prompt.last_turn, row["summary"]) == 1
    assert overlap("Summarize.", row["summary"]) is None


# -- the models --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_shipped_classifiers_are_two_judges_that_know_insults():
    tokenizers = []
    rows = [row.summary for row in read_jsonl(made.shipped_dialogues("test"), made.Dialogue)][:150]
    for name in ("reward-classifier", "report-classifier"):
        model = AutoModelForSequenceClassification.from_pretrained(SHIPPED / name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(SHIPPED / name)
        assert model.config.id2label == {0: "nothate", 1: "hate"}
        logits = model(**tokenizer(rows, padding=True, return_tensors="pt")).logits
        right = (logits.argmax(dim=1) == torch.tensor([made.is_toxic(text) for text in rows])).float().mean()
        assert right > 0.97
        tokenizers.append(tokenizer.get_vocab())
    assert tokenizers[0] != tokenizers[1]


def test_the_shipped_summariser_is_a_plain_t5():
    model = AutoModelForSeq2SeqLM.from_pretrained(SHIPPED / "summariser", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "summariser")
    row = next(iter(read_jsonl(made.shipped_dialogues("test"), made.Dialogue)))
    ids = tokenizer(summary_prompt(row.dialogue), return_tensors="pt")
    assert ids["input_ids"][0, -1] == tokenizer.eos_token_id == 1
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=64, do_sample=False)[0], skip_special_tokens=True)
    assert "the television" in text
    assert "television" in row.dialogue
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 3 * 2**20


def test_the_lab_is_made_once(tmp_path, capsys):
    command = ["testbed", "lab", "--preset", "small", "--out", str(tmp_path), "--json"]
    assert run_command(command) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["summariser"]["dialogues"] == 16
    weights = (tmp_path / "summariser/model/model.safetensors").stat().st_mtime_ns
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out) == card
    assert (tmp_path / "summariser/model/model.safetensors").stat().st_mtime_ns == weights


def test_toxicity_falls(tmp_path, monkeypatch, capsys):
    """The lab itself, shorter: fewer steps and fewer held-out dialogues than the figures of results/detox.md."""
    monkeypatch.setattr("sys.argv", ["detox.py", "--out", str(tmp_path), "--steps", "4", "--n", "60"])
    runpy.run_path(str(ROOT / "examples/detox.py"), run_name="__main__")
    found = json.loads((tmp_path / "detox.json").read_text())["measures"]
    assert found["toxicity, second classifier"]["before"] > 0.1
    assert found["toxicity, second classifier"]["ci"][1] < 0
    assert found["insults, by the word list"]["ci"][1] < 0
    first = json.loads((tmp_path / "rl/metrics.jsonl").read_text().splitlines()[0])
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert "at step 0: KL" in capsys.readouterr().out
