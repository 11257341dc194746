"""Preferences of every published shape become the same pairs; what cannot be one is counted, never mended."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.errors import InputError
from charter.reading.pairs import EMPTY_ANSWER, FORKED, IDENTICAL, SPOKEN, PairFile, read_pairs, split_pairs
from charter.records import Message, Pair, Prompt
from charter.run.files import write_jsonl

HH_SAMPLE = Path(__file__).parent.parent / "../shared/data/hh-harmless-base.sample.jsonl.gz"

HI = Prompt.ask("hi")


def read(path, *rows) -> PairFile:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return read_pairs(path)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_all_shapes_of_one_preference_are_one_pair(tmp_path):
    found = read(
        tmp_path / "p.jsonl",
        {"prompt": "hi", "chosen": "a: b", "rejected": "c"},
        {"prompt": [user("hi")], "chosen": [assistant("a: b")], "rejected": [assistant("c")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("a: b")], "rejected": [user("hi"), assistant("c")]},
        {"chosen": [user("hi"), assistant("a: b")], "rejected": [user("hi"), assistant("c")]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: a: b", "rejected": "\n\nHuman: hi\n\nAssistant: c"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " a: b", "rejected": " c"},
    )
    assert found.pairs == [Pair(prompt=HI, chosen="a: b", rejected="c", group_id=HI.id)] * 6
    assert (found.n_rows, found.excluded) == (6, {})


def test_our_own_pairs_come_back_whole(tmp_path):
    prompt = Prompt.ask("hi", source="s", tags=("t",), principle="p", split="train")
    pair = Pair(prompt=prompt, chosen="a", rejected="b", weight=0.7, margin=0.25, group_id="g", principle="q")
    write_jsonl(tmp_path / "p.jsonl", [pair])
    assert read_pairs(tmp_path / "p.jsonl").pairs == [pair]


def test_a_transcript_is_cut_before_the_last_answer(tmp_path):
    shared = "\n\nHuman: hi\n\nAssistant: Is it: this?\n\nHuman: yes"
    row = {"chosen": shared + "\n\nAssistant: one\n\ntwo", "rejected": shared + "\n\nAssistant: three"}
    (pair,) = read(tmp_path / "p.jsonl", row).pairs
    assert [m.content for m in pair.prompt.messages] == ["hi", "Is it: this?", "yes"]
    assert (pair.chosen, pair.rejected) == ("one\n\ntwo", "three")
    assert pair.group_id == HI.id  # the opening, not the whole dialogue


def test_rows_that_are_no_pair_are_counted_by_reason(tmp_path):
    dialogue = "\n\nHuman: hi\n\nAssistant: "
    found = read(
        tmp_path / "p.jsonl",
        {"chosen": dialogue + "a", "rejected": dialogue + "b"},
        {"chosen": dialogue + "a", "rejected": dialogue + "a"},
        {"prompt": "hi", "chosen": "a", "rejected": "a"},
        {"chosen": dialogue + "a", "rejected": dialogue + "b\n\nHuman: no\n\nAssistant: c"},
        {"chosen": dialogue + "a\n\nAssistant: b", "rejected": dialogue + "a\n\nAssistant: c"},
        {"prompt": [user("hi"), assistant("well")], "chosen": "a", "rejected": "b"},
    )
    assert len(found.pairs) == 1
    assert found.n_rows == 6
    assert found.excluded == {IDENTICAL: 2, FORKED: 1, SPOKEN: 2}


def test_a_label_below_one_half_swaps_the_two(tmp_path):
    row = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    rows = [{**row, "p": 0.25}, {**row, "p": 0.75}, {**row, "p": 0.5}, {**row, "weight": 1}, {**row, "margin": "2.5"}]
    found = read(tmp_path / "p.jsonl", *rows).pairs
    assert [(p.chosen, p.weight, p.margin) for p in found] == [
        ("b", 0.75, 0), ("a", 0.75, 0), ("a", 0.5, 0), ("a", 1, 0), ("a", 1, 2.5)
    ]  # fmt: skip


def test_csv_parquet_and_gzip(tmp_path):
    text = 'prompt,chosen,rejected,p,principle,group_id\nhi,"a\n,b",=c,0.1,peace,g\nhi,a,b,,,\n'
    expected = [
        Pair(prompt=HI, chosen="=c", rejected="a\n,b", weight=0.9, principle="peace", group_id="g"),
        Pair(prompt=HI, chosen="a", rejected="b", group_id=HI.id),
    ]
    assert read(tmp_path / "p.csv", text).pairs == expected
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_pairs(tmp_path / "p.csv.gz").pairs == expected
    table = pyarrow.table({"prompt": [[user("hi")]], "chosen": [[assistant("a")]], "rejected": [[assistant("b")]]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet").pairs == expected[1:]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "hi", "chosen": "a"}, "field 'rejected': missing"),
        ({"prompt": "hi", "chosen": 7, "rejected": "b"}, "field 'chosen': must be a text, not a number"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "field 'prompt': empty"),
        ({"prompt": "hi", "chosen": "a", "rejected": "\ud800"}, "field 'rejected': contains a lone surrogate"),
        ({"prompt": "hi", "chosen": [user("no")], "rejected": "b"}, "field 'chosen': must be one message of the"),
        ({"prompt": {"messages": []}, "chosen": "a", "rejected": "b"}, "field 'prompt.messages'"),
        ({"chosen": "a", "rejected": "b"}, "field 'chosen': not a transcript"),
        ({"chosen": "\n\nHuman: hi", "rejected": "\n\nHuman: hi"}, "field 'chosen': does not end with an answer"),
        ({"rejected": "b"}, "field 'chosen': missing; a pair needs prompt, chosen and rejected"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "nothing for the assistant to answer"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "weight": 0.4}, "field 'weight': Input should be greater"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "p": 1.5}, "field 'p': 1.5 is not between 0 and 1"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "p": "NaN"}, "field 'p': must be a number, not 'NaN'"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "margin": -1}, "field 'margin'"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "margin": [1]}, "field 'margin': must be a number, not [1]"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, words):
    with pytest.raises(InputError) as error:
        read(tmp_path / "p.jsonl", {"prompt": "hi", "chosen": "a", "rejected": "b"}, row)
    assert str(error.value).startswith(f"{tmp_path / 'p.jsonl'}, line 2, ")
    assert words in str(error.value)


def test_a_file_without_a_pair_says_why(tmp_path):
    with pytest.raises(InputError, match=r"no usable pair; give at least one"):
        read(tmp_path / "p.jsonl", "")
    with pytest.raises(InputError, match=r"no usable pair \(1 x chosen and rejected are identical\)"):
        read(tmp_path / "p.jsonl", {"prompt": "hi", "chosen": "a", "rejected": "a"})


def made(groups: list[tuple[int, int]]) -> list[Pair]:
    return [
        Pair(prompt=Prompt.ask(f"prompt {prompt}"), chosen=f"a{n}", rejected=f"b{n}", group_id=f"group {group}")
        for n, (prompt, group) in enumerate(groups)
    ]


@settings(deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), fraction=st.floats(0, 1), order=st.randoms()
)
def test_no_dialogue_is_on_both_sides(groups, fraction, order):
    pairs = made(groups)
    train, test = split_pairs(pairs, test_fraction=fraction, seed=1)
    assert sorted(p.chosen for p in [*train, *test]) == sorted(p.chosen for p in pairs)
    assert {p.group_id for p in train}.isdisjoint(p.group_id for p in test)
    assert {p.prompt.id for p in train}.isdisjoint(p.prompt.id for p in test)

    again, _ = split_pairs(order.sample(pairs, len(pairs)), test_fraction=fraction, seed=1)
    assert {p.chosen for p in again} == {p.chosen for p in train}


def test_the_fraction_is_of_the_groups():
    pairs = made([(n % 50, n % 50) for n in range(200)])
    train, test = split_pairs(pairs, test_fraction=0.2, seed=0)
    assert (len(train), len(test)) == (160, 40)
    assert test == [pair for pair in pairs if pair in test]
    assert test != split_pairs(pairs, test_fraction=0.2, seed=1)[1]
    assert split_pairs([], test_fraction=0.2, seed=0) == ([], [])
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_pairs(pairs, test_fraction=-0.1, seed=0)


def test_groups_chained_by_prompts_are_one():
    chain = made([(0, 0), (1, 1), (0, 1), (2, 2), (1, 3)])  # groups 0, 1 and 3 share prompts; group 2 stands alone
    random.Random(0).shuffle(chain)
    train, test = split_pairs(chain, test_fraction=0.5, seed=0)
    assert {len(train), len(test)} == {1, 4}


def test_a_system_message_does_not_make_a_cluster(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": [system, user(text)], "chosen": "a", "rejected": "b"} for text in ("hi", "hello")]
    found = read(tmp_path / "p.jsonl", *rows).pairs
    assert [p.group_id for p in found] == [HI.id, Prompt.ask("hello").id]
    assert found[0].prompt.messages[0] == Message(**system)


@pytest.mark.skipif(not HH_SAMPLE.exists(), reason="the sample of hh-rlhf is not in ../shared/data")
def test_real_pairs_rebuild_their_transcripts():
    found = read_pairs(HH_SAMPLE)
    assert (len(found.pairs), found.n_rows, found.excluded) == (1595, 1600, {FORKED: 1, EMPTY_ANSWER: 4})
    with gzip.open(HH_SAMPLE, "rt", encoding="utf-8") as file:
        originals = {(row["chosen"], row["rejected"]) for row in map(json.loads, file)}
    names = {"user": "Human", "assistant": "Assistant"}
    for pair in found.pairs:
        opening = "".join(f"\n\n{names[m.role]}: {m.content}" for m in pair.prompt.messages) + "\n\nAssistant: "
        assert (opening + pair.chosen, opening + pair.rejected) in originals
    train, test = split_pairs(found.pairs, test_fraction=0.2, seed=0)
    assert {p.prompt.messages[0] for p in train}.isdisjoint(p.prompt.messages[0] for p in test)
