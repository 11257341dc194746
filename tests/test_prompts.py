"""Prompts come in from any table as they stand, and splits are disjoint, exact and independent of order."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.errors import InputError
from charter.reading.dealing import what_it_says
from charter.reading.prompts import parse_transcript, prompt_text, read_prompts, write_prompts
from charter.records import Message, Prompt
from charter.run.files import write_jsonl

HH_SAMPLE = Path(__file__).parent.parent / "../shared/data/hh-harmless-base.sample.jsonl.gz"

DIALOGUE = "\n\nHuman: Say: a: b\n\nAssistant: a: b\n\n1. c\n\nHuman said so.\n\nHuman: And Human: x?\n\nAssistant: Yes"
TURNS = [("user", "Say: a: b"), ("assistant", "a: b\n\n1. c\n\nHuman said so."), ("user", "And Human: x?")]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")).filter(str.strip)
openings = st.sampled_from(["", "[", "\n\nHuman: ", "=", "\ufeff", '[{"role": "user", "content": "x"}]', '"', "\r\n"])
contents = st.builds(str.__add__, openings, texts)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.builds(Message, role=roles, content=contents), max_size=3)
prompts = st.builds(
    lambda before, last, **fields: Prompt(messages=(*before, Message(role="user", content=last)), **fields),
    messages, contents, source=names, principle=st.none() | names, tags=st.lists(names, max_size=3, unique=True),
    split=st.sampled_from([None, "train", "test"]),
)  # fmt: skip


def read(path, content: str | bytes, **options) -> list[Prompt]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_prompts(path, **options))


def pairs_of(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


def test_a_transcript_keeps_everything_but_its_markers():
    turns = parse_transcript(DIALOGUE)
    assert [(m.role, m.content) for m in turns] == [*TURNS, ("assistant", "Yes")]
    assert [m.content for m in parse_transcript("\n\nHuman:  two spaces \n\n\nAssistant:none")] == [
        " two spaces \n", "none"
    ]  # fmt: skip
    assert [(m.role, m.content) for m in parse_transcript("\n\nBe brief.\n\nHuman: hi")] == [
        ("system", "Be brief."), ("user", "hi")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not a transcript"):
        parse_transcript("Human beings say: hello")


words = st.lists(st.sampled_from(["Human", ":", " ", "\n", "a"]), max_size=8).map("".join)
turns = st.tuples(st.sampled_from(["Human", "Assistant"]), words.filter(lambda text: "\n\nHuman:" not in text))


@settings(deadline=None)
@given(turns=st.lists(turns, min_size=1))
def test_a_transcript_can_be_written_again(turns):
    text = "".join(f"\n\n{role}: {words}" for role, words in turns)
    role = {"user": "Human", "assistant": "Assistant"}
    assert "".join(f"\n\n{role[m.role]}: {m.content}" for m in parse_transcript(text)) == text


def test_jsonl_rows_of_every_shape_are_one_prompt(tmp_path):
    as_messages = [{"role": role, "content": content, "name": None} for role, content in TURNS]
    answered = [*as_messages, {"role": "assistant", "content": "Yes"}]
    rows = [
        {"messages": as_messages}, {"prompt": as_messages, "extra": 1}, {"text": DIALOGUE}, {"prompt": DIALOGUE},
        {"chosen": DIALOGUE, "rejected": DIALOGUE + "!"}, {"chosen": answered, "rejected": answered},
        {"messages": answered, "prompt": "ignored"}, {"messages": json.dumps(as_messages)},
    ]  # fmt: skip
    found = read(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert [pairs_of(prompt) for prompt in found] == [TURNS] * len(rows)
    assert found[0].source == "p.jsonl"


@pytest.mark.parametrize("tags", ['"red_team, direct"', "Benign", "red team; x", "red-team", "Redteam"])
def test_a_kind_in_other_letters_is_refused(tmp_path, tags):
    """The prompt would be of neither kind, and no stage would say so."""
    with pytest.raises(InputError, match=r"line 2, field 'tags': is '.*'; write the kind as red_team or benign"):
        read(tmp_path / "p.csv", f"prompt,tags\nhi,{tags}\n")


@pytest.mark.parametrize(
    ("tag", "near"), [("bening", "benign"), ("red_tem", "red_team"), ("Red Team", "red_team"), ("redteam", "red_team")]
)
def test_a_typo_of_a_kind_in_the_tags_of_a_file_is_named(tmp_path, tag, near):
    with pytest.raises(InputError, match=rf"unknown tag '{tag}'; did you mean {near}\?"):
        read(tmp_path / "p.txt", "hi\n", tags=[tag])
    (prompt,) = read(tmp_path / "p.txt", "hi\n", tags=["medical", near])
    assert prompt.tags == ("medical", near)


def test_columns_tags_and_source(tmp_path):
    row = {"id": 7, "prompt": "hi", "principle": "peace", "tags": ["a", "b"], "split": "test", "source": "s"}
    (prompt,) = read(tmp_path / "p.jsonl", json.dumps(row), tags=["b", "c"])
    assert prompt == Prompt.ask("hi", principle="peace", tags=("a", "b", "c"), split="test", source="s")
    assert [p.source for p in read_prompts(tmp_path / "p.jsonl", source="mine")] == ["mine"]
    (several,) = read(tmp_path / "n.jsonl", json.dumps({"prompt": "\n\nHuman: hi\n\nAssistant: ", "source": ["a", "b"]}))
    assert (several.last_turn, several.source) == ("hi", "a, b")


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p", "p.data"])
def test_content_decides_between_one_array_and_many_lines(tmp_path, name):
    assert read(tmp_path / name, '\n [{"prompt": "a"},\n "b"]') == read(tmp_path / name, '{"prompt": "a"}\n"b"\n')


def test_an_array_may_be_one_long_line(tmp_path):
    rows = [{"prompt": f"{i} " + "x" * 1_000_000} for i in range(5)]
    assert len(read(tmp_path / "p.json", json.dumps(rows))) == 5


def test_text_has_one_prompt_per_line(tmp_path):
    found = read(tmp_path / "p.txt", "\ufeff first: [x] \r\n\n  \n第二\n")
    assert [p.last_turn for p in found] == ["first: [x]", "第二"]
    with pytest.raises(InputError, match="line 3: looks like a dialogue"):
        read(tmp_path / "p.txt", "\n\nHuman: hi\n\nAssistant: hello")


def test_csv_cells_hold_commas_quotes_and_line_breaks(tmp_path):
    content = '\ufeffprompt,principle,tags,split\r\n"a, ""b""\r\n\r\nc",peace,red_team; x,test\r\n\r\n=1+1,,,\r\n'
    first, second = read(tmp_path / "p.csv", content)
    assert first == Prompt.ask('a, "b"\r\n\r\nc', principle="peace", tags=("red_team", "x"), split="test", source="p.csv")
    assert (second.last_turn, second.principle, second.tags, second.split) == ("=1+1", None, (), None)
    assert pairs_of(read(tmp_path / "m.csv", 'messages\n"[{""role"": ""user"", ""content"": ""hi""}]"\n')[0]) == [("user", "hi")]
    assert len(read(tmp_path / "long.csv", "text\n" + "x" * 1_000_000)[0].last_turn) == 1_000_000


def test_parquet(tmp_path):
    path = tmp_path / "p.parquet"
    table = pyarrow.table({
        "prompt": ["hi", None],
        "messages": [None, [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello"}]],
        "tags": [["a"], None],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, path)
    assert [(p.last_turn, p.tags) for p in read_prompts(path)] == [("hi", ("a",)), ("你好", ())]
    renamed = path.rename(tmp_path / "unnamed")
    assert len(list(read_prompts(renamed))) == 2
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["fine", "\x00"]}), path)
    with pytest.raises(InputError, match=r"p\.parquet, row 2, field 'prompt': contains a NUL"):
        list(read_prompts(path))
    path.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(InputError, match="not a valid Parquet file"):
        list(read_prompts(path))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_prompts(tmp_path / "none.parquet"))


@pytest.mark.parametrize(("name", "content"), [("p.csv", "prompt\nhi\n"), ("p.txt", "hi\n"), ("p.json", '["hi"]')])
def test_text_formats_may_be_gzipped(tmp_path, name, content):
    (prompt,) = read(tmp_path / f"{name}.gz", gzip.compress(content.encode()))
    assert prompt.last_turn == "hi"
    with pytest.raises(InputError, match="broken gzip file"):
        read(tmp_path / f"{name}.gz", content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", "", "p.jsonl: the prompts are missing"),
        ("p.json", "[]", "the prompts are missing"),
        ("p.csv", "prompt\n", "the prompts are missing"),
        ("p.csv", "puzzle\nhi\n", "line 2: no prompt; give one of the columns messages, conversations, prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 7}', "line 2, field 'prompt': must be a text or a list of messages, not"),
        ("p.jsonl", '{"prompt": " "}', "line 1, field 'prompt': empty"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "line 1, field 'prompt': contains a lone surrogate"),
        ("p.jsonl", '{"prompt": "a", "tags": ["\\ud800"]}', "line 1, field 'tags.0'"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', "line 1, field 'messages.0.content'"),
        ("p.jsonl", '{"messages": [{"role": "narrator", "content": "a"}]}', "field 'messages.0.role'"),
        ("p.jsonl", '{"messages": ["a"]}', "field 'messages.0': must be an object"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "nothing for the assistant"),
        ("p.jsonl", '{"messages": []}', "nothing for the assistant"),
        ("p.jsonl", '{"chosen": "a", "rejected": "b"}', "line 1, field 'chosen': not a transcript"),
        ("p.jsonl", '{"prompt": "a", "split": "dev"}', "field 'split': Input should be 'train' or 'test'"),
        ("p.jsonl", '{"prompt": "a", "tags": {"b": 1}}', "field 'tags': must be a list of texts"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2: not valid JSON"),
        ("p.jsonl", '{"prompt": "a"}\n3', "line 2: must be a JSON object, not a number"),
        ("p.jsonl", '{"prompt": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
        ("p.json", '[{"prompt": "a"},\n3]', "p.json, item 2: must be a JSON object, not a number"),
        ("p.json", '["a",\n', "line 2: not valid JSON"),
        ("p.csv", 'prompt,tags\nok,\n"a\nb",x,y\n', "line 3: has 3 cells where the header has 2"),
        ("p.csv", 'prompt\nok\n"never closed\n', "line 3: not valid CSV"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: two columns have the same name"),
        ("p.csv", b"prompt\nna\xefve\n", "line 2: not UTF-8"),
        ("p.csv", "prompt,tags\na,[\n", "line 2, field 'tags': not valid JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, name, content, words):
    with pytest.raises(InputError) as error:
        read(tmp_path / name, content)
    assert words in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path):
    for name in ("none.csv", "none.jsonl", "none"):
        with pytest.raises(InputError, match=r"no such file|cannot be read"):
            list(read_prompts(tmp_path / name))
    with pytest.raises(InputError, match="unknown format 'xml'; use one of jsonl, json, csv"):
        list(read_prompts(tmp_path / "p", format="xml"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@settings(max_examples=50, deadline=None)
@given(records=st.lists(prompts, min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory, suffix, records):
    path = tmp_path_factory.mktemp("written") / f"p{suffix}"
    assert write_prompts(path, records) == len(records)
    assert list(read_prompts(path)) == records


def test_a_csv_prompt_is_its_own_text_where_that_is_unambiguous(tmp_path):
    path = tmp_path / "p.csv"
    write_prompts(path, [Prompt.ask("[sic] =1+1"), Prompt.ask("\n\nHuman: hi")])
    with open(path, encoding="utf-8", newline="") as file:
        cells = [row["prompt"] for row in csv.DictReader(file)]
    assert cells == ["[sic] =1+1", '[{"role": "user", "content": "\\n\\nHuman: hi"}]']
    assert prompt_text(Prompt.ask("[]")) == "[]"
    with pytest.raises(InputError, match="unknown suffix"):
        write_prompts(tmp_path / "p.xlsx", [])


def test_our_own_records_come_back_whole(tmp_path):
    record = Prompt(
        messages=[Message(role="system", content="s"), Message(role="user", content="u")],
        source="", principle="p", tags=["t"], split="train",
    )  # fmt: skip
    write_jsonl(tmp_path / "p.jsonl", [record])
    assert list(read_prompts(tmp_path / "p.jsonl")) == [record]


@pytest.mark.skipif(not HH_SAMPLE.exists(), reason="the sample of hh-rlhf is not in ../shared/data")
def test_real_transcripts_are_read_whole():
    prompts = list(read_prompts(HH_SAMPLE, tags=["red_team"]))
    assert len(prompts) == 1600
    with gzip.open(HH_SAMPLE, "rt", encoding="utf-8") as file:
        for prompt, line in zip(prompts, file, strict=True):
            role = {"user": "Human", "assistant": "Assistant"}
            text = "".join(f"\n\n{role[m.role]}: {m.content}" for m in prompt.messages)
            assert json.loads(line)["chosen"].startswith(text + "\n\nAssistant:")
    assert len({what_it_says(prompt) for prompt in prompts}) == 1598
