"""The data card counts what is there and names what is not."""

import json

import pytest

from charter.commands.app import run_command
from charter.reading.card import card_lines, data_card, read_groups, script_of
from charter.records import Judgment, Message, Prompt
from charter.run.files import write_jsonl


def ask(text, **fields):
    return Prompt.ask(text, **fields)


PROMPTS = [
    ask("How do I paint?", principle="peace", tags=("benign",), split="train", source="mine"),
    ask("how do I  PAINT?", principle="peace", tags=("benign",), split="test", source="mine"),
    ask("Как мне рисовать?", principle="privacy", tags=("red_team", "direct"), split="train", source="mine"),
    Prompt(messages=(Message(role="user", content="怎么画?"), Message(role="assistant", content="画"),
                     Message(role="user", content="?")), split="train"),
    ask("123?", tags=("direct",)),
]  # fmt: skip


def vote(number, rater, kind="human", **fields):
    ranks = {"a": 1, "b": 2} if fields.pop("verdict", True) else {}
    return Judgment(id=f"j{number}", set_id="s", prompt_id="p", rater_id=rater, rater_kind=kind, order=("a", "b"), ranks=ranks,
                    **fields)  # fmt: skip


def test_counts_lengths_and_duplicates():
    card = data_card(PROMPTS)
    assert card["prompts"] == 5
    assert card["principles"] == {
        "none": {"all": 2, "train": 1, "none": 1}, "peace": {"all": 2, "train": 1, "test": 1}, "privacy": {"all": 1, "train": 1},
    }  # fmt: skip
    assert card["tags"] == {"benign": 2, "direct": 2, "red_team": 1, "none": 1}
    assert card["kinds"] == {"benign": 2, "red_team": 1, "task": 2}
    assert card["scripts"] == {"Latin": 2, "Cyrillic": 1, "CJK": 1, "none": 1}
    assert card["lengths"]["turns"] == {"min": 1, "p5": 1, "p50": 1, "p95": pytest.approx(2.6), "max": 3}
    assert card["lengths"]["characters"]["max"] == len("Как мне рисовать?")
    assert (card["duplicates"], card["in_train_and_test"]) == (1, 1)
    assert card["missing"] == [
        "2 of 5 prompts have no principle",
        "1 of 5 prompts have no tag",
        "1 of 5 prompts have no split",
        "2 of 5 prompts have no source",
        "1 of 5 prompts have no letter",
        "no held-out prompt of the principles privacy",
        "1 prompts are duplicates",
        "1 prompts are in both splits, so what is measured was trained on",
    ]


def test_the_share_of_each_group_of_raters():
    votes = [vote(0, "ann"), vote(1, "ann"), vote(2, "bob", verdict=False), vote(3, "base", "judge"),
             vote(4, "bob", supersedes="j2")]  # fmt: skip
    by_kind = data_card(PROMPTS, votes)["raters"]
    assert [(row["group"], row["raters"], row["judgments"], row["share"]) for row in by_kind] == [
        ("human", 2, 3, 0.75), ("judge", 1, 1, 0.25),
    ]  # fmt: skip
    assert by_kind[0]["most_active"] == pytest.approx(2 / 3)
    named = data_card(PROMPTS, votes, groups={"ann": "town", "base": "machine"})
    assert [row["group"] for row in named["raters"]] == ["town", "machine", "none"]
    assert "1 judgments are of raters without a group" in named["missing"]


def test_what_is_missing_of_the_constitution_and_of_the_kinds():
    card = data_card([ask("Hi?", principle="peace", tags=("benign",), split="train", source="x")], principles=("peace", "truth"))
    assert card["missing"] == ["no prompt is sorted under the principles truth", "no prompt is tagged red_team"]
    whole = data_card([*PROMPTS[:1], ask("Hit?", principle="peace", tags=("red_team",), split="test", source="x")])
    assert whole["missing"] == []
    assert card_lines(whole)[-1] == "nothing is missing"


@pytest.mark.parametrize(
    ("text", "script"), [("Ⅷ 12 …", "none"), ("naïve", "Latin"), ("عربي abc", "Arabic"), ("こんにちは", "Hiragana")]
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_a_run_is_described_with_its_judges(finished_run, capsys):
    assert run_command(["prompts", "card", str(finished_run), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["prompts"] == len((finished_run / "prompts/prompts.jsonl").read_text().splitlines())
    assert [(row["group"], row["share"]) for row in card["raters"]] == [("judge", 1.0)]
    assert run_command(["prompts", "card", str(finished_run)]) == 0
    assert "rater group" in capsys.readouterr().out


def test_groups_come_from_a_table_and_bad_ones_are_one_line(tmp_path, capsys):
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    write_jsonl(tmp_path / "judgments.jsonl", [vote(0, "ann"), vote(1, "bob")])
    (tmp_path / "g.csv").write_text("rater,group\nann,town\nbob,village\n")
    arguments = ["prompts", "card", str(tmp_path), "--groups", str(tmp_path / "g.csv")]
    assert run_command([*arguments, "--json"]) == 0
    assert [row["group"] for row in json.loads(capsys.readouterr().out)["raters"]] == ["town", "village"]
    # A rater with an empty group has none, and an empty name is no group of its own; spaces around a name are none of it.
    (tmp_path / "g.csv").write_text("rater,group\nann, town\nbob,\n")
    assert run_command([*arguments, "--json"]) == 0
    assert [row["group"] for row in json.loads(capsys.readouterr().out)["raters"]] == ["none", "town"]
    (tmp_path / "g.jsonl").write_text('{"rater": 7, "group": 1}\n{"rater": "ann", "group": null}\n')
    assert read_groups(tmp_path / "g.jsonl") == {"7": "1"}
    (tmp_path / "g.csv").write_text("rater,group\nann,town\nann,village\n")
    assert run_command(arguments) == 2
    assert "line 3, field 'group': 'ann' has two groups; keep one" in capsys.readouterr().err
    (tmp_path / "judgments.jsonl").unlink()
    assert run_command(arguments) == 2
    assert "name the file with --judgments" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_command(["prompts", "card", str(tmp_path / "empty")]) == 2
    assert "prompts.jsonl is missing" in capsys.readouterr().err
