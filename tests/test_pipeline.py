"""Whole runs at tiny size through the real entry point."""

import json

import pytest

from charter.config import load_recipe
from charter.pipeline import STAGES, run_recipe
from conftest import save_random_model


@pytest.mark.parametrize(
    ("architecture", "method", "lora"), [("gpt2", "rloo", None), ("qwen2", "ppo", {"rank": 2}), ("llama", "ppo", None)]
)
def test_any_causal_model_runs_to_the_end_where_gates_are_overridden(
    tmp_path, write_recipe, architecture, method, lora
):
    model = save_random_model(tmp_path / "model", architecture, template=architecture != "gpt2", pad_is_eos=True)
    changes = {"rl": {"method": method, "lora": lora}, "reward_model": {"lora": lora}, "sft": {"lora": lora}}
    recipe = load_recipe(write_recipe(model, **changes))
    report = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert any(gate["overridden"] for gate in report["gates"])
    measured = {(row["name"], row["arm"]) for row in report["metrics"] if row["group"] is None}
    for name in ("harmful_compliance", "over_refusal", "helpfulness", "kl"):
        assert {(name, arm) for arm in ("base", "sft", "policy")} <= measured
    on_disk = json.loads((tmp_path / "run/report.json").read_text())
    assert on_disk["metrics"] == report["metrics"]
    for row in report["metrics"]:
        assert row["n"] + row["n_unscored"] > 0
    first = json.loads((tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl"]) < 1e-5
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first["sampler_gap"] < 1e-4

    again = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert all(stage["skipped"] for stage in again["stages"])
    assert again["metrics"] == report["metrics"]
