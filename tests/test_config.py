"""A recipe is checked whole: every value has its type, every key its place, every file its path."""

import textwrap
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from charter.errors import InputError
from charter.recipe.files import as_settings, check_files, find_recipe, load_recipe, override, shipped
from charter.recipe.recipe import Recipe
from charter.recipe.settings import LoRASettings
from charter.recipe.source import locate
from charter.run.yaml_files import read_yaml
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import GRPOSettings, PPOSettings, RLOOSettings
from conftest import write_tiny_recipe

LEAST = {"model": "m", "constitution": "c.yaml", "prompts": {"files": ["p.jsonl"]}, "evaluation": {"scorer": "refusal-words"}}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **changes}))
    return path


def test_four_keys_make_a_recipe_and_the_rest_has_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path))
    assert recipe.seed == 0
    assert isinstance(recipe.rl, RLOOSettings)
    assert recipe.gates.override is False


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model", "field 'model': Field required$"),
        ("constitution", "revise needs principles; give constitution, or leave it out with revise: null"),
        ("prompts", "revise needs prompts; give prompts.files, or leave it out with revise: null"),
        ("evaluation", "revise measures whether revisions are safer; name evaluation.scorer"),
    ],
)
def test_a_whole_run_needs_four_keys(tmp_path, key, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in LEAST.items() if name != key}))
    with pytest.raises(InputError, match=words):
        load_recipe(path)


def test_the_method_chooses_the_settings(tmp_path):
    lora = {"lora": {"rank": 4}}
    recipe = load_recipe(write(tmp_path, rl={"method": "ppo", "clip_coef": 0.3, **lora}, reward_model=lora))
    assert isinstance(recipe.rl, PPOSettings)
    assert recipe.rl.clip_coef == 0.3
    assert recipe.rl.lora == LoRASettings(rank=4)


def test_policy_and_reward_model_on_one_trunk_both_have_adapters_or_neither(tmp_path):
    lora = {"lora": {"rank": 4}}
    for changes in ({"rl": lora}, {"reward_model": lora}):
        with pytest.raises(InputError, match=r"rl\.lora and reward_model\.lora must both be given"):
            load_recipe(write(tmp_path, **changes))
    alone = {"rl": {**lora, "reward": {"length": {}}}}, {"rl": {**lora, "method": "dpo"}}
    for changes in (*alone, {"rl": lora, "reward_model": {"model": "another"}}):
        assert load_recipe(write(tmp_path, **changes)).rl.lora.rank == 4


def test_a_reward_whose_price_moves_has_no_fixed_reference(tmp_path):
    rl = {"reward": {"reward_model": {}, "length": {}}, "cost": {"part": "length"}, "sigmoid_against": 2}
    with pytest.raises(InputError, match="cost changes the reward as it goes"):
        load_recipe(write(tmp_path, rl=rl))


def test_set_puts_a_yaml_value_at_a_dotted_key():
    values = {"rl": {"method": "ppo", "steps": 3}}
    assert override({}, ["a=010", "b=1:30", "c=0", "d=0.5", "e=-1", "f=1_000"]) == {
        "a": "010", "b": "1:30", "c": 0, "d": 0.5, "e": -1, "f": 1000,
    }  # fmt: skip
    assert override(values, ["rl.steps=5", "sft.lora.rank=2", "title=a=b", "prompts.files=[x, y]"]) == {
        "rl": {"method": "ppo", "steps": 5}, "sft": {"lora": {"rank": 2}}, "title": "a=b", "prompts": {"files": ["x", "y"]},
    }  # fmt: skip


def test_the_last_set_wins_over_the_file_and_over_the_first(tmp_path):
    recipe = load_recipe(write(tmp_path, seed=1), ["seed=2", "seed=3"])
    assert recipe.seed == 3


def test_none_and_yes_are_read_as_yaml(tmp_path):
    recipe = load_recipe(write(tmp_path, sft={"lora": {"rank": 2}}), ["sft.lora=null", "gates.override=yes"])
    assert recipe.sft.lora is None
    assert recipe.gates.override is True


def test_a_rate_may_be_written_without_its_point(tmp_path):
    # YAML 1.1 reads 1e-4 as a text; people write it all the same.
    assert load_recipe(write(tmp_path), ["sft.learning_rate=1e-4"]).sft.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("sft.epcohs=1", "field 'sft.epcohs': unknown key; did you mean 'epochs'?"),
        ("feedback.jugde=sft", "field 'feedback.jugde': unknown key; did you mean 'judge'?"),
        ("reward_modle={}", "field 'reward_modle': unknown key; did you mean 'reward_model'?"),
        ("rl={method: ppo, lora: {alhpa: 1}}", "field 'rl.lora.alhpa': unknown key; did you mean 'alpha'?"),
        ("gates.qqq=1", "known keys: max_unscored, min_base_harm, min_judge_accuracy, override"),
        ("rl={method: dqn}", "field 'rl': Input tag 'dqn'"),
        ("rl={method: ppo, method_: 1}", "field 'rl.method_': unknown key; did you mean 'method'?"),
        ("ppo=1", "field 'ppo': unknown key"),
        ("sft.epochs=0", "field 'sft.epochs': Input should be greater than 0; got '0'"),
        ("gates.min_judge_accuracy=no", "field 'gates.min_judge_accuracy': Input should be a valid number"),
        ("rl.kl_coef=yes", "field 'rl.kl_coef': Input should be a valid number"),
        ("rl.reward={length: {weight: yes}}", "field 'rl.reward.length.weight': Input should be a valid number"),
        ("rl.kl_horizon=100", "kl_target is not set, so kl_horizon would not be read; leave it out"),
        ("rl={method: online_dpo, vllm: {importance_cap: 3}}", "online_dpo weighs no tokens, so vllm.importance_cap"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_a_wrong_value_its_key(tmp_path, assignment, words):
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path), [assignment])
    assert str(tmp_path / "recipe.yaml") in str(error.value)
    assert words in str(error.value)


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        textwrap.dedent("""\
        sft:
          epochs: 1
          epochs: 2
    """)
    )
    with pytest.raises(InputError, match=r"line 3: duplicate key 'epochs'; remove one"):
        read_yaml(path)


def test_aliases_that_would_expand_without_end_are_said_in_one_short_line(tmp_path):
    path = tmp_path / "r.yaml"
    levels = [f"l{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text("\n".join(["l0: &a0 [x]", *levels, "title: *a11", yaml.safe_dump(LEAST)]))
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert len(str(error.value)) < 1000


def test_settings_do_not_change_after_they_were_checked(tmp_path):
    recipe = load_recipe(write(tmp_path))
    with pytest.raises(ValidationError):
        recipe.seed = 5


def test_a_file_is_found_beside_the_recipe_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("")
    (tmp_path / "p.jsonl").write_text("")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    recipe = load_recipe(write(tmp_path, evaluation={"scorer": "judge:m"}, feedback={"judge": "m"}, model="owner/name"))
    assert recipe.constitution == str(tmp_path / "c.yaml")
    assert recipe.prompts.files == [str(tmp_path / "p.jsonl")]
    assert recipe.model == "owner/name"  # nothing here has that name, so it is a hub's
    check_files(recipe)
    (tmp_path / "else/p.jsonl").write_text("a namesake in the current folder")
    assert load_recipe(write(tmp_path)).prompts.files == [str(tmp_path / "p.jsonl")]


def test_a_name_in_a_package_is_a_path_inside_it():
    assert locate("package:charter/recipe/files.py", Path("/nowhere")) == str(Path(load_recipe.__code__.co_filename))
    with pytest.raises(InputError, match="unknown package 'no_such_package'"):
        locate("package:no_such_package/x", Path())


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped("recipes").glob("*.yaml")))
def test_a_shipped_recipe_is_found_by_its_name_and_loads(name):
    assert isinstance(load_recipe(find_recipe(name)), Recipe)


def test_a_recipe_that_is_not_shipped_is_answered_with_those_that_are():
    with pytest.raises(InputError, match=r"give a YAML file or one of .*demo.*smoke"):
        find_recipe("dmeo")


def test_command_line_values_are_checked_like_a_recipe():
    assert as_settings({"epochs": 3}, RewardModelSettings, "reward train").epochs == 3
    with pytest.raises(InputError, match="field 'epochs': reward train: Input should be greater than 0"):
        as_settings({"epochs": 0}, RewardModelSettings, "reward train")


def test_a_folder_of_the_name_does_not_hide_a_shipped_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").suffix == ".yaml"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, ("response", True, None)),
        ({"variant": "dr_grpo"}, ("constant", False, None)),
        ({"variant": "dapo"}, ("token", True, 0.28)),
        ({"variant": "dapo", "clip_coef_high": 0.4, "average": "response"}, ("response", True, 0.4)),
        ({"average": "token", "scale_by_std": False}, ("token", False, None)),  # recipes from before the variants
    ],
)
def test_a_published_variant_of_grpo_sets_its_parts(values, parts):
    settings = GRPOSettings(**values)
    assert (settings.average, settings.scale_by_std, settings.clip_coef_high) == parts


def test_shared_settings_hold_where_a_stage_does_not_say_otherwise(tmp_path, random_llama):
    shared = {"training": {"lora": {"rank": 3}, "warmup": 0.3}, "sampling": {"max_new_tokens": 9}}
    path = write_tiny_recipe(tmp_path, random_llama, **shared, sft={"warmup": 0.2})
    values = yaml.safe_load(path.read_text())
    del values["rl"]["max_new_tokens"]
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(path)
    assert (recipe.sft.lora.rank, recipe.reward_model.lora.rank, recipe.rl.lora.rank) == (3, 3, 3)
    assert (recipe.sft.warmup, recipe.reward_model.warmup) == (0.2, 0.3)
    assert (recipe.rl.max_new_tokens, recipe.feedback.max_new_tokens) == (9, 12)


def test_shared_settings_are_no_setting_that_a_stage_does_not_read(tmp_path, random_llama):
    path = write_tiny_recipe(tmp_path, random_llama, sampling={"temperature": 0.5}, revise=None, sft=None, rl=None)
    values = yaml.safe_load(path.read_text()) | {"feedback": {"pairs": ["pairs.jsonl"]}}
    path.write_text(yaml.safe_dump(values))
    assert load_recipe(path).feedback.pairs
