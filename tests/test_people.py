"""A run whose responses are compared by people, or by a judge that people check."""

import json
import shutil

import pytest
import yaml

from charter.commands.app import run_command
from charter.judging.people import TO_LABEL, PeoplesVotes, agreement_with_people, sample_for_people
from charter.records import Generation, Judgment, LabelSet, Prompt, Response
from charter.run.files import read_jsonl, write_jsonl
from charter.votes.judgments import ulid
from charter.web.project import open_project
from charter.web.serve import open_site
from charter.web.store import RaterAnswer
from conftest import write_some_prompts
from feedback_folder import chain


def response(prompt: str, text: str, seed: int = 0) -> Response:
    return Response(prompt_id=prompt, model="sft", text=text, finish_reason="stop",
                    generation=Generation(seed=seed, temperature=1.0))  # fmt: skip


def vote(one: LabelSet, ranks: dict, rater: str = "ann") -> Judgment:
    return Judgment(id=ulid(), set_id=one.id, prompt_id=one.prompt_id, rater_id=rater, rater_kind="human",
                    order=one.response_ids, ranks=ranks)  # fmt: skip


def label_everything(run_folder, *, but: int = 0, raters=("ann",)) -> list[LabelSet]:
    """People answer on the label page of a run, preferring the longer answer: all sets ``but`` some."""
    (run_folder / "label").mkdir(exist_ok=True)
    (run_folder / "label/label.yaml").write_text(yaml.safe_dump({"overlap": len(raters), "repeat_share": 0.0}))
    project = open_project(run_folder)
    with open_site(project) as site:
        for who in raters:
            left = len(project.items.sets) - but
            while left and (handout := site.store.claim(who, 0.0)) is not None:
                lengths = {key: len(project.items.responses[key].text) for key in handout.order}
                best = sorted(set(lengths.values()), reverse=True)
                ranks = {key: best.index(length) + 1 for key, length in lengths.items()}
                assert site.store.vote(who, handout, RaterAnswer(ranks), 1.0, instructions_hash="v") == "stored"
                left -= 1
    return list(project.items.sets.values())


SMALL = ["prompts.train=60", "prompts.test=4", "revise.prompts=40", "feedback.prompts=24", "sft.epochs=2"]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A small run on the testbed as far as the fine-tuned model."""
    folder = tmp_path_factory.mktemp("people") / "run"
    file = write_some_prompts(folder.with_name("prompts.jsonl"), 60)
    sets = [word for setting in (*SMALL, f"prompts.files=[{file}]") for word in ("--set", setting)]
    assert run_command(["run", "smoke", "--out", str(folder), "--quiet", "--until", "sft", *sets]) == 0
    return folder


@pytest.fixture
def run(fine_tuned, tmp_path, capsys):
    shutil.copytree(fine_tuned, tmp_path / "run")
    file = fine_tuned.with_name("prompts.jsonl")
    sets = [word for setting in (*SMALL, f"prompts.files=[{file}]") for word in ("--set", setting)]

    def command(*more: str) -> tuple[int, str]:
        code = run_command(["run", "smoke", "--out", str(tmp_path / "run"), "--quiet", *sets, *more])
        return code, "".join(capsys.readouterr())

    return command


def test_a_run_waits_for_people_and_goes_on_with_their_votes(run, tmp_path):
    people = ("--feedback", "human", "--until", "reward_model")
    code, words = run(*people)
    assert code == 1, words
    assert f"`charter label {tmp_path / 'run'}`" in words
    n = len({one.prompt_id for one in read_jsonl(tmp_path / "run/feedback" / TO_LABEL, Response)})
    assert f"{n} of {n} prompts still need votes" in words
    label_everything(tmp_path / "run", but=2)
    code, words = run(*people)
    assert code == 1
    assert f"2 of {n} prompts still need votes" in words
    asked = label_everything(tmp_path / "run")
    code, words = run(*people)
    assert code == 0, words
    pairs = [json.loads(line) for line in (tmp_path / "run/feedback/pairs.jsonl").read_text().splitlines()]
    assert all(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs)
    assert 4 <= len(pairs) <= n
    assert {pair["group_id"] for pair in pairs} <= {one.id for one in asked}
    assert not (tmp_path / "run/feedback/judgments.jsonl").exists()
    left_out = json.loads((tmp_path / "run/report.json").read_text())["left_out"]
    reasons = {row["reason"]: row["n"] for row in left_out if row["stage"] == "feedback"}
    assert reasons.get("left out: prompt whose responses are all the same", 0) == 24 - n
    assert reasons.get("left out: people's votes: raters split evenly", 0) == n - len(pairs)
    label_everything(tmp_path / "run", raters=("ann", "bob"))  # votes after the stage was done count too, on the same responses
    texts = (tmp_path / "run/feedback/responses.jsonl").read_bytes()
    code, words = run(*people)
    assert code == 0, words
    result = json.loads((tmp_path / "run/feedback/manifest.json").read_text())["result"]
    assert (result["votes"], result["people"]) == (2 * len(asked), 2)
    assert result["reused"]["responses.jsonl"]["reused"] == result["reused"]["responses.jsonl"]["rows"]
    assert (tmp_path / "run/feedback/responses.jsonl").read_bytes() == texts


def test_people_check_a_judge_and_replace_it_where_they_spoke(run, tmp_path):
    mixed = ("--feedback", "mixed", "--set", "feedback.human_share=0.5", "--until", "reward_model")
    code, words = run(*mixed)
    assert code == 1
    assert "`charter label" in words
    asked = {one.prompt_id for one in label_everything(tmp_path / "run", raters=("ann", "bob"))}
    code, words = run(*mixed)
    assert code == 0, words
    pairs = [json.loads(line) for line in (tmp_path / "run/feedback/pairs.jsonl").read_text().splitlines()]
    for pair in pairs:
        by_people = pair["prompt"]["id"] in asked
        assert (pair["principle"] is None) == by_people
        assert not by_people or len(pair["chosen"]) > len(pair["rejected"])
    assert any(pair["principle"] for pair in pairs)
    people = json.loads((tmp_path / "run/report.json").read_text())["judges"][0]["people"]
    assert people["n"] + people["undecided"] == 2 * sum(pair["prompt"]["id"] in asked for pair in pairs)
    low, high = people["ci"]
    assert low < people["agreement"] < high
    assert "Prefers what people prefer" in (tmp_path / "run/report.html").read_text()


def test_agreement_counts_every_person_once_for_each_pair():
    one, other = LabelSet(prompt_id="p", kind="pair", response_ids=["a", "b"]), LabelSet(
        prompt_id="q", kind="pair", response_ids=["c", "d"]
    )  # fmt: skip
    judge = [vote(one, {"a": 1, "b": 2}), vote(other, {"c": 1, "d": 1})]
    people = [vote(one, {"a": 1, "b": 2}), vote(one, {"a": 2, "b": 1}, "bob"), vote(one, {"a": 1, "b": "F"}, "cid"),
              vote(other, {"c": 1, "d": 2}), vote(one, {"a": 1, "b": 1}, "dan")]  # fmt: skip
    found = agreement_with_people(judge, people)
    assert (found["agreement"], found["n"], found["undecided"]) == (pytest.approx(2 / 3), 3, 1)


def test_people_are_asked_about_a_share_of_what_differs():
    groups = [[response(str(i), "same"), response(str(i), "same" if i % 2 else "other", 1)] for i in range(40)]
    asked = sample_for_people(groups, 0.25, seed=0)
    assert len(asked) == 5
    assert all(len({one.text for one in group}) == 2 for group in asked)
    assert asked == sample_for_people(groups, 0.25, seed=0) != sample_for_people(groups, 0.25, seed=1)
    assert len(sample_for_people(groups, 1.0, seed=0)) == 20
    assert sample_for_people(groups, 0.001, seed=0)


def test_sets_of_an_earlier_run_do_not_count(tmp_path):
    prompt = Prompt.ask("How?")
    old, new = ([response(prompt.id, f"{age} {i}", i) for i in range(2)] for age in ("old", "new"))
    asked = [LabelSet(prompt_id=prompt.id, kind="rank", response_ids=[r.id for r in group]) for group in (old, new)]
    write_jsonl(tmp_path / "prompts.jsonl", [prompt])
    write_jsonl(tmp_path / "responses.jsonl", old + new)
    write_jsonl(tmp_path / "sets.jsonl", asked)
    write_jsonl(tmp_path / "judgments.jsonl", chain([vote(asked[0], {old[0].id: 1, old[1].id: 2})]))
    assert PeoplesVotes(tmp_path, [new]).open == 1
    assert PeoplesVotes(tmp_path, [old]).open == 0
    assert PeoplesVotes(tmp_path / "nothing", [old]).open == 1
    (pair,) = PeoplesVotes(tmp_path, [old]).pairs()
    assert (pair.chosen, pair.rejected, pair.weight) == ("old 0", "old 1", 1.0)
    votes = [vote(asked[0], {old[0].id: 1, old[1].id: 2}).model_copy(update={"strength": 1}),
             vote(asked[0], {old[0].id: 1, old[1].id: 1}, "bob")]  # fmt: skip
    write_jsonl(tmp_path / "judgments.jsonl", chain(votes))
    counted = {"people's votes: preferred by the weakest notch only": 1, "people's votes: raters split evenly": 1}
    assert PeoplesVotes(tmp_path, [old]).decided() == ([], counted)
