"""Principles out of votes: what is chosen, what chance cannot choose, and the commands from a file of votes to a constitution."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from charter.commands.app import run_command
from charter.constitution.constitution import Principle, load_constitution, save_constitution
from charter.judging.candidates import UNUSABLE, gather_candidates, propose, rule_of
from charter.judging.inference import EVERYONE, NO_GROUP, groups_of, held_out_pairs, infer
from charter.judging.judge import Comparison
from charter.judging.protocols import DialogueJudge, dialogue, margin_between
from charter.judging.vote_pairs import as_response, ask_principles, margin_that_says, panel_of, peoples_pairs, read_peoples_pairs
from charter.models.sampling.sampler import LocalSampler, Sample
from charter.models.trunk import load_trunk
from charter.raters.principle_weights import choose_and_confirm, fit_weights
from charter.recipe.source import locate
from charter.records import Message, Prompt
from charter.run.files import write_jsonl
from charter.testbed.voters import candidate_rows, simulate_votes
from charter.votes.training_rows import PairRow
from feedback_folder import respond, vote, write_folder

TESTBED = locate("package:charter.testbed/model", Path())


def principles(*names: str) -> list[Principle]:
    return [Principle(id=name, title=name, preference=f"Choose the reply with more {name}.") for name in names]


def planted_votes(n: int, weights: dict[str, list[float]], seed: int):
    """Votes of raters on n pairs, by as many principles as ``weights`` has entries; the panel of these and of six others."""
    rng = np.random.default_rng(seed)
    count = len(next(iter(weights.values())))
    margins = rng.normal(size=(count + 6, n)) * 4
    margins[np.abs(margins) < 1.5] = 0  # says nothing there
    rows = []
    prompts = [Prompt.ask(f"Question {i}?") for i in range(n)]
    for rater, weight in weights.items():
        p = 1 / (1 + np.exp(-(np.array(weight) @ np.tanh(margins[:count] / 2))))
        for i, first in enumerate(rng.random(n) < p):
            texts = ("first", "second") if first else ("second", "first")
            rows.append(PairRow(prompt=prompts[i], chosen=texts[0], rejected=texts[1], group_id=str(i), rater_id=rater))
    votes = peoples_pairs(iter(rows))
    turned = np.array([1 if pair.first.text == "first" else -1 for pair in votes.pairs])
    return votes, panel_of(np.repeat((margins * turned)[:, :, None], 2, axis=2), margins.size)


def test_what_the_voters_follow_is_kept_with_its_weight_and_nothing_else():
    votes, panel = planted_votes(800, {"ann": [2.0, 1.0, 0.0]}, seed=0)
    names = principles("a", "b", "c", "d", "e", "f", "g", "h", "i")
    result = infer(votes, panel, names, seed=0, groups=groups_of(votes, None))[0]
    assert {names[c].id for c in result.kept} == {"a", "b"}
    assert dict(zip(result.kept, result.weights, strict=True))[0] == pytest.approx(2.0, abs=0.6)
    assert result.rows[0]["ci"][0] > 0.5
    assert result.rows[0]["coverage"] == pytest.approx((panel.margins[0] != 0).mean(), abs=0.05)
    assert result.rows[2]["reason"] == "adds too little to what is kept"
    assert result == infer(votes, panel, names, seed=0, groups=groups_of(votes, None))[0]  # no chance in it


def test_each_rater_and_each_group_has_its_principles():
    votes, panel = planted_votes(500, {"ann": [3.0, 0.0], "bob": [0.0, 3.0], "cy": [0.0, 3.0]}, seed=1)
    names = principles(*"abcdefgh")
    by_rater = {
        r.group: {names[c].id for c in r.kept} for r in infer(votes, panel, names, seed=0, groups=groups_of(votes, "rater"))
    }
    assert by_rater == {EVERYONE: {"a", "b"}, "ann": {"a"}, "bob": {"b"}, "cy": {"b"}}
    groups = groups_of(votes, "group", {"ann": "north", "bob": "south"})
    assert {name: int(mask.sum()) for name, mask in groups.items()} == {EVERYONE: 1500, "north": 500, "south": 500, NO_GROUP: 500}


def test_a_copy_of_a_kept_principle_is_left_out_with_its_reason():
    votes, panel = planted_votes(400, {"ann": [3.0]}, seed=2)
    copied = panel_of(np.concatenate([panel.orders, panel.orders[:1]]), 0)
    rows = infer(votes, copied, principles(*"abcdefgh"), seed=0, groups=groups_of(votes, None))[0].rows
    kept, left = ("a", "h") if rows[0]["kept"] else ("h", "a")
    assert [row["reason"] for row in rows if row["id"] == left] == [f"says the same as {kept} about 100% of the votes"]


def test_of_fifty_principles_that_say_anything_none_is_kept():
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pair = np.repeat(np.arange(60), 2)
        taste = rng.normal(size=60)
        sign = np.where(rng.random(120) < 1 / (1 + np.exp(-taste[pair])), 1, -1)
        says = np.tanh(rng.normal(size=(60, 50)) * 2)[pair] * sign[:, None]
        kept += bool(choose_and_confirm(says, pair % 2 == 1, pair.astype(str).tolist()).principles)
    assert kept <= 1  # 5% of 20


def test_a_weight_is_the_log_odds_with_which_a_principle_is_followed():
    says = np.array([[1.0]] * 900 + [[-1.0]] * 100)
    assert fit_weights(says)[0] == pytest.approx(math.log(9), abs=0.01)
    assert fit_weights(-says).tolist() == [0.0]


def test_no_dialogue_opening_is_on_both_sides():
    opening = Message(role="user", content="Hello?")
    prompts = [
        Prompt(messages=(opening, Message(role="assistant", content="Hm."), Message(role="user", content=f"And {i}?")))
        for i in range(4)
    ] + [Prompt.ask(f"Else {i}?") for i in range(9)]
    rows = [PairRow(prompt=prompt, chosen="yes", rejected="no", group_id="g", rater_id="ann") for prompt in prompts]
    votes = peoples_pairs(iter(rows))
    for seed in range(5):
        out = held_out_pairs(votes, seed)
        assert len(set(out[:4].tolist())) == 1
        assert 0 < out.sum() < len(out)


def test_votes_of_several_raters_share_a_pair_and_what_decides_nothing_is_counted(tmp_path):
    prompt = Prompt.ask("hi")
    yes, no = respond(prompt, "yes"), respond(prompt, "no")
    folder = write_folder(
        tmp_path / "votes", [prompt], [yes, no],
        [vote("01", (yes, no), (1, 2)), vote("02", (no, yes), (2, 1), rater_id="bob"),
         vote("03", (yes, no), (2, 1), rater_id="cy"), vote("04", (yes, no), (1, 1), rater_id="di"),
         vote("05", (yes, no), (1, 2), rater_id="m", rater_kind="judge")],
    )  # fmt: skip
    votes = read_peoples_pairs(folder)
    assert (len(votes.pairs), votes.raters) == (1, ("ann", "bob", "cy"))
    sign = 1 if votes.pairs[0].first.id == yes.id else -1
    assert votes.balance().tolist() == [sign]
    assert votes.left_out == {"a tie": 1, "rater kind judge": 1}
    assert read_peoples_pairs(folder, ("judge",)).raters == ("m",)


def test_a_margin_says_something_where_both_orders_agree():
    assert margin_that_says(2.0, 1.0) == 1.5
    assert margin_that_says(3.0, -1.0) == 0.0  # the position decides
    assert margin_that_says(0.05, 0.05) == 0.0
    assert margin_that_says(math.nan, 1.0) == 0.0
    assert panel_of(np.array([[[2.0, 1.0], [math.nan, math.nan]]]), 2).unread == 1


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('"Choose the reply that is kind."', "Choose the reply that is kind."),
        ("\n- Choose the reply\x1b[31m that helps\nBecause it helps.", "Choose the reply [31m that helps"),
        ("1) Be brief and clear.", "Be brief and clear."),
        ("Yes.", None), ("", None), ("word " * 80, None),
    ],
)  # fmt: skip
def test_the_rule_in_what_a_model_wrote(text, rule):
    assert rule_of(text) == rule


def test_candidates_without_repeats_and_without_what_a_judge_cannot_use():
    supplied = [*principles("care"), Principle(id="old", title="old", critique="Bad?", revision="Mend it.")]
    written = [
        "Choose the reply with more care.",
        "Choose (A) if it is kinder.",
        "Be kind to the user.",
        "no",
        "be kind to the user",
    ]
    candidates = gather_candidates(supplied, written)
    assert [(p.id, p.preference) for p in candidates.principles] == [
        ("care", "Choose the reply with more care."),
        ("proposed-03", "Choose the reply that better keeps this principle: Be kind to the user."),
    ]
    assert (candidates.proposed, candidates.duplicates) == (5, 2)
    assert candidates.left_out == {UNUSABLE: 2, "no preference text": 1}


def test_a_candidate_that_asks_for_something_else_is_no_repeat():
    """The words of the template are not the candidate's, and less of a thing is not more of it."""
    detail = "Choose the reply that gives {} detail about the subject that the user asked about in the message."
    written = ["The assistant's answer is polite", "The assistant's answer is rude", detail.format("more"), detail.format("less"),
               "The assistant's answer is rude."]  # fmt: skip
    candidates = gather_candidates([], written)
    assert ([p.id for p in candidates.principles], candidates.duplicates) == ([f"proposed-0{n}" for n in (1, 2, 3, 4)], 1)


class Writer:
    """A sampler that repeats the end of the question."""

    name = "writer"

    def generate(self, conversations, *_, **__):
        return [[Sample(conversation[0].content[-40:], "stop")] for conversation in conversations]


def test_a_proposal_is_asked_of_a_pair_with_the_preferred_response_first():
    votes, _ = planted_votes(12, {"ann": [1.0]}, seed=3)
    pairs = [(pair, float(b)) for pair, b in zip(votes.pairs, votes.balance(), strict=True)]
    assert len(propose(Writer(), pairs, n=5, seed=0)) == 5


def test_the_dialogue_protocol_asks_where_the_response_stands():
    rule = Principle(id="p", title="p", preference="Which is better?", question="Is it rude?")
    prompt = Prompt.ask("Hello?")
    comparison = Comparison(prompt, as_response(prompt, "Go."), as_response(prompt, "Hi."), rule)
    assert [(m.role, m.content) for m in dialogue(comparison, comparison.second)] == [
        ("user", "Hello?"), ("assistant", "Hi."), ("user", "Is it rude?")
    ]  # fmt: skip
    assert margin_between(0.75, 0.25) == pytest.approx(math.log(3))
    assert margin_between(0.9999, 0.9999) == 0.0  # both good: it says nothing
    assert math.isfinite(margin_between(1.0, 0.0))
    assert math.isnan(margin_between(math.nan, 0.5))


def test_the_tiny_model_reads_the_area_of_a_principle_in_a_dialogue():
    judge = DialogueJudge(LocalSampler(load_trunk(TESTBED), "testbed"))
    rows = {row["title"]: Principle.model_validate(row) for row in candidate_rows(1, 0)}
    votes = simulate_votes(["peace"], 120, 0, noise=0.0)
    pairs = peoples_pairs(
        iter(PairRow(prompt=v.prompt, chosen=v.chosen, rejected=v.rejected, group_id="", rater_id="a") for v in votes)
    )
    panel = ask_principles(judge, [rows["peace"], rows["helpful"]], pairs.pairs)
    decided = panel.margins[0] != 0
    assert 4 <= decided.sum() <= 20  # the harmful requests of one area of five
    assert ((panel.margins[0] > 0) == (pairs.balance() > 0))[decided].mean() > 0.9
    harmful = np.array(["red_team" in pair.prompt.tags for pair in pairs.pairs])
    assert not panel.margins[1][harmful].any()  # "helpful" is for harmless requests
    assert panel.unread == 0


@pytest.fixture(scope="module")
def testbed_votes(tmp_path_factory):
    """Votes of the testbed and two candidates, in a folder."""
    folder = tmp_path_factory.mktemp("votes")
    assert run_command(["testbed", "votes", "--principles", "helpful", "--n", "60", "--voters", "2", "--out", str(folder)]) == 0
    candidates = folder / "candidates.yaml"
    rules = load_constitution(candidates)
    few = [p for p in rules.principles if p.title in ("helpful", "peace")]
    save_constitution(rules.model_copy(update={"principles": tuple(few)}), candidates)
    return folder


def test_from_votes_to_a_constitution_and_back(testbed_votes, tmp_path, capsys):
    out, pairs = tmp_path / "c.yaml", tmp_path / "pairs.json"
    arguments = [str(testbed_votes / "votes.jsonl"), "--protocol", "dialogue"]
    infer_ = ["constitution", "infer", *arguments, "--candidates", str(testbed_votes / "candidates.yaml")]
    assert run_command([*infer_, "--by", "rater", "--out", str(out), "--annotated-pairs", str(pairs), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["groups"][0]["kept"] == ["helpful-1"]
    assert [group["group"] for group in result["groups"]] == [EVERYONE, "voter-1", "voter-2"]
    kept = load_constitution(out).principles
    assert [p.id for p in kept] == ["helpful-1"]
    assert "held-out votes" in kept[0].source
    assert run_command(["constitution", "check", str(out)]) == 0
    judged = [json.loads(line) for line in out.with_suffix(".votes.jsonl").read_text().splitlines()]
    assert len(judged) == 2 * result["pairs"]
    assert {row["principle"] for row in judged} == {"helpful-1", "peace-1"}
    capsys.readouterr()
    assert run_command(["explain", *arguments, "--constitution", str(out), "--show", "1"]) == 0
    lines = capsys.readouterr().out
    assert "helpful-1" in lines
    assert "  yes\n" in lines
    # What was written for Feedback Forensics reads as the same votes, and its principles as candidates.
    again = ["constitution", "infer", str(pairs), "--candidates", str(pairs), "--out", str(tmp_path / "d.yaml"), "--json"]
    assert run_command(again) in (0, 1)
    result_again = json.loads(capsys.readouterr().out)
    assert (result_again["votes"], result_again["pairs"]) == (result["votes"], result["pairs"])
    assert result_again["candidates"] == 2


def test_nothing_is_written_where_no_candidate_predicts(testbed_votes, tmp_path, capsys):
    rules = load_constitution(testbed_votes / "candidates.yaml")
    save_constitution(rules.model_copy(update={"principles": rules.principles[:1]}), tmp_path / "one.yaml")
    out = tmp_path / "c.yaml"
    arguments = [str(testbed_votes / "votes.jsonl"), "--candidates", str(tmp_path / "one.yaml"), "--protocol", "dialogue"]
    assert run_command(["constitution", "infer", *arguments, "--out", str(out)]) == 1
    assert not out.exists()
    printed = capsys.readouterr()
    assert "nothing kept" in printed.out
    assert "no candidate predicts the held-out votes" in printed.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "c.yaml"], "no candidates; give --candidates FILE"),
        (["--out", "c.json", "--propose", "1"], "end --out with .yaml"),
        (["--out", "c.yaml", "--propose", "1", "--protocol", "dice"], "--protocol 'dice'"),
        (["--out", "c.yaml", "--propose", "1", "--by", "group"], "--groups FILE belong together"),
        (["--out", "c.yaml", "--propose", "1", "--by", "town"], "--by 'town'"),
        (["--out", "c.yaml", "--propose", "1", "--rater-kind", "cat"], "--rater-kind 'cat'"),
        (["--out", "c.yaml", "--propose", "1", "--rater-kind", "judge"], "no vote of kind judge decides"),
        (["--out", "c.yaml", "--propose", "1", "--endpoint", "http://x/v1"], "give --model NAME"),
        (["--out", "c.yaml", "--propose", "1", "--endpoint", "x", "--model", "m"], "--endpoint"),
        (["--out", "c.yaml", "--propose", "1", "--api-key-env", "KEY"], "--api-key-env is for --endpoint"),
    ],
)
def test_options_that_do_not_fit(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "votes.jsonl", simulate_votes(["helpful"], 2, 0))
    assert run_command(["constitution", "infer", "votes.jsonl", *options]) == 2
    assert words in capsys.readouterr().err
