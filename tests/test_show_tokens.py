"""What show-tokens shows is what the stages feed: masks, places and options are those of the functions that train."""

import json
import re

import pytest
import yaml

from charter.commands.app import run_command
from charter.models.chat_template import decode_response, encode_prompt, encode_response
from charter.models.load import load_tokenizer
from charter.models.trunk import load_trunk
from charter.recipe.files import load_recipe
from charter.records import Message, Prompt
from charter.run.files import read_jsonl
from charter.stages.prompts.show import training_prompts
from charter.stages.rows import pieces_of, template_tokens
from charter.tasks.show_tokens import LEGEND, first_batches, print_batches, styled_row
from conftest import BENIGN, HARMFUL, save_random_model


@pytest.fixture(scope="module", params=[("llama", True), ("gpt2", False)], ids=["template", "pad is eos, no template"])
def model(tmp_path_factory, request):
    architecture, template = request.param
    folder = tmp_path_factory.mktemp(architecture)
    return save_random_model(folder, architecture, template=template, pad_is_eos=not template)


MADE = {}  # rows by model: made once, read by many


@pytest.fixture
def batches(model, write_recipe):
    if model not in MADE:
        MADE[model] = first_batches(load_recipe(write_recipe(model)))
    return MADE[model]


def rows_of(batches, name):
    return next(stage["rows"] for stage in batches["stages"] if stage["stage"] == name)


def chosen(row, key):
    return [number for number, on in zip(row["ids"], row[key], strict=True) if on]


def test_every_stage_has_rows_whose_lists_are_equally_long(batches):
    assert [stage["stage"] for stage in batches["stages"]] == ["revise", "sft", "feedback", "reward_model", "rl"]
    json.dumps(batches)
    for stage in batches["stages"]:
        assert stage["rows"], stage["stage"]
        for row in stage["rows"]:
            lengths = {len(row[key]) for key in ("ids", "pieces", "attention", "mask", "template")}
            assert len(lengths) == 1
            assert not any(m and not a for m, a in zip(row["mask"], row["attention"], strict=True))


def test_tokens_that_carry_loss_are_the_response_and_one_end(model, batches):
    tokenizer = load_tokenizer(str(model))
    for row in rows_of(batches, "sft"):
        learned = chosen(row, "mask")
        assert learned[-1] == tokenizer.eos_token_id
        assert encode_response(tokenizer, decode_response(tokenizer, learned)) == learned
        # The prompt is what comes before, and nothing of it is learned.
        prompt = chosen(row, "attention")[: -len(learned)]
        words = tokenizer.decode(prompt)
        assert any(question in words for question in HARMFUL) or "How can I" in words


def test_the_mask_holds_where_pad_is_eos(tmp_path, write_recipe):
    both = [save_random_model(tmp_path / name, "llama", pad_is_eos=name == "same") for name in ("same", "other")]
    found = [first_batches(load_recipe(write_recipe(folder)))["stages"] for folder in both]
    assert found[0] == found[1]
    assert all(sum(row["mask"]) for row in found[0][1]["rows"])


def test_the_judge_is_shown_both_orders_and_two_options(model, batches):
    tokenizer = load_tokenizer(str(model))
    rows = rows_of(batches, "feedback")
    assert len(rows) % 2 == 0
    for first, second in zip(rows[0::2], rows[1::2], strict=True):
        texts = [tokenizer.decode(chosen(row, "attention")) for row in (first, second)]
        a, b = re.search(r"\(A\) (.*?)\n\n\(B\) (.*)\n\nAnswer", texts[0], re.DOTALL).groups()
        assert f"(A) {b}\n\n(B) {a}\n\nAnswer" in texts[1]
        assert [decode_response(tokenizer, option["ids"]) for option in first["options"]] == ["A", "B"]
        assert not any(first["mask"])


def test_the_score_is_read_at_the_end_of_turn(model, batches):
    eos = load_tokenizer(str(model)).eos_token_id
    for row in rows_of(batches, "reward_model"):
        assert row["reward_position"] == sum(row["attention"]) - 1
        assert row["ids"][row["reward_position"]] == eos


def test_the_reward_of_a_rollout_is_at_its_last_response_token(model, batches):
    eos = load_tokenizer(str(model)).eos_token_id
    for row in rows_of(batches, "rl"):
        place = row["reward_position"]
        assert row["mask"][place]
        assert not any(row["mask"][place + 1 :])
        assert row["what"] == ("rollout" if row["ids"][place] == eos else "rollout, cut off")
        assert 1 <= sum(row["mask"]) <= 12


def test_each_round_asks_for_a_critique_and_a_revision_of_what_was_said(model, batches):
    rows = rows_of(batches, "revise")
    assert [row["what"] for row in rows[::2]] == ["answer", "critique 1", "revision 1", "critique 2", "revision 2"]
    answer, critique, revision = (chosen(rows[i], "attention") for i in (0, 2, 4))
    words = load_tokenizer(str(model)).decode(critique)
    assert any(question in words for question in ("Is your last reply harmful?", "Does your last reply help?"))
    assert len(answer) < len(critique) < len(revision)


def test_words_of_a_template_are_told_from_words_of_a_person(model):
    tokenizer = load_tokenizer(str(model))
    messages = [Message(role="user", content="Human: hide the lamp")]
    ids = encode_prompt(tokenizer, messages)
    said = [n for n, template in zip(ids, template_tokens(tokenizer, ids, messages), strict=True) if not template]
    assert tokenizer.decode(said).strip() == "Human: hide the lamp"


def test_control_characters_and_marks_of_a_text_are_spelled_out(random_llama):
    tokenizer = load_tokenizer(str(random_llama))
    text = "a\x1b[31mred\x9b\u202e ⟧★ \\ [bold]x[/bold]\r\n"
    joined = "".join(pieces_of(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert joined.isprintable()
    assert not set("⟦⟧★│") & set(joined)
    assert "\\x1b" in joined
    assert "\\r" in joined


def test_markup_in_a_text_is_text():
    row = {"ids": [1, 2, 3], "pieces": ["[bold]", "x", "[/nothing]"], "attention": [1, 1, 0], "mask": [0, 1, 0],
           "template": [0, 0, 0], "reward_position": 1}  # fmt: skip
    assert styled_row(row).plain == "[bold]⟦x⟧★∅×1"


def test_what_is_printed_has_its_marks_without_colour(batches, capsys):
    print_batches(batches)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for mark, _, words in LEGEND:
        assert mark in text
        assert words in text
    body = text.split("revise:")[1]
    rewards = sum(row["reward_position"] is not None for stage in batches["stages"] for row in stage["rows"])
    assert body.count("★") == rewards > 0
    assert body.count("⟦") == body.count("⟧")


def test_the_command_prints_json(random_llama, write_recipe, capsys):
    assert run_command(["show-tokens", str(write_recipe(random_llama)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["stages"][0]["rows"][0]) >= {"ids", "pieces", "mask", "reward_position"}


def test_pairs_by_contrast_show_both_ways_of_asking_and_no_judge(model, write_recipe):
    path = write_recipe(model)
    values = yaml.safe_load(path.read_text())
    contrast = {"positive": "Be kind.", "negative": "Be rude."}
    values["feedback"] = {"prompts": 24, "max_new_tokens": 12, "contrast": contrast}
    path.write_text(yaml.safe_dump(values))
    rows = rows_of(first_batches(load_recipe(path)), "feedback")
    tokenizer = load_tokenizer(str(model))
    for name, words in contrast.items():
        shown = [tokenizer.decode(chosen(row, "attention")) for row in rows if row["what"] == name]
        assert shown
        assert all(words in text for text in shown)
    assert all("options" not in row for row in rows)


def changed(path, **changes):
    """The recipe in a file with these keys in place of its own."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return path


def test_a_dpo_recipe_on_pairs_from_files_is_printed(model, write_recipe, capsys):
    path = changed(write_recipe(model), revise=None, sft={"data": ["pairs.jsonl"]}, feedback={"pairs": ["pairs.jsonl"]},
                   rl={"method": "dpo"})  # fmt: skip
    assert run_command(["show-tokens", str(path)]) == 0
    text = capsys.readouterr().out
    feedback, rl = text.split("\nfeedback: ")[1].split("\nrl: ")
    assert feedback.strip() == "The pairs come from files: nothing is sampled and no model is asked."
    assert [line.split(":")[0].strip() for line in rl.splitlines() if " tokens, " in line] == ["chosen", "rejected"] * 2
    assert "★" not in rl
    rows = rows_of(first_batches(load_recipe(path)), "rl")
    tokenizer = load_tokenizer(str(model))
    assert [decode_response(tokenizer, chosen(row, "mask")) for row in rows] == ["No.", "Yes 0.", "No.", "Yes 1."]
    assert all(row["reward_position"] is None for row in rows)


def test_a_reward_model_on_pairs_from_files_shows_the_first_of_them(model, write_recipe):
    path = changed(write_recipe(model), revise=None, sft=None, feedback={"pairs": ["pairs.jsonl"]})
    tokenizer = load_tokenizer(str(model))
    rows = rows_of(first_batches(load_recipe(path)), "reward_model")
    assert [decode_response(tokenizer, chosen(row, "mask")) for row in rows] == ["No.", "Yes 0.", "No.", "Yes 1."]


def test_pairs_of_revisions_are_the_last_revision_over_the_first_answer(model, write_recipe):
    path = changed(write_recipe(model), feedback={"revisions": True}, rl={"method": "dpo"})
    batches = first_batches(load_recipe(path))
    feedback = next(stage for stage in batches["stages"] if stage["stage"] == "feedback")
    assert feedback["rows"] == []
    assert "revise stage" in feedback["about"]
    assert "people" not in feedback["about"]
    tokenizer = load_tokenizer(str(model))
    learned = [chosen(row, "mask") for row in rows_of(batches, "sft")]
    critique = [tokenizer.decode(chosen(row, "attention")) for row in rows_of(batches, "revise") if row["what"] == "critique 1"]
    pairs = rows_of(batches, "rl")
    assert len(pairs) == 4
    for better, worse in zip(pairs[0::2], pairs[1::2], strict=True):
        assert chosen(better, "mask") in learned
        assert any(decode_response(tokenizer, chosen(worse, "mask")) in words for words in critique)


def test_equal_responses_make_no_pair_and_this_is_reported(random_llama, write_recipe, capsys):
    contrast = {"positive": "Be kind.", "negative": "Be kind."}
    path = changed(write_recipe(random_llama), revise=None, sft=None, feedback={"contrast": contrast}, rl={"method": "dpo"})
    assert run_command(["show-tokens", str(path)]) == 0
    assert "rl: Nothing to show: the responses to these prompts are equal or tied" in " ".join(capsys.readouterr().out.split())


def test_without_a_training_prompt_there_is_one_clear_line(random_llama, write_recipe, tmp_path, capsys):
    path = changed(write_recipe(random_llama), revise=None, sft=None, feedback={"raters": "human"}, rl={"method": "dpo"})
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": BENIGN[0], "split": "test"}) + "\n")
    assert run_command(["show-tokens", str(path)]) == 2
    assert capsys.readouterr().err.strip().startswith("charter: no training prompt; lower prompts.test_fraction")


def test_prompts_are_those_of_the_run_with_a_short_context(tmp_path, write_recipe):
    folder = save_random_model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100}))
    path = write_recipe(folder)
    words = [text.ljust(length, "!") for text, length in zip(HARMFUL, range(95, 119), strict=True)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text, "tags": ["red_team"]}) + "\n" for text in words))
    assert run_command(["run", str(path), "--out", str(tmp_path / "run"), "--until", "prompts"]) == 0
    taken = [p.messages for p in read_jsonl(tmp_path / "run/prompts/prompts.jsonl", Prompt) if p.split == "train"]
    recipe = load_recipe(path)
    prompts = training_prompts(recipe, load_trunk(recipe.model, seed=0))
    assert sorted(p.last_turn for p in prompts["red_team"]) == sorted(messages[-1].content for messages in taken)
    assert len(taken) == 18


def test_feedback_shows_the_prompts_whose_responses_a_run_compares(random_llama, tmp_path, write_recipe):
    path = changed(write_recipe(random_llama), feedback={"raters": "human", "prompts": 6})
    assert run_command(["run", str(path), "--out", str(tmp_path / "run"), "--until", "prompts"]) == 0
    prompts = [p for p in read_jsonl(tmp_path / "run/prompts/prompts.jsonl", Prompt) if p.split == "train"]
    red_team = [p.last_turn for p in prompts if "red_team" in p.tags]
    tokenizer = load_tokenizer(str(random_llama))
    shown = [tokenizer.decode(chosen(row, "attention")) for row in rows_of(first_batches(load_recipe(path)), "feedback")]
    assert len(red_team) > 3
    for prompt, text in zip(red_team[-3:][:2], shown, strict=True):  # the last three of each kind are compared
        assert prompt in text
