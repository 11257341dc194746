"""Datasets out of judgments: what is in them, that a manifest makes them again, and that they come back as they were."""

import csv
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.errors import GateError, InputError
from charter.raters.vote_files import read_votes
from charter.reading.pairs import read_pairs
from charter.records import LabelSet, Message, Pair, Prompt
from charter.run.files import write_jsonl
from charter.votes.evidence import Evidence
from charter.votes.exchange import export_again, export_feedback, manifest_path, read_scores
from charter.votes.imports.files import import_feedback
from charter.votes.judgments import deciding, read_judgments, ulid
from charter.votes.layouts import NO_TRANSCRIPT
from charter.votes.merging import merge_folders
from charter.votes.training_rows import (
    CONTRADICTION,
    HARMFUL,
    IDENTICAL,
    NO_PAIR,
    NO_VERDICT,
    SPLIT,
    SUPERSEDED,
    TIED,
    TWO_LABELS,
    WEAK,
    Selection,
    Tally,
    aggregated_rows,
    pair_rows,
)
from feedback_folder import chain, respond, vote, write_folder

HI = Prompt.ask("hi")
DIALOGUE = Prompt(
    messages=[
        Message(role="user", content="hi"), Message(role="assistant", content=" hello"),
        Message(role="user", content="more\n\n"),
    ]
)  # fmt: skip
TEXTS = ("yes", "no", "never")
YES, NO, NEVER = (respond(HI, text) for text in TEXTS)


def folder_of(tmp_path: Path, *votes, prompts=(HI, DIALOGUE), responses=(YES, NO, NEVER)) -> Path:
    return write_folder(tmp_path / "feedback", prompts, responses, votes)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def export(folder: Path, format: str = "trl", name: str = "out.jsonl", **selection) -> tuple[list[dict], dict]:
    out = folder.parent / name
    manifest = export_feedback(folder, out, format, Selection(**selection))
    return lines_of(out), manifest


def test_a_ranking_of_three_is_three_rows_that_say_where_they_come_from(tmp_path):
    folder = folder_of(tmp_path, vote("01", (YES, NO, NEVER), (2, 1, 3), set_id="s1", principle="peace"))
    rows, manifest = export(folder)
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("no", "yes"), ("yes", "never"), ("no", "never")]
    assert rows[0] == {
        "prompt": "hi", "chosen": "no", "rejected": "yes", "weight": 1.0, "margin": 0.0, "strength": 0, "group_id": "s1",
        "principle": "peace", "judgment_id": "01", "rater_id": "ann", "rater_kind": "human",
    }  # fmt: skip
    assert manifest["raters"] == [{"id": "ann", "kind": "human", "judgments": 1}]
    assert json.loads(manifest_path(tmp_path / "out.jsonl").read_text()) == manifest


def test_strength_is_a_margin_and_the_weakest_notch_stays_out_unless_asked_for(tmp_path):
    votes = [vote(f"0{n}", (YES, NO), (1, 2) if n > 0 else (2, 1), strength=n, set_id=f"s{n}") for n in (1, 2, 3, 4)]
    votes += [vote("09", (YES, NO), (2, 1), strength=-4, set_id="s9")]
    folder = folder_of(tmp_path, *votes)
    rows, manifest = export(folder)
    assert [(r["chosen"], r["margin"], r["strength"]) for r in rows] == [
        ("yes", 1 / 3, 2), ("yes", 2 / 3, 3), ("yes", 1.0, 4), ("no", 1.0, 4)
    ]  # fmt: skip
    assert manifest["left_out"] == {WEAK: 1}
    kept, manifest = export(folder, name="kept.jsonl", keep_weakest=True)
    assert (kept[0]["margin"], kept[0]["strength"]) == (0.0, 1)
    assert manifest["left_out"] == {}


def test_the_persons_rewrite_is_chosen_against_the_original(tmp_path):
    folder = folder_of(tmp_path, vote("01", (YES,), (None,), edit={YES.id: "<script>alert(1)</script>"}))
    rows, _ = export(folder)
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("<script>alert(1)</script>", "yes")]
    assert [r["label"] for r in export(folder, "unpaired", "u.jsonl")[0]] == [True, False]
    with pytest.raises(InputError, match="1 x an edit, not a ranking"):
        export(folder, "grouped", "g.jsonl")
    again = write_folder(tmp_path / "two", [HI], [YES], [vote("01", (YES,), (2,), edit={YES.id: "Yes."})])
    rows, _ = export(again, "unpaired", "v.jsonl")
    assert [(r["completion"], r["label"]) for r in rows] == [("Yes.", True), ("yes", False)]


def test_thumbs_and_f_are_single_rows_with_a_label(tmp_path):
    votes = [vote("01", (YES,), (1,)), vote("02", (NO,), ("F",)), vote("03", (YES, NO, NEVER), (1, "F", 2))]
    rows, _ = export(folder_of(tmp_path, *votes), "unpaired")
    assert [(r["completion"], r["label"], r["judgment_id"]) for r in rows] == [
        ("yes", True, "01"), ("no", False, "02"), ("yes", True, "03"), ("no", False, "03")
    ]  # fmt: skip


def test_what_decides_nothing_is_counted_and_not_trained_on(tmp_path):
    votes = [
        vote("01", (YES, NO), (1, 2), set_id="a"), vote("02", (YES, NO), (2, 1), set_id="a", supersedes="01"),
        vote("03", (YES, NO), (None, None)), vote("04", (YES, NO), (1, 1)), vote("05", (YES, NO), (1, 2), strength=-3),
        vote("06", (YES, NO), (1, 2), rater_id="bob"), vote("07", (YES, NO), (1, 2), rater_kind="rule"),
    ]  # fmt: skip
    rows, manifest = export(folder_of(tmp_path, *votes), rater_kinds=("human",), without_raters=("bob",))
    assert [(r["chosen"], r["judgment_id"]) for r in rows] == [("no", "02")]
    assert manifest["left_out"] == {
        SUPERSEDED: 1, NO_VERDICT: 1, TIED: 1, CONTRADICTION: 1, "rater bob": 1, "rater kind rule": 1
    }  # fmt: skip


def test_a_vote_without_a_pair_and_a_text_with_two_labels_are_counted(tmp_path):
    twin = respond(HI, "yes", model="other")
    votes = [vote("01", (YES, NO), ("F", "F")), vote("02", (YES, twin), (1, 2)), vote("03", (YES, NO), (1, 2))]
    folder = folder_of(tmp_path, *votes, responses=(YES, NO, twin))
    rows, manifest = export(folder)
    assert [row["judgment_id"] for row in rows] == ["03"]
    assert manifest["left_out"] == {NO_PAIR: 1, IDENTICAL: 1}
    rows, manifest = export(folder, "unpaired", "u.jsonl")
    assert [(row["judgment_id"], row["completion"], row["label"]) for row in rows] == [
        ("01", "yes", False), ("01", "no", False), ("03", "yes", True), ("03", "no", False)
    ]  # fmt: skip
    assert manifest["left_out"] == {TWO_LABELS: 2}


def test_practice_and_gold_are_no_training_data(tmp_path):
    sets = [LabelSet(id=role, prompt_id=HI.id, kind="pair", response_ids=(YES.id, NO.id), role=role)
            for role in ("work", "practice", "gold")]  # fmt: skip
    folder = folder_of(tmp_path, *(vote(f"0{n}", (YES, NO), (1, 2), set_id=one.id) for n, one in enumerate(sets)))
    write_jsonl(folder / "sets.jsonl", sets)
    merge_folders([folder], tmp_path / "merged")
    rows, manifest = export(tmp_path / "merged")
    assert [row["group_id"] for row in rows] == ["work"]
    assert manifest["left_out"] == {"a set for gold": 1, "a set for practice": 1}


def test_two_signs_are_refused_until_somebody_says_what_to_do(tmp_path):
    harmful = vote("02", (YES, NO), (1, 2), set_id="b", direction="more_harmful")
    folder = folder_of(tmp_path, vote("01", (YES, NO), (1, 2), set_id="a", direction="more_harmless"), harmful)
    with pytest.raises(InputError, match="judgment 02 asks for the more harmful response and 01 for the better one"):
        export(folder)
    assert not list(tmp_path.glob("out*"))
    rows, manifest = export(folder, more_harmful="flip")
    assert [row["chosen"] for row in rows] == ["yes", "no"]
    assert manifest["flipped"] == 1
    rows, manifest = export(folder, name="less.jsonl", more_harmful="leave-out")
    assert [row["chosen"] for row in rows] == ["yes"]
    assert manifest["left_out"] == {HARMFUL: 1}
    for format in ("unpaired", "grouped", "hh"):
        with pytest.raises(InputError, match="--more-harmful flip"):
            export(folder, format, f"{format}.jsonl")


def test_where_all_ask_for_harm_all_are_turned_round_and_the_command_says_so(tmp_path, capsys):
    folder = folder_of(tmp_path, vote("01", (YES, NO), (1, 2), direction="more_harmful"))
    assert run_command(["export", str(folder), "--to", "trl", "--out", str(tmp_path / "o.jsonl")]) == 0
    assert "1 rows as trl, 1 judgments turned round" in capsys.readouterr().out
    assert json.loads((tmp_path / "o.jsonl").read_text())["chosen"] == "no"


def test_a_pair_that_raters_share_has_the_principle_of_its_own_judgments(tmp_path):
    """A judge compares each pair of a prompt under another principle; the last of them is not that of all."""
    votes = [
        vote("01", (YES, NO), (1, 2), set_id="a", principle="peace", margin=1.0, rater_kind="judge"),
        vote("02", (YES, NEVER), (1, 2), set_id="a", principle="privacy", margin=1.0, rater_kind="judge"),
        vote("03", (NO, NEVER), (1, 2), set_id="a", principle="tone", margin=1.0, rater_kind="judge"),
        vote("04", (NO, NEVER), (1, 2), set_id="a", principle="peace", margin=1.0, rater_kind="judge", rater_id="bob"),
    ]
    rows, _ = export(folder_of(tmp_path, *votes), soft="share")
    named = {(row["chosen"], row["rejected"]): row["principle"] for row in rows}
    assert named == {("yes", "no"): "peace", ("yes", "never"): "privacy", ("no", "never"): ""}


def test_an_edit_beside_a_weak_preference_and_an_f_alone_under_harm(tmp_path):
    weak = vote("01", (YES, NO), (1, 2), strength=1, edit={YES.id: "yes, gladly"})
    labelled = [(row["completion"], row["label"]) for row in export(folder_of(tmp_path / "a", weak), "unpaired")[0]]
    assert labelled == [("yes, gladly", True), ("yes", False)]
    harmful = [vote("01", (YES, NO), (1, "F"), direction="more_harmful"),
               vote("02", (YES, NEVER), (1, 2), set_id="b", direction="more_harmful")]  # fmt: skip
    rows, manifest = export(folder_of(tmp_path / "b", *harmful), "unpaired")
    assert [(row["completion"], row["label"]) for row in rows] == [("yes", False), ("never", True)]
    assert manifest["left_out"] == {"an F under more_harmful, with nothing to compare beside it": 1}


@pytest.mark.parametrize(
    ("format", "soft"), [("grouped", "judgment"), ("unpaired", "judgment"), ("hh", "judgment"), ("trl", "share")]
)
def test_a_calibration_that_no_weight_reads_is_refused(tmp_path, format, soft):
    folder = folder_of(tmp_path, vote("01", (YES, NO), (1, 2), margin=1.0, rater_kind="judge"))
    with pytest.raises(InputError, match="--calibration makes the weight of a judge's pair"):
        export(folder, format, "o.jsonl", calibration=3.0, soft=soft)
    assert export(folder, calibration=3.0)[0][0]["weight"] == pytest.approx(1 / (1 + math.exp(-1 / 3)))


def test_raters_together_give_the_share_that_prefers(tmp_path):
    votes = [
        vote("01", (YES, NO), (1, 2), strength=4, set_id="a"),
        vote("02", (NO, YES), (2, 1), strength=-2, set_id="a", rater_id="bob"),
        vote("03", (YES, NO), (2, 1), strength=-3, set_id="a", rater_id="cy"),
        vote("04", (NO, YES), (1, 1), set_id="a", rater_id="dan"),
        vote("05", (YES, NEVER), (1, 2), set_id="b"),
        vote("06", (YES, NEVER), (2, 1), set_id="b", rater_id="bob"),
    ]
    rows, manifest = export(folder_of(tmp_path, *votes), soft="share")
    (row,) = rows
    assert (row["chosen"], row["rejected"], row["weight"]) == ("yes", "no", 2.5 / 4)
    assert row["margin"] == pytest.approx((1 + 1 / 3 - 2 / 3) / 3)
    assert manifest["left_out"] == {SPLIT: 1}
    assert read_pairs(tmp_path / "out.jsonl").pairs[0].weight == 0.625


def test_a_ratings_file_gives_the_probability(tmp_path):
    folder = folder_of(tmp_path, vote("01", (YES, NO), (1, 2)), vote("02", (YES, NO), (1, 2), rater_id="bob"))
    ratings = tmp_path / "ratings.csv"
    ratings.write_text(f"response_id,score\n{YES.id},-1.0\n{NO.id},0.5\n")
    out = tmp_path / "o.jsonl"
    manifest = export_feedback(folder, out, "trl", Selection(soft="ratings"), ratings=ratings)
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["chosen"], row["weight"]) == ("no", pytest.approx(0.8175744761936437, abs=1e-12))
    export_again(folder, tmp_path / "again.jsonl", manifest_path(out), ratings=ratings)
    with pytest.raises(InputError, match="name it with --ratings"):
        export_again(folder, tmp_path / "again.jsonl", manifest_path(out))
    ratings.write_text(f"prompt,response,rating,low,high\n{HI.id},{YES.id},-1.0,-2,0\n{HI.id},{NO.id},0.5,0,1\n")
    assert read_scores(ratings) == {YES.id: -1.0, NO.id: 0.5}
    ratings.write_text(f"response_id,score\n{YES.id},-1.0\n")
    with pytest.raises(InputError, match=f"no rating of response '{NO.id}'"):
        export_feedback(folder, out, "trl", Selection(soft="ratings"), ratings=ratings)
    assert manifest["rows"] == 1


def test_the_command_line_is_parsed_into_the_same_export(tmp_path, capsys):
    votes = [vote("01", (YES, NO), (1, 2), strength=1), vote("02", (YES, NO), (1, 2), rater_id="bob")]
    folder = folder_of(tmp_path, *votes)
    arguments = ["export", str(folder / "judgments.jsonl"), "--to", "hh", "--out", str(tmp_path / "o.jsonl"), "--json"]
    assert run_command([*arguments, "--keep-weakest", "--without-rater", "bob", "--rater-kind", "human"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rows"], printed["filters"]["without_raters"]) == (1, ["bob"])
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {
        "chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"
    }  # fmt: skip


CONTAINERS = [
    ("trl", "o.jsonl"), ("trl", "o.csv"), ("trl", "o.parquet"), ("trl", "o"), ("trl-conversational", "o.jsonl"),
    ("trl-conversational", "o.parquet"), ("csv", "o.csv"), ("parquet", "o.parquet"), ("datasets", "o"), ("hh", "o.jsonl"),
    ("rewardbench", "o.jsonl"),
    ("unpaired", "o.jsonl"), ("unpaired", "o.csv"), ("unpaired-conversational", "o.parquet"), ("grouped", "o.jsonl"),
    ("raw", "o"),
]  # fmt: skip


def grown(tmp_path: Path) -> tuple[Path, list]:
    """A folder of feedback from two machines, and judgments that come later."""
    answers = [respond(DIALOGUE, text) for text in ("a", "b\n")]
    votes = [vote(ulid(n), (YES, NO, NEVER), (2, 1, "F"), rater_id=f"r{n % 3}") for n in range(5)]
    votes += [vote(ulid(10 + n), answers, (1, 2), strength=1 + n, set_id=f"d{n}") for n in range(4)]
    other = [vote(ulid(20 + n), answers[::-1], (1, 2), margin=0.1 * n, rater_kind="judge") for n in range(3)]
    folder = folder_of(tmp_path, responses=(YES, NO, NEVER, *answers))
    write_jsonl(folder / "judgments.jsonl", [*chain(other), *chain(votes)])
    later = [vote("0", (YES, NO), (2, 1)), vote(ulid(), (YES, NO), (1, 2), supersedes=votes[0].id)]
    return folder, later


@pytest.mark.parametrize(("format", "name"), CONTAINERS)
def test_a_manifest_makes_the_same_bytes_from_feedback_that_has_grown(tmp_path, format, name):
    folder, later = grown(tmp_path)
    out = tmp_path / name
    first = export_feedback(folder, out, format, Selection(keep_weakest=True))
    assert len(first["tips"]) == 2
    before = read_judgments(folder / "judgments.jsonl")
    added = chain(later, before[-1].hash)
    write_jsonl(folder / "judgments.jsonl", [*added, *reversed(before)])  # grown, and in the order of another merge
    again = tmp_path / f"again{out.suffix}"
    second = export_again(folder, again, manifest_path(out))
    assert second["sha256"] == first["sha256"]
    files = [out] if out.is_file() else sorted(out.iterdir())
    for file in files:
        other = again if out.is_file() else again / file.name
        assert other.read_bytes() == file.read_bytes()
    assert manifest_path(again).read_bytes() == manifest_path(out).read_bytes()
    changed = export_feedback(folder, tmp_path / f"now{out.suffix}", format, Selection(keep_weakest=True))
    assert changed["sha256"] != first["sha256"]


def test_another_source_is_not_the_one_of_the_manifest(tmp_path):
    folder, _ = grown(tmp_path)
    export_feedback(folder, tmp_path / "o.jsonl", "trl", Selection())
    manifest = manifest_path(tmp_path / "o.jsonl")
    pairs = tmp_path / "pairs.csv"
    export_feedback(folder, pairs, "csv", Selection())
    with pytest.raises(GateError, match="is not that of the manifest"):
        export_again(pairs, tmp_path / "p.jsonl", manifest)
    (tmp_path / "elsewhere").mkdir()
    other = folder_of(tmp_path / "elsewhere", vote("01", (YES, NO), (1, 2)))
    with pytest.raises(InputError, match="this is not the file of that manifest"):
        export_again(other, tmp_path / "p.jsonl", manifest)
    manifest.write_text("{}")
    with pytest.raises(InputError, match="not a manifest"):
        export_again(folder, tmp_path / "p.jsonl", manifest)


def test_no_cell_is_ever_null(tmp_path):
    folder, _ = grown(tmp_path)
    for format, name in (("trl", "o.csv"), ("parquet", "o.parquet")):
        export_feedback(folder, tmp_path / name, format, Selection())
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert sum(column.null_count for column in table.columns) == 0
    with open(tmp_path / "o.csv", encoding="utf-8", newline="") as file:
        assert all(len(row) == 11 for row in csv.reader(file))


def test_what_text_cannot_hold_is_counted_and_kept_by_conversations(tmp_path):
    system = Prompt(messages=[Message(role="system", content="Be brief."), Message(role="user", content="hi")])
    nested = Prompt.ask("Continue:\n\nHuman: hi\n\nAssistant:")
    answers = [respond(prompt, text) for prompt in (system, nested) for text in ("a\n\nHuman: me", "b")]
    votes = [vote("01", answers[:2], (1, 2)), vote("02", answers[2:], (1, 2)), vote("03", (YES, NO), (1, 2))]
    folder = folder_of(tmp_path, *votes, prompts=(HI, system, nested), responses=(*answers, YES, NO))
    rows, manifest = export(folder, "hh")
    assert (len(rows), manifest["left_out"]) == (1, {NO_TRANSCRIPT: 2})
    rows, manifest = export(folder, "trl", "t.jsonl")  # the nested one is plain text there
    assert (len(rows), manifest["left_out"]) == (2, {NO_TRANSCRIPT: 1})
    rows, manifest = export(folder, "trl-conversational", "c.jsonl")
    assert (len(rows), manifest["left_out"]) == (3, {})


# -- there and back ------------------------------------------------------------------------------------------------------

clean = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
odd = st.sampled_from(["", "=1", "<script>alert(1)</script>", "\n\nHuman: ", '[{"role": "user"}]', '"', "\r\n", " ", "‮"])
texts = st.builds(str.__add__, odd, st.text(clean, max_size=8))
asked = st.builds(Prompt.ask, texts.filter(str.strip)) | st.just(DIALOGUE)


@st.composite
def folders(draw):
    """Prompts with two to four responses each and judgments of some of them, by several raters."""
    prompts = draw(st.lists(asked, min_size=1, max_size=3, unique_by=lambda prompt: prompt.id))
    responses, votes = [], []
    for prompt in prompts:
        found = [respond(prompt, text) for text in draw(st.lists(texts, min_size=2, max_size=4, unique=True))]
        responses += found
        for number in range(draw(st.integers(1, 3))):
            shown = draw(st.permutations(found))[: draw(st.integers(1, len(found)))]
            ranks = draw(st.lists(st.none() | st.just("F") | st.integers(1, 3), min_size=len(shown), max_size=len(shown)))
            fields = {"set_id": f"s{len(votes)}", "rater_id": f"r{number}", "principle": draw(st.none() | st.just("p"))}
            if len(shown) == 2 and all(isinstance(rank, int) for rank in ranks) and ranks[0] != ranks[1]:
                sign = 1 if ranks[0] < ranks[1] else -1
                fields["strength"] = draw(st.none() | st.integers(2, 4).map(lambda n, sign=sign: n * sign))
                fields["margin"] = draw(st.none() | st.floats(0.01, 9).map(lambda m, sign=sign: m * sign))
            votes.append(vote(f"{len(votes):03}", shown, ranks, **fields))
    return prompts, responses, votes


NEW_IDS = {"judgment_id"}


def comparable(path: Path) -> list[dict]:
    """The rows of an export without what is numbered anew on the way back."""
    if path.is_dir():
        with Evidence(path / "judgments.jsonl") as evidence:
            return list(evidence.judgments.values())
    rows = lines_of(path)
    for row in rows:
        row.pop("judgment_id", None)
        for ranking in row.get("rankings", []):
            names = {response["id"]: number for number, response in enumerate(row["responses"])}
            ranking["order"] = [names[key] for key in ranking["order"]]
            ranking.pop("judgment_id")
        row["responses"] = [response["text"] for response in row.get("responses", [])]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.parametrize(
    "format", ["trl", "trl-conversational", "rewardbench", "unpaired", "unpaired-conversational", "hh", "grouped", "raw"]
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=folders())
def test_what_went_out_comes_back_as_it_was(tmp_path_factory, format, drawn):
    tmp_path = tmp_path_factory.mktemp("back")
    folder = write_folder(tmp_path / "f", *drawn)
    suffix = "" if format == "raw" else ".jsonl"
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    try:
        export_feedback(folder, first, format, Selection())
    except InputError as error:
        assert "nothing to export" in str(error)  # noqa: PT017 - either is right, by what was drawn
        return
    import_feedback(first, tmp_path / "g")
    export_feedback(tmp_path / "g", second, format, Selection())
    assert comparable(second) == comparable(first)
    if format == "trl-conversational":  # the containers hold the same rows
        for name in ("t.parquet", "t"):
            export_feedback(folder, tmp_path / name, format, Selection())
            import_feedback(tmp_path / name, tmp_path / f"from-{name}")
            export_feedback(tmp_path / f"from-{name}", tmp_path / f"{name}.jsonl", format, Selection())
            assert comparable(tmp_path / f"{name}.jsonl") == comparable(first)


def test_a_file_of_pairs_goes_out_and_comes_back_whole(tmp_path):
    pairs = [Pair(prompt=HI, chosen="a", rejected="b", weight=0.7, margin=0.25, group_id="g", principle="q"),
             Pair(prompt=DIALOGUE, chosen="c", rejected="d", group_id="h")]  # fmt: skip
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    for format, name in (
        ("trl", "o.jsonl"),
        ("csv", "o.csv"),
        ("parquet", "o.parquet"),
        ("trl-conversational", "c.jsonl"),
        ("rewardbench", "r.jsonl"),
    ):
        manifest = export_feedback(tmp_path / "pairs.jsonl", tmp_path / name, format, Selection())
        assert read_pairs(tmp_path / name).pairs == pairs
        assert manifest["source"]["kind"] == "pairs"
    manifest = export_feedback(tmp_path / "pairs.jsonl", tmp_path / "u.jsonl", "unpaired", Selection())
    assert manifest["rows"] == 4
    with pytest.raises(InputError, match="needs the judgments behind them"):
        export_feedback(tmp_path / "pairs.jsonl", tmp_path / "g.jsonl", "grouped", Selection())
    with pytest.raises(InputError, match="filters and soft labels need the judgments"):
        export_feedback(tmp_path / "pairs.jsonl", tmp_path / "g.jsonl", "trl", Selection(keep_weakest=True))


def test_the_answers_of_a_tie_are_neither_good_nor_bad(tmp_path):
    pairs = [Pair(prompt=HI, chosen=text, rejected="b", weight=weight, group_id="g") for text, weight in (("a", 0.5), ("c", 0.6))]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    manifest = export_feedback(tmp_path / "pairs.jsonl", tmp_path / "u.jsonl", "unpaired", Selection())
    assert [(row["completion"], row["label"]) for row in lines_of(tmp_path / "u.jsonl")] == [("c", True), ("b", False)]
    assert manifest["left_out"] == {TIED: 1}


def test_rewardbench_gets_whole_conversations_and_none_whose_turns_it_would_mistake(tmp_path):
    system = Prompt(messages=[Message(role="system", content="Be brief."), Message(role="user", content="hi")])
    pairs = [Pair(prompt=prompt, chosen="a", rejected="b", group_id=prompt.id) for prompt in (DIALOGUE, system)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    manifest = export_feedback(tmp_path / "pairs.jsonl", tmp_path / "r.jsonl", "rewardbench", Selection())
    (row,) = lines_of(tmp_path / "r.jsonl")
    assert [turn["role"] for turn in row["chosen"]] == ["user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in row["rejected"]] == ["hi", " hello", "more\n\n", "b"]
    assert manifest["left_out"] == {NO_TRANSCRIPT: 1}


# -- merging -------------------------------------------------------------------------------------------------------------


def test_two_machines_are_merged_in_any_order_into_the_same_bytes(tmp_path, capsys):
    own = write_folder(tmp_path / "a", [HI], [YES, NO], [vote("01", (YES, NO), (1, 2)), vote("04", (YES, NO), (2, 1))])
    prompts = [HI.model_copy(update={"source": "elsewhere"}), DIALOGUE]
    other = write_folder(tmp_path / "b", prompts, [NO, YES, NEVER], [vote("02", (YES, NEVER), (1, 2), rater_id="bob")])
    assert run_command(["merge", str(own), str(other), "--out", str(tmp_path / "ab"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judgments"] == 3
    merge_folders([other / "judgments.jsonl", own], tmp_path / "ba")
    merge_folders([tmp_path / "ab", tmp_path / "ba", own], tmp_path / "all")
    for name in ("prompts.jsonl", "responses.jsonl", "judgments.jsonl"):
        content = (tmp_path / "ab" / name).read_bytes()
        assert content == (tmp_path / "ba" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert [one.id for one in read_judgments(tmp_path / "ab/judgments.jsonl")] == ["01", "02", "04"]
    (other / "prompts.jsonl").unlink()  # judgments alone need no texts
    files = [str(other / "judgments.jsonl"), str(own / "judgments.jsonl")]
    assert run_command(["merge", *files, "--out", str(tmp_path / "alone.jsonl")]) == 0
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "ab/judgments.jsonl").read_bytes()


def test_a_judgment_that_differs_between_two_machines_is_a_conflict(tmp_path, capsys):
    own = write_folder(tmp_path / "a", [HI], [YES, NO], [vote("01", (YES, NO), (1, 2))])
    other = write_folder(tmp_path / "b", [HI], [YES, NO], [vote("01", (YES, NO), (2, 1))])
    assert run_command(["merge", str(own), str(other), "--out", str(tmp_path / "ab")]) == 2
    said = capsys.readouterr().err
    assert f"{other / 'judgments.jsonl'}: judgment 01 differs from that of {own / 'judgments.jsonl'}" in said
    assert run_command(["merge", str(own), str(other), "--out", str(tmp_path / "ab.jsonl")]) == 2
    assert "judgment 01 differs" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_sharing_a_pair_between_raters_needs_no_model(tmp_path):
    """The rows of the streaming views are those of the plain definition, whatever the order of the lines."""
    folder, _ = grown(tmp_path)
    with Evidence(folder / "judgments.jsonl") as evidence:
        rows = list(pair_rows(evidence, Selection(keep_weakest=True), Tally()))
        soft = list(aggregated_rows(evidence, Selection(keep_weakest=True), Tally()))
    wins = [(row.group_id, row.chosen, row.rejected) for row in rows]
    for row in soft:
        own = wins.count((row.group_id, row.chosen, row.rejected))
        assert row.weight == own / (own + wins.count((row.group_id, row.rejected, row.chosen)))
    assert [row.group_id for row in rows] == sorted((row.group_id for row in rows), key=[r.group_id for r in rows].index)


def growing_export(path, *winners):
    """A Label Studio export with a task and a pairwise annotation by the same person for each winner."""
    tasks = [
        {"id": i, "data": {"prompt": f"Question {i}?", "answer1": "Crumb", "answer2": "Oven"},
         "annotations": [{"id": i, "completed_by": 1, "lead_time": 3.5 + i, "result": [
             {"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": winner}}]}]}
        for i, winner in enumerate(winners)
    ]  # fmt: skip
    path.write_text(json.dumps(tasks))
    return path


def test_a_vote_that_is_in_two_exports_counts_once_after_a_merge(tmp_path, capsys):
    for name, winners in (("mon", ["left"]), ("fri", ["left", "right"])):
        import_feedback(growing_export(tmp_path / f"{name}.json", *winners), tmp_path / name)
    folders = [str(tmp_path / name) for name in ("mon", "fri")]
    assert run_command(["merge", *folders, "--out", str(tmp_path / "both")]) == 0
    assert "1 of them are in two exports; ratings, agreement and export count these votes once" in capsys.readouterr().out
    assert len(read_judgments(tmp_path / "both/judgments.jsonl")) == 3  # nothing is taken out of a chain
    manifest = export_feedback(tmp_path / "both", tmp_path / "p.jsonl", "trl", Selection())
    assert (manifest["rows"], manifest["left_out"]) == (2, {"the same vote in another export": 1})
    votes = read_votes(tmp_path / "both")
    assert (len(votes.x), votes.totals["judgments"], votes.totals["repeated"]) == (2, 2, 1)
    again = export_feedback(tmp_path / "fri", tmp_path / "fri.jsonl", "trl", Selection())
    assert (again["rows"], again["left_out"]) == (2, {})


def test_a_rater_who_votes_twice_in_the_same_way_has_two_votes(tmp_path):
    twice = [vote(key, (YES, NO), (1, 2), timings={"active_ms": 5.0}) for key in ("01", "02")]
    own = write_folder(tmp_path / "a", [HI], [YES, NO], twice)
    votes = [vote(key, (YES, NO), (1, 2), timings={"active_ms": ms}) for key, ms in (("03", 5.0), ("04", 6.0))]
    other = write_folder(tmp_path / "b", [HI], [YES, NO], votes)
    assert export_feedback(own, tmp_path / "a.jsonl", "trl", Selection())["rows"] == 2
    assert merge_folders([own, other], tmp_path / "ab")["repeated"] == 1  # 03; 04 took another time
    assert merge_folders([other, own], tmp_path / "ba")["repeated"] == 1
    assert export_feedback(tmp_path / "ab", tmp_path / "ab.jsonl", "trl", Selection())["rows"] == 3


@pytest.mark.parametrize(("format", "name"), [("trl", "out.csv"), ("parquet", "out.parquet"), ("unpaired", "out.jsonl")])
def test_reasons_and_principles_go_out_where_they_are_wanted_and_come_back(tmp_path, format, name):
    marks = {f"set-{HI.id}": ["decided=kind", "decided=true"]}
    folder = folder_of(
        tmp_path, vote("01", (YES, NO), (1, 2), comment='Kinder, "truer".', flags=marks), vote("02", (NO, NEVER), (1, 2))
    )
    export_feedback(folder, tmp_path / "plain.jsonl", "trl", Selection())
    assert not {"reason", "decided"} & lines_of(tmp_path / "plain.jsonl")[0].keys()
    export_feedback(folder, tmp_path / name, format, Selection(reasons=True))
    import_feedback(tmp_path / name, tmp_path / "back")
    back = read_judgments(tmp_path / "back/judgments.jsonl")
    each = 2 if format == "unpaired" else 1
    assert [(one.comment, deciding(one)) for one in back] == each * [('Kinder, "truer".', ("kind", "true"))] + each * [("", ())]
    assert {one.principle for one in back} == {None}  # nobody was told to judge by one
    again = export_again(folder, tmp_path / f"again-{name}", manifest_path(tmp_path / name))
    assert again["filters"]["reasons"] is True


@pytest.mark.parametrize(("format", "selection"), [("grouped", {}), ("hh", {}), ("trl", {"soft": "share"})])
def test_reasons_of_several_raters_in_a_row_are_refused(tmp_path, format, selection):
    folder = folder_of(tmp_path, vote("01", (YES, NO), (1, 2)))
    with pytest.raises(InputError, match="--reasons are of one rater each"):
        export_feedback(folder, tmp_path / "out.jsonl", format, Selection(reasons=True, **selection))
