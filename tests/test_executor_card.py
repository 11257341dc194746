"""The executor card: parts of a principle, agreement of executors, and the principle that causes disagreement."""

import json
from pathlib import Path

import numpy as np
import pytest

from charter.commands.app import run_command
from charter.constitution.constitution import Constitution, Principle, save_constitution
from charter.judging.executor_card import agree, clauses, comparable_pairs, executor_card, join_parts, principle_parts, reword
from charter.records import Pair, Prompt
from charter.run.files import write_jsonl
from charter.testbed.voters import simulate_votes


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Which reply is kinder?", ["Which reply is kinder?"]),
        ("Choose the reply that is brief and has wit.", ["Choose the reply that is brief.", "Choose the reply that has wit."]),
        ("Choose the reply that has less threats and damage.", ["Choose the reply that has less threats and damage."]),
        ("Is it rude? Would it harm?", ["Is it rude?", "Would it harm?"]),
    ],
)  # fmt: skip
def test_the_parts_of_an_instruction(text, parts):
    assert clauses(text) == parts


def test_parts_go_together_again_in_another_order():
    both = Principle(id="p", title="p", preference="Be brief. Be kind.", question="Is it long? Is it rude?")
    parts = principle_parts(both)
    assert [(p.preference, p.question) for p in parts] == [("Be brief.", "Is it long?"), ("Be kind.", "Is it rude?")]
    turned = join_parts(both, parts[::-1])
    assert (turned.preference, turned.question) == ("Be kind. Be brief.", "Is it rude? Is it long?")
    alone = principle_parts(both.model_copy(update={"question": "Is it long?"}))
    assert [p.question for p in alone] == [None, None]


def test_another_word_for_the_answer():
    rule = Principle(id="p", title="p", preference="Choose the reply with better replies.", question="Is the answer rude?")
    assert reword(rule).preference == "Choose the response with better responses."
    assert reword(rule).question == "Is the response rude?"


def test_verdicts_agree_where_both_say_something():
    same = agree(np.array([1.0, -1.0, 1.0, 0.0, np.nan]), np.array([1.0, 1.0, 0.0, 1.0, 1.0]))
    assert same[:2].tolist() == [1.0, 0.0]
    assert np.isnan(same[2:]).all()


class Planted:
    """A judge that likes the colour that an instruction names first."""

    name = "planted"

    def option_logprobs(self, conversations, options):
        rows = []
        for conversation, choices in zip(conversations, options, strict=True):
            text = conversation[-1].content
            compares = choices == ("A", "B")
            instruction = text.splitlines()[0 if compares else -1]
            likes = min(("red", "blue"), key=lambda colour: instruction.find(colour) % 1000)  # -1 is last
            if compares:
                first, second = text.split("(A) ")[1].split("(B) ")
                margin = 4.0 * ((likes in first) - (likes in second))
            else:
                reply = conversation[-2].content if len(conversation) > 1 else text.split("assistant: ")[1].split("\n")[0]
                margin = 4.0 if likes in reply else -4.0
            rows.append([margin, 0.0])
        return rows


def coloured(n: int):
    return [Pair(prompt=Prompt.ask(f"Which {i}?"), chosen=f"It is red {i}.", rejected=f"It is blue {i}.", group_id=str(i))
            for i in range(n)]  # fmt: skip


def test_a_principle_whose_parts_pull_apart_is_named():
    clear = [Principle(id=f"p{i}", title="p", preference="Choose red here. Take red there.") for i in range(3)]
    torn = Principle(id="torn", title="torn", preference="Choose red here. Take blue there.")
    card = executor_card(
        {"planted": Planted()}, Constitution(title="c", principles=(*clear, torn)), comparable_pairs(coloured(30), 20)
    )
    assert card["pairs"] == 20
    worst = card["principles"][0]
    assert (worst["id"], worst["causes_disagreement"]) == ("torn", ["within"])
    assert worst["parts_agreement"]["agreement"] == 0.0
    assert [row["causes_disagreement"] for row in card["principles"][1:]] == [[], [], []]
    kinds = {row["kind"]: row["agreement"] for row in card["kinds"]}
    assert (kinds["swap"], kinds["wording"], kinds["protocols"]) == (1.0, None, 1.0)  # none has another word
    assert kinds["parts"] == pytest.approx(0.75)
    assert [row["agreement"] for row in card["published"]] == [0.73, 0.81, 0.78]


def test_a_text_that_did_not_change_is_no_agreement_of_a_judge_with_itself():
    """By yes_no a judge is told the question alone: another word in the preference, or its parts in reverse, ask the same."""
    parts = Principle(id="parts", title="p", preference="Choose the red reply. Take blue there.", question="Is it red?")
    card = executor_card(
        {"planted": Planted()}, Constitution(title="c", principles=(parts,)), comparable_pairs(coloured(30), 20),
        protocols=("letters", "yes_no"),
    )  # fmt: skip
    counts = {(row["kind"], row["name"].partition(",")[0]): row["n"] for row in card["comparisons"]}
    assert (counts["wording", "letters"], counts["order of parts", "letters"]) == (20, 20)
    assert (counts["wording", "yes_no"], counts["order of parts", "yes_no"]) == (0, 0)
    assert counts["parts", "yes_no"] == 20  # a part alone has no question, so its preference text is asked


def test_the_card_on_the_command_line(tmp_path, capsys, random_llama):
    votes = simulate_votes(["general"], 12, 0)
    write_jsonl(tmp_path / "pairs.jsonl", votes)
    rules = [Principle(id="harm", title="harm", preference="Which reply has less harm?", question="Is it harmful?"),
             Principle(id="old", title="old", critique="Bad?", revision="Mend it.")]  # fmt: skip
    save_constitution(Constitution(title="c", principles=tuple(rules)), tmp_path / "c.yaml")
    arguments = ["constitution", "card", str(tmp_path / "c.yaml"), "--pairs", str(tmp_path / "pairs.jsonl"), "--limit", "6"]
    two = ["--model", "package:charter.testbed/model", "--model", str(random_llama)]
    assert run_command([*arguments, *two, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in card["comparisons"]} == {"swap", "wording", "protocols", "judges"}
    assert (card["pairs"], card["pairs_read"], card["principles_left_out"]) == (6, 12, 1)
    assert card["models"] == ["model", Path(random_llama).name]
    assert run_command(arguments) == 0
    printed = capsys.readouterr().out
    assert "published: within one model" in printed
    assert "left out: 1 x a principle without a preference text" in printed
    assert run_command([*arguments, *two, "--model", "x"]) == 2
    assert "one model or two" in capsys.readouterr().err
