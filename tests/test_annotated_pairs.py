"""Annotated pairs of ICAI and Feedback Forensics: read into judgments, written from votes, the same after a round trip."""

import json

import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.judging.candidates import read_candidates
from charter.records import Message, Prompt
from charter.votes.annotated_pairs import DEFAULT_ANNOTATOR, AnnotatedPair, Annotator, annotated_pairs
from charter.votes.imports.files import import_feedback
from charter.votes.judgments import read_judgments
from charter.votes.rankings import ties, wins
from feedback_folder import respond

DOCUMENT = {
    "metadata": {"version": "2.0", "default_annotator": "ba751e7b", "dataset_name": "ours"},
    "annotators": {
        "ba751e7b": {"name": "preferred_text", "description": "Default annotator", "type": "unknown"},
        "11111111": {"name": "ann", "description": "A person", "type": "human"},
        "22222222": {"description": "Select the response that is kinder", "type": "principle"},
        "33333333": {"description": "How long is it?", "type": "non_preference_principle"},
        "44444444": {"name": "all", "description": "Majority", "type": "majority"},
    },
    "comparisons": [
        {"id": "c1", "prompt": "Hello?", "response_a": {"text": "Hi.", "model": "m1"},
         "response_b": {"text": "Go.", "model": "m2"},
         "annotations": {"ba751e7b": {"pref": "a"}, "11111111": {"pref": "text_b"}, "22222222": {"pref": "a"},
                         "33333333": {"pref": None, "no_pref_reason": "non_preference_annotation", "value": "short"},
                         "44444444": {"pref": "a"}, "99999999": {"pref": "a"}}},
        {"id": "c2", "prompt": "And?", "text_a": "Yes.", "text_b": "No.",
         "annotations": {"ba751e7b": {"pref": "b"}, "22222222": {"pref": None, "no_pref_reason": "not_applicable"},
                         "11111111": {"pref": None, "no_pref_reason": "both"}}},
        {"id": "c3", "prompt": None, "response_a": {"text": "x"}, "response_b": {"text": "y"},
         "annotations": {"ba751e7b": {"pref": "a"}}},
    ],
}  # fmt: skip


def write(tmp_path, document):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(document))
    return path


def test_annotations_become_judgments_and_the_rest_is_counted(tmp_path):
    result = import_feedback(write(tmp_path, DOCUMENT), tmp_path / "votes")
    assert result["format"] == "annotated-pairs"
    assert result["left_out"] == {
        "an annotation by an annotator that the file does not name": 1, "no verdict": 2, "the prompt is missing": 1,
        "the majority of the raters, who are in the file themselves": 1,
    }  # fmt: skip
    judgments = read_judgments(tmp_path / "votes/judgments.jsonl")
    who = [(j.rater_id, j.rater_kind, j.principle, len(wins(j)), len(ties(j))) for j in judgments]
    assert who == [
        ("preferred_text", "human", None, 1, 0), ("ann", "human", None, 1, 0), ("22222222", "judge", "22222222", 1, 0),
        ("preferred_text", "human", None, 1, 0), ("ann", "human", None, 0, 1),
    ]  # fmt: skip
    assert [wins(j)[0][0] == j.order[0] for j in judgments[:3]] == [True, False, True]
    assert len({j.set_id for j in judgments}) == 2


def test_principles_of_the_file_are_candidates(tmp_path):
    principles = read_candidates(write(tmp_path, DOCUMENT))
    assert [(p.id, p.preference) for p in principles] == [("annotator-01", "Select the response that is kinder")]
    without = DOCUMENT | {"annotators": {}}
    with pytest.raises(InputError, match="no annotator is a principle"):
        read_candidates(write(tmp_path, without))


def test_what_is_written_reads_as_the_same_votes(tmp_path):
    turns = [("a", "b", "c"), ("a\n\nHuman: b", "b", "c")]
    roles = ("user", "assistant", "user")
    prompts = [
        Prompt.ask("Hello?"),
        *(Prompt(messages=[Message(role=r, content=c) for r, c in zip(roles, texts, strict=True)]) for texts in turns),
    ]
    annotators = [Annotator("all", "Majority of the raters", "majority"), Annotator("ann", "Rater ann", "human"),
                  Annotator("bob", "Rater bob", "human"), Annotator("kind", "Choose the kinder reply.", "principle"),
                  Annotator("silent", "Choose nothing.", "principle")]  # fmt: skip
    pairs = [AnnotatedPair(p, respond(p, "yes"), respond(p, "no", model="n"), {0: 1.0, 1: 2.0, 2: -1.0, 3: 0.0}) for p in prompts]
    document, left_out = annotated_pairs("ours", annotators, pairs)
    assert left_out == 1  # its transcript would read as another dialogue
    assert document["metadata"]["default_annotator"] == DEFAULT_ANNOTATOR
    assert [a["name"] for a in document["annotators"].values()] == ["all", "ann", "bob", "kind"]
    assert document["comparisons"][0]["annotations"][DEFAULT_ANNOTATOR] == {"pref": "a"}
    result = import_feedback(write(tmp_path, document), tmp_path / "votes")
    assert (result["prompts"], result["judgments"]) == (2, 4)
    judgments = read_judgments(tmp_path / "votes/judgments.jsonl")
    assert {j.prompt_id for j in judgments} == {p.id for p in prompts[:2]}
    assert [(j.rater_id, wins(j)[0][0] == j.order[0]) for j in judgments] == [("ann", True), ("bob", False)] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotators": []}, "field 'annotators': is a list, not an object"),
        ({"comparisons": {}}, "field 'comparisons': is a dict, not a list"),
        ({"comparisons": [{"prompt": "x", "response_a": "y", "response_b": "z", "annotations": {}}]}, "is a str, not an object"),
        ({"comparisons": [{"prompt": "x", "text_a": "y", "text_b": "z", "annotations": {"1": "a"}}]}, "is a str, not an object"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line(change, words, tmp_path, capsys):
    assert run_command(["import", str(write(tmp_path, DOCUMENT | change)), "--out", str(tmp_path / "votes")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "votes").exists()
