"""When values change: a run repeats the stages and the rows that depend on the change, and counts them."""

import copy
import json
import shutil

import pytest
import torch
import yaml

from charter.commands.app import run_command
from charter.commands.run import policy_of
from charter.errors import InputError
from charter.models.continued import start_from
from charter.models.load import load_model
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.records import EvalResult, Judgment, Revision
from charter.run.files import read_json, read_jsonl
from charter.run.hashes import file_hash
from charter.run.run import Run
from charter.verification import verify_run
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
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.name[0] != ".") == [
        "lines.json", "manifest.json", "rows.jsonl"]  # fmt: skip
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


def test_a_change_that_leaves_every_byte_leaves_the_stages_behind_alone(tmp_path):
    _, first = open_stage(tmp_path, 0)
    _, second = open_stage(tmp_path, 9)  # every row still holds
    assert second.fingerprint != first.fingerprint
    assert second.output_hash == first.output_hash == first.fingerprint
    assert open_stage(tmp_path, 9)[1].output_hash == first.output_hash  # skipped, and still known
    _, third = open_stage(tmp_path, 3)
    assert third.output_hash == third.fingerprint


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


def test_the_report_compares_with_the_one_before_the_change(tmp_path, write_recipe, random_llama, finished_run):
    path, run = write_recipe(random_llama), tmp_path / "run"
    shutil.copytree(finished_run, run)
    was = {(m["name"], m["arm"]): m["value"] for m in read_json(run / "report.json")["metrics"] if m["group"] is None}
    assert read_json(run / "report.json")["since"] is None
    constitution = copy.deepcopy(CONSTITUTION)
    constitution["principles"][1]["preference"] = "Which reply is <b>of more use</b>?"
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(constitution))
    report = run_recipe(load_recipe(path, ["constitution=new.yaml", "rl.steps=4"]), run, quiet=True)
    assert report["since"]["changes"] == [{"change": "reworded", "principle": "helpful", "words": "preference"}]
    assert report["since"]["settings"] == ["feedback.labelled_pairs", "prompts.files", "rl.steps"]  # files of another folder
    rows = {row["name"]: row for row in report["contrasts_with_before"]}
    now = {(m["name"], m["arm"]): m["value"] for m in report["metrics"] if m["group"] is None}
    assert {row["arm"] for row in rows.values()} == {"policy"}
    kept = result(run, "evaluate")["reused"]  # the answers of the models that stayed as they were, and no others
    assert {name: row["reused"] / row["rows"] for name, row in kept.items()} == {
        "responses.base.jsonl": 1, "responses.sft.jsonl": 1, "responses.policy.jsonl": 0}  # fmt: skip
    for name in ("harmful_compliance", "over_refusal", "response_tokens"):
        assert (rows[name]["value_a"], rows[name]["value_b"]) == pytest.approx((was[name, "policy"], now[name, "policy"]))
        assert rows[name]["n_missing"] == 0
    page = (run / "report.html").read_text()
    assert page.count('unscored</small></td><td class="n">0</td>') == sum(row["n_unscored"] > 0 for row in rows.values())
    assert "Since the constitution changed" in page
    assert "&lt;b&gt;of more use" in page  # the text of the constitution, as text
    assert verify_run(run)["differences"] == []
    file = run / "before/evaluate/verdicts.policy.jsonl"
    file.write_text(file.read_text().replace('"response_tokens":', '"response_tokens":1', 1))
    assert {row["field"].partition(".")[0] for row in verify_run(run)["differences"]} == {"contrasts_with_before"}


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


def test_each_principle_is_left_out_in_turn(tmp_path, write_recipe, random_llama, before_rl, capsys):
    out = tmp_path / "drop"
    shutil.copytree(before_rl, out)
    arguments = ["run", str(write_recipe(random_llama)), "--out", str(out), "--drop-one"]
    assert run_command([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == read_json(out / "drop-one.json")
    harmless, helpful = report["variants"]
    assert (report["arm"], harmless["principle"], helpful["principle"]) == ("policy", "harmless", "helpful")
    assert "no principle with critique and revision applies to a prompt tagged red_team" in harmless["stopped"]
    assert harmless["changes"] == []
    assert helpful["stopped"] is None
    stages = helpful["stages"]
    assert [name for name in ("prompts", "revise", "sft", "feedback", "rl") if stages[name]["skipped"]] == ["prompts", "sft"]
    for name, files in (("revise", ("originals.jsonl", "revisions.jsonl")), ("feedback", ("responses.jsonl", "judgments.jsonl"))):
        assert all(stages[name]["reused"][file]["reused"] == stages[name]["reused"][file]["rows"] > 0 for file in files)
    change = helpful["changes"][0]
    assert change["difference"] == pytest.approx(change["without"] - change["all"])
    assert change["ci"][0] <= change["difference"] <= change["ci"][1]
    assert (out / "drop-one.csv").read_text().startswith('"without","metric","prompts"')
    assert run_command([*arguments, "--seeds", "2"]) == 2
    assert "leave out --seeds and --until" in capsys.readouterr().err


def weights(folder):
    return dict(load_model(str(folder)).named_parameters())


def test_rl_goes_on_from_an_old_policy_and_leaves_it_as_it_was(tmp_path, write_recipe, random_llama, before_rl, finished_run):
    before, out = file_hash(finished_run / "rl/model"), tmp_path / "new"
    shutil.copytree(before_rl, out)
    path = str(write_recipe(random_llama, rl={"learning_rate": 1e-12, "steps": 1}))
    assert run_command(["run", path, "--out", str(out), "--from-policy", str(finished_run), "--until", "rl", "-q"]) == 0
    old, new, sft = (weights(folder) for folder in (finished_run / "rl/model", out / "rl/model", out / "sft/model"))
    assert all(torch.allclose(new[name], old[name], rtol=0, atol=1e-9) for name in old)
    assert not all(torch.allclose(new[name], sft[name], rtol=0, atol=1e-9) for name in old)
    assert file_hash(finished_run / "rl/model") == before


def test_the_last_policy_of_ten_rounds_is_that_of_the_tenth(tmp_path):
    for name in ("rl", *(f"rl-{number}" for number in range(2, 11)), "rl-random"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/config.json").touch()
    assert policy_of(tmp_path) == tmp_path / "rl-10/model"


def test_a_policy_that_would_be_overwritten_or_is_missing_is_one_line(tmp_path, write_recipe, random_llama, before_rl, capsys):
    shutil.copytree(before_rl, tmp_path / "run")
    path = str(write_recipe(random_llama))
    assert run_command(["run", path, "--out", str(tmp_path / "run"), "--from-policy", str(tmp_path / "run")]) == 2
    assert "no policy; --from-policy takes a run that trained one" in capsys.readouterr().err
    shutil.copytree(tmp_path / "run/sft/model", tmp_path / "run/rl/model")
    assert run_command(["run", path, "--out", str(tmp_path / "run"), "--from-policy", str(tmp_path / "run")]) == 2
    assert "whose RL would overwrite it; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "run/rl/model/config.json").exists()


def test_an_adapter_goes_on_from_an_adapter_on_the_same_base(tmp_path, random_llama):
    lora = LoRASettings(rank=2)
    first = load_trunk(str(random_llama), lora=lora)
    first.add_role("policy")
    with torch.no_grad():
        for parameter in first.parameters("policy").values():
            parameter.normal_()
    first.save_language_model("policy", tmp_path / "rl/model")
    second = load_trunk(str(random_llama), lora=lora)
    second.add_role("policy")
    start_from(second, "policy", tmp_path / "rl/model")
    expected = first.parameters("policy")
    assert all(torch.equal(value, expected[name]) for name, value in second.parameters("policy").items())
    for settings in (LoRASettings(rank=4), LoRASettings(rank=2, alpha=8)):  # at another scale it would be another policy
        other = load_trunk(str(random_llama), lora=settings)
        other.add_role("policy")
        with pytest.raises(InputError, match="set rank 2 and alpha 32, with which it was trained"):
            start_from(other, "policy", tmp_path / "rl/model")
    whole = load_trunk(str(random_llama))
    whole.add_role("policy")
    with pytest.raises(InputError, match=r"set rl\.lora as it was"):
        start_from(whole, "policy", tmp_path / "rl/model")
    with pytest.raises(InputError, match="the policy has no adapter"):
        start_from(second, "policy", random_llama)
    elsewhere = load_trunk(str(tmp_path / "rl/model"), lora=lora)
    elsewhere.add_role("policy")
    with pytest.raises(InputError, match="was trained on another model"):
        start_from(elsewhere, "policy", tmp_path / "rl/model")
