"""Where a run would take too long, the plan proposes settings that parse and with which it does not."""

import pytest
import yaml

from charter.commands.app import run_command
from charter.models.shape import read_shape
from charter.plan.loads import count, loads_with
from charter.plan.plan import disk_of, plan_recipe
from charter.plan.shorter import LEAST, SETTINGS_OF, shortened
from charter.plan.table import plan_table
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.stages.load import FLOAT, Load


def operations(load: Load) -> float:
    """A clock that does not depend on the machine: a second for a million operations."""
    return load.operations / 1e6


LONG = {
    "revise": {"prompts": 400, "max_new_tokens": 96},
    "sft": {"epochs": 6},
    "feedback": {"prompts": 800, "max_new_tokens": 96, "responses_per_prompt": 4},
    "reward_model": {"epochs": 4},
    "evaluation": {"max_new_tokens": 96, "samples_per_prompt": 8},
}
METHODS = {
    "rloo": {"method": "rloo", "steps": 600},
    "ppo": {"method": "ppo", "steps": 600, "minibatches": 16, "epochs": 4},
    "grpo": {"method": "grpo", "steps": 600, "minibatches": 24, "prompts_per_step": 64},
    "dpo": {"method": "dpo", "epochs": 40},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_proposal_parses_and_is_planned_below_the_limit(random_llama, write_recipe, method, share):
    path = write_recipe(random_llama, **LONG, rl={"samples_per_prompt": 4, "max_new_tokens": 64, **METHODS[method]}
                        if method != "dpo" else METHODS[method])  # fmt: skip
    counted = count(load_recipe(path), "cpu")
    whole = sum(map(operations, loads_with(counted, counted.recipe)))
    proposal = shortened(counted, share * whole, operations)
    assert proposal["fits"]
    again = load_recipe(path, proposal["set"])
    planned = loads_with(count(again, "cpu"), again)
    assert sum(map(operations, planned)) <= share * whole
    assert sum(map(operations, planned)) == pytest.approx(proposal["seconds"], abs=0.1)
    assert max(load.peak_bytes for load in planned) == pytest.approx(proposal["peak_bytes"], abs=1)


def test_no_change_of_a_proposal_is_superfluous(random_llama, write_recipe):
    counted = count(load_recipe(write_recipe(random_llama, **LONG)), "cpu")
    limit = 0.4 * sum(map(operations, loads_with(counted, counted.recipe)))
    chosen = shortened(counted, limit, operations)["set"]
    assert chosen == sorted(set(chosen), key=chosen.index)
    assert 1 <= len(chosen) <= 10


def test_files_of_examples_and_pairs_are_read_in_part(tmp_path, random_llama):
    rows = "".join(f'{{"prompt": "Question {i}?", "chosen": "Yes {i}.", "rejected": "No, never {i}."}}\n' for i in range(2000))
    (tmp_path / "pairs.jsonl").write_text(rows)
    recipe = {"model": str(random_llama), "revise": None, "sft": {"data": ["pairs.jsonl"]},
              "feedback": {"pairs": ["pairs.jsonl"]}, "rl": {"method": "dpo", "epochs": 1}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = tmp_path / "recipe.yaml"
    counted = count(load_recipe(path), "cpu")
    whole = sum(map(operations, loads_with(counted, counted.recipe)))
    proposal = shortened(counted, 0.2 * whole, operations)
    assert any(change.startswith("sft.max_examples=") for change in proposal["set"])
    again = load_recipe(path, proposal["set"])
    assert sum(map(operations, loads_with(count(again, "cpu"), again))) <= 0.2 * whole


def test_what_cannot_be_shortened_that_far_is_reported_with_the_least(random_llama, write_recipe, capsys):
    path = write_recipe(random_llama)
    assert run_command(["plan", str(path), "--hours", "0.01", "--set", "rl.steps=100000"]) == 0
    text = capsys.readouterr().out
    assert "time      more than 36 s; " in text
    assert "--set rl.steps=" in text
    figures = plan_recipe(load_recipe(path), hours=1000)
    assert figures["shorter"] is None
    assert not any(line.startswith("time ") for line in plan_table(figures))
    assert run_command(["plan", str(path), "--hours", "0"]) == 2


def test_every_setting_that_shortens_a_stage_has_a_least_and_is_a_setting():
    keys = {key for keys in SETTINGS_OF.values() for key in keys} - {"lora"}
    assert keys == LEAST.keys()


def test_disk_is_what_stays_and_two_checkpoints_at_once(random_llama):
    shape = read_shape(str(random_llama))
    n = shape.parameters * FLOAT
    sft, rl = Load("sft"), Load("rl")
    sft.train(shape, None, roles=1)
    rl.train(shape, None, roles=2)  # policy and value model, of which the policy stays
    assert (sft.left_behind, sft.checkpoint, rl.left_behind, rl.checkpoint) == (n, 3 * n, n, 6 * n)
    assert disk_of([sft, rl]) == {"models": 2 * n, "checkpoint": 6 * n, "most": n + 12 * n}
    lora, adapter = LoRASettings(rank=2), FLOAT * shape.adapter(LoRASettings(rank=2))
    scorer = Load("reward_model")
    scorer.train(shape, lora, roles=3, scores=True)
    assert (scorer.left_behind, scorer.checkpoint) == (3 * adapter, 9 * adapter)
