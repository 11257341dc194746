"""What stages exchange survives the disk unchanged, and what is broken says where."""

import gzip
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from charter.errors import InputError
from charter.records import Generation, Judgment, Message, Pair, Prompt, Response, clean_text, content_id
from charter.run.files import atomic_path, read_jsonl, write_json, write_jsonl, write_text

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
prompts = st.builds(Prompt.ask, texts, source=texts, tags=st.lists(st.sampled_from(["red_team", "benign"])))


def answer(prompt: Prompt, text: str, seed: int = 0) -> Response:
    generation = Generation(seed=seed, temperature=1.0)
    return Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop", generation=generation)


def test_an_id_is_the_start_of_the_sha256_of_the_canonical_json():
    # printf '["a",{"b":1,"c":"é"}]' | sha256sum
    assert content_id("a", {"c": "é", "b": 1}) == "aedadb2d5ddfd4a7"


def test_a_prompt_has_the_id_of_its_messages_and_of_nothing_else():
    prompt = Prompt.ask("How are you?", source="here", tags=("benign",), split="test")
    assert prompt.id == Prompt.ask("How are you?").id
    assert prompt.id != Prompt.ask("How are you").id
    assert prompt.id != Prompt(messages=(Message(role="system", content="How are you?"),)).id
    assert Prompt(id=prompt.id, messages=prompt.messages).last_turn == "How are you?"


def test_an_id_that_is_not_the_hash_is_refused():
    with pytest.raises(ValidationError, match="is not the hash of the messages"):
        Prompt.ask("hello", id="0" * 16)


def test_a_prompt_waits_for_the_assistant():
    with pytest.raises(ValidationError, match="the last message is the assistant's"):
        Prompt(messages=(Message(role="user", content="hi"), Message(role="assistant", content="hello")))
    with pytest.raises(ValidationError):
        Prompt(messages=())


def test_equal_samples_of_one_prompt_stay_two_responses():
    prompt = Prompt.ask("hi")
    assert answer(prompt, "hello", seed=1).id != answer(prompt, "hello", seed=2).id
    assert answer(prompt, "hello", seed=1).id == answer(prompt, "hello", seed=1).id


def test_records_are_strict_and_frozen():
    prompt = Prompt.ask("hi")
    with pytest.raises(ValidationError, match="frozen"):
        prompt.source = "there"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Prompt.ask("hi", topic="x")
    with pytest.raises(ValidationError, match="valid integer"):
        Generation(seed="1", temperature=1.0)
    with pytest.raises(ValidationError, match="'user' or 'assistant'"):
        Message(role="tool", content="hi")


@pytest.mark.parametrize("weight", [0.49, 1.01, math.nan])
def test_the_weight_of_a_pair_is_a_probability_for_the_chosen(weight):
    with pytest.raises(ValidationError, match="weight"):
        Pair(prompt=Prompt.ask("hi"), chosen="a", rejected="b", group_id="g", weight=weight)


def test_no_verdict_is_neither_a_rank_nor_a_tie():
    judgment = Judgment(id="j", set_id="s", prompt_id="p", rater_id="r", rater_kind="rule", order=("a", "b"))
    assert not judgment.has_verdict
    assert judgment.model_copy(update={"ranks": {"a": 1, "b": "F"}}).has_verdict


@pytest.mark.parametrize("bad", ["a\x00b", "half \ud83d pair"])
def test_text_that_tools_disagree_about_is_refused(bad):
    with pytest.raises(ValueError, match=r"NUL|lone surrogate at character 5"):
        clean_text(bad)
    with pytest.raises(ValidationError):
        Message(role="user", content=bad)


@settings(deadline=None)
@given(records=st.lists(prompts, max_size=5))
def test_jsonl_returns_what_was_written(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("jsonl") / "prompts.jsonl"
    assert write_jsonl(path, records) == len(records)
    assert list(read_jsonl(path, Prompt)) == records


def test_jsonl_is_readable_utf8_with_one_record_per_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [Prompt.ask("世界和平吗？\n👩‍👩‍👧 \u2028 é"), Prompt.ask("第二")]
    write_jsonl(path, records)
    assert path.read_bytes().count(b"\n") == 2
    assert "世界和平吗？" in path.read_text(encoding="utf-8")
    assert list(read_jsonl(path, Prompt)) == records


def test_nested_records_survive(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pair = Pair(prompt=Prompt.ask("hi"), chosen="a", rejected="b", weight=0.7, margin=0.1, group_id="g", principle="p")
    write_jsonl(path, [pair])
    assert list(read_jsonl(path, Pair)) == [pair]


def test_a_byte_order_mark_blank_lines_and_crlf_are_no_content(tmp_path):
    path = tmp_path / "prompts.jsonl"
    line = Prompt.ask("hi").model_dump_json().encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert list(read_jsonl(path, Prompt)) == [Prompt.ask("hi")] * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [{"role": "user", "content": 7}]}', "field 'messages.0.content'"),
        ('{"messages": [{"role": "user", "content": "a\\u0000b"}]}', "NUL"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2"),
        ('{"messages": [{"role": "user", "content": "hi"}], "topic": 1}', "field 'topic'"),
        ('{"messages": [', "line 2"),
        ("[]", "line 2"),
        ("3", "line 2"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, line, words):
    path = tmp_path / "prompts.jsonl"
    path.write_text(Prompt.ask("fine").model_dump_json() + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"prompts\.jsonl, line 2") as error:
        list(read_jsonl(path, Prompt))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_text_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(Prompt.ask("fine").model_dump_json().encode() + b"\n" + '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        list(read_jsonl(path, Prompt))


def test_an_endless_line_is_refused_and_a_long_one_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(Prompt.ask("x" * length).model_dump_json() + "\n" for length in (3_000_000, 5_000_000)))
    rows = read_jsonl(path, Prompt)
    assert len(next(rows).last_turn) == 3_000_000
    with pytest.raises(InputError, match="line 2: line is longer than 4 MiB"):
        next(rows)


def test_a_gzipped_file_reads_like_a_plain_one(tmp_path):
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(gzip.compress((Prompt.ask("你好").model_dump_json() + "\n").encode()))
    assert list(read_jsonl(path, Prompt)) == [Prompt.ask("你好")]


WHOLE = gzip.compress((Prompt.ask("hello").model_dump_json() + "\n").encode() * 1000, mtime=0)


@pytest.mark.parametrize("damaged", [WHOLE[: len(WHOLE) // 2], b"plain" + WHOLE, b"{}\n", WHOLE[:20] + b"?" + WHOLE[21:]])
def test_a_broken_gzip_file_is_named(tmp_path, damaged):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz: broken gzip file"):
        list(read_jsonl(path, Prompt))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", Prompt))
    with pytest.raises(InputError, match="is a folder"):
        list(read_jsonl(tmp_path, Prompt))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "prompts.jsonl"
    write_jsonl(path, [Prompt.ask("old")])

    def failing():
        yield Prompt.ask("new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_jsonl(path, failing())
    assert list(read_jsonl(path, Prompt)) == [Prompt.ask("old")]
    assert [entry.name for entry in path.parent.iterdir()] == ["prompts.jsonl"]


def test_an_atomic_write_shows_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert not temporary.exists()


def test_equal_json_is_equal_bytes_and_never_holds_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", math.nan)
    write_text(tmp_path / "c.txt", "a\r\nb\n")
    assert (tmp_path / "c.txt").read_bytes() == b"a\r\nb\n"
