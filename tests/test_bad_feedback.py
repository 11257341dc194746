"""Feedback that cannot be read: one line that names file, line and field, exit code 2, and no folder left behind."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.records import Prompt
from charter.votes.imports.files import import_feedback
from feedback_folder import chain, respond, vote, write_folder
from test_bad_input import Case, lay_out, line, says_one_line, snapshot
from test_feedback_imports import (
    ARENA_55K,
    ARGILLA,
    ATTEMPT,
    COMMUNITY,
    HELPSTEER3,
    MULTIPREF,
    PAIRWISE_TASK,
    PRISM,
    RANKER_TASK,
    TREE,
    ULTRAFEEDBACK,
    flattened,
)

PAIR = {"prompt": "hi", "chosen": "a", "rejected": "b"}
GOOD = line(**PAIR)
HI = Prompt.ask("hi")
YES, NO = respond(HI, "yes"), respond(HI, "no")


def bad(name: str, file: str, content: str | bytes, *says: str, options: str = "") -> Case:
    """An import of one file; the error names the file."""
    return Case(name, f"import {file} --out out {options}", (file, *says), {file: content})


def changed(value: object, *path: object, to: object = None) -> str:
    """JSON of a copy of a value in which what stands at ``path`` is ``to``."""
    copy = json.loads(json.dumps(value))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(copy)


def grouped(**changes: object) -> str:
    ranking = {"order": ["x", "y"], "ranks": ["1", "F"], "strength": 0, "weight": 1.0, "rater_id": "ann", "rater_kind": "human"}
    responses = [{"id": "x", "model": "m", "text": "a"}, {"id": "y", "model": "m", "text": "b"}]
    return json.dumps({"prompt": [{"role": "user", "content": "hi"}], "responses": responses, "rankings": [ranking | changes]})


def raw(**changes: str) -> dict[str, str]:
    """The files of a folder of feedback, some of them replaced."""
    sealed = chain([vote("01", (YES, NO), (1, 2)), vote("02", (YES, NO), (2, 1))])
    files = {"prompts": HI.model_dump_json(), "responses": YES.model_dump_json() + "\n" + NO.model_dump_json(),
             "judgments": "\n".join(one.model_dump_json() for one in sealed)}  # fmt: skip
    return {f"f/{name}.jsonl": content + "\n" for name, content in (files | changes).items()}


JUDGMENTS = raw()["f/judgments.jsonl"].splitlines()

IMPORTS = [
    # -- any table
    bad("broken JSON", "p.jsonl", GOOD + '{"prompt": \n', "line 2", "JSON"),
    bad("half a JSON array", "p.json", "[" + GOOD + ",", "line 2", "JSON"),
    bad("an empty file", "p.jsonl", "", "no row"),
    bad("columns that nobody knows", "p.jsonl", line(question="a", answer="b"), "line 1", "question, answer", "--from"),
    bad("columns of another format", "p.jsonl", GOOD, "line 1", "transcript", options="--from hh-red-team"),
    bad("a NUL byte in a text", "p.jsonl", line(prompt="hi", chosen="a\0", rejected="b"), "line 1", "chosen", "NUL"),
    bad("a NUL byte between rows", "p.jsonl", GOOD.encode() + b"\0\n" + GOOD.encode(), "line 2", "JSON"),
    bad("half a surrogate pair", "p.jsonl", '{"prompt": "hi", "chosen": "\\ud83d", "rejected": "b"}', "chosen", "surrogate"),
    bad("a line of 50 MB", "p.jsonl", GOOD + line(prompt="hi", chosen="x" * 50_000_000, rejected="b"), "line 2", "4 MiB"),
    bad("two encodings in a file", "p.jsonl", GOOD.encode() + '{"prompt": "é"}\n'.encode("latin-1"), "line 2", "UTF-8"),
    bad("UTF-16", "p.jsonl", GOOD.encode("utf-16"), "UTF-8"),
    bad("a gzip that was cut short", "p.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], "gzip"),
    bad("a row that is a number", "p.jsonl", GOOD + "7\n", "line 2"),
    bad("JSON nested without end", "p.jsonl", '{"chosen": ' + "[" * 100_000, "line 1"),
    bad("a CSV row that is too short", "p.csv", "prompt,chosen,rejected\nhi,a,b\nhi,a\n", "line 3", "cells"),
    bad("a CSV with an open quote", "p.csv", 'prompt,chosen,rejected\nhi,"a,b\n', "line 2", "CSV"),
    bad("a Parquet file of nothing", "p.parquet", b"PAR1", "Parquet"),
    Case("a format that does not exist", "import p.jsonl --out out --from xml", ("xml", "trl"), {"p.jsonl": GOOD}),
    # -- votes of people
    bad("a dialogue that is a text", "p.jsonl", changed(PRISM, "conversation_history", to="x"), "line 1", "not a list"),
    bad("a turn without a question", "p.jsonl", changed(PRISM, "conversation_history", 0, "role", to="model"), "turn 0"),
    bad("a fifth answer", "c.jsonl", changed(COMMUNITY, "first_turn_preferred_response", to="response_e"), "response_a"),
    bad("an unknown preference", "m.jsonl", changed(MULTIPREF, "expert_worker_annotations", 0, "overall_pref", to="C"), "'C'"),
    bad("a score beyond the scale", "h.jsonl", changed(HELPSTEER3, "individual_preference", 0, "score", to=4), "-3 to 3"),
    bad("no vote of anybody", "h.jsonl", changed(HELPSTEER3, "individual_preference", to=[]), "no preference of a single"),
    # -- pairs and labels
    bad("no rejected answer", "p.jsonl", line(prompt="hi", chosen="a", rejected=None), "line 1", "rejected"),
    bad("an answer that is a number", "p.jsonl", line(prompt="hi", chosen=7, rejected="b"), "line 1", "chosen"),
    bad("a prompt of white space", "p.jsonl", line(prompt=" ", chosen="a", rejected="b"), "line 1", "prompt"),
    bad("nothing but equal answers", "p.jsonl", line(prompt="hi", chosen="a", rejected="a") * 2, "2 x", "identical"),
    bad("a probability of two", "p.jsonl", line(**PAIR, p=2), "line 1", "'p'"),
    bad("a strength of nine", "p.jsonl", line(**PAIR, strength=9), "line 1", "strength"),
    bad("a negative strength", "p.jsonl", line(**PAIR, strength=-2), "line 1", "strength"),
    bad("a rater of no kind", "p.jsonl", line(**PAIR, rater_kind="dog"), "line 1", "rater_kind", "human"),
    bad("a transcript without turns", "p.jsonl", line(chosen="hello", rejected="hi"), "line 1", "chosen", "transcript"),
    bad("a label that is a word", "p.jsonl", line(prompt="a", completion="b", label="good"), "line 1", "label"),
    bad("a label of two", "p.csv", "prompt,completion,label\na,b,2\n", "line 2", "label"),
    # -- grouped rankings
    bad("a negative rank", "g.jsonl", grouped(ranks=["-1", "2"]), "line 1", "ranks", "from 1"),
    bad("a rank of zero", "g.jsonl", grouped(ranks=[0, 1]), "line 1", "ranks"),
    bad("a rank too few", "g.jsonl", grouped(ranks=["1"]), "line 1", "rankings.0.ranks"),
    bad("a ranking of a response that is not there", "g.jsonl", grouped(order=["x", "q"]), "line 1", "'q'"),
    bad("a response shown twice", "g.jsonl", grouped(order=["x", "x"]), "line 1", "duplicate response"),
    # -- published and tools
    bad("a red-team rating of eleven", "r.jsonl", changed(ATTEMPT, "rating", to=11), "line 1", "rating"),
    bad("tags that are no list", "r.jsonl", changed(ATTEMPT, "tags", to={"a": 1}), "line 1", "tags"),
    bad("a tree with a negative rank", "t.jsonl", changed(TREE, "prompt", "replies", 0, "rank", to=-1), "line 1", "rank"),
    bad("a tree with a message twice", "t.jsonl", changed(TREE, "prompt", "replies", 0, "message_id", to="t1"), "duplicate"),
    bad("a message without its parent", "t.jsonl", json.dumps(flattened(TREE)[1]), "line 1", "parent_id", "'t1'"),
    bad("a tree with a role of its own", "t.jsonl", changed(TREE, "prompt", "role", to="king"), "line 1", "role", "king"),
    bad("completions that are no list", "u.jsonl", changed(ULTRAFEEDBACK, "completions", to=3), "line 1", "completions"),
    bad("neither left nor right", "l.json",
        json.dumps([json.loads(changed(PAIRWISE_TASK, "annotations", 0, "result", 0, "value", "selected", to="up"))]),
        "item 1", "annotations.0.result.0.value.selected", "'up'"),
    bad("an annotation that is there twice", "l.json", json.dumps([PAIRWISE_TASK, PAIRWISE_TASK]), "item 2", "'11'", "duplicate"),
    bad("a ranker of an unknown item", "l.json",
        json.dumps([json.loads(changed(RANKER_TASK, "annotations", 2, "result", 0, "value", "ranker", to=["q"]))]), "'q'"),
    bad("a record that is there twice", "a.json", json.dumps([ARGILLA[0], ARGILLA[0]]), "item 2", "id", "duplicate"),
    bad("a ranking of no field", "a.json",
        json.dumps([json.loads(changed(ARGILLA[0], "responses", "ranking", 0, "value", 0, "value", to="q"))]), "item 1", "'q'"),
    bad("an argilla rank of minus one", "a.json",
        json.dumps([json.loads(changed(ARGILLA[0], "responses", "ranking", 0, "value", 0, "rank", to=-1))]), "item 1", "rank"),
    bad("two winners", "w.csv", ARENA_55K.replace("0,1,0", "1,1,0"), "line 2", "winner_model_a", "exactly one"),
    bad("a winner of no name", "w.jsonl", line(model_a="a", model_b="b", winner="up", conversation_a=[], conversation_b=[]),
        "line 1", "winner", "'up'"),
    bad("votes without answers", "w.jsonl", line(model_a="a", model_b="b", winner="a"), "line 1", "charter ratings"),
    bad("turns that are no JSON", "w.csv", ARENA_55K.replace('"[""hi""]"', "[hi"), "line 2", "response_a", "JSON"),
    bad("an arena id that is there twice", "w.csv", ARENA_55K.replace("\n4,", "\n1,"), "line 5", "id", "duplicate"),
    # -- folders
    Case("a saved dataset that names a file outside", "import d --out out", ("d/state.json", "../p.arrow"),
         {"d/state.json": '{"_data_files": [{"filename": "../p.arrow"}]}'}),
    Case("a saved dataset whose file is none", "import d --out out", ("d/x.arrow", "Arrow"),
         {"d/state.json": '{"_data_files": [{"filename": "x.arrow"}]}', "d/x.arrow": b"\xff" * 64}),
    Case("a judgment that was changed", "import f --out out", ("f/judgments.jsonl", "line 2", "hash"),
         raw(judgments="\n".join([JUDGMENTS[0], JUDGMENTS[1].replace('"ann"', '"bob"')]))),
    Case("a judgment that is missing", "import f --out out", ("f/judgments.jsonl", "line 1", "taken out"),
         raw(judgments=JUDGMENTS[1])),
    Case("a judgment that is there twice", "import f --out out", ("f/judgments.jsonl", "line 3", "duplicate judgment"),
         raw(judgments="\n".join([*JUDGMENTS, JUDGMENTS[0]]))),
    Case("a response that is missing", "import f --out out", ("f/responses.jsonl", NO.id), raw(responses=YES.model_dump_json())),
    Case("an id that two responses share", "import f --out out", ("f/responses.jsonl", "line 3", "differ"),
         raw(responses="\n".join([YES.model_dump_json(), NO.model_dump_json(),
                                  NO.model_copy(update={"id": YES.id}).model_dump_json()]))),
    Case("a judgment with an unknown field", "import f --out out", ("f/judgments.jsonl", "line 1", "mood"),
         raw(judgments=JUDGMENTS[0].replace("{", '{"mood": 1, ', 1))),
    Case("no such file to import", "import none.jsonl --out out", ("none.jsonl", "no such file")),
    Case("an output that holds something", "import p.jsonl --out full", ("full", "not empty"),
         {"p.jsonl": GOOD, "full/x": "mine"}),
    Case("an output that is a file", "import p.jsonl --out p.jsonl", ("p.jsonl", "is a file"), {"p.jsonl": GOOD}),
    Case("a rater of a kind of its own", "import p.jsonl --out out --rater-kind dog", ("dog", "human"), {"p.jsonl": GOOD}),
]  # fmt: skip

EXPORTS = [
    Case("an unknown format to export to", "export f --to xml --out o.jsonl", ("xml", "trl"), raw()),
    Case("neither format nor manifest", "export f --out o.jsonl", ("--to", "--again"), raw()),
    Case("a manifest and filters of one's own", "export f --again m.json --out o.jsonl --keep-weakest", ("--again", "filters"),
         raw() | {"m.json": "{}"}),
    Case("an export onto its source", "export f/judgments.jsonl --to trl --out f/judgments.jsonl",
         ("f/judgments.jsonl", "source"), raw()),
    Case("an export of a folder onto its judgments", "export f --to trl --out f/responses.jsonl", ("f/responses.jsonl", "source"),
         raw()),
    Case("a suffix of another container", "export f --to parquet --out o.jsonl", ("o.jsonl", ".parquet"), raw()),
    Case("a calibration of zero", "export f --to trl --out o.jsonl --calibration 0", ("calibration",), raw()),
    Case("a sign of its own", "export f --to trl --out o.jsonl --more-harmful keep", ("more_harmful", "flip"), raw()),
    Case("soft labels of no kind", "export f --to trl --out o.jsonl --soft-labels mean", ("soft", "share"), raw()),
    Case("ratings that are missing", "export f --to trl --out o.jsonl --soft-labels ratings", ("--ratings",), raw()),
    Case("ratings without a score", "export f --to trl --out o.jsonl --soft-labels ratings --ratings r.csv",
         ("r.csv", "line 2", "score"), raw() | {"r.csv": "response_id\nx\n"}),
    Case("no manifest", "export f --again none.json --out o.jsonl", ("none.json", "no such file"), raw()),
    Case("a manifest of something else", "export f --again m.json --out o.jsonl", ("m.json", "manifest"),
         raw() | {"m.json": '{"a": 1}'}),
    Case("a folder without judgments", "export d --to trl --out o.jsonl", ("d", "judgments.jsonl"), {"d/x": ""}),
    Case("no prompts beside the judgments", "export j/judgments.jsonl --to trl --out o.jsonl", ("prompts.jsonl", "no such file"),
         {"j/judgments.jsonl": raw()["f/judgments.jsonl"]}),
    Case("a prompt that is missing", "export f --to trl --out o.jsonl", ("f/prompts.jsonl", HI.id),
         raw(prompts=Prompt.ask("other").model_dump_json())),
    Case("an empty file of judgments", "export f --to trl --out o.jsonl", ("f/judgments.jsonl", "no judgment"),
         raw(judgments="")),
    Case("nothing left to export", "export f --to trl --out o.jsonl --without-rater ann", ("nothing to export", "2 x rater ann"),
         raw()),
    Case("a merge with a file of pairs", "merge f p.jsonl --out out.jsonl", ("p.jsonl", "line 1", "Judgment"),
         raw() | {"p.jsonl": GOOD}),
    Case("a merge of nothing", "merge d f --out out", ("d", "judgments.jsonl"), raw() | {"d/x": ""}),
]  # fmt: skip


@pytest.mark.parametrize("case", [*IMPORTS, *EXPORTS], ids=str)
def test_bad_feedback_is_one_line_and_changes_nothing(case, tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, case.files)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    rc = run_command(shlex.split(case.command))
    says_one_line(rc, capsys.readouterr().err, case.says)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_there_are_forty_kinds_of_bad_imports():
    assert len({case.name for case in IMPORTS}) == len(IMPORTS) >= 40


HOSTILE = ["<script>alert(1)</script>", "\u202egnp.exe", "=cmd|' /C calc'!A0", "'; DROP TABLE votes; --", "{{ 7*7 }}", "\x1b[2J"]


@pytest.mark.parametrize("format", ["trl", "csv", "parquet", "grouped"])
def test_hostile_text_is_legal_text_and_stays_as_it_is(format, tmp_path):
    answers = [respond(HI, text) for text in HOSTILE]
    folder = write_folder(tmp_path / "f", [HI], answers, [vote("01", answers, range(1, 7))])
    out = tmp_path / {"csv": "o.csv", "parquet": "o.parquet"}.get(format, "o.jsonl")
    assert run_command(["export", str(folder), "--to", format, "--out", str(out)]) == 0
    result = import_feedback(out, tmp_path / "back")
    texts = {json.loads(row)["text"] for row in Path(tmp_path / "back/responses.jsonl").read_bytes().splitlines()}
    assert texts == set(HOSTILE)
    assert result["judgments"] == (1 if format == "grouped" else 15)
