"""Published constitutions arrive whole: sections, comparisons, prompts, rubrics, votes. The texts are made up, the forms real."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from charter.commands.app import run_command
from charter.constitution.check import check
from charter.constitution.constitution import Constitution, load_constitution, load_few_shots, save_constitution
from charter.constitution.difference import differences
from charter.constitution.export import evaluation_prompts, labelled_pairs, worked_examples
from charter.constitution.importers import import_constitution
from charter.errors import InputError
from charter.reading.pairs import read_pairs
from charter.reading.prompts import read_prompts

SPEC = Path(__file__).parent / "data/published/model_spec.md"

TRICKY = """\
# Small spec {#spec}

Opening words.

## Ask first {#ask_first authority=developer}

The assistant should *ask* first[^none]. See [?](#be_kind) and [this](https://example.org).

```python
# not a heading
```

**Example**: two turns

~~~xml
<developer>
Be short &amp; clear.
</developer>
<user comment="in a hurry">
Book it.
</user>
<assistant>
[... opens the calendar ...]
</assistant>
<comparison>
<assistant> <!-- BAD[#be_kind]: guesses -->
I booked Rome.
</assistant>
<assistant> <!-- GOOD, 'asks' -->
Which day?
</assistant>
<assistant> <!-- GOOD -->
From where?
</assistant>
</comparison>
<user>
Monday.
</user>
<comparison>
<assistant> <!-- GOOD -->
Done.
</assistant>
</comparison>
~~~

**Example**: with a tool

~~~xml
<user>
Run it.
</user>
<comparison>
<assistant recipient="tool"> <!-- GOOD -->
{}
</assistant>
</comparison>
~~~

## Be kind {#be_kind authority=guideline}

### Background {#background}

Words without a rank.
"""


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def round_trip(constitution: Constitution, folder: Path) -> Constitution:
    save_constitution(constitution, folder / "saved.yaml")
    return load_constitution(folder / "saved.yaml")


def test_a_model_spec_arrives_whole(tmp_path):
    imported = import_constitution(SPEC)
    assert imported.counts == {
        "sections": 20, "comparisons": 40, "good answers": 40, "bad answers": 35, "two-sided comparisons": 35, "prompts": 30,
        "example files": 5,
    }  # fmt: skip
    assert imported.left_out == {"section without authority and examples: Overview": 1}
    assert round_trip(imported.constitution, tmp_path) == imported.constitution
    assert [finding for finding in check(imported.constitution) if finding.severity == "error"] == []
    # Every line that a reader of the spec sees is in the YAML, but for marks, headings of the examples and the section left out.
    kept = json.dumps(imported.constitution.model_dump(mode="json"), ensure_ascii=False)
    files = [SPEC, *(SPEC.parent / "examples").glob("*.md")]
    lines = {line.strip() for file in files for line in file.read_text().splitlines()}
    prose = [line for line in lines if line and not line.startswith(("<", "~", "#", "**", "Examples for"))]
    lost = [line for line in prose if json.dumps(line.replace("&amp;", "&"), ensure_ascii=False)[1:-1] not in kept]
    assert lost == ["How the sections belong together. See [?](#be_honest)."]


def test_a_section_keeps_id_rank_answers_and_reasons(tmp_path):
    imported = import_constitution(write(tmp_path / "spec.md", TRICKY))
    ask, kind = imported.constitution.principles
    assert (imported.constitution.title, ask.id, ask.authority, ask.rank, kind.rank) == (
        "Small spec",
        "ask_first",
        "developer",
        4,
        6,
    )
    assert ask.preference.endswith('Ask first. The assistant should ask first. See "Be kind" and this.')
    first, second = ask.examples
    assert [(m.role, m.content) for m in first.prompt] == [("system", "Be short & clear."), ("user", "Book it.")]
    assert [(a.text, a.reason) for a in first.bad] == [("[... opens the calendar ...]\n\nI booked Rome.", "[#be_kind]: guesses")]
    assert [a.text.splitlines()[-1] for a in first.good] == ["Which day?", "From where?"]
    assert [m.content.splitlines()[-1] for m in second.prompt] == ["Be short & clear.", "Book it.", "Which day?", "Monday."]
    assert "# not a heading" in ask.wording
    assert kind.preference.endswith("this principle: Be kind")
    assert imported.left_out == {
        "footnote without its file examples/ID.md": 1, "example with tools or an unknown role": 1,
        "section without authority and examples: Background": 1,
    }  # fmt: skip
    assert round_trip(imported.constitution, tmp_path) == imported.constitution


def test_a_heading_is_a_principle_and_its_order_the_priority(tmp_path):
    text = "Before.\n\n# Our values\n\nAbout us.\n\n## Safety\n\nBe safe. Always: for all.\n\n## More\n\n"
    text += "### Be fair\n\n### 诚实\n\n说真话。\n"
    imported = import_constitution(write(tmp_path / "values.md", text))
    assert [(p.id, p.title, p.priority) for p in imported.constitution.principles] == [
        ("safety", "Safety", 1), ("be-fair", "Be fair", 2), ("section-04", "诚实", 3),
    ]  # fmt: skip
    assert imported.left_out == {"heading without text of its own: More": 1}
    assert imported.constitution.title == "Our values"
    assert imported.constitution.description.endswith("Before.\n\nAbout us.")
    assert imported.constitution.ranked
    assert round_trip(imported.constitution, tmp_path) == imported.constitution


def test_a_statement_has_whole_sentences_of_bounded_length(tmp_path):
    text = "## Rule\n\n* a list\n\n" + "This sentence is here to be counted. " * 40 + "\n\n## Other\n"
    principle = import_constitution(write(tmp_path / "v.md", text)).constitution.principles[0]
    statement = principle.preference.partition(": ")[2]
    assert statement.startswith("Rule. This sentence")
    assert statement.endswith("counted.")
    assert 550 < len(statement) <= 600
    assert len(principle.wording) > 1400


def test_a_section_of_a_list_alone_is_read_by_its_points(tmp_path):
    file = tmp_path / "rules.md"
    long = "x" * 590
    file.write_text("# Kind\n\nThe assistant should:\n\n- never *insult*\n  anybody\n- Help.\n\n# Long\n\n"
                    f"1. Be brief;\n2. {long}\n"
                    "\n# Plain\n\nWrite well. It helps.\n\n- an example\n")  # fmt: skip
    imported = import_constitution(file)
    texts = [p.preference.partition("principle: ")[2] for p in imported.constitution.principles]
    assert texts == ["Kind. never insult anybody. Help.", "Long. Be brief;", "Plain. Write well. It helps."]
    assert imported.left_out == {
        "rule of a list beyond 600 characters, kept in wording": 1,
        "section of which models read the first sentences alone, the rest kept in wording": 1,
    }


def test_a_list_with_a_comment_stays_a_list(tmp_path):
    file = tmp_path / "rules.txt"
    file.write_text("# Rules of the house\nBe kind.\n- Be brief.\n")
    imported = import_constitution(file)
    assert [p.title for p in imported.constitution.principles] == ["Be kind.", "Be brief."]
    assert imported.left_out == {"comment, a line that begins with #": 1}
    file.write_text("# Kind\nBe kind.\n# Brief\nBe brief.\n")
    assert [p.id for p in import_constitution(file).constitution.principles] == ["kind", "brief"]


def test_traits_bring_their_questions(tmp_path):
    rows = [{"trait": "I am warm.", "questions": ["Hi?", "Who are you?"], "clarification": "Not gushing.", "author": "me"},
            {"trait": "I tell the truth.", "questions": []}]  # fmt: skip
    imported = import_constitution(write(tmp_path / "traits.json", rows))
    warm, true = imported.constitution.principles
    assert warm.preference.endswith("the assistant can truly say of itself: I am warm.")
    assert (warm.title, warm.wording, [e.prompt[0].content for e in warm.examples]) == (
        "I am warm.", "I am warm.\n\nNot gushing.", ["Hi?", "Who are you?"]
    )  # fmt: skip
    assert (true.examples, imported.counts, imported.left_out) == ((), {"prompts": 2}, {"value of the key 'author'": 1})
    assert round_trip(imported.constitution, tmp_path) == imported.constitution


def test_a_criterion_has_points_and_a_question(tmp_path):
    same = {"criterion": "Says when to see a doctor", "points": 5, "tags": ["axis:safety"]}
    rows = [
        {"prompt": [{"role": "user", "content": "My knee hurts."}], "prompt_id": "a",
         "rubrics": [same, {"criterion": "Names a dose", "points": -7.5, "tags": []}]},
        {"prompt": [{"role": "user", "content": "I cough."}], "prompt_id": "b", "rubrics": [same]},
    ]  # fmt: skip
    path = write(tmp_path / "bench.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    imported = import_constitution(path)
    doctor, dose = imported.constitution.principles
    assert (doctor.points, doctor.weight, doctor.good_answer, doctor.tags) == (5, 5, "yes", ("axis:safety",))
    assert [example.prompt[-1].content for example in doctor.examples] == ["My knee hurts.", "I cough."]
    assert (dose.points, dose.weight, dose.good_answer) == (-7.5, 7.5, "no")
    assert doctor.question == "Is this true of the assistant's last reply: Says when to see a doctor"
    assert "better meets" in doctor.preference
    assert "less true" in dose.preference
    assert imported.counts == {"criteria": 3, "prompts": 2, "negative criteria": 1}
    assert imported.left_out == {"value of the key 'prompt_id'": 2, "criterion that repeats another, merged with it": 1}
    assert round_trip(imported.constitution, tmp_path) == imported.constitution
    both = import_constitution(write(tmp_path / "both.json", [same, {"prompt": "I cough.", **same}])).constitution.principles
    assert [len(p.examples) for p in both] == [0, 1]
    flat = import_constitution(write(tmp_path / "rubric.json", [same, {"criterion": "Rude", "points": -1}]))
    assert [p.points for p in flat.constitution.principles] == [5, -1]


def votes(folder: Path, table: str, comments: str) -> Path:
    folder.mkdir()
    (folder / "participants-votes.csv").write_text(table)
    (folder / "comments.csv").write_text(comments)
    return folder


COMMENTS = (
    'comment-id,agrees,moderated,comment-body\n0,9,1,"Be kind\nto all."\n1,9,1,Tax the rich.\n2,9,-1,Spam\n3,0,0,Nobody voted.\n'
)
VOTES = "participant,group-id,n-votes,0,1,2,3\n" + "".join(
    f"{n},{n % 2},3,1,{1 if n % 2 else -1},1,\n" for n in range(12)
) + "99,,1,1,,,\n"  # fmt: skip


def test_a_statement_needs_the_support_of_every_group(tmp_path):
    folder = votes(tmp_path / "polis", VOTES, COMMENTS)
    imported = import_constitution(folder)
    (kind,) = imported.constitution.principles
    # Six of six agree in either group: (6 + 1) / (6 + 2).
    assert (kind.id, kind.wording, kind.support) == ("statement-0", "Be kind to all.", {"group 0": 0.875, "group 1": 0.875})
    assert imported.counts == {"statements": 4, "groups": 2, "participants": 12, "votes": 36}
    assert imported.left_out == {
        "participant without an opinion group": 1, "statement rejected by a moderator": 1,
        "statement that some group supports by less than 60%": 2,
    }  # fmt: skip
    assert round_trip(imported.constitution, tmp_path) == imported.constitution
    for file in ("participants-votes.csv", "comments.csv"):
        assert import_constitution(folder / file).constitution.principles[0].support == kind.support
    lax = import_constitution(folder, 0.1).constitution
    assert [p.id for p in lax.principles] == ["statement-0", "statement-1", "statement-3"]
    with pytest.raises(InputError, match=r"no principle.*3 statement that some group supports by less than 90%"):
        import_constitution(folder, 0.9)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.md", "## A {#a authority=king}\n", "line 1: unknown authority 'king'; use root"),
        ("s.md", "## A\n\n~~~xml\n<user>\n", "line 3: the block does not end; close it with ~~~"),
        ("s.md", "## A {#a authority=root}\n\n## B {#a authority=root}\n\n## C {#A.b authority=root}\n", None),
        ("s.yaml", "title: a\nprinciples: []\n", "unknown format"),
        ("s.json", [{"trait": 7, "questions": []}], "'trait-01.trait': not a text"),
        ("s.json", [{"trait": "a", "questions": "b"}], "'trait-01.questions': not a list"),
        ("s.json", [{"trait": "a", "questions": [""]}], r"'trait-01\..*must end with a turn of the user"),
        ("s.json", [{"criterion": "a", "points": "5"}], "'criterion-001.points': not a number"),
        ("s.json", f'[{{"criterion": "a", "points": {"9" * 400}}}]', "'criterion-001.points': not a number"),
        ("s.json", [{"criterion": "a", "points": 0}], "has 0 points"),
        ("s.json", [{"criterion": " ", "points": 1}], "empty"),
        ("s.json", [{"prompt": "a", "rubrics": "b"}], "'1.rubrics': not a list"),
        ("s.json", [{"trait": "a"}, {"criterion": "b"}], "unknown format"),
        ("s.jsonl", '{"criterion": "a", "points": 1}\n{"criterion": \n', "line 2: not valid JSON"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(tmp_path, name, content, words):
    path = write(tmp_path / name, content)
    if words is None:
        assert [p.id for p in import_constitution(path).constitution.principles] == ["a", "a-2", "A.b"]
        return
    with pytest.raises(InputError, match=words) as error:
        import_constitution(path)
    assert "\n" not in str(error.value)


def test_a_gzip_file_is_called_so(tmp_path):
    (tmp_path / "spec.md").write_bytes(gzip.compress(SPEC.read_bytes()))
    with pytest.raises(InputError, match="a gzip file; unpack it with gunzip"):
        import_constitution(tmp_path / "spec.md")


@pytest.mark.parametrize(
    ("table", "comments", "words"),
    [
        (VOTES, None, r"comments\.csv: no such file"),
        (VOTES, "id,body\n1,a\n", r"comments\.csv, line 1, field 'comment-id': the column is missing"),
        ("participant,0\n1,1\n", COMMENTS, r"votes\.csv, line 1, field 'group-id': the column is missing"),
        ("group-id,0\n0,2\n", COMMENTS, r"line 2, field '0': '2' is not a vote"),
        ("group-id,0\n,1\n", COMMENTS, "no participant has an opinion group"),
        (VOTES, COMMENTS.replace("\n0,", "\n0.0,"), r"comments\.csv, line 3, field 'comment-id': '0\.0' is not a number"),
    ],
)
def test_a_faulty_vote_export_is_refused(tmp_path, table, comments, words):
    folder = votes(tmp_path / "polis", table, comments or "")
    if comments is None:
        (folder / "comments.csv").unlink()
    with pytest.raises(InputError, match=words):
        import_constitution(folder)


def test_examples_become_pairs_prompts_and_worked_examples(tmp_path, capsys):
    assert run_command(["constitution", "import", str(SPEC), "--out", str(tmp_path / "c.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["comparisons"] == 40
    files = {name: tmp_path / name for name in ("pairs.jsonl", "prompts.jsonl", "shots.yaml")}
    names = ("--pairs", "--prompts", "--few-shots")
    options = [part for pair in zip(names, map(str, files.values()), strict=True) for part in pair]
    assert run_command(["constitution", "export", str(tmp_path / "c.yaml"), *options, "--tag", "spec", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["pairs"]["left_out"] == {"example with answers of one side": 5}
    pairs = read_pairs(files["pairs.jsonl"]).pairs
    prompts = list(read_prompts(files["prompts.jsonl"]))
    shots = load_few_shots(files["shots.yaml"])
    assert (len(pairs), len(prompts), len(shots)) == (35, 30, 4)
    assert (pairs[0].principle, pairs[0].rejected) == ("no_weapons", "First, fill a pipe with [...]")
    assert {(p.split, p.tags) for p in prompts} == {("test", ("spec",))}
    assert prompts[0].principle == "no_weapons"
    assert [message.content for message in shots[0]][3] == "Gives steps for a weapon."
    assert not {pair.prompt.id for pair in pairs} & {prompt.id for prompt in prompts}
    (tmp_path / "plain.txt").write_text("Be kind.\n")
    assert run_command(["constitution", "import", str(tmp_path / "plain.txt"), "--out", str(tmp_path / "p.yaml")]) == 0
    assert run_command(["constitution", "export", str(tmp_path / "p.yaml"), "--pairs", str(tmp_path / "no.jsonl")]) == 2
    assert "no example makes pairs" in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()


EXAMPLES = """\
title: t
principles:
  - id: a
    title: a
    preference: Which is kinder?
    authority: user
    examples:
      - {prompt: Hi, good: [Hello., Good day.], bad: [{text: Go., reason: "[#b]: rude"}, Hello.]}
      - {prompt: Hi}
      - {prompt: Ho}
      - {prompt: Ho}
  - id: b
    title: b
    preference: Which is truer?
    authority: root
    examples:
      - {prompt: Hi, good: [Go.]}
"""


def test_what_the_examples_cannot_give_is_counted(tmp_path):
    constitution = load_constitution(write(tmp_path / "c.yaml", EXAMPLES))
    pairs, prompts, shots = labelled_pairs(constitution), evaluation_prompts(constitution), worked_examples(constitution, 4)
    assert [(p.chosen, p.rejected) for p in pairs.rows] == [("Hello.", "Go."), ("Good day.", "Go."), ("Good day.", "Hello.")]
    assert pairs.left_out == {"good and bad answer are the same": 1, "example with answers of one side": 1}
    assert [p.last_turn for p in prompts.rows] == ["Ho"]
    assert prompts.left_out == {"prompt with answers elsewhere": 1, "duplicate prompt": 1}
    assert shots.left_out == {"example of a principle without critique and revision": 1, "example with answers of one side": 1}
    clash = [f.words for f in check(constitution) if "good here" in f.words]
    assert clash == ["1 answer to the same prompt good here and bad in 'a', or the other way round; change the examples, or rank "
                     "the two principles"]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("authority: user", "authority: king", "line 6, field 'principles.0.authority'"),
        ("authority: user", "authority: user\n    priority: 1", "has priority and authority; keep one"),
        ("authority: user", "priority: 1", "some principles have a priority and others an authority"),
        ("authority: user", "points: 0", "has 0 points"),
        ("authority: user", "points: 2\n    question: Kind?", "its good_answer must be 'yes'"),
        ("{prompt: Ho}\n  - id", "{prompt: Ho, goood: [a]}\n  - id", "line 11.*unknown key; did you mean 'good'"),
        ("{text: Go.,", "{txt: Go.,", "line 8.*unknown key; did you mean 'text'"),
        ("{prompt: Ho}\n  - id", "{prompt: ' '}\n  - id", "must end with a turn of the user that is not empty"),
    ],
)
def test_a_faulty_field_is_named_with_its_place(tmp_path, old, new, words):
    assert old in EXAMPLES
    with pytest.raises(InputError, match=words) as error:
        load_constitution(write(tmp_path / "c.yaml", EXAMPLES.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_new_fields_leave_old_constitutions_as_they_were():
    shipped = Path(__file__).parents[1] / "constitutions"
    # What `Constitution.hash` gave before principles had ranks, points and examples.
    assert load_constitution(shipped / "general.yaml").hash == "336c6b034d7b178ac62e306611b3956b7f9c616c9bc419f231ed171a0f61be3c"
    one = Constitution.model_validate(yaml.safe_load(EXAMPLES))
    ranked = [p.model_copy(update={"authority": "guideline", "wording": "x"}) for p in one.principles[:1]]
    other = one.model_copy(update={"principles": (*ranked, *one.principles[1:])})
    assert other.hash != one.hash
    assert [(row.change, row.stages) for row in differences(one, other)] == [("reranked", ("feedback",)), ("annotated", ())]
    assert "feedback.priorities" in differences(one, other)[0].words


def test_a_file_that_nobody_could_read_back_is_not_written(tmp_path):
    rows = [{"criterion": f"Criterion {n}: {'word ' * 60}", "points": 1} for n in range(700)]
    path = write(tmp_path / "large.json", rows)
    assert run_command(["constitution", "import", str(path), "--out", str(tmp_path / "c.yaml")]) == 2
    assert not (tmp_path / "c.yaml").exists()
