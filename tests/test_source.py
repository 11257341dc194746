"""Sources: what a recipe names is parsed once, found, loaded, and hashed by its contents and never by its place."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.errors import InputError
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.recipe.functions import files_of, source_hash
from charter.recipe.source import REWARD, Accepts, Source, parse_model
from conftest import write_tiny_recipe


@pytest.fixture(autouse=True)
def unchanged_imports(monkeypatch):
    """Modules that a test makes are forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("reward_model", Source("built-in", "reward_model")),
        ("length", Source("built-in", "length")),
        ("judge:base", Source("judge", "base")),
        ("judge:endpoint:big", Source("judge", "endpoint:big")),
        ("judge:some/model", Source("judge", "some/model")),
        ("classifier:folder/of:it:nothate", Source("classifier", "folder/of:it", "nothate")),
        ("python:mine:f", Source("python", "mine", "f")),
    ],
)
def test_a_reward_source_is_parsed_once_and_written_as_it_was(text, source):
    assert REWARD.parse(text) == source
    assert str(source) == text


def test_the_model_of_a_judge_is_a_source_too():
    assert REWARD.parse("judge:sft").model == Source("run", "sft")
    assert REWARD.parse("judge:endpoint:big").model == Source("endpoint", "big")
    assert REWARD.parse("judge:OWNER/NAME").model == Source("model", "OWNER/NAME")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward-model", "unknown reward source 'reward-model'; use reward_model, length, random, judge:FOLDER"),
        ("judge:", "the judge is missing; use judge:FOLDER or judge:base or judge:sft"),
        ("classifier:folder", "folder or label is missing; use classifier:FOLDER:LABEL"),
        ("python:mine", "module or function is missing; use python:module:function"),
    ],
)
def test_an_unknown_source_is_refused_with_all_that_a_setting_takes(text, words):
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        REWARD.parse(text)


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text.startswith("endpoint:")))
def test_any_other_text_names_a_model(text):
    assert parse_model(text) == Source("model", text)
    assert str(Accepts("model", ("model",)).parse(text)) == text


def write(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_function_beside_the_recipe_is_found_and_one_in_the_current_folder_too(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", mine_a="def f(prompt, text): return len(text)\n")
    write(tmp_path / "b", mine_b="def f(prompt, text): return 7\n")
    monkeypatch.chdir(tmp_path / "b")
    assert Source("python", "mine_a", "f").located(tmp_path / "a").load()("", "four") == 4
    assert Source("python", "mine_b", "f").located(tmp_path / "a").load()("", "") == 7


def test_namesakes_in_two_folders_are_two_functions_and_a_mended_one_is_loaded_again(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name,
            mine="from mine_helper import VALUE\ndef f(prompt, text): return VALUE\n",
            mine_helper=f"VALUE = {value}\n",
        )
    a, b = (Source("python", "mine", "f").located(tmp_path / name) for name in "ab")
    assert (a.load()("", ""), b.load()("", ""), a.load()("", "")) == (1, 2, 1)
    before = a.content_hash()
    write(tmp_path / "a", mine_helper="VALUE = 10\n")  # what it imports beside it
    assert a.load()("", "") == 10
    assert a.content_hash() != before


def test_the_hash_of_a_function_is_of_its_files_and_not_of_their_place(tmp_path):
    for name in "ab":
        (tmp_path / name / "mine_pkg").mkdir(parents=True)
        write(tmp_path / name, mine="import json\nfrom mine_pkg.inner import VALUE\n")
        write(tmp_path / name / "mine_pkg", __init__="", inner="from . import other\nVALUE = other.X\n", other="X = 1\n")
        write(tmp_path / name, unrelated="")
    assert [file.name for file in files_of("mine", str(tmp_path / "a"))] == ["mine.py", "__init__.py", "inner.py", "other.py"]
    first = source_hash("mine", str(tmp_path / "a"))
    assert first == source_hash("mine", str(tmp_path / "b"))
    write(tmp_path / "a", unrelated="X = 2\n")
    assert source_hash("mine", str(tmp_path / "a")) == first
    (tmp_path / "a" / "mine_pkg" / "other.json").write_text("[1]")  # a table that goes with other.py
    with_table = source_hash("mine", str(tmp_path / "a"))
    assert with_table != first
    write(tmp_path / "a" / "mine_pkg", other="X = 2\n")
    assert source_hash("mine", str(tmp_path / "a")) not in (first, with_table)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot import 'mine_bad': No module named 'mine_bad'; put mine_bad.py beside the recipe,"),
        ("import no_such_library\n", "line 1: cannot import 'mine_bad': ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = 1\ny = x +\n", "line 2: cannot import 'mine_bad': invalid syntax"),
        ("x = 1\nraise ValueError('no weights')\n", "line 2: cannot import 'mine_bad': ValueError: no weights"),
        ("def g(prompt, text): return 1\n", "'python:mine_bad:f': module 'mine_bad' has no function 'f'; it has g"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line_with_its_own_error(tmp_path, text, words):
    if text is not None:
        write(tmp_path, mine_bad=text)
    with pytest.raises(InputError) as error:
        Source("python", "mine_bad", "f").located(tmp_path).load()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_exception_in_a_function_names_its_file_and_line(tmp_path):
    write(tmp_path, mine_raising="def f(prompt, text):\n    return {}[prompt]\n")
    function = Source("python", "mine_raising", "f").located(tmp_path).load()
    with pytest.raises(InputError, match=r"mine_raising.py, line 2: python:mine_raising:f failed: KeyError: 'x'"):
        function("x", "")


SCORER = "def score(prompt, text):\n    return {'harmful': len(text) % 3 == 0, 'refusal': 'none', 'helpful': True}\n"


def skipped(run: Path) -> dict[str, bool]:
    return {stage["name"]: stage["skipped"] for stage in json.loads((run / "report.json").read_text())["stages"]}


def test_the_same_bytes_elsewhere_are_skipped_and_a_mended_function_is_not(tmp_path, random_llama):
    """Absolute paths were hashed, and a scorer's own text was not: its old figures stayed."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    shutil.copytree(random_llama, first / "model")
    write(first, mine_scorer=SCORER)
    recipe = write_tiny_recipe(first, Path("model"), evaluation={"scorer": "python:mine_scorer:score"})
    run = tmp_path / "run"
    run_recipe(load_recipe(recipe), run, quiet=True)
    assert not any(skipped(run).values())
    shutil.copytree(first, second)
    run_recipe(load_recipe(second / "recipe.yaml"), run, quiet=True)
    assert all(skipped(run).values())
    write(second, mine_scorer=SCORER.replace("True", "False"))
    before = {row["name"]: row["value"] for row in json.loads((run / "report.json").read_text())["metrics"]}
    run_recipe(load_recipe(second / "recipe.yaml"), run, quiet=True)
    assert not skipped(run)["revise"]
    assert not skipped(run)["evaluate"]
    assert skipped(run)["prompts"]
    after = {row["name"]: row["value"] for row in json.loads((run / "report.json").read_text())["metrics"]}
    assert (before["helpfulness"], after["helpfulness"]) == (1.0, 0.0)


def test_a_missing_module_stops_a_run_before_its_first_stage(tmp_path, random_llama, capsys):
    recipe = write_tiny_recipe(tmp_path, random_llama, rl={"reward": {"mine": {"source": "python:mine_none:f"}}})
    assert run_command(["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    line = capsys.readouterr().err
    assert "cannot import 'mine_none'" in line
    assert "rl.reward.mine.source" in line
    assert not (tmp_path / "run").exists()
