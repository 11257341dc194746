"""Published formats come in without their protocol words. The texts are made up; shapes and traps are the real ones."""

import hashlib
import json

import pytest

from charter.constitution.check import check
from charter.constitution.importers import import_constitution
from charter.errors import InputError


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_anthropic_revision_instructions(tmp_path):
    path = write(tmp_path / "instructions.json", {
        "harmful0": {
            "prompt": ["\n\nCritiqueRequest: Name precedings faults: rude ones.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Take the rude ones out.\n\nRevision:",
        },
        "harmful1": {
            "prompt": ["\n\nCritiqueRequest: Is it a controversal Critique: or not?\n\nCritique: "],
            "edit_request": "\n\nRevisionRequest: Make it calm.\n\nRevision:\n",
        },
    })  # fmt: skip
    constitution = import_constitution(path).constitution
    first, second = constitution.principles
    assert (first.id, first.critique, first.revision, first.preference, first.tags) == (
        "harmful0", "Name precedings faults: rude ones.", "Take the rude ones out.", None, ("red_team",)
    )  # fmt: skip
    assert second.critique == "Is it a controversal Critique: or not?"  # only the ends are protocol
    assert first.source == "instructions.json sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_anthropic_comparison_instructions(tmp_path):
    texts = [
        "\nWhich of these is kinder? Options:",
        "\nChoose what a respectable person would say. Options: ",
        "\nWhich has better options? Options:",
    ]
    constitution = import_constitution(write(tmp_path / "madison.json", texts)).constitution
    assert [p.preference for p in constitution.principles] == [
        "Which of these is kinder?", "Choose what a respectable person would say.", "Which has better options?"
    ]  # fmt: skip
    assert all(p.critique is None for p in constitution.principles)
    assert not any(finding.severity == "error" for finding in check(constitution))


def test_llm_swarm(tmp_path):
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
    path = write(tmp_path / "swarm.json", {
        "constitutions": [{"critic": " Find the rude part. ", "revision": "Remove it."}] * 2,
        "system_chat": [turns, turns],
    })  # fmt: skip
    constitution = import_constitution(path).constitution
    assert [(p.id, p.critique, p.revision) for p in constitution.principles] == [
        ("principle-01", "Find the rude part.", "Remove it."),
        ("principle-02", "Find the rude part.", "Remove it."),
    ]


def test_a_plain_sentence_becomes_all_three_texts(tmp_path):
    constitution = import_constitution(write(tmp_path / "plain.json", ["Be kind {to} all.", "Tell the truth."])).constitution
    first = constitution.principles[0]
    assert first.title == "Be kind {to} all."
    assert first.critique == ("Say specifically where the assistant's last reply goes against this principle: Be kind {to} all.")
    assert first.revision == "Rewrite the assistant's last reply so that it keeps this principle: Be kind {to} all."
    assert first.preference == "Choose the reply that better keeps this principle: Be kind {to} all."
    assert (first.tags, constitution.title) == ((), "plain")


def test_a_text_file_holds_one_principle_per_line(tmp_path):
    path = write(tmp_path / "p.txt", "\ufeff- Be kind.\n\n2) Tell the truth.\r\n  * Nice!\n• 好\n3.5 is no bullet\n")
    titles = [p.title for p in import_constitution(path).constitution.principles]
    assert titles == ["Be kind.", "Tell the truth.", "Nice!", "好", "3.5 is no bullet"]


def test_a_wrapped_point_is_one_principle_and_a_rule_is_none(tmp_path):
    path = tmp_path / "c.md"
    path.write_text("- Be honest,\n  and say so,\n\talways.\n  - Be brief.\n---\n* Be kind.\n\n1. Be safe\n   here.\n")
    imported = import_constitution(path)
    texts = [p.preference.rpartition(": ")[2] for p in imported.constitution.principles]
    assert texts == ["Be honest, and say so, always.", "Be brief.", "Be kind.", "Be safe here."]
    assert imported.left_out == {"line without a word, such as a rule": 1}


def test_a_break_inside_a_paragraph_does_not_end_a_principle(tmp_path):
    path = write(tmp_path / "p.txt", "Be kind\u2028and honest.\r\nBe brief\x0bif you can.\rDo not lie.\n")
    titles = [p.title for p in import_constitution(path).constitution.principles]
    assert titles == ["Be kind and honest.", "Be brief if you can.", "Do not lie."]


def test_a_long_sentence_has_a_short_title(tmp_path):
    sentence = "The assistant " + "never " * 30 + "lies."
    (principle,) = import_constitution(write(tmp_path / "p.txt", sentence)).constitution.principles
    assert len(principle.title) <= 60
    assert principle.title.endswith("never…")
    assert principle.critique.endswith(sentence)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.json", "{", r"c\.json, line 1: not valid JSON"),
        ("c.json", "[" * 100_000, "not valid JSON"),
        ("c.json", "[1, 2]", "unknown format; convert it"),
        ("c.json", '{"principles": ["Be kind."]}', "unknown format; convert it"),
        ("c.yaml", "- Be kind.\n", "unknown format; use a constitution of Charter as it is"),
        ("c.json", "[]", "the file has no principle"),
        ("c.json", "{}", "the file has no principle"),
        ("c.txt", "\n\n", "the file has no principle"),
        ("c.json", ["fine", " "], "principle-02.*: empty; write the text"),
        ("c.json", {"harmful0": {"prompt": ["a", "b"], "edit_request": "c"}}, r"'harmful0\.prompt': not a single text"),
        ("c.json", {"harmful0": {"prompt": "a"}}, r"'harmful0\.edit_request': not a single text"),
        ("c.json", {"constitutions": {"critic": "a"}}, "'constitutions': not a list"),
        ("c.json", {"constitutions": [{"critic": "a"}]}, r"'principle-01\.revision'"),
        ("c.json", {"no good id": {"prompt": "a", "edit_request": "b"}}, r"'no good id\.id'"),
        ("c.json", '["\\ud800"]', "lone surrogate"),
        ("c.json", " " * 2**20 + "[]", "larger than 1 MiB"),
    ],
)
def test_what_is_no_constitution_is_refused(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words) as error:
        import_constitution(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_other_encodings_and_missing_files_are_named(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes("ok\nnaïve".encode("latin-1"))
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        import_constitution(path)
    with pytest.raises(InputError, match="no such file"):
        import_constitution(tmp_path / "none.json")
