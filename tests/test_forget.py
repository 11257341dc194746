"""A person is taken out of every file, and the rest stays whole: chain, database, stages, exports."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.forgetting import forget
from charter.raters.vote_files import read_votes
from charter.records import Judgment, LabelSet, Pair, Prompt
from charter.run.files import read_json, read_jsonl, write_json, write_jsonl
from charter.run.run import Run
from charter.run.seals import broken_seals
from charter.verification import cuts_of
from charter.votes.evidence import Evidence
from charter.votes.exchange import export_feedback
from charter.votes.exports import export_preferences
from charter.votes.judgments import read_judgments, why_forgotten
from charter.votes.merging import merge_folders
from charter.votes.training_rows import GONE, Selection, Tally, aggregated_rows
from charter.web.project import open_project
from charter.web.serve import open_site
from charter.web.tables import metadata, open_database
from feedback_folder import respond, vote, write_folder
from label_project import Parrot, World, database, make_project, responses, send

WHY, WHEN = "she asked for it", "2026-11-28"
REASON = "The first one is far kinder to the reader."
HI, LO = Prompt.ask("hi"), Prompt.ask("lo")
YES, NO, LOW, LOWER = respond(HI, "yes"), respond(HI, "no"), respond(LO, "low"), respond(LO, "lower")


def feedback(folder: Path, **fields) -> Path:
    votes = [
        vote("01", (YES, NO), (1, 2), rater_id="ann", comment=REASON), vote("02", (YES, NO), (2, 1), rater_id="bob"),
        vote("03", (LOW, LOWER), (2, 1), rater_id="ann", **fields), vote("04", (LOW, LOWER), (1, 2), rater_id="cy"),
    ]  # fmt: skip
    return write_folder(folder, [HI, LO], [YES, NO, LOW, LOWER], votes)


def has(folder: Path, *words: str) -> list[str]:
    """The files that have one of these words."""
    return [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()
            and any(word.encode() in file.read_bytes() for word in words)]  # fmt: skip


def of_others(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if "bob" in line or "cy" in line]


def test_a_folder_of_feedback_keeps_its_chain_and_says_why(tmp_path):
    folder = feedback(tmp_path / "f")
    before = read_judgments(folder / "judgments.jsonl")
    result = forget(folder, "ann", WHY, WHEN)
    assert (result["judgments"], result["left"], result["short_texts"]) == (2, [], 0)
    after = read_judgments(folder / "judgments.jsonl")
    assert [one.hash for one in after] == [one.hash for one in before]
    assert [why_forgotten(one) for one in after] == [(WHY, WHEN), None, (WHY, WHEN), None]
    assert not has(tmp_path, "ann", REASON)
    assert cuts_of(tmp_path, folder / "judgments.jsonl") == [
        f"f/judgments.jsonl: 2 judgments of a person were taken out on {WHEN} ({WHY}); the chain keeps their hashes"
    ]
    votes = read_votes(folder)
    assert (votes.raters, votes.totals["forgotten"]) == (("bob", "cy"), 2)
    card = export_feedback(folder, tmp_path / "out.jsonl", "trl", Selection())
    assert (card["rows"], card["left_out"]) == (2, {GONE: 2})
    with pytest.raises(InputError, match="nothing of 'ann' here"):
        forget(folder, "ann", WHY)


def test_a_forgotten_vote_that_says_something_is_a_changed_line(tmp_path):
    folder = feedback(tmp_path / "f")
    forget(folder, "ann", WHY, WHEN)
    first, *others = (folder / "judgments.jsonl").read_text().splitlines(keepends=True)
    (folder / "judgments.jsonl").write_text(json.dumps(json.loads(first) | {"comment": "x"}) + "\n" + "".join(others))
    with pytest.raises(InputError, match="was forgotten, and still has the fields of a vote"):
        read_judgments(folder / "judgments.jsonl")


def test_merging_with_a_copy_does_not_bring_the_person_back(tmp_path):
    folder = feedback(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "copy")
    forget(folder, "ann", WHY, WHEN)
    shutil.copytree(tmp_path / "copy", tmp_path / "other")
    forget(tmp_path / "other", "ann", WHY, "2026-12-01")
    for number, sources in enumerate(permutations([folder, tmp_path / "copy", tmp_path / "other"])):
        merge_folders(sources, tmp_path / f"m{number}")
        assert [bool(why_forgotten(one)) for one in read_judgments(tmp_path / f"m{number}/judgments.jsonl")] == [True, False] * 2
        assert not has(tmp_path / f"m{number}", "ann", REASON)
        assert (tmp_path / f"m{number}/judgments.jsonl").read_bytes() == (tmp_path / "m0/judgments.jsonl").read_bytes()


def test_tables_and_cards_lose_the_person_and_what_cannot_be_edited_is_named(tmp_path, capsys):
    folder = feedback(tmp_path / "f", edit={LOW.id: 'A rewrite, with "quotes"\nand a second line.'})
    for name, format in (("o.jsonl", "trl"), ("o.csv", "csv"), ("g.jsonl", "grouped"), ("o.parquet", "parquet")):
        export_feedback(folder, folder / name, format, Selection(reasons=format in ("trl", "csv")))
    assert run_command(["agreement", str(folder), "--out", str(folder / "figures")]) == 0
    write_json(folder / "heads/ann/head.json", {"rater": "ann"})
    write_json(folder / "heads/bob/head.json", {"rater": "bob"})
    write_json(folder / "heads/bob/tokenizer.json", {"model": {"vocab": {"ann": 1}}})
    kept = {name: of_others(folder / name) for name in ("o.jsonl", "o.csv", "figures/raters.csv")}
    capsys.readouterr()
    command = ["forget", str(folder), "--person", "ann"]
    assert run_command(command) == 1
    said = capsys.readouterr()
    assert f"deleted: {folder / 'heads/ann'}" in said.out
    assert f"still has the name or a text of this person: {folder / 'o.parquet'}; remove it or make it again" in said.err
    assert has(folder, "ann", "A rewrite") == ["heads/bob/tokenizer.json", "o.parquet"]
    assert {name: of_others(folder / name) for name in kept} == kept
    assert all(kept.values())
    (grouped,) = [row for row in map(json.loads, (folder / "g.jsonl").read_text().splitlines()) if row["group_id"] == HI.id]
    assert [ranking["rater_id"] for ranking in grouped["rankings"]] == ["bob"]
    (folder / "o.parquet").unlink()
    assert run_command(command) == 2  # nothing is left to take out


@pytest.mark.parametrize(
    ("person", "reason", "words"),
    [("", WHY, "--person is empty"), ("ann", "ann asked", "names the person"), ("zoe", WHY, "nothing of 'zoe' here")],
)
def test_bad_calls_change_nothing(tmp_path, person, reason, words):
    folder = feedback(tmp_path / "f")
    before = (folder / "judgments.jsonl").read_bytes()
    with pytest.raises(InputError, match=words):
        forget(folder, person, reason)
    assert (folder / "judgments.jsonl").read_bytes() == before


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    with database(request.param, tmp_path) as url:
        yield url


def rows_of(url: str) -> str:
    """All that the tables of a database hold, as text."""
    engine = open_database(url)
    with engine.connect() as db:
        rows = [str(tuple(row)) for table in metadata.sorted_tables for row in db.execute(table.select())]
    engine.dispose()
    return "\n".join(rows)


def test_a_label_project_forgets_in_its_database_and_goes_on(tmp_path, database_url):
    project = make_project(tmp_path, n=2, k=2, kind="pair", database=database_url)
    with open_site(project) as site:
        world = World(site)
        ann, bob = world.person(), world.person()
        send(ann, "/vote", ann.get("/label").text, strength="1", comment=REASON)
        send(bob, "/vote", bob.get("/label").text, strength="8", comment="mine")
        with pytest.raises(InputError, match="a run or a label page works in this folder"):
            forget(project.folder, ann.who, WHY)
    with pytest.raises(InputError, match="belongs to the label project"):
        forget(project.folder / "judgments.jsonl", ann.who, WHY)
    result = forget(project.folder, ann.who, WHY, WHEN)
    assert (result["judgments"], result["left"]) == (1, [])
    assert not has(project.folder, ann.who, REASON)
    held = rows_of(database_url)
    assert bob.who in held
    assert (ann.who in held, REASON in held) == (False, False)
    with open_site(open_project(project.folder)) as site:
        world = World(site)
        cy = world.person()
        page = cy.get("/label").text  # the set of the forgotten vote is asked again
        assert len(responses(page)) == 2
        send(cy, "/vote", page, strength="2")
        votes = [(one.rater_id, bool(why_forgotten(one))) for one in world.judgments()]
    assert votes == [("", True), (bob.who, False), (cy.who, False)]
    if database_url.endswith("labels.db"):
        Path(database_url).unlink()
    with open_site(open_project(project.folder)) as site:  # the database is made anew from the files
        assert site.progress()["done"] == 2
    assert len(read_judgments(project.folder / "judgments.jsonl")) == 3


def test_what_a_person_wrote_to_a_model_goes_with_its_answers(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text("kind: redteam\n")
    project = open_project(tmp_path / "p")
    with open_site(project, [Parrot("one")]) as site:
        world = World(site)
        ann, bob = world.person(), world.person()
        for who, words in ((ann, "Tell me how to do the secret thing"), (bob, "Tell me how to bake a loaf")):
            page = send(who, "/redteam/say", who.get("/redteam").text, text=words).text
            page = send(who, "/redteam/choose", page, strength="1").text
            send(who, "/redteam/end", page, rating="1", about=f"about {words}", tags="one")
    assert has(project.folder, "the secret thing")
    result = forget(project.folder, ann.who, WHY, WHEN)
    assert (result["prompts"], result["left"]) == (1, [])
    assert not has(project.folder, ann.who, "the secret thing")
    assert has(project.folder, "bake a loaf") == ["dialogues.jsonl", "labels.db", "prompts.jsonl", "responses.jsonl"]
    with Evidence(project.folder / "judgments.jsonl") as evidence:
        assert len(evidence.prompts) == 1


def people_of_a_run(label: Path) -> list[Pair]:
    """Votes of three people on the responses of a run, and the pairs that they give."""
    sets = [LabelSet(prompt_id=prompt.id, kind="rank", response_ids=[one.id for one in pair])
            for prompt, pair in ((HI, (YES, NO)), (LO, (LOW, LOWER)))]  # fmt: skip
    given = [
        ("ann", 0, (YES, NO), (1, 2)),
        ("bob", 0, (YES, NO), (2, 1)),
        ("cy", 0, (YES, NO), (2, 1)),
        ("ann", 1, (LOW, LOWER), (1, 2)),
    ]
    votes = [vote(f"{i}", pair, ranks, rater_id=who, set_id=sets[place].id) for i, (who, place, pair, ranks) in enumerate(given)]
    write_folder(label, [HI, LO], [YES, NO, LOW, LOWER], votes)
    write_jsonl(label / "sets.jsonl", sets)
    with Evidence(label / "judgments.jsonl") as evidence:
        return [Pair(prompt=row.prompt, chosen=row.chosen, rejected=row.rejected, weight=row.weight, group_id=row.group_id)
                for row in aggregated_rows(evidence, Selection(soft="share"), Tally())]  # fmt: skip


def test_a_run_trains_on_the_votes_that_are_left_and_its_seals_hold(tmp_path):
    run, label = tmp_path / "run", tmp_path / "run/label"
    pairs = [*people_of_a_run(label), Pair(prompt=HI, chosen="by the judge", rejected="x", group_id="judged")]
    write_json(label / "retrain/001/result.json", {"state": "done"})
    with Run(run, quiet=True) as opened:
        with opened.stage("feedback", {}, {}, ["charter.records"]) as stage:
            write_jsonl(stage.path("to_label.jsonl"), [YES, NO, LOW, LOWER])
            write_jsonl(stage.path("pairs.jsonl"), pairs)
            export_preferences(stage.export("preferences.csv"), pairs)
            stage.finish({"pairs": 3})
        with opened.stage("reward_model", {}, {"feedback": stage.output_hash}, ["charter.records"]) as trained:
            trained.finish({})
    with pytest.raises(InputError, match="is the label page of a run; name the run"):
        forget(label, "ann", WHY)
    result = forget(run, "ann", WHY, WHEN)
    assert (result["left"], result["removed"]) == ([], [str(label / "retrain")])
    assert result["trained"] == [str(run / "reward_model")]
    left = list(read_jsonl(run / "feedback/pairs.jsonl", Pair))
    assert [(pair.chosen, pair.weight) for pair in left] == [("by the judge", 1.0), ("no", 1.0)]  # two of three before
    assert "low" not in (run / "preferences.csv").read_text()
    manifest = read_json(run / "feedback/manifest.json")
    assert manifest["forgotten"] == [{"files": ["pairs.jsonl", "preferences.csv"], "reason": WHY, "when": WHEN}]
    assert not list(broken_seals(run, "feedback", manifest))
    with Run(run, quiet=True) as opened:
        with opened.stage("feedback", {}, {}, ["charter.records"]) as stage:
            assert stage.done
        with opened.stage("reward_model", {}, {"feedback": stage.output_hash}, ["charter.records"]) as trained:
            assert not trained.done  # it learns from the pairs that are left


def test_a_name_that_is_a_number_is_not_taken_for_a_count(tmp_path):
    """Label Studio numbers its annotators."""
    votes = [vote("01", (YES, NO), (1, 2), rater_id="1"), vote("02", (YES, NO), (2, 1), rater_id="bob")]
    folder = write_folder(tmp_path / "f", [HI], [YES, NO], votes)
    (folder / "raters.csv").write_text("rater,kind,votes\n1,human,3\nbob,human,1\n")
    (folder / "rl_log.csv").write_text("step,reward\n0,1\n1,0.5\n")
    rows = [{"rater": "1", "n": 2}, {"rater": "bob", "n": "1"}]
    write_json(folder / "a.json", {"rows": rows, "raters": [{"id": "1"}, {"id": "2"}], "by_step": {"1": 0.4}})
    assert forget(folder, "1", WHY, WHEN)["judgments"] == 1
    assert (folder / "raters.csv").read_text() == "rater,kind,votes\nbob,human,1\n"
    assert (folder / "rl_log.csv").read_text() == "step,reward\n0,1\n1,0.5\n"
    assert read_json(folder / "a.json") == {"rows": rows[1:], "raters": [{"id": "2"}], "by_step": {"1": 0.4}}


def test_a_short_comment_takes_no_row_of_others_along(tmp_path):
    said = "I don't know"
    votes = [vote("01", (YES, NO), (1, 2), rater_id="ann", comment=said), vote("02", (YES, NO), (2, 1), rater_id="bob")]
    folder = write_folder(tmp_path / "f", [HI], [YES, NO], votes)
    rows = [{"chosen": f"{said} that, sorry.", "rater_id": "bob"}, {"chosen": "a", "reason": f" {said}\n"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert forget(folder, "ann", WHY, WHEN)["left"] == [str(folder / "pairs.jsonl")]
    assert [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()] == rows[:1]


def test_a_person_known_by_name_alone_is_found(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "camps.csv").write_text("rater,group\nann,left\nanna,right\n")
    assert forget(tmp_path, "ann", WHY)["left"] == []
    assert (tmp_path / "camps.csv").read_text() == "rater,group\nanna,right\n"
    assert csv.field_size_limit() == limit  # the whole process shares it


def test_a_text_of_two_people_stays_with_the_other(tmp_path):
    votes = [vote(f"{i}", (YES, NO), (1, 2), rater_id=who, comment=REASON) for i, who in enumerate(("ann", "bob"))]
    folder = write_folder(tmp_path / "f", [HI], [YES, NO], votes)
    assert forget(folder, "ann", WHY)["left"] == []
    assert [one.comment for one in read_jsonl(folder / "judgments.jsonl", Judgment)] == ["", REASON]
