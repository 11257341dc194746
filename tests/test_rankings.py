"""Who beats whom: the rules that every dataset follows, as values and as properties."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.records import Judgment
from charter.votes.rankings import MARGINS, contradicts_itself, labels, margin_of, notches, oriented, soft_label, ties, wins

NAMES = "abcdefghi"


def judged(*ranks: int | str | None, **fields) -> Judgment:
    """Responses a, b, c … in the order shown, with these ranks; None is no rank."""
    order = list(NAMES[: len(ranks)])
    given = {name: rank for name, rank in zip(order, ranks, strict=True) if rank is not None}
    base = {"id": "1", "set_id": "s", "prompt_id": "p", "rater_id": "ann", "rater_kind": "human"}
    return Judgment(order=order, ranks=given, **(base | fields))


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    [
        ((2, 1, 3), ["ba", "ac", "bc"]),  # the worked example: three responses, three pairs
        ((1, 2, 3, 4), ["ab", "ac", "ad", "bc", "bd", "cd"]),
        ((1, 1), []),
        ((1, 1, 2), ["ac", "bc"]),
        ((1, "F"), ["ab"]),
        (("F", 3), ["ba"]),
        (("F", "F"), []),
        (("F", 1, "F", 2), ["ba", "bc", "bd", "da", "dc"]),  # in the order shown: a-b, a-d, b-c, b-d, c-d
        ((1, None, None), ["ab", "ac"]),
        ((None, 2, 1), ["ba", "ca", "cb"]),
        ((None, None), []),
        ((None, "F"), []),
    ],
)
def test_pairs_of_a_ranking(ranks, pairs):
    assert sorted("".join(pair) for pair in wins(judged(*ranks))) == sorted(pairs)


def test_the_worked_example_comes_in_the_order_shown():
    assert wins(judged(2, 1, 3)) == [("b", "a"), ("a", "c"), ("b", "c")]


ranks_of_many = st.lists(st.none() | st.just("F") | st.integers(1, 4), min_size=1, max_size=7)


@given(ranks_of_many)
def test_every_pair_of_two_is_won_once_or_not_at_all(ranks):
    judgment = judged(*ranks)
    decided = wins(judgment)
    assert len(decided) == len(set(map(frozenset, decided))) <= math.comb(len(ranks), 2)
    for winner, loser in decided:
        assert isinstance(judgment.ranks[winner], int)
        assert (loser, winner) not in decided
    equal = sum(isinstance(one, int) and one == other for one, other in combinations(ranks, 2))
    silent = sum(not isinstance(one, int) and not isinstance(other, int) for one, other in combinations(ranks, 2))
    assert len(ties(judgment)) == equal
    assert len(decided) + equal + silent == math.comb(len(ranks), 2)


@given(ranks_of_many.filter(lambda ranks: any(isinstance(rank, int) for rank in ranks)))
def test_asking_for_harm_turns_every_pair_round_but_those_of_f(ranks):
    for_harm = judged(*ranks, direction="more_harmful")
    expected = [(loser, winner) for winner, loser in wins(judged(*ranks)) if for_harm.ranks.get(loser) != "F"]
    assert sorted(wins(for_harm)) == sorted(expected if len(ranks) > 1 else [])
    assert wins(oriented(for_harm)) == wins(for_harm)
    assert wins(judged(*ranks, direction="more_harmless")) == wins(judged(*ranks))


def test_turning_round_changes_the_sign_of_all_there_is():
    said = judged(1, 2, direction="more_harmful", strength=3, margin=1.5, margins_by_order=(2.0, 1.0), edit={"a": "x"})
    turned = oriented(said)
    assert (turned.ranks, turned.strength, turned.margin) == ({"a": 2, "b": 1}, -3, -1.5)
    assert (turned.margins_by_order, turned.edit, turned.direction) == ((-2.0, -1.0), {}, "better")


@pytest.mark.parametrize(
    ("ranks", "direction", "expected"),
    [
        ((1,), "better", [("a", True)]),
        ((2,), "better", []),  # what a person would rewrite, and did not
        (("F",), "better", [("a", False)]),
        ((1,), "more_harmful", [("a", False)]),
        (("F",), "more_harmful", []),  # not harmful; whether it is any good, nobody said
        ((1, 2), "better", [("a", True), ("b", False)]),
        ((1, 2), "more_harmful", [("a", False), ("b", True)]),
        ((1, "F"), "more_harmful", []),  # the most harmful of the two, and the other one no answer: neither is a good one
        (("F", 2, "F"), "more_harmful", []),
        ((1, 1), "better", []),
        ((1, 2, 3), "better", [("a", True), ("c", False)]),
        ((2, 1, "F"), "better", [("b", True), ("c", False)]),
        (("F", "F"), "better", [("a", False), ("b", False)]),
        ((1, None, None), "better", [("a", True), ("b", False), ("c", False)]),
    ],
)
def test_responses_that_are_good_or_bad_on_their_own(ranks, direction, expected):
    assert labels(judged(*ranks, direction=direction)) == expected


def test_margins_are_those_of_llama_2():
    assert MARGINS == {4: 1, 3: 2 / 3, 2: 1 / 3, 1: 0}
    assert [notches(judged(1, 2, strength=strength)) for strength in (4, -2, None)] == [4, 2, 0]
    assert notches(judged(1, 2, 3, strength=4)) == 0  # strength is of pairs


def test_a_judgment_that_contradicts_itself_is_known():
    assert not contradicts_itself(judged(1, 2, strength=2))
    assert contradicts_itself(judged(1, 2, strength=-2))
    assert contradicts_itself(judged(2, 1, margin=0.3))
    assert not contradicts_itself(judged(2, 1, margin=-0.3))
    assert not contradicts_itself(judged(1, 1, margin=0.3))  # a tie inside the noise
    assert contradicts_itself(judged(1, 2, strength=-2, direction="more_harmful"))


@given(st.floats(0, 20), st.floats(0.1, 10))
def test_a_soft_label_comes_back_from_its_margin(margin, calibration):
    weight = soft_label(margin, calibration)
    assert 0.5 <= weight <= 1
    assert soft_label(margin_of(weight)) == weight
    assert soft_label(-margin, calibration) == weight


def test_a_label_without_a_margin_is_certain():
    assert soft_label(None) == 1.0
    assert margin_of(1.0) is None
    assert soft_label(math.log(3)) == 0.75
