"""Critique and revision: what is kept, what is excluded and why, and that seeds belong to prompts."""

import json

import pytest
import yaml

from charter.commands.app import run_command
from charter.constitution.categorise import categorise
from charter.constitution.constitution import Constitution
from charter.constitution.revise import respond, revise_batch, why_excluded
from charter.evaluation.scorers import Scorer, Verdict
from charter.models.sampling.sampler import LocalSampler, Sample
from charter.models.trunk import load_trunk
from charter.records import Generation, Message, Prompt, Response, Revision
from charter.stages.gates import Gates
from charter.stages.revise.exclusions import change_for
from charter.stages.revise.run import change_words, check_revisions, helpful_answers
from charter.stages.revise.settings import ReviseSettings
from charter.statistics import paired_difference
from charter.tasks.pilot import labelled
from conftest import CONSTITUTION, HARMFUL

RULES = Constitution.model_validate(CONSTITUTION)
PROMPTS = [Prompt.ask(text, tags=("red_team",)) for text in HARMFUL[:6]]
SETTINGS = ReviseSettings(rounds=2, max_new_tokens=10)


def response(text: str, finish: str = "stop") -> Response:
    return Response(prompt_id="p", model="m", text=text, finish_reason=finish, generation=Generation(seed=0, temperature=1.0))


@pytest.mark.parametrize(
    ("critique", "revision", "reason"),
    [
        (response("Yes."), response("I will not."), None),
        (response("Yes."), response("I will n", "length"), "revision cut off"),
        (response("Yes, it w", "length"), response("I will not."), "critique cut off"),
        (response("I will not."), response(" I will not. "), "revision equals critique"),
        (response("Yes."), response("  "), "empty revision"),
        (response(" \n"), response("I will not."), "empty critique"),
        (response("Yes."), response("Fine.[INST]"), "template tokens in the revision"),
        (response("Yes."), response("ASSISTANT: fine"), "template tokens in the revision"),
        (response("Yes."), response("first\nRevision: fine"), "template tokens in the revision"),
        (response("Yes."), response("<|user|>fine"), "template tokens in the revision"),
        (response("Human: yes"), response("fine"), "template tokens in the critique"),
        (response("Yes."), response("The assistant: a story in two lines"), None),
    ],
)
def test_rows_that_would_teach_the_wrong_thing_are_excluded_with_the_reason(critique, revision, reason):
    assert why_excluded(critique, revision) == reason


@pytest.fixture(scope="module")
def sampler(random_llama):
    return LocalSampler(load_trunk(str(random_llama)), "base")


def originals(sampler, prompts):
    groups = respond(sampler, prompts, SETTINGS, seed=1, what="revise", k=1)
    return [group[0] for group in groups]


def test_every_round_of_every_prompt_is_recorded_with_its_principle(sampler):
    rows = revise_batch(sampler, PROMPTS, originals(sampler, PROMPTS), RULES, SETTINGS, seed=1)
    assert [(row.prompt_id, row.round) for row in rows] == [(p.id, n) for p in PROMPTS for n in (1, 2)]
    assert {row.principle for row in rows} == {"harmless"}
    for first, second in zip(rows[0::2], rows[1::2], strict=True):
        carried = first.original if first.excluded else first.revision
        assert second.original == carried
        assert len({first.critique.generation.seed, first.revision.generation.seed, second.critique.generation.seed}) == 3


def test_a_row_does_not_depend_on_its_neighbours(sampler):
    all_rows = revise_batch(sampler, PROMPTS, originals(sampler, PROMPTS), RULES, SETTINGS, seed=1)
    alone = revise_batch(sampler, PROMPTS[2:3], originals(sampler, PROMPTS[2:3]), RULES, SETTINGS, seed=1)
    assert [row.revision.text for row in all_rows[4:6]] == [row.revision.text for row in alone]


class Listener:
    """A sampler that keeps what it is asked and always says the same."""

    name = "listener"

    def __init__(self):
        self.asked = []

    def generate(self, conversations, seeds, **_):
        self.asked += [[message.content for message in conversation] for conversation in conversations]
        return [[Sample("Fine.", "stop") for _ in own] for own in seeds]


def test_few_shots_stand_before_the_conversation_and_the_principle_after_it():
    listener = Listener()
    shots = [Message(role="user", content="Example?"), Message(role="assistant", content="Answer.")]
    start = [response("First answer.")]
    revise_batch(listener, PROMPTS[:1], start, RULES, ReviseSettings(rounds=1), seed=1, few_shots=shots)
    harmless = RULES.principles[0]
    asked = ["Example?", "Answer.", HARMFUL[0], "First answer.", harmless.critique]
    assert listener.asked == [asked, [*asked, "Fine.", harmless.revision]]


def test_every_prompt_gets_a_topic_or_none_of_these(sampler):
    found = categorise(PROMPTS, RULES, sampler)
    assert {p.principle for p in found} <= {"harmless", None}
    assert [p.id for p in found] == [p.id for p in PROMPTS]
    given = [PROMPTS[0].model_copy(update={"principle": "helpful"})]
    assert categorise(given, RULES, sampler) == given


# -- gates -----------------------------------------------------------------------------------------------------------------


def judged(stage, n, n_usable, n_safer, **settings):
    """The gates after n prompts with harmful answers, of which the first have a usable revision, and of these some a safe one;
    the other revisions are cut off."""
    prompts = [Prompt.ask(f"Prompt {i}", tags=("red_team",)) for i in range(n)]
    rows = []
    for i, prompt in enumerate(prompts):
        revision = response("safe" if i < n_safer else "harm", "stop" if i < n_usable else "length")
        rows.append(
            Revision(
                prompt_id=prompt.id, round=1, principle="harmless", original=response("harm"), critique=response("Yes."),
                revision=revision, excluded=why_excluded(response("Yes."), revision),
            )
        )  # fmt: skip
    scorer = Scorer("words", lambda _, texts: [Verdict(harmful=text == "harm") for text in texts])
    gates = Gates(stage.run, override=True)
    assert check_revisions(gates, stage, ReviseSettings(**settings), scorer, prompts, [True] * n, [rows]) == n_usable
    return {gate["name"]: (gate["passed"], gate["message"]) for gate in gates.met}


def test_few_usable_revisions_are_blamed_on_their_exclusions_and_not_on_what_they_teach(stage):
    gates = judged(stage, 40, 6, 1, max_new_tokens=64)
    passed, words = gates["usable revisions"]
    assert not passed
    assert words == (
        "6 of 40 prompts have a usable revision; 34 of 40 revisions are excluded (34 revision cut off); too few to tell whether "
        "they are safer; raise revise.max_new_tokens above 64; set revise.top_p to 0.9 or lower revise.temperature"
    )
    assert gates["revisions are safer"][1].endswith("too few prompts to tell; raise revise.prompts")


def test_few_usable_revisions_that_are_safer_pass(stage):
    gates = judged(stage, 40, 12, 12, top_p=0.9)
    assert gates["usable revisions"] == (
        True, "12 of 40 prompts have a usable revision; 28 of 40 revisions are excluded (28 revision cut off); "
              "raise revise.max_new_tokens above 96",
    )  # fmt: skip
    assert gates["revisions are safer"][0]


def test_many_revisions_that_are_not_safer_teach_nothing(stage):
    gates = judged(stage, 400, 400, 2)
    assert gates["usable revisions"] == (True, "400 of 400 prompts have a usable revision")
    assert not gates["revisions are safer"][0]
    assert gates["revisions are safer"][1].endswith("training on them would teach nothing")


def test_revisions_that_do_more_harm_are_called_that():
    words = change_words(paired_difference([0.0] * 30 + [1.0] * 4, [1.0] * 15 + [0.0] * 15 + [1.0] * 4))
    assert "changes by +44 points on 34 prompts" in words
    assert words.endswith("the revisions do more harm than the answers; use a stronger critic (revise.critic) or contrast pairs")


def test_without_a_usable_revision_nothing_is_judged(stage):
    gates = judged(stage, 8, 0, 0)
    assert not gates["usable revisions"][0]
    assert not gates["revisions are safer"][0]
    assert "teach nothing" not in gates["revisions are safer"][1]


@pytest.mark.parametrize(
    ("reason", "settings", "words"),
    [
        ("revision cut off", {}, "raise revise.max_new_tokens above 96; set revise.top_p to 0.9 or lower revise.temperature"),
        ("critique cut off", {"temperature": 0.5}, "raise revise.max_new_tokens above 96"),
        ("revision equals critique", {}, "give revise.few_shots, or name a stronger model as revise.critic"),
        ("template tokens in the revision", {"top_k": 20}, "give revise.few_shots, or name a stronger model as revise.critic"),
        ("empty revision", {"context": "Be kind."}, "look at the template of the model with charter show-tokens; reword "
                                                    "revise.context, or name a stronger model as revise.generator"),
    ],
)  # fmt: skip
def test_every_reason_to_exclude_names_a_setting_to_change(reason, settings, words):
    assert "; ".join(change_for(reason, ReviseSettings(**settings))) == words


# -- the pilot -------------------------------------------------------------------------------------------------------------


def test_a_pilot_shows_the_texts_of_the_run_and_writes_nothing(tmp_path, write_recipe, random_llama, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(random_llama)
    before = sorted(tmp_path.rglob("*"))
    assert run_command(["revise", str(recipe), "--pilot", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert sorted(tmp_path.rglob("*")) == before
    assert len(rows) == 10
    assert run_command(["revise", str(recipe), "--out", "run", "--quiet"]) == 0
    originals = [json.loads(line) for line in (tmp_path / "run/revise/originals.jsonl").read_text().splitlines()]
    revisions = [json.loads(line) for line in (tmp_path / "run/revise/revisions.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [original["text"] for original in originals[:10]]
    assert [part["revision"] for row in rows for part in row["rounds"]] == [r["revision"]["text"] for r in revisions[:20]]
    assert [part["excluded"] for row in rows for part in row["rounds"]] == [r["excluded"] for r in revisions[:20]]

    capsys.readouterr()
    assert run_command(["revise", str(recipe), "--pilot"]) == 0
    out = capsys.readouterr().out
    assert "── 10 of 10 " in out
    findings = out.partition("Likely wrong, and what to change:\n")[2]
    words = " ".join(findings.split())
    assert " answers are cut off at 12 tokens: raise revise.max_new_tokens above 12; set revise.top_p to 0.9" in words
    assert run_command(["revise", str(recipe), "--pilot", "--out", "run"]) == 2
    assert "--pilot keeps nothing; leave out --out" in capsys.readouterr().err


def test_a_pilot_of_answers_in_a_context_shows_the_context(write_recipe, random_llama, capsys):
    recipe = write_recipe(random_llama, revise={"context": "Be kind.", "rounds": 1})
    values = yaml.safe_load(recipe.read_text())
    del values["revise"]["rounds"]
    recipe.write_text(yaml.safe_dump(values))
    assert run_command(["revise", str(recipe), "--pilot"]) == 0
    out = capsys.readouterr().out
    assert "\ncontext   Be kind.\n" in out
    assert "critique" not in out.partition("Likely wrong")[0]


def test_a_text_of_a_model_cannot_move_the_cursor_of_a_pilot():
    lines = list(labelled("answer", "red \x1b[31m " + "word " * 30 + "\n\nnext\u202e", 60, "harmful"))
    assert lines[0].startswith("answer    [harmful] red \\x1b[31m word")
    assert all(len(line) <= 60 and line.isprintable() for line in lines)
    assert lines[-2:] == ["", "          next\\u202e"]


def test_the_share_of_helpful_answers_is_of_the_revisions_that_are_learned():
    rounds = [[Revision(prompt_id=str(i), round=n, principle="p", original=response("o"), critique=response("c"),
                        revision=response("r"), excluded="empty revision" if (i, n) == (0, 2) else None) for i in range(8)]
              for n in (1, 2)]  # fmt: skip
    assert helpful_answers(8, rounds, 0.5, all_rounds=False) == 8
    assert helpful_answers(8, rounds, 0.5, all_rounds=True) == 15
    assert helpful_answers(8, rounds, 0.25, all_rounds=True) == 5
    assert helpful_answers(8, rounds, 0.0, all_rounds=True) == 0
