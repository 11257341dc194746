"""What `charter label` reads: tables, records, runs, settings; and what it says of those it cannot use, exit code 2."""

from __future__ import annotations

import json

import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.records import Generation, Prompt, Response
from charter.run.files import write_jsonl
from charter.web.answers import agreement_with
from charter.web.project import SAME_TEXT, TOO_FEW, open_project, read_settings
from charter.web.serve import open_site
from label_project import known, make_project, write_table


def table(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tables_of_every_form_give_the_same_sets(tmp_path):
    forms = {
        "list.jsonl": json.dumps({"prompt": "Q?", "responses": ["a", "b"]}),
        "objects.jsonl": json.dumps({"prompt": "Q?", "responses": [{"text": "a", "model": "m"}, {"text": "b", "model": "n"}]}),
        "rows.csv": "prompt,response,model\nQ?,a,m\nQ?,b,n\n",
        "cell.csv": 'prompt,responses\nQ?,"[""a"", ""b""]"\n',
        "pair.jsonl": json.dumps({"prompt": "Q?", "chosen": "a", "rejected": "b"}),
        "messages.jsonl": json.dumps({"messages": [{"role": "user", "content": "Q?"}], "responses": ["a", "b", "b"]}),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        items = open_project(tmp_path / name).items
        (one,) = items.sets.values()
        assert items.prompts[one.prompt_id].last_turn == "Q?"
        assert sorted(items.responses[key].text for key in one.response_ids) == ["a", "b"]


def test_a_run_is_labelled_in_a_folder_of_its_own(tmp_path):
    prompt = Prompt.ask("Q?", tags=("red_team",))
    answers = [Response(prompt_id=prompt.id, model="sft", text=text, finish_reason="stop",
                        generation=Generation(seed=i, temperature=1.0)) for i, text in enumerate("abc")]  # fmt: skip
    write_jsonl(tmp_path / "run/prompts/prompts.jsonl", [prompt])
    write_jsonl(tmp_path / "run/feedback/responses.jsonl", answers)
    project = open_project(tmp_path / "run")
    assert project.folder == tmp_path / "run/label"
    (one,) = project.items.sets.values()
    assert one.response_ids == tuple(answer.id for answer in answers)
    assert one.tags == ("red_team",)
    with open_site(project):
        pass
    again = open_project(tmp_path / "run/label")  # the folder alone is enough from then on
    assert again.items.sets == project.items.sets


def test_known_answers_make_no_work_at_the_next_start(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text("gold: gold.jsonl\n")
    table(tmp_path / "p/gold.jsonl", {"prompt": "G?", "responses": ["a", "b"], "ranks": [1, "F"]})
    project = open_project(write_table(tmp_path / "t.jsonl", 3), tmp_path / "p")
    with open_site(project):
        pass
    assert open_project(tmp_path / "p").items.sets == project.items.sets


def test_known_answers_that_move_into_the_table_are_work(tmp_path):
    (tmp_path / "p").mkdir()
    known_row = {"prompt": "G?", "responses": ["a", "b"]}
    (tmp_path / "p/label.yaml").write_text("gold: gold.jsonl\n")
    table(tmp_path / "p/gold.jsonl", known_row | {"ranks": [1, 2]})
    with open_site(open_project(write_table(tmp_path / "t.jsonl", 3), tmp_path / "p")):
        pass
    (tmp_path / "p/label.yaml").write_text("kind: rank\n")
    with open(tmp_path / "t.jsonl", "a") as file:
        file.write(json.dumps(known_row) + "\n")
    assert len(open_project(tmp_path / "t.jsonl", tmp_path / "p").items.sets) == 4


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    same = [{"text": "a", "model": model} for model in "mno"]
    rows = {"prompt": "Q?", "responses": [*same, "b"]}, {"prompt": "R?", "responses": same}
    pair = {"prompt": "S?", "chosen": "a", "rejected": "a"}
    items = open_project(table(tmp_path / "t.jsonl", *rows, pair)).items
    assert len(items.sets) == 1
    assert items.left_out == {SAME_TEXT: 4, TOO_FEW: 1, "chosen and rejected are identical": 1}


@pytest.mark.parametrize(
    ("settings", "rows", "words"),
    [
        ("overlapp: 2", [], "did you mean 'overlap'?"),
        ("overlap: 0.5", [], "greater than or equal to 1"),
        ("kind: ranking", [], "'kind'"),
        ("redteam: {turn: 2}", [], "did you mean 'turns'?"),
        ("kind: edit\ngold: g.jsonl", [], "gold has known ranks"),
        ("gold: missing.jsonl", [{"prompt": "Q", "responses": ["a", "b"]}], "missing.jsonl"),
        ("instructions: missing.md", [{"prompt": "Q", "responses": ["a", "b"]}], "no such file"),
        ("database: mysql://x/y", [{"prompt": "Q", "responses": ["a", "b"]}], "use SQLite or PostgreSQL"),
        ("", [], "no response in it"),
        ("", [{"prompt": "Q", "responses": ["a"]}], "nothing to label"),
        ("", [{"prompt": "Q", "responses": ["a", "a"]}], "nothing to label"),
        ("", [{"prompt": "Q", "responses": "a"}], "is not a JSON list"),
        ("", [{"prompt": "Q", "responses": [1, 2]}], "responses.0"),
        ("", [{"prompt": "Q", "responses": ["a", " "]}], "line 1, field 'responses.1'"),
        ("", [{"prompt": "Q", "responses": ["a", "b\x00"]}], "NUL"),
        ("", [{"topic": "Q", "responses": ["a", "b"]}], "the prompt is missing"),
        ("", [{"prompt": "Q", "responses": list("abcdefghij")}], "at most 9"),
        ("", [{"prompt_id": "x", "text": "a", "generation": {}}], "its prompts are missing"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(tmp_path, capsys, settings, rows, words):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text(settings or "{}")
    file = table(tmp_path / "t.jsonl", *rows)
    assert run_command(["label", str(file), "--out", str(tmp_path / "p"), "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert [one.name for one in (tmp_path / "p").iterdir()] == ["label.yaml"]


@pytest.mark.parametrize("ranks", [[1], [1, 0], [1, "G"], "x", None, [1, 2, 3]])
def test_known_answers_need_a_rank_for_each_response(tmp_path, capsys, ranks):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text("gold: gold.jsonl\n")
    table(tmp_path / "p/gold.jsonl", {"prompt": "G?", "responses": ["a", "b"], "ranks": ranks})
    file = write_table(tmp_path / "t.jsonl", 1)
    assert run_command(["label", str(file), "--out", str(tmp_path / "p")]) == 2
    assert "line 1, field 'ranks'" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [2, 3])
def test_a_known_thumb_is_up_or_down(tmp_path, rank):
    """Whatever is not an F counts as up, so a 2 would make those wrong who press down."""
    (tmp_path / "p").mkdir()
    table(tmp_path / "p/gold.jsonl", {"prompt": "G?", "responses": ["a"], "ranks": [rank]})
    with pytest.raises(InputError, match="give \\[1\\] for up"):
        make_project(tmp_path, kind="thumbs", gold="gold.jsonl")


def test_settings_that_ship_in_the_docs_are_read(tmp_path):
    assert read_settings(tmp_path / "label.yaml").overlap == 1.0
    (tmp_path / "label.yaml").write_text("kind: redteam\n")
    assert read_settings(tmp_path / "label.yaml").asked_direction == "more_harmless"


def test_answers_that_were_sampled_anew_take_the_place_of_the_old_ones(tmp_path):
    first = make_project(tmp_path, n=2, k=3)
    with open_site(first):
        pass
    (tmp_path / "t.jsonl").write_text('{"prompt": "Question 0?", "responses": ["New 0.", "New 1."]}\n')
    (one,) = open_project(tmp_path / "t.jsonl", tmp_path / "p").items.sets.values()
    assert len(one.response_ids) == 2
    assert not set(one.response_ids) & set(first.items.responses)


@pytest.mark.parametrize("kind", ["thumbs", "edit"])
def test_a_thumb_for_harm_is_refused(tmp_path, kind):
    with pytest.raises(InputError, match="asks how good an answer is"):
        make_project(tmp_path, kind=kind, direction="more_harmful")


@pytest.mark.parametrize(
    ("ranks", "gold", "share"),
    [
        ({"a": "F", "b": "F", "c": "F"}, {"a": "F", "b": "F", "c": "F"}, 1.0),
        ({"a": 1, "b": 1, "c": 1}, {"a": "F", "b": "F", "c": "F"}, 0.0),
        ({"a": 1, "b": "F", "c": "F"}, {"a": 1, "b": "F", "c": "F"}, 1.0),
        ({"a": 1, "b": 2, "c": "F"}, {"a": 1, "b": "F", "c": "F"}, 2 / 3),
        ({"a": "F"}, {"a": 1}, 0.0),
        ({"a": 2}, {"a": 1}, 0.0),  # rewritten, and good as it is
        ({"a": 2}, {"a": 2}, 1.0),
    ],
)
def test_two_answers_that_are_none_are_no_tie(ranks, gold, share):
    assert agreement_with(ranks, gold) == pytest.approx(share)


def test_a_corrected_known_answer_counts_and_a_quiz_that_is_taken_out_asks_nobody(tmp_path):
    (tmp_path / "p").mkdir()
    for ranks in ([2, 1, 3], [1, 2, 3]):
        known(tmp_path / "p/quiz.jsonl", 1, ranks)
        with open_site(make_project(tmp_path, quiz="quiz.jsonl")) as site:
            (one,) = site.lessons["quiz"]
            assert [site.store.parts(one.id)[0].gold[key] for key in one.response_ids] == ranks
    with open_site(make_project(tmp_path)) as site:
        assert site.lessons["quiz"] == []


def test_people_see_the_prompt_and_the_answers_that_training_reads(tmp_path):
    """Alpaca's input is part of the prompt, a CSV cell of messages is an answer, and tags (of warnings) stay with dialogues."""
    rows = [
        {"prompt": "Add.", "input": "2 and 3", "responses": ["5", "6"]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b", "tags": ["red_team"]},
        {"prompt": "Q", "chosen": json.dumps([{"role": "assistant", "content": "c"}]), "rejected": "d", "tags": "grim"},
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = open_project(file, tmp_path / "p").items
    sets = [([m.content for m in items.prompts[one.prompt_id].messages], {items.responses[key].text for key in one.response_ids},
             one.tags) for one in items.sets.values()]  # fmt: skip
    assert sets == [
        (["Add.\n\n2 and 3"], {"5", "6"}, ()), (["Hi"], {"a", "b"}, ("red_team",)), (["Q"], {"c", "d"}, ("grim",)),
    ]  # fmt: skip


def test_an_answer_in_messages_ends_with_the_assistant(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "Q", "responses": [[{"role": "user", "content": "Q"}], "b"]}))
    with pytest.raises(InputError, match=r"field 'responses.0': does not end with an answer of the assistant"):
        open_project(tmp_path / "t.jsonl", tmp_path / "p")
