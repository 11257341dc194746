"""The forms in which people publish training data: each is read as its author meant it; what is dropped is counted."""

import bz2
import csv
import gzip
import json
import lzma
import shutil

import pyarrow
import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.reading.demonstrations import BAD_ANSWER, UNANSWERED, read_demonstrations
from charter.reading.pairs import EMPTY_ANSWER, SPOKEN, read_pairs
from charter.reading.prompts import read_prompts
from charter.reading.ratings import NO_SCORE, read_ratings
from charter.web.project import open_project


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Sing."}
ASKED = [("system", "Sing."), ("user", "Name a tree.")]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(prompt):
    return [(message.role, message.content) for message in prompt.messages]


GPT = [{"from": "system", "value": "Sing."}, {"from": "human", "value": "Name a tree."}]
PAIRS = {
    "a system column": {"system": "Sing.", "prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Ox."},
    "a system column before messages": {"system_prompt": "Sing.", "prompt": [user("Name a tree.")], "chosen": "Oak.",
                                        "rejected": [assistant("Ox.")]},
    "ShareGPT": {"conversations": GPT, "chosen": {"from": "gpt", "value": "Oak."}, "rejected": {"from": "gpt", "value": "Ox."}},
    "axolotl": {"messages": [SYSTEM, user("Name a tree.")], "chosen": assistant("Oak."), "rejected": assistant("Ox.")},
    "ms-swift": {"system": "Sing.", "messages": [user("Name a tree."), assistant("Oak.")],
                 "rejected_messages": [user("Name a tree."), assistant("Ox.")]},
    "ms-swift with a text": {"messages": [SYSTEM, user("Name a tree."), assistant("Oak.")], "rejected_response": "Ox."},
    "a system turn in the answers alone": {"prompt": "Name a tree.", "chosen": [SYSTEM, user("Name a tree."), assistant("Oak.")],
                                           "rejected": [SYSTEM, user("Name a tree."), assistant("Ox.")]},
    "JSON in every cell": {"prompt": json.dumps([SYSTEM, user("Name a tree.")]), "chosen": json.dumps([assistant("Oak.")]),
                           "rejected": json.dumps(assistant("Ox."))},
    "lists as pandas writes them": {"prompt": str([SYSTEM, user("Name a tree.")]), "chosen": str([assistant("Oak.")]),
                                    "rejected": "Ox."},
    "content in parts": {"prompt": [SYSTEM, user([{"type": "text", "text": "Name a "}, {"type": "text", "text": "tree."}])],
                         "chosen": "Oak.", "rejected": "Ox."},
    "a prompt that is a turn of the dialogues": {
        "system": "Sing.", "prompt": "Name a tree.",
        "chosen": [user("Hi"), assistant("Hello."), user("Name a tree."), assistant("Oak.")],
        "rejected": [user("Hi"), assistant("Hello."), user("Name a tree."), assistant("Ox.")],
    },
    "AlpacaEval": {"system": "Sing.", "instruction": "Name a tree.", "output_1": "Ox.", "output_2": "Oak.", "preference": 2},
}  # fmt: skip


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_a_published_form_of_pairs_is_the_same_pair(tmp_path, row):
    (pair,) = read_pairs(lines(tmp_path / "p.jsonl", row)).pairs
    said_before = turns(pair.prompt)
    if said_before[1] == ("user", "Hi"):
        del said_before[1:3]
    assert (said_before, pair.chosen, pair.rejected, pair.weight) == (ASKED, "Oak.", "Ox.", 1)


def test_csv_cells_with_messages_are_messages(tmp_path):
    cell = json.dumps([assistant("Oak, or elm.")]).replace('"', '""')
    (tmp_path / "p.csv").write_text(f'prompt,completion\nName a tree.,"{cell}"\n')
    ((prompt, answer),) = read_demonstrations(tmp_path / "p.csv")
    assert (prompt.last_turn, answer) == ("Name a tree.", "Oak, or elm.")


def table(path, *rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_cells_with_turns_of_sharegpt_are_turns(tmp_path):
    said = [{"from": "human", "value": "Name a tree."}, {"from": "gpt", "value": "Oak."}]
    file = table(tmp_path / "s.csv", ["conversations"], [json.dumps(said)])
    assert [turns(prompt) for prompt in read_prompts(file)] == [[("user", "Name a tree.")]]
    ((prompt, answer),) = read_demonstrations(file)
    assert (turns(prompt), answer) == ([("user", "Name a tree.")], "Oak.")
    file = table(tmp_path / "p.csv", ["conversations", "chosen", "rejected"],
                 [json.dumps(said[:1]), json.dumps(said[1]), json.dumps({"from": "gpt", "value": "Ox."})])  # fmt: skip
    (pair,) = read_pairs(file).pairs
    assert (turns(pair.prompt), pair.chosen, pair.rejected) == ([("user", "Name a tree.")], "Oak.", "Ox.")


def test_csv_cells_with_arrays_of_messages_are_turns(tmp_path):
    """As pandas writes a column of a Parquet file: the messages stand on lines of their own, without commas between them."""
    cells = [f"[{user('Name a tree.')}\n {assistant(text)}]" for text in ("It's }\n {oak}.", 'An "ox".')]
    file = table(tmp_path / "p.csv", ["prompt", "chosen", "rejected"], ["Name a tree.", *cells])
    (pair,) = read_pairs(file).pairs
    assert (turns(pair.prompt), pair.chosen, pair.rejected) == ([("user", "Name a tree.")], "It's }\n {oak}.", 'An "ox".')
    file = table(tmp_path / "m.csv", ["messages"], [cells[0]])
    assert [turns(prompt) for prompt in read_prompts(file)] == [[("user", "Name a tree.")]]


def test_a_cell_of_messages_that_was_cut_is_an_error(tmp_path):
    file = table(tmp_path / "m.csv", ["messages"], [json.dumps([user("Name a tree.")])[:30]])
    with pytest.raises(InputError, match="line 2, field 'messages': looks like a list of messages and cannot be read as one"):
        list(read_prompts(file))


def test_a_prompt_of_data_is_a_text(tmp_path):
    text = '[{"from": "2024", "value": "12"}]'
    assert [turns(prompt) for prompt in read_prompts(lines(tmp_path / "d.jsonl", {"prompt": text}))] == [[("user", text)]]


@pytest.mark.parametrize("label", ["FALSE", "False", "false", " false ", "0", "0.0", 0, 0.0, False, "no", "No"])
def test_an_answer_labelled_as_bad_is_not_learned(tmp_path, label):
    """A spreadsheet writes FALSE, and pandas 0.0 beside missing values."""
    row = {"prompt": "Name a tree.", "completion": "Ox."}
    learned = [row | {"label": value} for value in ("TRUE", "yes", "toxic")]
    file = lines(tmp_path / "k.jsonl", row | {"label": label}, *learned)
    assert read_demonstrations(file).excluded == {"the label is false: a bad answer": 1}


def test_a_bad_answer_of_any_column_is_not_learned(tmp_path):
    """ms-swift's KTO has messages and a label; 0 beside them may be the class of another task, and false is none."""
    dialogue, answered = {"messages": [user("a"), assistant("b")]}, {"prompt": "a", "response": "b"}
    rows = [row | {"label": label} for row in (dialogue, answered) for label in (False, "false", True, 0)]
    file = read_demonstrations(lines(tmp_path / "k.jsonl", *rows))
    assert (len(file), file.excluded) == (4, {BAD_ANSWER: 4})


def test_the_chosen_answer_of_a_pair_is_not_learned_where_p_prefers_the_other(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    whole = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    file = lines(tmp_path / "p.jsonl", *(one | {"p": p} for one in (row, whole) for p in (0, 0.2, 0.5, 1)), row | {"weight": 0.9})
    read = read_demonstrations(file)
    assert (len(read), read.excluded) == (5, {"p is below one half: the rejected answer is the better one": 4})


def test_alpacas_input_and_history_are_part_of_the_prompt(tmp_path):
    file = lines(
        tmp_path / "a.jsonl",
        {"instruction": "Add.", "input": "2 and 3", "output": "5", "text": "### Instruction: Add. ### Response: 5"},
        {"prompt": "And one?", "history": [["2 and 3?", "5"]], "input": "", "output": "6"},
    )
    first, second = read_demonstrations(file)
    assert (turns(first[0]), first[1]) == ([("user", "Add.\n\n2 and 3")], "5")
    assert turns(second[0]) == [("user", "2 and 3?"), ("assistant", "5"), ("user", "And one?")]
    assert [prompt.last_turn for prompt in read_prompts(file)] == ["Add.\n\n2 and 3", "And one?"]


def test_dollys_context_is_part_of_the_prompt(tmp_path):
    rows = [{"instruction": "When?", "context": "Founded in 1990.", "response": "1990", "category": "closed_qa"},
            {"instruction": "Hi", "context": "", "response": "Hello.", "category": "open_qa"}]  # fmt: skip
    file = lines(tmp_path / "d.jsonl", *rows)
    assert [prompt.last_turn for prompt, _ in read_demonstrations(file)] == ["When?\n\nFounded in 1990.", "Hi"]
    assert [prompt.last_turn for prompt in read_prompts(file)] == ["When?\n\nFounded in 1990.", "Hi"]


def test_a_prompt_beside_a_whole_dialogue_is_a_turn_of_it(tmp_path):
    """no_robots and UltraChat; and the system turn of Tülu's pairs, which stands in the answers alone."""
    dialogue = [SYSTEM, user("Hi"), assistant("Hello."), user("Name a tree."), assistant("Oak.")]
    file = lines(
        tmp_path / "u.jsonl", {"prompt": "Hi", "messages": dialogue},
        {"prompt": "Name a tree.", "chosen": [SYSTEM, user("Name a tree."), assistant("Oak.")], "rejected": "Ox."},
        {"messages": dialogue[:-1]}, {"conversations": []},
    )  # fmt: skip
    examples = read_demonstrations(file)
    assert [(turns(prompt)[0], turns(prompt)[-1], answer) for prompt, answer in examples] == [(*ASKED, "Oak.")] * 2
    assert [len(prompt.messages) for prompt, _ in examples] == [4, 2]
    assert examples.excluded == {UNANSWERED: 2}


def test_dialogues_of_wildchat_are_prompts(tmp_path):
    rows = [{"conversation_hash": "x", "conversation": [user("Hi"), assistant("Hello.")], "language": "English"}]
    assert [prompt.last_turn for prompt in read_prompts(lines(tmp_path / "w.jsonl", *rows))] == ["Hi"]


def test_single_messages_of_a_tree_are_not_prompts(tmp_path):
    """OpenAssistant's answers would be read as what a user asks."""
    row = {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Oak."}
    with pytest.raises(InputError, match=r"line 1, field 'message_id': a single message of a tree.*charter import FILE"):
        list(read_prompts(lines(tmp_path / "o.jsonl", row)))


def test_rows_that_cannot_be_learned_are_counted_by_reason(tmp_path):
    row = {"prompt": "Name a tree.", "completion": "Oak."}
    file = read_demonstrations(lines(
        tmp_path / "s.jsonl", row, {**row, "label": True}, {**row, "label": False}, {**row, "label": 0},
        {**row, "completion": " "},
        {"messages": [user("a"), assistant("b"), assistant("c")]},
        {"messages": [user("a"), assistant("b", reasoning_content="Hm.")]},
        {"messages": [user("a"), assistant("", tool_calls=[{"type": "function"}]), user("b"), assistant("c", tool_calls=None)]},
        {"messages": [user("a"), {"role": "tool", "content": "7"}, assistant("c")]},
        {**row, "tools": [{"name": "saw"}]}, {**row, "images": ["oak.png"]}, {**row, "images": []},
    ))  # fmt: skip
    assert (len(file), file.n_rows) == (3, 12)
    assert file.excluded == {
        BAD_ANSWER: 2, EMPTY_ANSWER: 1, SPOKEN: 1, "a turn has reasoning beside its content, which Charter does not render": 1,
        "a turn calls tools, which Charter does not render": 1, "a turn is a tool's, which Charter does not render": 1,
        "the row gives tools, which Charter does not render": 1, "the row has media, which Charter does not read": 1,
    }  # fmt: skip


def test_pairs_and_ratings_count_what_they_leave_out(tmp_path):
    row = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Ox."}
    thinks = {**row, "chosen": [assistant("Oak.", reasoning="Hm.")]}
    undecided = {"instruction": "Say hi", "output_1": "a", "output_2": "b", "preference": None}
    pairs = read_pairs(lines(tmp_path / "p.jsonl", row, {**row, "rejected": "\n"}, {**row, "chosen": ""}, thinks, undecided))
    assert (len(pairs.pairs), pairs.n_rows) == (1, 5)
    assert pairs.excluded == {
        EMPTY_ANSWER: 2, "a turn has reasoning beside its content, which Charter does not render": 1,
        "the row has no preference between 1 and 2": 1,
    }  # fmt: skip
    rated = {"prompt": "Name a tree.", "response": "Oak.", "score": 4}
    ratings = read_ratings(lines(tmp_path / "r.jsonl", rated, {**rated, "images": ["a.png"]}, {**rated, "response": " "}))
    excluded = {"the row has media, which Charter does not read": 1, EMPTY_ANSWER: 1}
    assert (len(ratings.ratings), ratings.excluded) == (1, excluded)
    table = tmp_path / "p.csv"
    table.write_text("instruction,output_1,output_2,preference\nq1,a,b,1.0\nq2,a,b,2\nq3,a,b,1.3\nq4,a,b,\nq5,a,b,3\n")
    pairs = read_pairs(table)
    assert [(pair.chosen, pair.weight) for pair in pairs.pairs] == [("a", 1.0), ("b", 1.0), ("a", 0.7)]
    assert pairs.excluded == {"the row has no preference between 1 and 2": 2}


def test_a_missing_value_leaves_its_row_out_as_an_empty_cell_does(tmp_path):
    """null, NaN (pandas) and an empty cell of a CSV; and a score is not taken from the column of another scale."""
    pair = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Ox."}
    pairs = read_pairs(lines(tmp_path / "p.jsonl", pair, pair | {"rejected": None}, pair | {"chosen": float("nan")}))
    assert (len(pairs.pairs), pairs.excluded) == (1, {EMPTY_ANSWER: 2})
    example = {"instruction": "Name a tree.", "output": "Oak."}
    examples = read_demonstrations(lines(tmp_path / "s.jsonl", example, example | {"output": None}))
    assert (len(examples), examples.excluded) == (1, {EMPTY_ANSWER: 1})
    rated = {"prompt": "Name a tree.", "response": "Oak.", "score": 0.5, "rating": 4}
    ratings = read_ratings(lines(tmp_path / "r.jsonl", rated, rated | {"score": None}, rated | {"response": None}))
    assert [rating.score for rating in ratings.ratings] == [0.5]
    assert ratings.excluded == {NO_SCORE: 1, EMPTY_ANSWER: 1}


def test_an_answer_that_a_prompt_file_drops_may_have_thoughts(tmp_path):
    rows = [{"messages": [user("a"), assistant("b", reasoning_content="Hm.")]},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "tool_calls": ["x"]}]}]  # fmt: skip
    assert [prompt.last_turn for prompt in read_prompts(lines(tmp_path / "p.jsonl", *rows))] == ["a", "a"]
    with pytest.raises(InputError, match=r"line 1, field 'messages.1.tool_calls': a turn calls tools"):
        list(read_prompts(lines(tmp_path / "q.jsonl", {"messages": [user("a"), assistant("", tool_calls=["x"]), user("b")]})))


TALK = [("user", "Name a tree."), ("assistant", "Oak."), ("user", "Another?")]
TRANSCRIPTS = {
    "hh-rlhf": "\n\nHuman: Name a tree.\n\nAssistant: Oak.\n\nHuman: Another?\n\nAssistant:",
    "without the blank line before": "Human: Name a tree.\n\nAssistant: Oak.\n\nHuman: Another?\n\nAssistant:",
    "with line ends of Windows": "\r\n\r\nHuman: Name a tree.\r\n\r\nAssistant: Oak.\r\n\r\nHuman: Another?\r\n\r\nAssistant:",
    "with single line breaks": "Human: Name a tree.\nAssistant: Oak.\nHuman: Another?\nAssistant:",
    "that ends with the human": "Human: Name a tree.\n\nAssistant: Oak.\n\nHuman: Another?",
}


@pytest.mark.parametrize("text", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_a_prompt_that_is_a_transcript_is_turns(tmp_path, text):
    (pair,) = read_pairs(lines(tmp_path / "p.jsonl", {"prompt": text, "chosen": " Elm.", "rejected": " Ox."})).pairs
    assert (turns(pair.prompt), pair.chosen, pair.rejected) == (TALK, "Elm.", "Ox.")


@pytest.mark.parametrize("break_", ["\n", "\r\n\r\n", "\n\n"])
def test_dialogues_part_their_turns_by_paragraphs_or_by_lines(tmp_path, break_):
    chosen, rejected = (break_.join(["", "Human: Name a tree.", f"Assistant: {tree}"]) for tree in ("Oak.", "Ox."))
    (pair,) = read_pairs(lines(tmp_path / "p.jsonl", {"chosen": chosen, "rejected": rejected})).pairs
    assert (turns(pair.prompt), pair.chosen, pair.rejected) == ([("user", "Name a tree.")], "Oak.", "Ox.")


@pytest.mark.parametrize("text", ["Human: a short history", "Explain 'Human: hi\nAssistant: ho'", "Human: a\n\nAssistant: b"])
def test_a_prompt_about_a_dialogue_is_one_turn(tmp_path, text):
    (prompt,) = read_prompts(lines(tmp_path / "p.jsonl", {"prompt": text}))
    assert turns(prompt) == [("user", text)]


TABLE = "prompt\tchosen\trejected\nName a tree.\tOak, or elm\tOx\n"
OBJECT = b'{"prompt": "Name a tree.", "chosen": "Oak, or elm", "rejected": "Ox"}\n'
PACKED = {
    "p.tsv": TABLE.encode(), "p.csv": TABLE.encode(), "p": TABLE.encode(), "p.txt": TABLE.encode(),
    "q.csv": TABLE.replace("\t", ";").encode(),
    "p.tsv.bz2": bz2.compress(TABLE.encode()), "p.tsv.xz": lzma.compress(TABLE.encode()),
    "p.tsv.zst": pyarrow.compress(TABLE.encode(), "zstd", asbytes=True), "gzip-without-suffix.tsv": gzip.compress(TABLE.encode()),
    "p.jsonl.zst": pyarrow.compress(OBJECT, "zstd", asbytes=True),
    "p.json": b'{\n "prompt": "Name a tree.",\n "chosen": "Oak, or elm",\n "rejected": "Ox"\n}\n',
    "p.jsonl": b'{\n "data": [\n' + OBJECT + b"]\n}\n", "q.json": b'{"data": [' + OBJECT.strip() + b"]}",
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_tables_come_in_many_wrappings(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    (pair,) = read_pairs(tmp_path / name).pairs
    assert (pair.prompt.last_turn, pair.chosen, pair.rejected) == ("Name a tree.", "Oak, or elm", "Ox")


def test_objects_over_several_lines_one_after_the_other(tmp_path):
    (tmp_path / "p.jsonl").write_text('{\n "prompt": "a"\n}\n{\n "prompt": "b"\n}\n')
    assert [prompt.last_turn for prompt in read_prompts(tmp_path / "p.jsonl")] == ["a", "b"]
    (tmp_path / "p.jsonl").write_text('{\n "prompt": "a"\n}\n\n{\n "prompt": 7\n}\n')
    with pytest.raises(InputError, match=r"p\.jsonl, line 5, field 'prompt'"):
        list(read_prompts(tmp_path / "p.jsonl"))


def test_an_answer_about_json_is_a_text(tmp_path):
    row = {"prompt": "Show a turn.", "chosen": '[{"role": "user", "content": "hi"}]', "rejected": '{"role": "assistant"}'}
    (pair,) = read_pairs(lines(tmp_path / "p.jsonl", row)).pairs
    assert (pair.chosen, pair.rejected) == (row["chosen"], row["rejected"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl.zst", b"\x28\xb5\x2f\xfdnonsense", "broken zstd file"),
        ("p.jsonl.xz", lzma.compress(b"{}")[:20], "broken xz file"),
        ("p.jsonl", b"PK\x03\x04\x14\x00", "a zip archive; unpack it"),
        ("p.jsonl", b'{"prompt": "", "chosen": "a", "rejected": "b"}', "line 1, field 'prompt': empty; write the prompt"),
        ("p.jsonl", b'{"system": "a", "prompt": [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}], '
                    b'"chosen": "d", "rejected": "e"}', "line 1, field 'system': differs from the system turn in 'prompt'"),
        ("p.jsonl", b'{"prompt": "a", "answer1": "b", "annotator": 1, "annotation_id": 2}', "export of Label Studio; read"),
        ("p.jsonl", b'{"prompt": "a", "order.responses": [["a"]]}', "export of Argilla; read the file with `charter import`"),
        ("p.jsonl", b'{"prompt": "a", "history": ["b"], "chosen": "c", "rejected": "d"}', "'history': must be a list of pairs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_pairs, read_demonstrations])
def test_a_form_that_cannot_be_read_is_one_line_with_a_way_on(tmp_path, name, content, words, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_dialogues_of_pairs_are_labelled_as_pairs(tmp_path):
    rows = [{"chosen": f"\n\nHuman: Name a {what}.\n\nAssistant: A.", "rejected": f"\n\nHuman: Name a {what}.\n\nAssistant: B."}
            for what in ("tree", "lake")]  # fmt: skip
    forked = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    items = open_project(lines(tmp_path / "h.jsonl", *rows, forked)).items
    assert [prompt.last_turn for prompt in items.prompts.values()] == ["Name a tree.", "Name a lake."]
    assert [response.text for response in items.responses.values()] == ["A.", "B."] * 2
    assert (len(items.sets), items.left_out) == (2, {"the dialogues differ before the last answer": 1})


def test_a_conversation_that_the_template_refuses_is_named_by_file_and_line(tmp_path, random_llama, capsys):
    shutil.copytree(random_llama, tmp_path / "model")
    for file in (tmp_path / "model").glob("chat_template*"):
        file.unlink()
    (tmp_path / "model/chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system turns.') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"prompt": f"Name tree {i}.", "chosen": "Oak.", "rejected": "Ox."} for i in range(12)]
    rows[8]["system"] = "Sing."
    file = lines(tmp_path / "p.jsonl", *rows)
    words = ["reward", "train", str(file), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "model"), "--quiet"]
    assert run_command(words) == 2
    error = capsys.readouterr().err
    assert f"{file}, line 9: the model's chat template does not take a conversation of system, user: No system turns." in error
