"""Published formats of feedback become the same records. The files are in each format's form, with our own words."""

import csv
import gzip
import json
import math
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.raters.vote_files import read_votes
from charter.reading.pairs import EQUAL_SCORES, FORKED, IDENTICAL
from charter.votes.evidence import Evidence
from charter.votes.exchange import export_feedback
from charter.votes.imports.files import import_feedback
from charter.votes.imports.people import ASPECTS, ATTRIBUTES, FEW_SCORES, GAP, NOT_MARKED, NOT_SCORED
from charter.votes.imports.people import REPEATED as REPEATED_ID
from charter.votes.imports.votes import NO_PROMPT, NO_TEXT
from charter.votes.judgments import read_judgments
from charter.votes.merging import merge_folders
from charter.votes.rankings import wins
from charter.votes.training_rows import Selection
from charter.votes.winners import NO_VERDICT, NOT_BLIND, SAMPLED_OUT
from feedback_folder import tips

HH_SAMPLE = Path(__file__).parents[2] / "shared/data/hh-harmless-base.sample.jsonl.gz"

PAIRWISE_TASK = {
    "id": 1, "data": {"prompt": "Boil an egg?", "answer1": "Ten minutes.", "answer2": "Ask a hen."},
    "annotations": [
        {"id": 11, "completed_by": 3, "was_cancelled": False, "lead_time": 12.5,
         "result": [{"from_name": "pw", "to_name": ["answer1", "answer2"], "type": "pairwise", "value": {"selected": "left"}}]},
        {"id": 12, "completed_by": {"id": 4, "email": "bo@example.org"}, "was_cancelled": False,
         "result": [{"from_name": "pw", "to_name": "a,b", "type": "pairwise", "value": {"selected": "right"}}]},
        {"id": 13, "completed_by": 3, "was_cancelled": True, "result": []},
    ],
}  # fmt: skip
RANKER_TASK = {
    "id": 2,
    "data": {"prompt": "Paint a door?", "items": [{"id": "x", "body": "Sand it."}, {"id": "y", "title": "No.", "model": "m7"},
                                                  {"id": "z", "body": "Never."}]},
    "annotations": [
        {"id": 21, "completed_by": 3, "result": [
            {"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": {"rank": ["y", "x"], "_": ["z"]}}}]},
        {"id": 22, "completed_by": 4, "result": [
            {"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": {"good": ["y"], "bad": ["x"]}}}]},
        {"id": 23, "completed_by": 5, "result": [
            {"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": ["z", "y", "x"]}}]},
    ],
}  # fmt: skip
ARGILLA = [
    {"id": "r1", "fields": {"prompt": "Mend a lamp?", "response-1": "Unplug it.", "response-2": "No."}, "metadata": {},
     "suggestions": {}, "responses": {"preference": [{"value": "response-2", "user_id": "u1"}],
                                      "ranking": [{"user_id": "u2", "value": [{"rank": 1, "value": "response-1"},
                                                                              {"rank": 1, "value": "response-2"}]}]}},
    {"id": "r2", "fields": {"instruction": "Sing?", "a": "La.", "b": "Do."},
     "responses": [{"user_id": "u1", "status": "submitted",
                    "values": {"rank": {"value": [{"rank": 2, "value": "a"}, {"rank": 1, "value": "b"}]},
                               "note": {"value": "fine"}}},
                   {"user_id": "u2", "status": "discarded", "values": {"rank": {"value": []}}}]},
]  # fmt: skip
TREE = {
    "message_tree_id": "t1", "tree_state": "ready_for_export",
    "prompt": {"message_id": "t1", "text": "Why is the sea salty?", "role": "prompter", "lang": "en", "replies": [
        {"message_id": "a1", "parent_id": "t1", "text": "Rivers bring salt.", "role": "assistant", "rank": 1, "replies": [
            {"message_id": "p2", "parent_id": "a1", "text": "All of them?", "role": "prompter", "rank": None, "replies": [
                {"message_id": "a4", "text": "Most.", "role": "assistant", "rank": 0, "replies": []},
                {"message_id": "a5", "text": "Yes.", "role": "assistant", "rank": 1, "replies": []}]}]},
        {"message_id": "a2", "text": "Fish.", "role": "assistant", "rank": 0, "synthetic": True, "model_name": "toy",
         "replies": []},
        {"message_id": "a3", "text": "Unranked.", "role": "assistant", "rank": None, "replies": []},
        {"message_id": "a6", "text": "Gone.", "role": "assistant", "rank": 2, "deleted": True, "replies": []}]},
}  # fmt: skip
ULTRAFEEDBACK = {
    "source": "s", "instruction": "Count to two.", "models": ["m1", "m2", "m3"],
    "completions": [
        {"model": "m1", "response": "1 2", "overall_score": 10.0, "custom_system_prompt": "x", "annotations": {
            "helpfulness": {"Rating": "4", "Type": ["1"]}, "honesty": {"Rating": "N/A"}, "truthfulness": {"Rating": "5"}}},
        {"model": "m2", "response": "one, two", "overall_score": 1.0, "annotations": {
            "helpfulness": {"Rating": "5"}, "honesty": {"Rating": "5"}}},
        {"model": "m3", "response": "no", "annotations": {"helpfulness": {"Rating": "N/A"}}}],
}  # fmt: skip
PRISM = {
    "conversation_id": "c1", "user_id": "user7", "conversation_type": "unguided", "opening_prompt": "Is tea good?",
    "performance_attributes": {"fluency": 80}, "choice_attributes": None, "open_feedback": "Short is better.",
    "conversation_history": [
        {"turn": 0, "role": "user", "content": "Is tea good?"},
        {"turn": 0, "role": "model", "content": "Yes.", "model_name": "m1", "score": 80, "if_chosen": True, "within_turn_id": 0},
        {"turn": 0, "role": "model", "content": "No.", "model_name": "m2", "score": 5, "if_chosen": False, "within_turn_id": 1},
        {"turn": 0, "role": "model", "content": "Tea.", "model_name": "m3", "score": 5, "if_chosen": False, "within_turn_id": 2},
        {"turn": 0, "role": "model", "content": "…", "model_name": "m4", "score": None, "if_chosen": False, "within_turn_id": 3},
        {"turn": 1, "role": "user", "content": "Why?"},
        {"turn": 1, "role": "model", "content": "Warm.", "model_name": "m1", "score": 40, "if_chosen": False},
        {"turn": 1, "role": "model", "content": "Calm.", "model_name": "m1", "score": 60, "if_chosen": True},
        {"turn": 2, "role": "user", "content": "Bye"},
        {"turn": 2, "role": "model", "content": "Bye.", "model_name": "m1", "score": 60, "if_chosen": True}],
}  # fmt: skip
COMMUNITY = {
    "conversation_id": 9, "assigned_lang": "en", "annotator_id": 31, "annotator_country": "india", "first_turn_prompt": "Dance?",
    **{f"first_turn_response_{letter}": f"Answer {letter}." for letter in "abc"},
    "first_turn_response_d": "Answer d.<|end_of_text|>", "first_turn_preferred_response": "response_d",
    "first_turn_feedback": "It is kind.", "second_turn_prompt": "EMPTY STRING", "third_turn_prompt": "And now?",
    "third_turn_preferred_response": "response_a", **{f"third_turn_response_{letter}": "x" for letter in "abcd"},
}  # fmt: skip
MULTIPREF = {
    "comparison_id": "k1", "prompt_id": "p1", "text": "Fold a boat?", "completion_a": "Fold twice.",
    "completion_b": "Buy a boat.", "model_a": "m1", "model_b": "m2", "source": "s", "category": "how-to",
    "normal_worker_annotations": [
        {"evaluator": "w1", "overall_pref": "A-is-clearly-better", "helpful_pref": "A-is-slightly-better",
         "helpful_checked_reasons": ["It has steps", "Clear"], "helpful_own_reason": "Works.", "time_spent": 41},
        {"evaluator": "w2", "overall_pref": None}],
    "expert_worker_annotations": [{"evaluator": "w1", "overall_pref": "Tie"},
                                  {"evaluator": "w3", "overall_pref": "B-is-slightly-better"}],
}  # fmt: skip
HELPSTEER3 = {
    "domain": "general", "language": "english", "context": [{"role": "user", "content": "Sum 1 and 2?"}], "response1": "3",
    "response2": "Three, I think.", "overall_preference": -2,
    "individual_preference": [{"score": -3, "reasoning": "Exact.", "feedback1": None}, {"score": 0, "reasoning": "Same."},
                              {"score": 1, "reasoning": ""}, {"score": None}],
}  # fmt: skip
ATTEMPT = {
    "transcript": "\n\nHuman: How do I pick a lock?\n\nAssistant: Whose?\n\nHuman: My own.\n\nAssistant: Call a smith.",
    "rating": 1.0, "task_description": "Tries to get lock picking.", "min_harmlessness_score_transcript": -0.5,
    "num_params": "52B", "model_type": "rlhf", "task_description_harmlessness_score": 1.25,
    "red_team_member_id": 7, "is_upworker": True, "tags": ["theft"],
}  # fmt: skip


def imported(tmp_path: Path, name: str, content: str | bytes, format: str | None = None) -> tuple[dict, Evidence]:
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = import_feedback(source, tmp_path / f"from-{name}", format)
    return result, Evidence(tmp_path / f"from-{name}/judgments.jsonl")


def said(evidence: Evidence) -> list[tuple[str, list]]:
    """(rater, ranks beside texts in the order shown) of every judgment; closes the files."""
    with evidence:
        return [
            (one.rater_id, [(evidence.text(one, key), one.ranks.get(key)) for key in one.order])
            for one in evidence.judgments.in_order()
        ]


def test_label_studio(tmp_path):
    result, evidence = imported(tmp_path, "ls.json", json.dumps([PAIRWISE_TASK, RANKER_TASK]))
    assert result["format"] == "label-studio"
    assert result["left_out"] == {"skipped by the annotator": 1, "sorted into buckets, whose order the file does not say": 1}
    first = next(iter(evidence.judgments.values()))
    assert (first.timings, first.rater_kind) == ({"active_ms": 12500.0}, "human")
    assert said(evidence) == [
        ("annotator-3", [("Ten minutes.", 1), ("Ask a hen.", 2)]), ("bo@example.org", [("Ten minutes.", 2), ("Ask a hen.", 1)]),
        ("annotator-3", [("Sand it.", 2), ("No.", 1), ("Never.", None)]),
        ("annotator-5", [("Sand it.", 3), ("No.", 2), ("Never.", 1)]),
    ]  # fmt: skip


def test_argilla_of_both_versions(tmp_path):
    result, evidence = imported(tmp_path, "argilla.json", json.dumps(ARGILLA))
    assert result["left_out"] == {"an answer without a comparison": 1, "not submitted": 1}
    assert said(evidence) == [
        ("u1", [("Unplug it.", 2), ("No.", 1)]), ("u2", [("Unplug it.", 1), ("No.", 1)]), ("u1", [("La.", 2), ("Do.", 1)])
    ]  # fmt: skip


def test_prism_ranks_each_turn_by_its_scores(tmp_path):
    result, evidence = imported(tmp_path, "p.jsonl", 2 * (json.dumps(PRISM) + "\n"))
    assert (result["format"], result["judgments"]) == ("prism", 2)
    assert result["left_out"] == {FEW_SCORES: 1, ATTRIBUTES: 1, REPEATED_ID: 1, NOT_SCORED: 1}
    first, second = evidence.judgments.values()
    assert (first.comment, second.comment) == ("", "Short is better.")
    assert [m.content for m in evidence.prompt(second).messages] == ["Is tea good?", "Yes.", "Why?"]
    assert said(evidence) == [
        ("user7", [("Yes.", 1), ("No.", 2), ("Tea.", 2)]), ("user7", [("Warm.", 2), ("Calm.", 1)]),
    ]  # fmt: skip


def test_prism_ends_where_no_answer_is_marked_as_chosen(tmp_path):
    history = [{**turn, "if_chosen": False} for turn in PRISM["conversation_history"]]
    result, evidence = imported(tmp_path, "p.jsonl", json.dumps({**PRISM, "conversation_history": history}))
    assert (len(said(evidence)), result["left_out"]) == (1, {NOT_MARKED: 1, ATTRIBUTES: 1, NOT_SCORED: 1})


def test_community_alignment_prefers_one_of_four(tmp_path):
    with open(tmp_path / "c.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COMMUNITY.keys())
        writer.writeheader()
        writer.writerow(COMMUNITY)
    result, evidence = imported(tmp_path, "c.csv", (tmp_path / "c.csv").read_bytes())
    assert (result["format"], result["left_out"]) == ("community-alignment", {GAP: 1})
    (one,) = evidence.judgments.values()
    assert (one.comment, len(wins(one))) == ("It is kind.", 3)
    assert said(evidence) == [("annotator-31", [("Answer a.", None), ("Answer b.", None), ("Answer c.", None), ("Answer d.", 1)])]


def test_multipref_keeps_workers_and_experts_apart(tmp_path):
    result, evidence = imported(tmp_path, "m.jsonl", json.dumps(MULTIPREF))
    assert (result["format"], result["left_out"]) == ("multipref", {ASPECTS: 1, "no verdict": 1})
    first, _, last = evidence.judgments.values()
    assert (first.strength, last.strength, first.timings) == (3, -2, {"active_ms": 41000.0})
    assert first.comment == "helpful: It has steps, Clear, Works."
    texts = ("Fold twice.", "Buy a boat.")
    assert said(evidence) == [
        (who, list(zip(texts, ranks, strict=True)))
        for who, ranks in (("normal-w1", (1, 2)), ("expert-w1", (1, 1)), ("expert-w3", (2, 1)))
    ]  # fmt: skip


def test_helpsteer3_gives_a_vote_for_each_annotator(tmp_path):
    result, evidence = imported(tmp_path, "h.jsonl", json.dumps(HELPSTEER3))
    assert (result["format"], result["left_out"]) == ("helpsteer3", {"no verdict": 1})
    assert [(one.rater_id, one.strength, one.comment) for one in evidence.judgments.values()] == [
        ("helpsteer3-1", 4, "Exact."), ("helpsteer3-2", None, "Same."), ("helpsteer3-3", -2, "")
    ]  # fmt: skip
    assert [[rank for _, rank in ranks] for _, ranks in said(evidence)] == [[1, 2], [1, 1], [2, 1]]


def flattened(tree: dict) -> list[dict]:
    rows, left = [], [(tree["prompt"], None)]
    while left:
        message, parent = left.pop(0)
        row = {key: value for key, value in message.items() if key != "replies"}
        rows.append({**row, "message_tree_id": tree["message_tree_id"], "parent_id": parent})
        left += [(reply, message["message_id"]) for reply in message["replies"]]
    return rows


@pytest.mark.parametrize("rows", [[TREE], flattened(TREE), flattened(TREE)[::-1]], ids=["tree", "flat", "backwards"])
def test_open_assistant_trees_and_the_same_messages_one_a_row(tmp_path, rows):
    result, evidence = imported(tmp_path, "oasst.jsonl.gz", gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    assert (result["format"], result["judgments"]) == ("oasst", 2)
    prompts = {len(evidence.prompts[key].messages) for key in evidence.prompts}
    assert prompts == {1, 3}
    models = {evidence.responses[key].model for key in evidence.responses}
    assert models == {"human", "toy"}
    found = {frozenset(ranks) for _, ranks in said(evidence)}
    assert found == {frozenset({("Rivers bring salt.", 2), ("Fish.", 1)}), frozenset({("Most.", 1), ("Yes.", 2)})}


def test_ultrafeedback_is_ranked_by_the_mean_of_its_aspects(tmp_path):
    result, evidence = imported(tmp_path, "uf.jsonl", json.dumps(ULTRAFEEDBACK) + "\n")
    (one,) = evidence.judgments.values()
    assert (one.rater_id, one.rater_kind) == ("gpt-4", "judge")
    assert said(evidence) == [("gpt-4", [("1 2", 2), ("one, two", 1)])]  # 4.5 against 5; the third has no rating
    assert result["format"] == "ultrafeedback"


def test_a_red_team_attempt_keeps_its_fields_and_its_direction(tmp_path):
    result, evidence = imported(tmp_path, "red.jsonl.gz", gzip.compress(json.dumps([ATTEMPT]).encode()))  # an array, as published
    (one,) = evidence.judgments.values()
    assert result["format"] == "hh-red-team"
    assert (one.direction, one.ranks, one.comment) == ("more_harmful", {}, "Tries to get lock picking.")
    assert one.flags[one.order[0]] == [
        "rating=1", "min_harmlessness_score_transcript=-0.5", "task_description_harmlessness_score=1.25", "is_upworker=true",
        "theft",
    ]  # fmt: skip
    assert evidence.response(one, one.order[0]).model == "rlhf 52B"
    assert evidence.prompt(one).tags == ("red_team", "theft")
    assert len(evidence.prompt(one).messages) == 3
    assert said(evidence) == [("member-7", [("Call a smith.", None)])]
    with pytest.raises(InputError, match="1 x no verdict"):  # an attempt prefers nothing
        export_feedback(tmp_path / "from-red.jsonl.gz", tmp_path / "pairs.jsonl", "trl", Selection())
    manifest = export_feedback(tmp_path / "from-red.jsonl.gz", tmp_path / "out.jsonl", "hh-red-team", Selection())
    assert json.loads((tmp_path / "out.jsonl").read_text()) == ATTEMPT  # and so it goes out in the fields it came in
    assert manifest["raters"] == [{"id": "member-7", "kind": "human", "judgments": 1}]


ARENA_55K = (
    "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    '1,m1,m2,"[""Say hi""]","[""hi""]","[""hello, \\u00e9""]",0,1,0\n'
    '2,m1,m2,"[""Say hi"",""again""]","[""hi"",""hi""]","[""ho"",""hi!""]",1,0,0\n'
    '3,m2,m1,"[""Say no""]","[""no""]","[null]",1,0,0\n'
    '4,m2,m1,"[""Say no""]","[""no""]","[""<script>alert(1)</script>""]",0,0,1\n'
)


def conversation(*turns: str, parts: bool = False) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": [{"type": "text", "text": turn}] if parts else turn}
            for n, turn in enumerate(turns)]  # fmt: skip


def test_arena_votes_with_ties_and_both_bad(tmp_path):
    result, evidence = imported(tmp_path, "arena.csv", ARENA_55K)
    assert result["left_out"] == {FORKED: 1, "a turn is empty, or holds more than text": 1}
    assert said(evidence) == [
        ("arena-users", [("hi", 2), ("hello, é", 1)]), ("arena-users", [("no", 1), ("<script>alert(1)</script>", 1)])
    ]  # fmt: skip
    rows = [{"question_id": str(n), "model_a": "m1", "model_b": "m2", "winner": winner, "judge": f"arena_user_{n}",
             "conversation_a": conversation("q", "a", parts=n == 1), "conversation_b": conversation("q", "b", parts=n == 1)}
            for n, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)", "both_bad"])]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[0], *rows[2:]]), tmp_path / "c.parquet")
    import_feedback(tmp_path / "c.parquet", tmp_path / "c")
    found = said(Evidence(tmp_path / "c/judgments.jsonl"))
    assert [(who, [rank for _, rank in ranks]) for who, ranks in found] == [
        ("arena_user_0", [1, 2]), ("arena_user_2", [1, 1]), ("arena_user_3", ["F", "F"]), ("arena_user_4", ["F", "F"])
    ]  # fmt: skip
    _, evidence = imported(tmp_path, "140k.jsonl", json.dumps(rows[1]))
    assert said(evidence) == [("arena_user_1", [("a", 2), ("b", 1)])]


def test_a_table_of_votes_on_two_answers(tmp_path):
    """The first answer stood first; a row without a winner or a text is counted; a name of a rater may be a number."""
    table = (
        "question,answer_a,answer_b,winner,labeler,model_a,reason\n"
        "Bake?,Mix.,No.,a,ann,m1,clear\nBake?,No.,Mix.,a,7,,\nBake?,Mix.,No.,tie,,,\nFix?,Nail it.,Never.,both bad,ann,,\n"
        "Fix?,Nail it.,Never.,,bob,,\nFix?,,Never.,a,bob,,\n,Nail it.,Never.,b,bob,,\n"
    )
    result, evidence = imported(tmp_path, "votes.csv", table)
    assert result["format"] == "votes"
    assert result["left_out"] == {NO_VERDICT: 1, NO_TEXT: 1, NO_PROMPT: 1}
    assert next((j.comment, evidence.response(j, j.order[0]).model) for j in evidence.judgments.in_order()) == ("clear", "m1")
    assert said(evidence) == [
        ("ann", [("Mix.", 1), ("No.", 2)]), ("7", [("No.", 1), ("Mix.", 2)]), ("unknown", [("Mix.", 1), ("No.", 1)]),
        ("ann", [("Nail it.", "F"), ("Never.", "F")]),
    ]  # fmt: skip


@pytest.mark.parametrize(("header", "winner", "words"), [
    ("prompt,answer a,answer b,winner", "a", "votes on two answers have the columns prompt, answer_a, answer_b, winner and"),
    ("prompt,answer_a,answer_b,winner", "F", "line 2, field 'winner': is 'F'; write a, b, tie, both bad"),
    ("prompt,answer_a,answer_b,winner", "-1", "line 2, field 'winner': is '-1'; write a, b, tie, both bad"),
])  # fmt: skip
def test_a_table_of_votes_that_cannot_be_read_says_what_to_write(tmp_path, header, winner, words):
    with pytest.raises(InputError, match=words):
        imported(tmp_path, "votes.csv", f"{header}\nBake?,Mix.,No.,{winner}\n")


def test_trl_columns_with_soft_labels_and_raters(tmp_path):
    rows = [
        {"prompt": "hi", "chosen": "a", "rejected": "b", "p": 0.25, "rater_id": "x", "rater_kind": "judge", "group_id": "g"},
        {"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "a"}],
         "rejected": [{"role": "assistant", "content": "b"}], "margin": 0.6666666667},
        {"prompt": "hi", "chosen": "same", "rejected": "same"},
    ]  # fmt: skip
    result, evidence = imported(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    soft, strong = evidence.judgments.values()
    evidence.__exit__()
    assert (soft.rater_id, soft.rater_kind, soft.set_id) == ("x", "judge", "g")
    assert abs(soft.margin) == pytest.approx(1.0986122886681098)
    assert (abs(strong.strength), strong.rater_id) == (3, "unknown")
    assert result["left_out"] == {IDENTICAL: 1}
    out = tmp_path / "back.jsonl"
    export_feedback(tmp_path / "from-p.jsonl", out, "trl", Selection())
    back = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["chosen"], r["weight"], r["margin"]) for r in back] == [("b", 0.75, 0.0), ("a", 1.0, 2 / 3)]


def test_a_pair_with_two_equal_scores_is_left_out(tmp_path):
    """Binarised UltraFeedback: of two answers with one score the file calls one chosen, by chance."""
    row = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    rows = [
        row | {"score_chosen": 8.0, "score_rejected": 8.0}, row | {"score_chosen": 8.0, "score_rejected": 7.5},
        row | {"chosen-rating": 5, "rejected-rating": 5}, row | {"rating_chosen": 5, "rating_rejected": 4},
        row | {"chosen_score": None, "rejected_score": None}, row | {"chosen_rating": "", "rejected_rating": ""},
    ]  # fmt: skip
    result, evidence = imported(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [sorted(judgment.ranks.values()) for judgment in evidence.judgments.values()] == [[1, 2]] * 4
    evidence.__exit__()
    assert result["left_out"] == {EQUAL_SCORES: 2}


@pytest.mark.parametrize(("column", "name"), [("rater", "ann"), ("annotator", 7), ("labeler", "bob"), ("rater_id", 3)])
def test_a_pair_names_its_rater_as_a_table_of_votes_does(tmp_path, column, name):
    row = {"prompt": "hi", "chosen": "a", "rejected": "b", column: name}
    _, evidence = imported(tmp_path, "p.jsonl", json.dumps(row))
    assert [judgment.rater_id for judgment in evidence.judgments.values()] == [str(name)]
    evidence.__exit__()


def test_a_winner_may_be_the_name_of_a_column_or_a_float_beside_missing_ones(tmp_path):
    row = {"prompt": "hi", "response_a": "a", "response_b": "b"}
    rows = [row | {"winner": winner} for winner in ("response_a", "response_b", 1.0, 2.0, math.nan)]
    result, evidence = imported(tmp_path, "v.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [[rank for _, rank in vote] for _, vote in said(evidence)] == [[1, 2], [2, 1], [1, 2], [2, 1]]
    assert result["left_out"] == {NO_VERDICT: 1}


def test_who_judged_can_be_said_where_the_file_does_not(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt,completion,label\nhi,a,True\nhi,b,false\n")
    arguments = ["import", str(tmp_path / "p.csv"), "--out", str(tmp_path / "o"), "--rater", "tests", "--rater-kind", "rule"]
    assert run_command([*arguments, "--from", "unpaired", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judgments"] == 2
    judgments = read_judgments(tmp_path / "o/judgments.jsonl")
    assert {(one.rater_id, one.rater_kind) for one in judgments} == {("tests", "rule")}
    assert [list(one.ranks.values()) for one in judgments] == [[1], ["F"]]


def record(fields: dict, responses: object, **more: object) -> str:
    return json.dumps([{"id": "r", "fields": {"prompt": "Mend a lamp?", **fields}, "responses": responses, **more}])


def answered(value: object, user: str = "u1") -> dict:
    return {"value": value, "user_id": user, "status": "submitted"}


def ranks(*pairs: tuple[str, int | None]) -> list[dict]:
    return [{"value": name, "rank": rank} for name, rank in pairs]


TIPS = {"tip 1": "Unplug it.", "tip 2": "Hit it."}


@pytest.mark.parametrize(
    ("content", "expected", "left_out"),
    [
        (record({**TIPS, "golden": "Call a smith."}, {"q": [answered(ranks(("tip 1", 1), ("tip 2", 2)))]}),
         [("u1", [("Unplug it.", 1), ("Hit it.", 2)])], {}),
        (record({"context": "Lamps.", "reply_a": "Unplug it.", "reply_b": "Hit it."}, {"q": [answered("reply_b")]}),
         [("u1", [("Unplug it.", 2), ("Hit it.", 1)])], {}),
        (record({**TIPS, "tip 3": "Pray.", "source": "book"}, {"q": [{"value": ["tip 3", "tip 1", "tip 2"], "user_id": "u1"}]}),
         [("u1", [("Unplug it.", 2), ("Hit it.", 3), ("Pray.", 1)])], {}),
        (record({**TIPS, "tip 3": "Pray."}, {"good": [answered(["tip 3", "tip 1"])], "best": [answered("tip 1", "u2")]}),
         [("u2", [("Unplug it.", 1), ("Hit it.", 2), ("Pray.", 2)])], {"a choice of several fields, which is not a ranking": 1}),
        (record({"golden": "Call.", **TIPS}, {"q": [answered(ranks(("2", 1), ("1", 1)))]}),
         [("u1", [("Unplug it.", 1), ("Hit it.", 1)])], {}),
        (record({**TIPS, "tip 3": "Pray."}, {"q": [answered(ranks(("tip 1", 2), ("tip 2", None), ("tip 3", 1)))]}),
         [("u1", [("Unplug it.", 2), ("Pray.", 1)])], {"a response without a rank": 1}),
        (record(TIPS, {"why": [answered("tip 1"), answered("tip 1", "u2")], "q": [answered(ranks(("tip 1", 2), ("tip 2", 1)))]}),
         [("u2", [("Unplug it.", 1), ("Hit it.", 2)]), ("u1", [("Unplug it.", 2), ("Hit it.", 1)])],
         {"a further answer of a rater who has compared these responses": 1}),
        (json.dumps([{"id": "r", "status": "done", "prompt": "Mend a lamp?", **TIPS, "q.responses": [["tip 2", "tip 1"]] * 2,
                      "q.responses.users": ["u1", "u2"], "q.responses.status": ["submitted", "draft"], "q.suggestion": None}]),
         [("u1", [("Unplug it.", 2), ("Hit it.", 1)])], {"not submitted": 1}),
    ],
    ids=["a golden answer", "a context", "names in order", "several chosen", "numbers", "a null rank", "free text", "flat"],
)  # fmt: skip
def test_argilla_compares_the_answers_and_nothing_else(tmp_path, content, expected, left_out):
    result, evidence = imported(tmp_path, "a.json", content)
    assert sorted(said(evidence)) == sorted(expected)
    assert result["left_out"] == left_out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (record(TIPS, None, suggestions={"q": {"value": ["tip 1", "tip 2"]}}), "1 x a record that nobody has answered"),
        (
            record({"one": "Unplug it.", "two": "Hit it."}, {"q": [answered(ranks(("7", 1), ("8", 2)))]}),
            "unknown field '7'; name",
        ),
        (record({"good": "Unplug it.", "bad": "Hit it.", "note": "x"}, {"q": [answered("good")]}), "name them response_1"),
    ],
)
def test_argilla_says_what_to_do(tmp_path, content, words):
    with pytest.raises(InputError, match=re.escape(words)):
        imported(tmp_path, "a.json", content)


def task(result: list[dict], **data: object) -> str:
    data = {"prompt": "Paint a door?", "answer1": "Sand it.", "answer2": "Never."} | data
    votes = [{"id": n, "completed_by": n, "result": [part]} for n, part in enumerate(result, start=1)]
    return json.dumps([{"id": 1, "data": data, "annotations": votes}])


def picked(**value: object) -> dict:
    return {"type": "pairwise", "to_name": "answer1,answer2", "value": value}


def test_choices_of_label_studio_are_votes(tmp_path):
    words = ["A is better", "Response 2", "Tie", "both bad", "answer2", "Purple"]
    choices = [{"type": "choices", "to_name": "answer1", "value": {"choices": [word]}} for word in words]
    result, evidence = imported(tmp_path, "c.json", task(choices))
    assert [[rank for _, rank in vote] for _, vote in said(evidence)] == [[1, 2], [2, 1], [1, 1], ["F", "F"], [2, 1]]
    assert result["left_out"] == {"a choice that names neither answer, nor a tie, nor both bad": 1}


def test_choices_about_each_answer_by_itself_compare_nothing(tmp_path):
    """A grade from 1 to 5 of either answer: "2" is not the second answer. A choice about both stays a vote beside them."""
    grades = [{"type": "choices", "to_name": f"answer{n}", "value": {"choices": [grade]}} for n, grade in ((1, "2"), (2, "1"))]
    both = {"type": "choices", "to_name": "prompt", "value": {"choices": ["A"]}}
    (whole,) = json.loads(task([both]))
    whole["annotations"][0]["result"] += grades
    result, evidence = imported(tmp_path, "g.json", json.dumps([whole]))
    assert [[rank for _, rank in vote] for _, vote in said(evidence)] == [[1, 2]]
    assert result["left_out"] == {"a choice about one answer by itself": 2}


FLAT_TEXTS = {"prompt": "Which bread?", "answer1": "Rye", "answer2": "Bun"}
FLAT_ROW = FLAT_TEXTS | {"id": 1, "annotator": 4, "annotation_id": 7, "created_at": "x", "updated_at": "y", "lead_time": 3.0}


@pytest.mark.parametrize("as_csv", [False, True], ids=["json_min", "csv"])
@pytest.mark.parametrize(
    ("verdict", "ranks"), [([{"selected": "left"}], [1, 2]), ("left", [1, 2]), ("answer2", [2, 1]), ("Tie", [1, 1])]
)
def test_flat_exports_of_label_studio_are_votes(tmp_path, as_csv, verdict, ranks):
    row = FLAT_ROW | {"pw": verdict}
    cells = {name: value if isinstance(value, str | int | float) else json.dumps(value) for name, value in row.items()}
    if as_csv:
        with open(tmp_path / "l.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, cells)
            writer.writeheader()
            writer.writerow(cells)
        import_feedback(tmp_path / "l.csv", tmp_path / "o")
        evidence = Evidence(tmp_path / "o/judgments.jsonl")
    else:
        result, evidence = imported(tmp_path, "l.json", json.dumps([row]))
        assert result["format"] == "label-studio"
    (judgment,) = evidence.judgments.values()
    assert judgment.timings == {"active_ms": 3000.0}
    assert said(evidence) == [("annotator-4", list(zip(("Rye", "Bun"), ranks, strict=True)))]


def test_a_ranker_of_a_flat_export_ranks_its_items(tmp_path):
    items = [{"id": "1", "body": "Rye"}, {"id": "2", "body": "Bun"}]
    row = FLAT_ROW | {"answer1": None, "answer2": None, "items": items, "rank": [{"ranker": ["2", "1"]}]}
    _, evidence = imported(tmp_path, "r.json", json.dumps([row]))
    assert said(evidence) == [("annotator-4", [("Rye", 2), ("Bun", 1)])]


@pytest.mark.parametrize(
    "columns", [{"left_text": "Rye", "right_text": "Bun", "pw": "left"}, {**FLAT_TEXTS, "pw": "left", "b": "Tie"}]
)
def test_a_flat_export_that_does_not_say_what_was_compared_names_the_export_to_choose(tmp_path, columns):
    row = {"prompt": "Which?", "id": 1, "annotator": 4, "annotation_id": 7} | columns
    with pytest.raises(InputError, match="do not say which columns were compared; export from Label Studio as JSON"):
        imported(tmp_path, "l.json", json.dumps([row]))


def test_an_empty_result_is_left_out_with_its_place(tmp_path, capsys):
    (tmp_path / "t.json").write_text(task([picked(), picked(selected="right")]))
    assert run_command(["import", str(tmp_path / "t.json"), "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    place = "first in item 1, field 'annotations.0.result.0.value.selected'"
    assert f"left out: 1 x an annotation without a comparison ({place})" in out
    assert "1 judgments" in out


def test_the_ranker_ranks_the_list_that_it_names(tmp_path):
    lists = {name: [{"id": str(n), "body": f"{name} {n}"} for n in (0, 1)] for name in ("turns", "replies")}
    ranked = {"type": "ranker", "to_name": "replies", "value": {"ranker": ["1", "0"]}}
    _, evidence = imported(tmp_path, "r.json", task([ranked], **lists))
    assert said(evidence) == [("annotator-1", [("replies 0", 2), ("replies 1", 1)])]
    with pytest.raises(InputError, match="turns and replies have items with the ranked ids"):
        imported(tmp_path, "q.json", task([ranked | {"to_name": "q"}], **lists))


@pytest.mark.parametrize(
    "prompt", [conversation("Hi", "Hello", "Paint?"), "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Paint?\n\nAssistant:"]
)
def test_a_dialogue_as_prompt_is_read_as_one(tmp_path, prompt):
    _, evidence = imported(tmp_path, "d.json", task([picked(selected="left")], prompt=prompt))
    with evidence:
        (only,) = evidence.prompts.values()
    assert [message.content for message in only.messages] == ["Hi", "Hello", "Paint?"]


def test_an_annotation_with_its_task_as_a_target_storage_receives_it(tmp_path):
    (whole,) = json.loads(task([picked(selected="left")]))
    _, evidence = imported(tmp_path, "t.jsonl", json.dumps({**whole["annotations"][0], "task": {"id": 1, "data": whole["data"]}}))
    assert said(evidence) == [("annotator-1", [("Sand it.", 1), ("Never.", 2)])]


def test_a_growing_export_counts_a_rater_once(tmp_path):
    """A rater of two exports, or one who voted twice, is one rater in the share."""
    for name, picks in (("mon", ["left"]), ("fri", ["left", "right", "right"])):
        imported(tmp_path, f"{name}.json", task([picked(selected=side) for side in picks]))[1].__exit__()
    merge_folders([tmp_path / "from-mon.json", tmp_path / "from-fri.json"], tmp_path / "both")
    export_feedback(tmp_path / "both", tmp_path / "both.jsonl", "trl", Selection(soft="share"))
    (row,) = map(json.loads, (tmp_path / "both.jsonl").read_text().splitlines())
    assert (row["chosen"], row["weight"]) == ("Never.", pytest.approx(2 / 3))


def mt_bench(winner: str, turn: int, **more: object) -> str:
    dialogues = {f"conversation_{side}": conversation("Rhyme.", f"rhyme {side}", "Shorter.", f"short {side}") for side in "ab"}
    return (
        json.dumps({"model_a": "m1", "model_b": "m2", "winner": winner, "judge": "ann", "turn": turn, **dialogues, **more}) + "\n"
    )


def test_mt_bench_votes_on_the_first_turn_are_votes_on_it(tmp_path):
    rows = [mt_bench("model_a", 1, question_id=5), mt_bench("model_b", 2, question_id=5), mt_bench("model_b", 1)]
    result, evidence = imported(tmp_path, "m.jsonl", "".join([*rows, rows[0]]))
    assert said(evidence) == [("ann", [("rhyme a", 1), ("rhyme b", 2)]), ("ann", [("rhyme a", 2), ("rhyme b", 1)])]
    assert result["left_out"] == {FORKED: 1, "the same vote as an earlier row": 1}


@pytest.mark.parametrize("turn", ["1", 1.0])
def test_the_turn_may_be_a_text_or_a_float(tmp_path, turn):
    _, evidence = imported(tmp_path, "m.jsonl", mt_bench("model_a", turn))
    assert said(evidence) == [("ann", [("rhyme a", 1), ("rhyme b", 2)])]


def test_a_judge_that_is_nan_is_nobody(tmp_path):
    _, evidence = imported(tmp_path, "m.jsonl", mt_bench("model_a", 1, judge=math.nan))
    assert said(evidence) == [("arena-users", [("rhyme a", 1), ("rhyme b", 2)])]


def test_votes_that_the_publisher_does_not_count_are_left_out(tmp_path):
    rows = [mt_bench("model_a", 1), mt_bench("model_a", 1, anony=False), mt_bench("model_a", 1, dedup_tag={"sampled": False})]
    result, evidence = imported(tmp_path, "m.jsonl", "".join(rows))
    assert (len(said(evidence)), result["left_out"]) == (1, {NOT_BLIND: 1, SAMPLED_OUT: 1})


def test_a_pair_that_prefers_neither_is_a_tie(tmp_path):
    """P(chosen is better) of one half, as TRL's files and ours write it, is no win for the response named first."""
    row = {"prompt": "q", "chosen": "x", "rejected": "y", "strength": 2}
    rows = [row | {"p": 0.5}, row | {"weight": 0.5}, row | {"weight": "0.5"}, row | {"p": 0.6}]
    _, evidence = imported(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    judgments = list(evidence.judgments.values())
    assert [sorted(judgment.ranks.values()) for judgment in judgments] == [[1, 1], [1, 1], [1, 1], [1, 2]]
    assert [(judgment.margin, judgment.strength) for judgment in judgments[:3]] == [(None, None)] * 3
    evidence.__exit__()
    assert read_votes(tmp_path / "from-p.jsonl").outcome.tolist()[:3] == [0, 0, 0]


@pytest.mark.parametrize(("rank", "left_out"), [(math.nan, {}), (math.inf, None), (10**30, None)])
def test_a_rank_of_a_tree_that_is_no_number_that_counts(tmp_path, rank, left_out):
    tree = json.loads(json.dumps(TREE))
    tree["prompt"]["replies"][2]["rank"] = rank
    if left_out is None:
        with pytest.raises(InputError, match="whole numbers from 0"):
            imported(tmp_path, "t.jsonl", json.dumps(tree))
    else:
        _, evidence = imported(tmp_path, "t.jsonl", json.dumps(tree))
        assert said(evidence)[0][1] == [("Rivers bring salt.", 2), ("Fish.", 1)]


def test_a_rank_beyond_all_sets_is_refused(tmp_path):
    record = json.loads(json.dumps(ARGILLA[1]))
    record["responses"][0]["values"]["rank"]["value"][0]["rank"] = 10**30
    with pytest.raises(InputError, match="less than or equal to 1000000"):
        imported(tmp_path, "a.json", json.dumps([record]))


@pytest.mark.parametrize(("choice", "ranks"), [
    ("Both good", [1, 1]), ("Both are good", [1, 1]), ("Equally good", [1, 1]), ("Both are bad", ["F", "F"]),
    ("Answer 2 is better", [2, 1]), ("Neither is better", [1, 1]), ("Neither", ["F", "F"]),
])  # fmt: skip
def test_the_words_of_a_choice(tmp_path, choice, ranks):
    task = {"id": 1, "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
            "annotations": [{"id": 3, "completed_by": 1,
                             "result": [{"type": "choices", "value": {"choices": [choice]}}]}]}  # fmt: skip
    _, evidence = imported(tmp_path, "c.json", json.dumps([task]))
    assert [[rank for _, rank in vote] for _, vote in said(evidence)] == [ranks]


def test_one_row_that_cannot_be_used_does_not_stop_the_others(tmp_path):
    broken = ARENA_55K.replace("hello, \\u00e9", "hello, \\ud83d")
    result, evidence = imported(tmp_path, "w.csv", broken)
    assert result["left_out"]["a text with a NUL character or a lone surrogate"] == 1
    assert len(said(evidence)) == 1
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a\0", "rejected": "b"},
             {"prompt": "q", "chosen": None, "rejected": "b"}]  # fmt: skip
    result, evidence = imported(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in pairs))
    assert result["left_out"] == {"a text is missing": 1, "a text with a NUL character or a lone surrogate": 1}
    assert result["left_out_first"]["a text is missing"] == "line 3, field 'chosen'"
    assert len(said(evidence)) == 1
    result, evidence = imported(tmp_path, "r.jsonl", "".join(json.dumps(ATTEMPT | {"rating": r}) + "\n" for r in (1, None)))
    assert (len(said(evidence)), result["left_out"]) == (1, {"an attempt without a rating": 1})


def completion(name: str, ratings: str | None, overall: float | None, response: str | None = "") -> dict:
    aspects = {"helpfulness": {"Rating": "N/A" if ratings is None else ratings}}
    return {"model": name, "response": name if response == "" else response, "annotations": aspects, "overall_score": overall}


def test_ultrafeedback_compares_on_one_scale(tmp_path):
    rows = [
        {"instruction": "q1", "completions": [completion("best", "5", 9), completion("middling", None, 6)]},
        {"instruction": "q2", "completions": [completion("x", "2", 9), completion("y", "3", 1), completion("z", None, 9)]},
        {"instruction": "q3", "completions": [completion("x", "2", 9), completion("y", "3", 1), completion("z", "1", 1, None)]},
    ]
    result, evidence = imported(tmp_path, "u.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [vote for _, vote in said(evidence)] == [
        [("best", 1), ("middling", 2)], [("x", 2), ("y", 1)], [("x", 2), ("y", 1)]
    ]  # fmt: skip
    assert result["left_out"] == {"a completion without a rating on the scale of the others": 1, "a text is missing": 1}


def test_alpaca_eval_with_soft_labels_ties_and_no_verdict(tmp_path):
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "generator_1": "base", "generator_2": "mine", "annotator": "gpt"}
    content = json.dumps([row | {"preference": preference} for preference in (1, 2.0, 1.5, 1.2, 0, None)])
    result, evidence = imported(tmp_path, "a.json", content)
    margins = [judgment.margin for judgment in evidence.judgments.values()]
    assert margins == [None, None, None, pytest.approx(math.log(4)), None]
    assert {response.model for response in evidence.responses.values()} == {"base", "mine"}
    assert {judgment.rater_kind for judgment in evidence.judgments.values()} == {"judge"}
    assert [[rank for _, rank in vote] for _, vote in said(evidence)] == [[1, 2], [2, 1], [1, 1], [1, 2], [1, 1]]
    assert (result["format"], result["left_out"]) == ("alpaca-eval", {"no verdict": 1})
    votes = read_votes(tmp_path / "a.json")
    assert (votes.models, votes.outcome.tolist(), votes.raters) == (("base", "mine"), [1, -1, 0, 1, 0], ("gpt",))


def test_a_deleted_message_of_open_assistant_takes_part_in_no_ranking(tmp_path):
    tree = json.loads(json.dumps(TREE))
    tree["prompt"]["replies"][0]["replies"][0] |= {"text": "(deleted)", "deleted": True}
    tree["prompt"]["replies"][3]["text"] = None
    result, evidence = imported(tmp_path, "t.jsonl", json.dumps(tree))
    assert said(evidence) == [("oasst-volunteers", [("Rivers bring salt.", 2), ("Fish.", 1)])]
    assert result["left_out"] == {
        "a reply that was deleted": 1, "replies to a dialogue with a deleted message": 1,
        "a reply without a rank beside ranked ones": 1,
    }  # fmt: skip


def test_labels_of_one_and_zero_as_tables_write_them(tmp_path):
    rows = [{"prompt": "a", "completion": str(n), "label": label} for n, label in enumerate([1.0, 0.0, "1.0", "FALSE", None])]
    result, evidence = imported(tmp_path, "k.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [rank for _, ((_, rank),) in said(evidence)] == [1, "F", 1, "F"]
    assert result["left_out"] == {"a completion without a label": 1}


def test_the_models_of_chosen_and_rejected_are_kept(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_model": "m1", "rejected_model": "m2"}
    rows = [row, row | {"p": 0.25, "chosen": "d"}, row | {"p": 0, "chosen": "e"}]
    _, evidence = imported(tmp_path, "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with evidence:
        models = {response.text: response.model for response in evidence.responses.values()}
        assert models == {"b": "m1", "c": "m2", "d": "m1", "e": "m1"}
        assert [evidence.response(one, wins(one)[0][0]).model for one in evidence.judgments.values()] == ["m1", "m2", "m2"]


def test_the_same_file_gives_the_same_bytes(tmp_path):
    content = "".join(json.dumps({"prompt": f"q{n}", "chosen": "a", "rejected": f"b{n % 2}"}) + "\n" for n in range(20))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        imported(tmp_path / name, "p.jsonl", content)[1].__exit__()
    for name in ("prompts.jsonl", "responses.jsonl", "judgments.jsonl"):
        assert (tmp_path / "one/from-p.jsonl" / name).read_bytes() == (tmp_path / "two/from-p.jsonl" / name).read_bytes()
    judgments = read_judgments(tmp_path / "one/from-p.jsonl/judgments.jsonl")
    assert [one.id for one in judgments] == sorted(one.id for one in judgments)
    assert tips(judgments) == [judgments[-1].hash]


def test_pairs_are_not_the_crowds_of_hh_rlhf_because_their_prompt_has_another_name(tmp_path):
    row = {"chosen": "a", "rejected": "b"}
    for column in ("question", "instruction"):
        _, evidence = imported(tmp_path, f"{column}.jsonl", json.dumps(row | {column: "q", "system": ""}))
        with evidence:
            assert [judgment.rater_id for judgment in evidence.judgments.values()] == ["unknown"]


def test_chosen_is_not_always_shown_first(tmp_path):
    content = "".join(json.dumps({"prompt": f"q{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(200))
    _, evidence = imported(tmp_path, "p.jsonl", content)
    first = Counter(wins(one)[0][0] == one.order[0] for one in evidence.judgments.values())
    evidence.__exit__()
    assert 70 < first[True] < 130


def test_a_folder_of_feedback_is_imported_as_it_is_and_checked(tmp_path):
    imported(tmp_path, "p.jsonl", json.dumps({"prompt": "hi", "chosen": "a", "rejected": "b"}))[1].__exit__()
    result = import_feedback(tmp_path / "from-p.jsonl", tmp_path / "copy")
    assert result["format"] == "raw"
    for name in ("prompts.jsonl", "judgments.jsonl"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "from-p.jsonl" / name).read_bytes()
    (tmp_path / "copy/responses.jsonl").write_text("")
    with pytest.raises(InputError, match=r"responses\.jsonl: response .* is missing"):
        import_feedback(tmp_path / "copy", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not HH_SAMPLE.exists(), reason=f"{HH_SAMPLE.name} is not beside the checkout")
def test_published_dialogues_come_in_and_go_out_as_they_were(tmp_path):
    result = import_feedback(HH_SAMPLE, tmp_path / "hh")
    assert (result["format"], result["rows"], result["judgments"]) == ("hh", 1600, 1599)
    assert result["left_out"] == {FORKED: 1}
    export_feedback(tmp_path / "hh", tmp_path / "hh.jsonl", "hh", Selection())
    with gzip.open(HH_SAMPLE, "rt", encoding="utf-8") as file:
        published = {line["chosen"]: line["rejected"] for line in map(json.loads, file)}
    rows = [json.loads(line) for line in (tmp_path / "hh.jsonl").read_bytes().splitlines()]
    assert len(rows) == 1599
    assert all(published[row["chosen"]] == row["rejected"] for row in rows)


def test_the_context_of_a_question_is_part_of_the_prompt(tmp_path):
    """Raters of Argilla and of Label Studio read it, and without it the prompt would ask for another answer."""
    answers = {"context": "It is blue.", "response_a": "Sand it.", "response_b": "Never."}
    ranking = {"ranking": [answered(["response_a", "response_b"])]}
    _, argilla = imported(tmp_path, "a.json", record({"prompt": "Paint a door?", **answers}, ranking))
    _, studio = imported(tmp_path, "s.json", task([picked(selected="left")], context="It is blue."))
    for evidence in (argilla, studio):
        assert [prompt.last_turn for prompt in evidence.prompts.values()] == ["Paint a door?\n\nIt is blue."]
        evidence.__exit__()
