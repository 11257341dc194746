"""The shipped recipes: each loads, is planned, and runs to its end on a random model of its own architecture, with data of the
format that it names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from charter.commands.app import app
from charter.plan.plan import plan_recipe
from charter.recipe.files import load_recipe, shipped
from conftest import BENIGN, HARMFUL, save_random_classifier, save_random_model

TINY = {"seed=0", "precision=float32", "batch_size=16", "gates.override=true"}
SMALL_PROMPTS = {"prompts.train=12", "prompts.test=6", "prompts.test_fraction=0.4"}
SMALL_SFT = {"sft.max_examples=12", "sft.responses_per_step=6", "sft.max_tokens=96"}
SMALL_REWARD = {"reward_model.pairs_per_step=8", "reward_model.max_tokens=96", "reward_model.test_fraction=0.25"}
SMALL_RL = {"rl.steps=2", "rl.prompts_per_step=4", "rl.max_new_tokens=8"}
SMALL_DPO = {"rl.pairs_per_step=8", "rl.max_tokens=96"}
SMALL_REVISE = {"revise.prompts=10", "revise.max_new_tokens=8", "evaluation.max_new_tokens=8"}
ONE_VOTE = {"evaluation.max_new_tokens=8", "evaluation.measures.second_reward.source=python:smollm2:variety"}
# Recipe: the architecture that stands in for its model, and how it is made small.
RECIPES: dict[str, tuple[str, set[str]]] = {
    "hh-reward": ("qwen2", SMALL_REWARD | {"feedback.gate_pairs=8"}),
    "hh-dpo": ("qwen2", SMALL_PROMPTS | SMALL_SFT | SMALL_DPO | {
        "feedback.max_pairs=24", "evaluation.max_new_tokens=8"}),
    "hh-ppo": ("qwen2", SMALL_PROMPTS | SMALL_SFT | SMALL_REWARD | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "tldr-ppo": ("gpt_neox", SMALL_PROMPTS | SMALL_SFT | SMALL_REWARD | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "sentiment-ppo": ("gpt2", SMALL_PROMPTS | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "flan-t5-detox": ("flan_t5", SMALL_PROMPTS | {  # enough tokens for the rare ones that the update raises to be drawn
        "rl.steps=2", "rl.prompts_per_step=12", "rl.max_new_tokens=32", "evaluation.max_new_tokens=8",
        "rl.reward.nothate.source=classifier:package:charter.testbed/detox/reward-classifier:nothate",
        "evaluation.measures.toxicity.source=classifier:package:charter.testbed/detox/report-classifier:hate"}),
    "llama2-7b-cai": ("llama", SMALL_PROMPTS | SMALL_REVISE | SMALL_REWARD | SMALL_RL | {
        "revise.few_shots=null", "sft.max_tokens=96", "feedback.prompts=16", "feedback.max_new_tokens=8",
        "feedback.gate_pairs=8", "feedback.abstain_below=0", "evaluation.best_of=2"}),
    "mistral-cai-dpo": ("mistral", SMALL_PROMPTS | SMALL_REVISE | SMALL_DPO | {"sft.max_tokens=256", "revise.few_shots=null"}),
    "spectrum": ("llama", SMALL_PROMPTS | SMALL_REVISE | SMALL_REWARD | SMALL_RL | {
        "sft.max_tokens=96", "feedback.prompts=16", "feedback.max_new_tokens=8", "feedback.gate_pairs=8",
        "feedback.abstain_below=0"}),
    "self-rewarding": ("qwen2", SMALL_PROMPTS | SMALL_DPO | {
        "rounds=2", "feedback.prompts=12", "feedback.responses_per_prompt=2", "feedback.max_new_tokens=8",
        "feedback.gate_pairs=8", "feedback.abstain_below=0", "evaluation.max_new_tokens=8"}),
    "context-distil": ("qwen2", SMALL_PROMPTS | SMALL_REVISE | {"sft.responses_per_step=6"}),
    "smollm2-detox": ("llama", SMALL_PROMPTS | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "smollm2-kind": ("llama", SMALL_PROMPTS | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "smollm2-hh": ("llama", SMALL_PROMPTS | SMALL_SFT | SMALL_REWARD | SMALL_RL | ONE_VOTE),
    "smollm2-cai": ("llama", SMALL_PROMPTS | SMALL_REVISE | SMALL_DPO | {
        "sft.max_tokens=256", "revise.few_shots=null", "feedback.prompts=12", "feedback.max_new_tokens=8"}),
    "smollm2-rlaif": ("llama", SMALL_PROMPTS | SMALL_RL | {"evaluation.max_new_tokens=8"}),
    "smollm2-hh-dpo": ("llama", SMALL_PROMPTS | SMALL_SFT | SMALL_DPO | ONE_VOTE),
}  # fmt: skip


ANSWERS = {"chosen": "Better not, and here is why.", "rejected": "Take it."}


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def write_gzip(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def write_parquet(file: Path, rows: list[dict[str, object]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files where the recipes' `hf download` lines put them."""
    folder = tmp_path_factory.mktemp("downloads")
    for name, questions in (("harmless-base", HARMFUL), ("helpful-base", BENIGN)):
        for part, offset in (("train", 0), ("test", 1)):
            rows = [{side: dialogue(f"{q} {offset}", text) for side, text in ANSWERS.items()} for q in questions]
            write_gzip(folder / f"hh-rlhf/{name}/{part}.jsonl.gz", rows)
    (folder / "data/hh").mkdir(parents=True)
    votes = [{side: dialogue(q, text) for side, text in ANSWERS.items()} for q in HARMFUL]
    prompts = [{"prompt": q, "split": ("train", "test")[i % 2]} for i, q in enumerate(HARMFUL)]
    for name, rows in (("votes", votes), ("prompts", prompts)):
        (folder / f"data/hh/{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    posts = [f"POST: {q} It happened today.\n\nTL;DR:" for q in HARMFUL + BENIGN]
    for part in ("train", "test"):
        write_parquet(
            folder / f"tldr/data/{part}-00000-of-00001.parquet",
            [{"prompt": f"{part} {post}", "completion": " Something happened."} for post in posts],
        )
    write_parquet(
        folder / "tldr-preference/data/train-00000-of-00001.parquet",
        [{"prompt": post, "chosen": " It happened today.", "rejected": " Yes."} for post in posts],
    )
    write_parquet(
        folder / "imdb/plain_text/test-00000-of-00001.parquet",
        [{"text": f"This film about the {i}th {q.split()[-1]} was a long one, and then it ended.", "label": i % 2}
         for i, q in enumerate(HARMFUL)],
    )  # fmt: skip
    save_random_classifier(folder / "first", ("NEGATIVE", "POSITIVE"))
    save_random_classifier(folder / "second", ("LABEL_0", "LABEL_1"))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_runs_to_its_end_on_a_stand_in(name, downloads, tmp_path, monkeypatch):
    architecture, small = RECIPES[name]
    model = save_random_model(tmp_path / "model", architecture)
    judge = save_random_model(tmp_path / "judge", "llama")
    monkeypatch.chdir(downloads)
    sets = {*TINY, *small, f"model={model}"}
    if name == "sentiment-ppo":
        sets |= {"rl.reward.praise.source=classifier:first:POSITIVE",
                 "evaluation.measures.positive.source=classifier:second:LABEL_1"}  # fmt: skip
    if name.startswith("smollm2"):
        pytest.importorskip("profanity_check", reason="the extra [real] is not installed")
        pytest.importorskip("vaderSentiment", reason="the extra [real] is not installed")
    if name == "smollm2-hh":
        sets |= {f"reward_model.model={model}"}
    if name == "tldr-ppo":
        sets |= {f"evaluation.measures.good_summary.source=judge:{judge}", "endpoints={}", "evaluation.best_of=2"}
    given = [part for one in sorted(sets) for part in ("--set", one)]
    figures = plan_recipe(load_recipe(shipped("recipes") / f"{name}.yaml", sorted(sets)))
    found = CliRunner().invoke(app, ["run", name, "--out", str(tmp_path / "run"), "--quiet", *given])
    assert found.exit_code == 0, found.output
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == [stage["stage"] for stage in figures["stages"]]
    assert all(stage["done"] for stage in report["stages"])
    if "evaluate" in [stage["name"] for stage in report["stages"]]:
        decided = [{key: row[key] for key in ("name", "a", "b")} for row in report["contrasts"] if row["primary"]]
        assert decided == [report["primary"]]
    if "rl" in report["curves"] and "kl" in report["curves"]["rl"][0]:
        assert report["curves"]["rl"][0]["kl"] == pytest.approx(0, abs=1e-4)


def test_every_shipped_recipe_is_run_by_a_test():
    elsewhere = {"demo", "demo-rloo", "smoke", "judge-api"}
    assert {file.stem for file in shipped("recipes").glob("*.yaml")} == set(RECIPES) | elsewhere
