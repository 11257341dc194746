"""When values change: a run repeats the stages and the rows that depend on the change, and counts them."""

import copy
import json
import shutil

import pytest
import yaml

from charter.commands.app import run_command
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import EvalResult, Judgment, Revision
from charter.run.files import read_json, read_jsonl
from charter.run.run import Run
from charter.votes.judgments import read_judgments
from conftest import CONSTITUTION


def row(number, value=0.0):
    return EvalResult(name="n", arm=str(number), n=number, n_unscored=0, value=value, ci=None, method="", scorer="")


def open_stage(folder, value, *, settings=1, work=True, fail_at=None):
    """A stage of six rows in batches of two. Rows below ``value`` of the run before hold. Which items were made."""
    made = []

    def produce(batch):
        for item in batch:
            if item == fail_at:
                raise KeyboardInterrupt
            made.append(item)
            yield row(item, float(value))

    with Run(folder, quiet=True) as run, run.stage("a", {"x": settings}, {"in": "1", "row": str(value)}, [], ("row",)) as stage:
        if not stage.done and work:
            old = {int(r.arm): r for r in stage.earlier("rows.jsonl", EvalResult)}
            known = lambda item: [old[item]] if item in old and item < value else None  # noqa: E731 - one line says it
            rows = stage.rows("rows.jsonl", EvalResult).work(list(range(6)), 2, produce, known=known, quiet=True)
            stage.finish({"values": [r.value for r in rows], "was": stage.earlier_inputs.get("row")})
    return made, stage


def test_rows_that_hold_are_kept_and_counted(tmp_path):
    assert open_stage(tmp_path, 0)[0] == [0, 1, 2, 3, 4, 5]
    made, stage = open_stage(tmp_path, 3)
    assert made == [3, 4, 5]
    assert stage.result == {"values": [0, 0, 0, 3, 3, 3], "was": "0", "reused": {"rows.jsonl": {"reused": 3, "rows": 6}}}
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.name[0] != ".") == ["manifest.json", "rows.jsonl"]
    assert open_stage(tmp_path, 3)[0] == []
    made, stage = open_stage(tmp_path, 3, settings=2)  # settings concern every row
    assert made == [0, 1, 2, 3, 4, 5]
    assert "reused" not in stage.result


@pytest.mark.parametrize("fail_at", [3, 4])
def test_a_kill_between_two_values_leaves_the_same_rows(tmp_path, fail_at):
    open_stage(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        open_stage(tmp_path, 3, fail_at=fail_at)
    _, stage = open_stage(tmp_path, 3)
    assert stage.result["values"] == [0, 0, 0, 3, 3, 3]
    assert stage.result["reused"] == {"rows.jsonl": {"reused": 3, "rows": 6}}
    assert not (tmp_path / "a/earlier").exists()


def test_values_that_change_again_before_the_stage_is_done_keep_what_was_made_last(tmp_path):
    open_stage(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        open_stage(tmp_path, 3, fail_at=4)
    made, stage = open_stage(tmp_path, 4)
    assert stage.result["values"] == [0, 0, 0, 3, 4, 4]
    assert made == [4, 5]


@pytest.fixture
def world(tmp_path, write_recipe, random_llama, before_rl):
    """A run up to its reward model, and a function that runs it again under another constitution."""
    path = write_recipe(random_llama)
    shutil.copytree(before_rl, tmp_path / "run")

    def again(change, out="run", until="feedback"):
        constitution = copy.deepcopy(CONSTITUTION)
        change(constitution["principles"])
        (tmp_path / "new.yaml").write_text(yaml.safe_dump(constitution))
        run_recipe(load_recipe(path, ["constitution=new.yaml"]), tmp_path / out, until=until, quiet=True)
        return tmp_path / out

    return again


def result(run, stage):
    return read_json(run / stage / "manifest.json")["result"]


def test_a_reworded_preference_is_judged_again_where_it_was_drawn(world, tmp_path):
    before = read_judgments(tmp_path / "run/feedback/judgments.jsonl")
    old = {stage: read_json(tmp_path / f"run/{stage}/manifest.json") for stage in ("prompts", "revise", "sft")}
    run = world(lambda principles: principles[1].update(preference="Which reply is of more use?"))
    assert {stage: read_json(run / f"{stage}/manifest.json") for stage in old} == old  # all skipped
    harmless = sum(judgment.principle == "harmless" for judgment in before)
    n = result(run, "feedback")["comparisons"]
    assert 0 < harmless < n
    assert result(run, "feedback")["reused"] == {
        "responses.jsonl": {"reused": 2 * n, "rows": 2 * n},
        "judgments.jsonl": {"reused": harmless, "rows": n},
    }
    after = read_judgments(run / "feedback/judgments.jsonl")  # the chain holds
    fresh = world(lambda principles: principles[1].update(preference="Which reply is of more use?"), "fresh")
    assert "reused" not in result(fresh, "feedback")
    alone = list(read_jsonl(fresh / "feedback/judgments.jsonl", Judgment))
    assert [(j.order, j.principle, j.instructions_hash) for j in after] == [
        (j.order, j.principle, j.instructions_hash) for j in alone
    ]
    assert [j.margin for j in after] == pytest.approx([j.margin for j in alone], abs=1e-4)


def test_a_reworded_critique_is_written_again_where_it_was_drawn(world, tmp_path):
    before = {(r.prompt_id, r.round): r for r in read_jsonl(tmp_path / "run/revise/revisions.jsonl", Revision)}
    extra = {"id": "calm", "title": "calm", "critique": "Is it calm?", "revision": "Write it calmly.", "tags": ["red_team"]}
    run = world(lambda principles: principles.append(extra), until="revise")
    after = {(r.prompt_id, r.round): r for r in read_jsonl(run / "revise/revisions.jsonl", Revision)}
    untouched = {key for key, _ in after if all(after[key, n].principle == before[key, n].principle for n in (1, 2))}
    counts = result(run, "revise")["reused"]["revisions.jsonl"]
    assert counts == {"reused": 2 * len(untouched), "rows": len(after)}
    assert 0 < len(untouched) < len(after) / 2
    assert all(after[key, n] == before[key, n] for key in untouched for n in (1, 2))
    assert result(run, "revise")["reused"]["originals.jsonl"]["reused"] == len(after) / 2
    # Then its text changes: what it was drawn for is written again, the rest is kept.
    run = world(lambda principles: principles.append(extra | {"critique": "Is it angry?"}), until="revise")
    assert result(run, "revise")["reused"]["revisions.jsonl"] == counts


def test_a_change_that_no_stage_reads_repeats_nothing(world, tmp_path, capsys):
    def change(principles):
        principles.reverse()
        principles[0].update(title="usefulness", source="elsewhere")

    run = world(change)
    assert read_json(run / "feedback/manifest.json") == read_json(tmp_path / "run/feedback/manifest.json")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    assert run_command(["constitution", "diff", str(tmp_path / "old.yaml"), str(tmp_path / "new.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == []
