"""`charter new`: whatever is answered, the recipe that it writes loads."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from charter.commands.app import app
from charter.errors import InputError
from charter.recipe.files import load_recipe
from charter.recipe.new import GOALS, recipe_text, write_recipe
from charter.recipe.recipe import Recipe


@pytest.mark.parametrize("goal", GOALS)
def test_every_goal_gives_a_recipe_that_loads(goal, tmp_path):
    target = str(tmp_path / "mine")
    found = CliRunner().invoke(app, ["new", target, "--model", "gpt2", "--goal", goal, "--file", "data.jsonl"])
    assert found.exit_code == 0, found.output
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.model == "gpt2"
    assert (recipe.constitution is not None) == GOALS[goal].principles
    assert recipe.constitution is None or Path(recipe.constitution) == tmp_path / "mine-constitution.yaml"


line = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(str.strip)


@given(model=line, data=line, title=line, goal=st.sampled_from(sorted(GOALS)))
def test_names_of_any_letters_stay_what_they_are(model, data, title, goal):
    values = yaml.safe_load(recipe_text(title, model, GOALS[goal], data, Path(f"{title}.yaml")))
    recipe = Recipe.model_validate(values)
    assert (recipe.model, recipe.title) == (model, title)
    sources = recipe.prompts.files if recipe.prompts is not None else recipe.feedback.pairs
    assert sources == [data]


def test_nothing_is_written_over_unless_asked(tmp_path):
    (tmp_path / "mine-constitution.yaml").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        write_recipe(tmp_path / "mine.yaml", model="m", goal="constitution", data="p.jsonl")
    assert not (tmp_path / "mine.yaml").exists()
    assert len(write_recipe(tmp_path / "mine.yaml", model="m", goal="constitution", data="p.jsonl", force=True)) == 2


def test_three_questions_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "charter", "new", str(tmp_path / "asked")]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.write(ours, b"gpt2\npairs\nmine.jsonl\n")
    said, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, said
    assert load_recipe(tmp_path / "asked.yaml").feedback.pairs == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "m", "--goal", "pairs"], "give --file"),
        (["--model", "m", "--goal", "luck", "--file", "f"], "no goal 'luck'; the goals are constitution"),
        (["--model", " ", "--goal", "pairs", "--file", "f"], "field '--model': is empty"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(flags, words, tmp_path):
    command = [sys.executable, "-m", "charter", "new", str(tmp_path / "x"), *flags]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert found.returncode == 2
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
