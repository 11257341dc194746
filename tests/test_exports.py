"""A table that went out comes back as it was, whatever the texts look like to a spreadsheet."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.errors import InputError
from charter.reading.pairs import read_pairs
from charter.reading.prompts import read_prompts
from charter.records import Message, Pair, Prompt
from charter.votes.exports import export_preferences, export_sft, write_csv

DIALOGUE = Prompt(
    messages=[
        Message(role="system", content="Be brief."),
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
        Message(role="user", content="how, are \"you\"?\n"),
    ]
)  # fmt: skip

clean = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
openings = st.sampled_from(["", "=", "+", "-1", "@", "\ufeff", "[", "\n\nHuman: ", '"', "\r\n", " ", "\t"])
texts = st.builds(str.__add__, openings, st.text(clean))
asked = st.builds(Prompt.ask, texts.filter(str.strip)) | st.just(DIALOGUE)
pairs = st.builds(
    Pair, prompt=asked, chosen=texts.filter(str.strip), rejected=texts.filter(str.strip), weight=st.floats(0.5, 1),
    margin=st.floats(0, 1e9), group_id=st.text(clean, min_size=1), principle=st.none() | st.text(clean, min_size=1),
).filter(lambda pair: pair.chosen != pair.rejected)  # fmt: skip


def cells(path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@settings(max_examples=100, deadline=None)
@given(original=st.lists(pairs, min_size=1, max_size=4))
def test_preferences_read_back_as_the_same_pairs(tmp_path_factory, original):
    path = tmp_path_factory.mktemp("export") / "pairs.csv"
    assert export_preferences(path, original) == len(original)
    found = read_pairs(path)
    assert found.pairs == original
    assert (found.n_rows, found.excluded) == (len(original), {})


def test_the_columns_are_those_that_trl_reads(tmp_path):
    path = tmp_path / "pairs.csv"
    pair = Pair(prompt=Prompt.ask("hi"), chosen="=1+1", rejected="a,\r\n\"b\"", weight=0.75, group_id="g")  # fmt: skip
    export_preferences(path, [pair])
    assert path.read_bytes().decode() == (
        '"prompt","chosen","rejected","weight","margin","principle","group_id"\n"hi","=1+1","a,\r\n""b""",0.75,0.0,"","g"\n'
    )


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@here", "'", '"', "a\rb", "\ttab ", "世界 👍", ""])
def test_cells_stay_byte_for_byte(tmp_path, text):
    path = tmp_path / "sft.csv"
    assert export_sft(path, [(Prompt.ask("q"), text), (Prompt.ask("q2"), "end")]) == 2
    assert cells(path) == [["prompt", "response"], ["q", text], ["q2", "end"]]


def test_an_sft_table_is_a_table_of_prompts(tmp_path):
    path = tmp_path / "sft.csv"
    export_sft(path, [(Prompt.ask("[hi]"), "a"), (DIALOGUE, "b")])
    assert [p.messages for p in read_prompts(path)] == [Prompt.ask("[hi]").messages, DIALOGUE.messages]


def test_numbers_come_back_exactly_and_nothing_is_an_empty_cell(tmp_path):
    path = tmp_path / "deep" / "t.csv"
    assert write_csv(path, ["a", "b", "c"], [(0.1 + 0.2, None, 7), (1e-300, True, "x")]) == 2
    rows = cells(path)
    assert rows == [["a", "b", "c"], ["0.30000000000000004", "", "7"], ["1e-300", "True", "x"]]
    assert float(rows[1][0]) == 0.1 + 0.2
    assert write_csv(path, ["a"], []) == 0
    assert cells(path) == [["a"]]


@pytest.mark.parametrize("bad", ["\x00", "\udc80"])
def test_text_that_breaks_other_readers_is_refused_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "t.csv"
    write_csv(path, ["a"], [["old"]])
    with pytest.raises(InputError, match=r"t\.csv, row 2, field 'a': contains a"):
        write_csv(path, ["a"], [["new"], [bad]])
    assert cells(path) == [["a"], ["old"]]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


def test_a_row_of_another_length_is_a_mistake_in_the_program(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "t.csv", ["a", "b"], [["only one"]])
