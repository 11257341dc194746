"""Judgments become pairs by one rule, oriented by name; tables come in with the words that people use."""

import json
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.errors import InputError
from charter.raters.agreement import PAIR_AGREEMENT, agreement_figures
from charter.raters.comparisons import as_comparisons, pair_outcomes, seconds_of_votes, single_orders, votes_of
from charter.raters.lines import rater_lines
from charter.raters.reports import counted, ratings_report
from charter.raters.vote_files import read_votes
from charter.records import Generation, Judgment, Response
from charter.run.files import write_jsonl
from charter.votes.winners import NOT_BLIND, SAMPLED_OUT
from feedback_folder import chain


def vote(key: str, ranks: dict, **fields) -> Judgment:
    given = {"set_id": "s", "prompt_id": "p", "rater_id": "ann", "rater_kind": "human", "order": tuple(ranks)}
    return Judgment(id=key, ranks=ranks, **(given | fields))


def test_the_worked_example_gives_three_pairs():
    assert pair_outcomes({"a": 2, "b": 1, "c": 3}, "abc") == [("a", "b", -1), ("a", "c", 1), ("b", "c", 1)]


RANK = st.one_of(st.integers(1, 4), st.just("F"), st.none())


@given(st.dictionaries(st.sampled_from("abcdefg"), RANK, min_size=2))
def test_pairs_follow_the_rule(shown):
    """Lower wins, equal ties, ranked beats F and unranked, nothing between those that are neither."""
    ranks = {one: rank for one, rank in shown.items() if rank is not None}
    expected = []
    for a, b in combinations(shown, 2):
        first, second = ranks.get(a), ranks.get(b)
        if isinstance(first, int) and isinstance(second, int):
            expected.append((a, b, (first < second) - (first > second)))
        elif isinstance(first, int) or isinstance(second, int):
            expected.append((a, b, 1 if isinstance(first, int) else -1))
    assert pair_outcomes(ranks, shown) == expected


def test_pairs_are_oriented_by_name_and_remember_the_side():
    left = votes_of([vote("1", {"b": 1, "a": 2})])
    right = votes_of([vote("1", {"a": 2, "b": 1})])
    for votes, shown in ((left, -1), (right, 1)):
        assert (votes.x.tolist(), votes.y.tolist(), votes.outcome.tolist()) == ([0], [1], [-1])
        assert votes.shown.tolist() == [shown]


def test_what_is_superseded_or_without_verdict_is_counted_and_not_scored():
    votes = votes_of([vote("1", {"a": 1, "b": 2}), vote("2", {"a": 2, "b": 1}, supersedes="1"),
                      vote("3", {}, order=("a", "b"))])  # fmt: skip
    assert votes.totals == {"superseded": 1, "no verdict": 1, "judgments": 1}
    assert votes.outcome.tolist() == [-1]


def test_more_harmful_is_turned_round_for_ratings_and_not_for_agreement():
    votes = votes_of([vote("1", {"a": 1, "b": 2}, direction="more_harmful")])
    assert as_comparisons(votes).outcome.tolist() == [-1]
    assert as_comparisons(votes, raw=True).outcome.tolist() == [1]


def test_an_f_does_not_measure_harm():
    """As in exports: an answer that is none is not the better one where the more harmful was asked for."""
    votes = votes_of([vote("1", {"a": 1, "b": 2, "c": "F"}, direction="more_harmful"), vote("2", {"a": 1, "c": "F"})])
    turned = as_comparisons(votes)
    assert [(turned.items[x], turned.items[y]) for x, y in zip(turned.x, turned.y, strict=True)] == [("a", "b"), ("a", "c")]
    assert turned.outcome.tolist() == [-1, 1]
    assert as_comparisons(votes, raw=True).outcome.tolist() == [1, 1, 1, 1]


def test_responses_become_models_and_two_of_one_model_say_nothing():
    votes = votes_of([vote("1", {"a": 1, "b": 2, "c": 3})], {"a": "new", "b": "old", "c": "old"})
    found = as_comparisons(votes, "models")
    assert found.items == ("new", "old")
    assert (found.x.tolist(), found.y.tolist(), found.outcome.tolist(), found.same_model) == ([0, 0], [1, 1], [1, 1], 1)


def test_strength_is_for_the_first_name_whatever_side_it_stood_on():
    assert votes_of([vote("1", {"a": 1, "b": 2}, strength=3)]).strength.tolist() == [3]
    assert votes_of([vote("1", {"b": 2, "a": 1}, strength=-3)]).strength.tolist() == [3]


def test_a_judge_asked_in_both_orders_is_two_halves():
    """It said yes to whatever stood first: +1 nat for a under A, −0.5 under B."""
    votes = votes_of([vote("1", {"a": 1, "b": 2}, rater_kind="judge", margin=0.25, margins_by_order=(1.0, -0.5))])
    assert votes.shown.tolist() == [0]
    halves = single_orders(votes)
    assert halves.count.tolist() == [0.5, 0.5]
    assert sorted(zip(halves.shown.tolist(), halves.outcome.tolist(), strict=True)) == [(-1, -1), (1, 1)]


def test_a_rank_of_what_was_not_shown_is_refused():
    with pytest.raises(InputError, match="judgment 1, field 'ranks': ranks 'z'"):
        votes_of([vote("1", {"a": 1, "z": 2}, order=("a", "b"))])


def test_seconds_come_from_whichever_timing_is_there():
    assert seconds_of_votes({"active_ms": 1500.0, "t_shown": 0.0, "t_submit": 9000.0}) == 1.5
    assert seconds_of_votes({"t_shown": 1000.0, "t_submit": 9000.0}) == 8
    assert math.isnan(seconds_of_votes({}))


def table(tmp_path, rows: list[dict], name: str = "votes.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("winner", "outcome"),
    [("model_a", 1), ("A", 1), ("leftvote", 1), ("gpt", 1), ("model_b", -1), ("tie", 0), ("Draw", 0), (2, -1)],
)
def test_the_words_for_a_winner(tmp_path, winner, outcome):
    votes = read_votes(table(tmp_path, [{"model_a": "gpt", "model_b": "llama", "winner": winner}]))
    assert votes.models == ("gpt", "llama")
    assert votes.outcome.tolist() == [outcome]


def test_both_bad_is_f_for_both_and_no_pair(tmp_path):
    row = {"model_a": "a", "model_b": "b", "prompt": "p"}
    votes = read_votes(table(tmp_path, [row | {"winner": "tie (bothbad)"}, row | {"winner": "b"}, row | {"winner": None}]))
    assert votes.outcome.tolist() == [-1]
    assert votes.rank.tolist() == [0, 0, 2, 1]
    assert votes.totals == {"no verdict": 1, "judgments": 2, "both bad": 1}


def test_counts_and_columns_of_ones(tmp_path):
    counted = tmp_path / "counts.csv"
    counted.write_text("model_a,model_b,wins_a,wins_b,ties\nx,y,7,3,2\n")
    votes = read_votes(counted)
    assert (Counter(votes.outcome.tolist()), votes.totals["judgments"]) == ({-1: 3, 0: 2, 1: 7}, 12)
    assert len(votes.prompts) == 12  # as many votes as one by one
    hot = tmp_path / "hot.csv"
    hot.write_text("model_a,model_b,winner_model_a,winner_model_b,winner_tie\nx,y,0,0,1\ny,x,1,0,0\n")
    assert read_votes(hot).outcome.tolist() == [0, -1]


def test_counts_are_rated_as_the_same_votes_one_by_one(tmp_path):
    wins = [("p", "q", "a")] * 12 + [("p", "q", "b")] * 7 + [("q", "r", "a")] * 9 + [("q", "r", "tie")] * 4
    single = table(tmp_path, [{"model_a": a, "model_b": b, "winner": winner} for a, b, winner in wins])
    (tmp_path / "c.csv").write_text("model_a,model_b,wins_a,wins_b,ties\np,q,12,7,0\nq,r,9,0,4\n")
    (from_counts, words), (one_by_one, _) = (ratings_report(read_votes(path), "models") for path in (tmp_path / "c.csv", single))
    assert words[0].startswith("32 comparisons from 32 judgments")
    assert from_counts["models"][0].pop("elo") is None  # the order of the votes is unknown
    assert one_by_one["models"][0].pop("elo") is not None
    assert from_counts["models"][0] == one_by_one["models"][0]
    assert (from_counts["flip"], from_counts["gap"]) == (one_by_one["flip"], one_by_one["gap"])
    (tmp_path / "c.csv").write_text("model_a,model_b,wins_a,wins_b,ties\np,q,1.5,7,0\n")
    with pytest.raises(InputError, match=r"field 'wins_a': is '1\.5'; give a whole number of votes"):
        read_votes(tmp_path / "c.csv")


def test_a_judge_of_both_orders_decides_where_they_agree(tmp_path):
    games = [("model_1", "model_1"), ("model_2", "model_1"), ("tie", "tie"), ("error", "model_1"), ("model_2", "model_2")]
    rows = [{"question_id": n, "model_1": "x", "model_2": "y", "g1_winner": one, "g2_winner": two, "judge": ["gpt", "v2"]}
            for n, (one, two) in enumerate(games)]  # fmt: skip
    votes = read_votes(table(tmp_path, rows))
    assert (votes.outcome.tolist(), votes.raters, votes.kinds) == ([1, 0, 0, -1], ("gpt v2",), ("judge",))
    assert votes.totals["no verdict"] == 1


def test_votes_that_the_publisher_does_not_count_are_left_out_and_reported(tmp_path):
    row = {"model_a": "x", "model_b": "y", "winner": "a"}
    votes = read_votes(
        table(tmp_path, [row | {"anony": True}, row | {"anony": False}, row | {"dedup_tag": "{'sampled': False}"}])
    )
    assert (len(votes.x), counted(votes).partition("left out: ")[2]) == (1, f"1 {NOT_BLIND}, 1 {SAMPLED_OUT}")


def test_judgments_where_all_failed_are_counted_as_both_bad():
    assert votes_of([vote("1", {"a": "F", "b": "F"}), vote("2", {"a": 1, "b": "F"})]).totals["both bad"] == 1


def test_a_table_without_prompts_takes_every_row_for_one(tmp_path):
    rows = [{"model_a": "a", "model_b": "b", "winner": "a"}] * 3
    assert len(read_votes(table(tmp_path, rows)).prompts) == 3
    votes = read_votes(table(tmp_path, [row | {"prompt_id": 5, "rater": "ann"} for row in rows]))
    assert (len(votes.prompts), votes.raters, len(votes.responses)) == (1, ("ann",), 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"model_a": "a", "model_b": "b", "winner": "c"}, "line 2, field 'winner': is 'c'; write a, b, tie"),
        ({"model_a": "b", "model_b": "a", "winner": "a"}, "is 'a', which is the name of one model and the word for the other"),
        ({"model_a": "a", "model_b": "b"}, "line 2, field 'winner': missing"),
        ({"model_a": "", "model_b": "b", "winner": "a"}, "line 2, field 'model_a': is empty"),
        ({"model_a": "a", "winner": "a"}, "line 2, field 'model_b': missing"),
        ({"model_a": "a", "model_b": "b", "winner": "a", "rater_kind": "robot"}, "field 'rater_kind': is 'robot'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    good = {"model_a": "a", "model_b": "b", "winner": "a"}
    if "rater_kind" in row:
        good = row | {"rater_kind": "human", "rater": "ann"}
        row = row | {"rater": "bob"}
    with pytest.raises(InputError) as error:
        read_votes(table(tmp_path, [good, row]))
    assert words in str(error.value)


def test_a_file_without_models_says_what_it_wants(tmp_path):
    with pytest.raises(InputError, match="model_a, model_b and winner"):
        read_votes(table(tmp_path, [{"question": "?"}]))


def answer(id: str, model: str) -> Response:
    return Response(id=id, prompt_id="p", model=model, text="t", finish_reason="stop",
                    generation=Generation(seed=0, temperature=1.0))  # fmt: skip


def test_models_come_from_the_responses_beside_the_judgments(tmp_path):
    write_jsonl(tmp_path / "judgments.jsonl", chain([vote("1", {"a": 1, "b": 2})]))
    with pytest.raises(InputError, match="give --responses FILE"):
        read_votes(tmp_path / "judgments.jsonl", models=True)
    write_jsonl(tmp_path / "responses.jsonl", [answer("a", "new")])
    with pytest.raises(InputError, match=r"response 'b' of .* is missing"):
        read_votes(tmp_path, models=True)
    write_jsonl(tmp_path / "responses.jsonl", [answer("a", "new"), answer("b", "old")])
    assert read_votes(tmp_path, models=True).models == ("new", "old")


def test_judgments_of_a_run_are_not_chained_and_are_read_all_the_same(tmp_path):
    (tmp_path / "feedback").mkdir()
    write_jsonl(tmp_path / "feedback" / "judgments.jsonl", [vote("1", {"a": 1, "b": 2}), vote("2", {"a": 1, "b": 1})])
    assert read_votes(tmp_path).outcome.tolist() == [1, 0]


def test_a_chain_that_was_changed_is_refused(tmp_path):
    first, second = chain([vote("1", {"a": 1, "b": 2}), vote("2", {"a": 1, "b": 2})])
    write_jsonl(tmp_path / "judgments.jsonl", [first, second.model_copy(update={"ranks": {"a": 2, "b": 1}})])
    with pytest.raises(InputError, match="was changed"):
        read_votes(tmp_path)


def test_flags_are_kept_with_the_responses_they_are_for():
    votes = votes_of([vote("1", {"a": 1, "b": "F"}, flags={"b": ["spam"]})])
    assert votes.flags["spam"].tolist() == [False, True]
    assert np.array_equal(votes.rank, [1, 0])


def test_a_negative_number_is_never_the_first_model(tmp_path):
    """Files that write 1 and -1 mean the first and the second; read as the word 1 it would turn the vote round."""
    for winner in (-1, "-1", "-2", "\u22121"):
        with pytest.raises(InputError, match=r"field 'winner': is .*write a, b, tie"):
            read_votes(table(tmp_path, [{"model_a": "gpt", "model_b": "llama", "winner": winner}]))


def test_the_number_of_a_model_is_its_name(tmp_path):
    with pytest.raises(InputError, match="the name of one model and the word for the other"):
        read_votes(table(tmp_path, [{"model_a": 2, "model_b": 1, "winner": 1}]))
    votes = read_votes(table(tmp_path, [{"model_a": 7, "model_b": 5, "winner": 5}, {"model_a": 5, "model_b": 7, "winner": "b"}]))
    assert (votes.models, votes.outcome.tolist()) == (("5", "7"), [1, -1])


@pytest.mark.parametrize(("column", "value"), [("rater", "ann"), ("judge", "ann"), ("question_id", 7), ("prompt", "why?")])
def test_a_column_that_the_first_row_lacks_is_not_overlooked(tmp_path, column, value):
    row = {"model_a": "a", "model_b": "b", "winner": "a"}
    with pytest.raises(InputError, match=f"line 2, field '{column}': the first row has no such column"):
        read_votes(table(tmp_path, [row, row | {column: value}]))


def test_a_prompt_that_is_nan_is_missing(tmp_path):
    with pytest.raises(InputError, match="line 1, field 'question_id': is empty"):
        read_votes(table(tmp_path, [{"model_a": "a", "model_b": "b", "winner": "a", "question_id": math.nan}]))


def test_one_name_of_a_person_and_of_a_judge_is_two_raters(tmp_path):
    row = {"model_a": "a", "model_b": "b", "prompt": "p", "rater": "x"}
    rows = [row | {"winner": "a", "rater_kind": "human"}, row | {"winner": "b", "rater_kind": "judge"},
            row | {"winner": "a", "rater": "y"}, row | {"winner": "b", "rater": "y", "rater_kind": ""}]  # fmt: skip
    votes = read_votes(table(tmp_path, rows))
    assert list(zip(votes.raters, votes.kinds, strict=True)) == [("x (human)", "human"), ("x (judge)", "judge"), ("y", "human")]
    assert votes.rater.tolist() == [0, 1, 2, 2]
    judged = votes_of([vote("1", {"a": 1, "b": 2}), vote("2", {"a": 2, "b": 1}, rater_kind="judge"),
                       vote("3", {"a": 1, "b": 2}, rater_id="bob")])  # fmt: skip
    assert list(zip(judged.raters, judged.kinds, strict=True)) == [
        ("ann (human)", "human"), ("ann (judge)", "judge"), ("bob", "human")
    ]  # fmt: skip


def test_votes_on_two_turns_of_a_prompt_are_on_different_answers(tmp_path):
    """MT-bench: the same rater judges the first turn and then the second; neither repeats the other, nor do they disagree."""
    row = {"question_id": "81", "model_a": "m1", "model_b": "m2"}
    rows = [row | {"judge": judge, "turn": turn, "winner": winner}
            for judge in ("ann", "bob") for turn, winner in ((1, "model_a"), (2, "model_b"))]  # fmt: skip
    votes = read_votes(table(tmp_path, rows))
    assert votes.responses == ("81, turn 1: m1", "81, turn 1: m2", "81, turn 2: m1", "81, turn 2: m2")
    assert (len(votes.prompts), len(votes.models)) == (1, 2)
    (agreeing,) = [figure for figure in agreement_figures(votes) if figure.name == PAIR_AGREEMENT]
    assert (agreeing.value, agreeing.n) == (1, 2)
    assert [line.n_repeats for line in rater_lines(votes)] == [0, 0]
    assert as_comparisons(votes, "models").outcome.tolist() == [1, -1, 1, -1]
