"""Judgments are chained by hash, merge in any order, and say which line is not to be trusted."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.errors import InputError
from charter.records import Judgment, LabelSet
from charter.run.files import write_jsonl
from charter.votes.judgments import CROCKFORD, current, judgment_hash, read_judgments, ulid
from charter.votes.merging import merge_judgments
from feedback_folder import chain, tips


def vote(key: str, **fields) -> Judgment:
    given = {"set_id": "s", "prompt_id": "p", "rater_id": "ann", "rater_kind": "human", "order": ("a", "b"),
             "ranks": {"a": 1, "b": "F"}}  # fmt: skip
    return Judgment(id=key, **(given | fields))


def test_ulids_sort_by_time_and_carry_it():
    assert ulid(0)[:10] == "0" * 10
    assert ulid(1469918176385)[:10] == "01ARYZ6S41"  # the example of the specification
    assert ulid(5) < ulid(6)
    assert len({ulid(7) for _ in range(100)}) == 100
    assert set(ulid()) <= set(CROCKFORD)


def test_a_chain_links_every_line_to_the_one_before(tmp_path):
    sealed = chain([vote("1"), vote("2"), vote("3")])
    assert [one.prev_hash for one in sealed] == ["", sealed[0].hash, sealed[1].hash]
    assert all(one.hash == judgment_hash(one) for one in sealed)
    write_jsonl(tmp_path / "j.jsonl", sealed)
    assert read_judgments(tmp_path / "j.jsonl") == sealed
    assert tips(sealed) == [sealed[-1].hash]


@pytest.mark.parametrize(
    ("damage", "line", "words"),
    [
        (lambda rows: [rows[0], rows[1].model_copy(update={"ranks": {"a": "F", "b": 1}}), rows[2]], 2, "changed"),
        (lambda rows: [rows[0], rows[2]], 2, "missing"),
        (lambda rows: [*rows, rows[1]], 4, "duplicate judgment"),
        (lambda rows: [rows[0].model_copy(update={"hash": ""}), *rows[1:]], 1, "changed"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, damage, line, words):
    write_jsonl(tmp_path / "j.jsonl", damage(chain([vote("1"), vote("2"), vote("3")])))
    with pytest.raises(InputError, match=words) as error:
        read_judgments(tmp_path / "j.jsonl")
    assert f"line {line}" in str(error.value)


@given(st.lists(st.lists(st.integers(0, 40), unique=True, max_size=6), min_size=1, max_size=4))
def test_any_order_of_merging_gives_the_same_bytes(machines):
    with TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{who}.jsonl" for who in range(len(machines))]
        for who, numbers in enumerate(machines):
            write_jsonl(parts[who], chain([vote(f"{number:03}-{who}") for number in numbers]))
        merge_judgments(parts, whole := Path(folder) / "whole.jsonl")
        merge_judgments([whole, *parts[::-1]], again := Path(folder) / "again.jsonl")
        assert again.read_bytes() == whole.read_bytes()


def test_a_changed_judgment_is_not_merged(tmp_path):
    for name in ("ann", "bob"):
        write_jsonl(tmp_path / f"{name}.jsonl", chain([vote("1", rater_id=name)]))
    with pytest.raises(InputError, match="differs"):
        merge_judgments([tmp_path / "ann.jsonl", tmp_path / "bob.jsonl"], tmp_path / "both.jsonl")


def test_what_is_superseded_is_not_current():
    first, second = vote("1"), vote("2", supersedes="1")
    assert current([first, second, vote("3")]) == [second, vote("3")]


def test_a_set_is_named_by_what_is_asked_and_not_by_the_order():
    one, other = (LabelSet(prompt_id="p", kind="rank", response_ids=ids) for ids in (("a", "b"), ("b", "a")))
    assert one.id == other.id
    assert one.id != LabelSet(prompt_id="p", kind="pair", response_ids=("a", "b")).id
