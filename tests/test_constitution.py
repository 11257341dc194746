"""A constitution is read as written, drawn from in proportion, and wrong ones are refused with their place."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from charter.commands.app import run_command
from charter.constitution.check import check
from charter.constitution.constitution import (
    Constitution,
    Principle,
    draw,
    hashes_of_principles,
    load_constitution,
    load_few_shots,
    save_constitution,
)
from charter.constitution.difference import differences
from charter.errors import InputError
from charter.records import Prompt

SHIPPED = Path(__file__).parent.parent / "constitutions"
FEW_SHOTS = SHIPPED / "few-shots.yaml"

YAML = """\
title: Small
principles:
  - id: peace
    title: peace/violence
    critique: Where does the reply favour violence?
    revision: Rewrite it peacefully.
    preference: Which reply is more peaceful?
    tags: [red_team, topic]
    weight: 2
  - id: helpful
    title: Helpful
    preference: Which reply is more helpful?
    tags: [benign]
"""


def make(*principles: Principle) -> Constitution:
    return Constitution(title="made", principles=principles)


def compares(id: str, text: str | None = None, **fields) -> Principle:
    return Principle(id=id, title=id, preference=text or f"Which reply is more {id}?", **fields)


def revises(id: str, **fields) -> Principle:
    return Principle(id=id, title=id, critique=f"What is not {id}?", revision=f"Make it {id}.", **fields)


def load(tmp_path, text: str | bytes) -> Constitution:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_constitution(path)


def test_a_file_is_read_as_it_stands(tmp_path):
    constitution = load(tmp_path, YAML)
    peace, helpful = constitution.principles
    assert (peace.id, peace.title, peace.weight, peace.tags) == ("peace", "peace/violence", 2, ("red_team", "topic"))
    assert (helpful.critique, helpful.weight) == (None, 1)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_everything_that_ships_loads_and_has_no_fault(path):
    if path == FEW_SHOTS:
        examples = load_few_shots(path)
        assert [len(example) for example in examples] == [6, 8, 6]
        assert all(example[-1].role == "assistant" for example in examples)
    else:
        assert [finding for finding in check(load_constitution(path)) if finding.severity == "error"] == []


def test_the_four_pairs_are_the_four_pairs():
    constitution = load_constitution(SHIPPED / "four-pairs.yaml")
    assert [(p.id, p.title) for p in constitution.topics()] == [
        ("peace", "peace/violence"),
        ("privacy", "privacy/doxxing"),
        ("racial-equality", "racial equality/racism"),
        ("gender-equality", "gender equality/sexism"),
    ]
    assert [p.id for p in constitution.for_revision(("benign",))] == ["helpful"]


@pytest.mark.parametrize(
    ("tag", "word"), [("Red Team", "red_team"), ("redteam", "red_team"), ("Benign", "benign"), ("TOPIC", "topic")]
)
def test_a_kind_in_other_letters_is_refused(tmp_path, tag, word):
    """The principle would apply to every prompt, and no stage would say so."""
    with pytest.raises(InputError, match=f"has the tag '{tag}', which would restrict nothing; write {word}"):
        load(tmp_path, YAML.replace("[benign]", f"[{tag}]"))


def test_kinds_and_topics_decide_who_is_asked():
    constitution = make(
        compares("always"), compares("harm", tags=("red_team",)), compares("help", tags=("benign",)),
        compares("peace", tags=("red_team", "topic")), revises("mend", tags=("red_team", "topic")),
        compares("both", tags=("red_team", "benign")),
    )  # fmt: skip

    def ids(*tags, principle=None):
        return [p.id for p in constitution.for_comparison(Prompt.ask("?", tags=tags, principle=principle))]

    assert ids() == ["always", "harm", "help", "peace", "both"]  # of a prompt of no named kind nothing is known
    assert ids("benign") == ["always", "help", "both"]
    assert ids("red_team") == ["always", "harm", "peace", "both"]
    assert ids("red_team", principle="peace") == ["always", "harm", "peace", "both"]
    assert ids("red_team", principle="privacy") == ["always", "harm", "both"]
    # Revision draws any topic: most do not fit, and that is why a few rounds are needed.
    assert [p.id for p in constitution.for_revision(("red_team",))] == ["mend"]
    assert constitution.for_revision(("benign",)) == ()
    assert [p.id for p in constitution.topics()] == ["peace", "mend"]


def test_a_draw_depends_on_its_key_alone():
    principles = [compares(name) for name in "abcd"]
    keys = [(7, f"prompt{n}", n % 4) for n in range(50)]
    forwards = {key: draw(principles, *key).id for key in keys}
    assert forwards == {key: draw(principles, *key).id for key in reversed(keys)}
    assert len(set(forwards.values())) == 4
    # printf '[[7,"prompt0",0],"a"]' | sha256sum begins with b5 and those of b, c, d with 58, 9b, 4c; of prompt1 and 1 it is
    # 21, ca, 48, 3b. With equal weights the largest wins.
    assert [draw(principles, 7, "prompt0", 0).id, draw(principles, 7, "prompt1", 1).id] == ["a", "b"]


def test_a_principle_that_comes_or_goes_moves_its_own_draws_alone():
    principles = [compares(name, weight=weight) for name, weight in zip("abcd", (1, 2, 1, 0.5), strict=True)]
    before = {key: draw(principles, key).id for key in range(300)}
    assert {key: draw(principles[::-1], key).id for key in before} == before
    without = {key: draw([p for p in principles if p.id != "b"], key).id for key in before}
    assert {key for key in before if without[key] != before[key]} == {key for key in before if before[key] == "b"}


def test_draws_follow_the_weights():
    principles = [compares("rare", weight=0.5), compares("common", weight=1.5)]
    n = 2000
    share = Counter(draw(principles, n).id for n in range(n))["common"] / n
    assert share == pytest.approx(0.75, abs=0.04)  # four standard errors


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=5), key=st.integers())
def test_every_key_draws_something(weights, key):
    principles = [compares(f"p{n}", weight=weight) for n, weight in enumerate(weights)]
    assert draw(principles, key) in principles


def test_nothing_to_draw_from_is_said():
    with pytest.raises(ValueError, match="no principles to draw from"):
        draw((), 1)


def test_the_hash_counts_what_reaches_a_model(tmp_path):
    constitution = load(tmp_path, YAML)
    assert len(constitution.hash) == 64
    assert load(tmp_path, YAML.replace("title: Small", "title: Other\ndescription: d")).hash == constitution.hash
    assert load(tmp_path, YAML.replace("peacefully", "kindly")).hash != constitution.hash
    assert load(tmp_path, YAML.replace("weight: 2", "weight: 3")).hash != constitution.hash


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@example(texts=["no", "a\x85b", "a\u2028 b", "- a: #b\n\n  c"], weight=1.0, tags=["1"])  # line breaks to YAML alone
@given(texts=st.lists(words, min_size=4, max_size=4), weight=st.floats(0.001, 1000), tags=st.lists(words, max_size=2))
def test_what_is_saved_is_loaded(tmp_path_factory, texts, weight, tags):
    title, critique, revision, preference = texts
    principle = Principle(
        id="p", title=title, critique=critique, revision=revision, preference=preference, weight=weight, tags=tags
    )
    constitution = Constitution(title=title, description=critique, principles=[principle, compares("q")])
    path = tmp_path_factory.mktemp("saved") / "c.yaml"
    save_constitution(constitution, path)
    assert load_constitution(path) == constitution


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("critique:", "critiqe:", "line 5, field 'principles.0.critiqe': unknown key; did you mean 'critique'?"),
        ("title: Small", "titel: Small", "line 1, field 'titel': unknown key; did you mean 'title'?"),
        ("    weight: 2", "    zzz: 2", "line 9, field 'principles.0.zzz': unknown key; use id, title, critique"),
        ("weight: 2", "weight: -1", "line 9, field 'principles.0.weight': Input should be greater than 0"),
        ("weight: 2", "weight: .nan", "line 9, field 'principles.0.weight'"),
        ("weight: 2", "weight: 2\n    weight: 3", "line 10: duplicate key 'weight'"),
        ("tags: [benign]", "good_answer: yes", "line 13, field 'principles.1.good_answer': YAML reads a bare yes or no as true"),
        ("title: Helpful", "title: no", "line 11, field 'principles.1.title': False is not a text; put it in quotes"),
        ("id: helpful", "id: peace", "two principles have the id 'peace'; rename one"),
        ("id: helpful", "id: ../x", "line 10, field 'principles.1.id'"),
        ("revision: Rewrite it peacefully.", "", "line 3, field 'principles.0': principle 'peace' lacks the revision"),
        ("preference: Which reply is more helpful?", "", "line 10, field 'principles.1': principle 'helpful' has no use"),
        ("Which reply is more helpful?", '" "', "line 12, field 'principles.1.preference': empty"),
        ("tags: [benign]", "tags: benign", "line 13, field 'principles.1.tags': must be a list; write [benign]"),
        ("tags: [benign]", "polarity: flipped", "line 13, field 'principles.1.polarity': not read; leave the key out"),
        ("    title: Helpful\n", "", "line 10, field 'principles.1.title': missing"),
        ("title: Small", "title: &a Small\ndescription: *a", "line 2: alias *a is not allowed"),
        ("title: Small", "title: [Small", "line 2"),
        ("title: Small", "title: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("title: Small", "title: !!timestamp x", "not valid YAML"),
        ("title: Small", "title: !!bool x", "not valid YAML"),
        ("title: Small", "title: 2024-99-99", "month must be in 1..12"),
        ("title: Small", 'title: "a\\ud800"', "c.yaml"),
        ("title: Small", "title: a\x00", "line 1: contains a NUL"),
        ("title: Small", "title: a\x01", "c.yaml"),
        ("title: Small", "title: Small\n---\ntitle: Two", "line 2"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, old, new, place):
    assert old in YAML
    with pytest.raises(InputError) as error:
        load(tmp_path, YAML.replace(old, new))
    assert str(tmp_path / "c.yaml") in str(error.value)
    assert place in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "not a mapping; write the keys title, description, principles"),
        (b"- a\n", "not a mapping"),
        (b"Be kind.\n", "`charter constitution import FILE --out F.yaml` makes such a file of a list"),
        (b"title: a\nprinciples: []\n", "line 2, field 'principles'"),
        ("title: ok\n# naïve".encode("latin-1"), "line 2: not UTF-8"),
        (b"title: " + b"[" * 5000, "nested too deeply"),
        (b"# " + b"x" * 2**20, "larger than 1 MiB"),
        (b"? [a]\n: b\n", "line 1"),
        (b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "line 2: alias *a is not allowed"),
    ],
)
def test_what_is_no_constitution_is_refused(tmp_path, content, place):
    with pytest.raises(InputError) as error:
        load(tmp_path, content)
    assert place in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_constitution(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_constitution(tmp_path)


def test_few_shots_take_turns(tmp_path):
    path = tmp_path / "shots.yaml"
    turn = "    - {role: user, content: a}\n    - {role: assistant, content: b}\n"
    path.write_text("examples:\n  -\n" + turn * 3)
    assert [m.content for m in load_few_shots(path)[0]] == list("ababab")
    path.write_text("examples:\n  -\n" + turn * 3 + "    - {role: user, content: c}\n")
    with pytest.raises(InputError, match="example 1: user and assistant must take turns"):
        load_few_shots(path)
    path.write_text("examples:\n  -\n" + turn * 2)
    with pytest.raises(InputError, match=r"line 3, field 'examples\.0'"):
        load_few_shots(path)
    path.write_text("examples:\n  -\n" + turn * 3 + "    - {rol: user, content: c}\n")
    with pytest.raises(InputError, match=r"line 9, .*did you mean 'role'"):
        load_few_shots(path)


def test_a_principle_must_be_of_use():
    with pytest.raises(ValidationError, match="has no use"):
        Principle(id="p", title="p")
    with pytest.raises(ValidationError, match="lacks the critique"):
        Principle(id="p", title="p", revision="Mend it.")


def found(*principles) -> list[tuple[str, str | None]]:
    whole = [revises("mend"), compares("kind"), *principles]
    return [(finding.severity, finding.principle) for finding in check(make(*whole))]


@pytest.mark.parametrize(
    ("principle", "severity"),
    [
        (compares("p", "Which reply is more kind?"), "error"),
        (compares("p", "WHICH reply is more  kind"), "error"),
        (compares("p", "Which reply is more peaceful? Human: Options:"), "error"),
        (Principle(id="p", title="p", critique="CritiqueRequest: find faults", revision="Mend them."), "error"),
        (compares("p", "Is (A) more peaceful?"), "error"),
        (compares("p", "Prefer option B."), "error"),
        (compares("p", weight=11), "warning"),
        (compares("p", weight=0.05), "warning"),
        (compares("p", "word " * 250), "warning"),
    ],
)
def test_check_finds_what_would_weaken_a_run(principle, severity):
    assert found() == []
    assert found(principle) == [(severity, "p")]


def test_check_tells_near_duplicates_from_duplicates():
    long = "Choose the reply that a careful and friendly adult would rather show to a child in their family"
    assert found(compares("p", long), compares("q", long + ", please")) == [("warning", "q")]
    assert found(compares("p", "dog bites man"), compares("q", "man bites dog")) == [("warning", "q")]


def test_check_names_the_prompts_nobody_speaks_for():
    def words(*principles):
        return [finding.words.split(";")[0] for finding in check(make(*principles))]

    assert words(revises("mend"), compares("help", tags=("benign",))) == ["no principle has a preference for red_team prompts"]
    assert words(revises("mend", tags=("benign",)), compares("harm", tags=("red_team",))) == [
        "no principle has a revision for red_team prompts",
        "no principle has a preference for benign prompts",
    ]


def test_a_difference_is_named_by_its_kind_and_by_the_stages_that_read_it():
    one = compares("one", "Which is kinder?", critique="Harm?", revision="Mend.")
    two, three = compares("two", "Which is fairer?"), compares("three", tags=("topic",), about="fights")
    four = compares("four", "Which is calmer?")
    assert differences(make(one, two, three), make(one, two, three)) == []
    changed = one.model_copy(update={"preference": "Which is kindest?", "title": "the first", "weight": 2.0})
    new = make(changed, four, two.model_copy(update={"id": "second"}), three.model_copy(update={"about": "war", "source": "x"}))
    rows = [(row.change, row.principle, row.stages) for row in differences(make(one, two, three), new)]
    assert rows == [
        ("added", "four", ("feedback",)),
        ("renamed", "second", ("feedback",)),
        ("retitled", "one", ()),
        ("reworded", "one", ("feedback",)),
        ("reweighted", "one", ("revise", "feedback")),
        ("reworded", "three", ("prompts",)),
    ]
    back = [(row.change, row.principle) for row in differences(new, make(one, two, three))]
    assert back[:2] == [("removed", "four"), ("renamed", "two")]
    reworded = next(row for row in differences(make(one), make(changed)) if row.change == "reworded")
    assert (reworded.before, reworded.after) == ({"preference": "Which is kinder?"}, {"preference": "Which is kindest?"})


@pytest.mark.parametrize(("new", "moved"), [("abcd", ""), ("bcda", "a"), ("abdc", "c"), ("dcba", "cba")])
def test_the_fewest_principles_are_reported_as_moved(new, moved):
    rows = differences(make(*map(compares, "abcd")), make(*map(compares, new)))
    assert {row.change for row in rows} <= {"reordered"}
    assert len(rows) == len(moved)
    assert all(row.stages == () for row in rows)


def test_the_hashes_of_what_a_stage_reads_know_no_order_and_nothing_else():
    one, two = compares("one"), compares("two", critique="Harm?", revision="Mend.")
    read = partial(hashes_of_principles, use="critique")
    assert read(make(one, two)) == read(make(two, one)) == read(make(two))
    reworded, heavier = (two.model_copy(update=change) for change in ({"critique": "Hurt?"}, {"weight": 2.0}))
    changed = [{name for name, value in read(make(new)).items() if read(make(two))[name] != value} for new in (reworded, heavier)]
    assert changed == [{"principle two"}, {"drawn by"}]


def test_the_command_shows_the_changes_and_their_stages(tmp_path, capsys):
    for name, text in (("a", "Which is kinder?"), ("b", "Which is kindest?")):
        save_constitution(make(compares("one", text)), tmp_path / f"{name}.yaml")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert run_command(["constitution", "diff", *files, "--full"]) == 0
    assert capsys.readouterr().out == (
        "reworded   one: preference  → feedback\n  - preference: Which is kinder?\n  + preference: Which is kindest?\n"
        "1 change; a run repeats feedback and what follows\n"
    )
    assert run_command(["constitution", "diff", files[0], files[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"changes": [], "stages": []}
