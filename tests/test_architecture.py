"""Imports point one way, heavy libraries stay where they belong, and what is public says what it does.

The source is read, not run: an import inside a function counts as one at the top.
"""

import ast
import inspect
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import charter
from charter.pipeline import STAGES
from charter.recipe.files import load_recipe
from charter.run.code import closure, imports_of

SOURCE = Path(charter.__file__).parent
ROOT = Path(__file__).parents[1]

# From the top down. A module imports from lower layers only, and from its own package.
LAYERS = (
    ("__main__",),
    ("commands",),
    ("tasks",),
    ("studio",),
    ("serving", "environments", "forgetting"),
    ("pipeline", "plan", "web", "verification", "measuring"),
    ("summary",),
    ("stages", "comparing"),
    ("hacking",),
    ("evaluation", "testbed"),
    ("training", "judging"),
    ("constitution", "raters"),
    ("votes",),
    ("reading", "endpoints"),
    ("models",),
    ("recipe",),
    ("run",),
    ("effects",),
    ("statistics", "metrics"),
    ("records",),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

SIDEWAYS = {
    ("testbed.lab", "stages.sft.settings"): "the lab's summariser is trained with the settings of a recipe",
    ("testbed.lab", "evaluation.overlap"): "the lab's summaries are compared with their references",
    ("testbed.lab", "reading.forms"): "the lab's summariser learns under the prompt that its files are read with",
    ("testbed.lab", "training.batches"): "the lab's classifiers learn in the batches of every training",
    ("testbed.lab", "training.methods.sft"): "the lab's summariser is trained as any model is",
    ("pipeline", "plan.fit"): "a run that ran out of memory is told what would fit",
}
LIGHT = "charter.votes.imports.formats"  # names and columns; what reads them is imported when a file is
DOWN_FROM_TESTBED = {"errors", "records", "statistics", "models", "run"}  # of run: files and seeds only
TORCH = {
    "commands",
    "tasks",
    "serving",
    "stages",
    "pipeline",
    "plan",
    "summary",
    "run.team",
    "models",
    "training",
    "evaluation.arms",
    "measuring.models",
    "testbed",
}


def module_name(file: Path) -> str:
    """`training.methods.ppo` of src/charter/training/methods/ppo.py; the package's own name of its __init__.py."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(SOURCE.rglob("*.py"))}
MODULES = [name for name in FILES if name]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(name: str, *, typing: bool = True) -> set[str]:
    """Full names of the modules that a module imports anywhere in its text."""
    return imports_of(FILES[name], typing=typing)


@cache
def arrows() -> list[tuple[str, str]]:
    """(who, whom) of every import of one module of Charter by another."""
    files = {f"charter.{name}": name for name in MODULES if FILES[name].name != "__init__.py"}
    return sorted((name, files[target]) for name in MODULES for target in imported(name, typing=False) if target in files)


def part(name: str) -> str:
    return name.partition(".")[0]


def level_of(name: str) -> int:
    """The layer of a module. Settings are data: wherever they stand, they belong to the layer of the recipe."""
    return LEVEL["recipe"] if name.endswith(".settings") else LEVEL[part(name)]


def complaint(who: str, whom: str) -> str | None:
    """What is wrong with an arrow, in words; None where nothing is."""
    a, b = part(who), part(whom)
    if a not in LEVEL:
        return f"{who} stands in no layer; add it to LAYERS, where its imports are fewest"
    if (who, whom) in SIDEWAYS or (a == b and not who.endswith(".settings")) or (a == "recipe" and whom.endswith(".settings")):
        return None
    if b == "testbed" and a not in ("commands", "tasks"):
        return f"{who} imports {whom}, but the testbed is a client of Charter like any other; only commands and tasks may know it"
    if a == "testbed":
        known = b in DOWN_FROM_TESTBED
        return None if known else f"{who} imports {whom}; the testbed knows records, models and seeds only"
    if who.endswith(".settings") and (b == "recipe" or whom.endswith(".settings")):
        return None
    if level_of(who) == level_of(whom):
        return f"{who} imports its neighbour {whom}; pass in what is needed, or move it down where both can see it"
    if level_of(who) > level_of(whom):
        return f"{who} imports {whom}, which stands above it: the arrow points the wrong way; {b} may import {a}"
    return None


def test_imports_point_one_way():
    wrong = [words for who, whom in arrows() if (words := complaint(who, whom))]
    assert not wrong, "\n" + "\n".join(wrong)


def test_an_arrow_that_points_up_sideways_or_at_the_testbed_is_said_in_words():
    assert "points the wrong way" in complaint("records", "run")
    assert "points the wrong way" in complaint("models.trunk", "training.methods.ppo")
    assert "neighbour" in complaint("training.methods.ppo", "judging.judge")
    assert "only commands" in complaint("stages.rl", "testbed.oracle")
    assert "stands in no layer" in complaint("helpers", "records")
    assert complaint("training.methods.ppo", "models.trunk") is None


def test_every_sideways_arrow_that_is_allowed_is_used():
    assert set(SIDEWAYS) <= set(arrows())


def test_no_import_goes_in_a_circle():
    graph = {name: {whom for who, whom in arrows() if who == name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_plan_repeats_no_stage(stage):
    modules = closure([f"charter.stages.{stage}.run"])
    assert "charter.stages.load" not in modules
    assert not [name for name in modules if name.endswith(".plan") or name.startswith("charter.plan.")]


@pytest.mark.parametrize("stage", STAGES)
def test_the_plan_of_a_stage_knows_its_own_settings_and_the_vocabulary_of_plans(stage):
    targets = {whom for who, whom in arrows() if who == f"stages.{stage}.plan"}
    assert targets <= {"stages.load", f"stages.{stage}.settings", "models.shape"}
    assert "stages.load" in targets


HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("stages.") and name.endswith(".run")])
def test_a_change_of_what_show_tokens_shows_runs_no_stage_again(name):
    shown = [target for target in closure([f"charter.{name}"]) if target == "charter.stages.rows" or target.endswith(".show")]
    assert not shown


def test_tensors_stay_where_they_belong():
    wrong = {
        name: heavy
        for name in MODULES
        if name not in TORCH and part(name) not in TORCH
        and (heavy := {target.partition(".")[0] for target in imported(name, typing=False)} & HEAVY)
    }  # fmt: skip
    assert not wrong, "these work on text and reach models through a Sampler"


COMMANDS = sorted(
    name for name in MODULES if name.startswith("commands.") and "import typer" in FILES[name].read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_imports_nothing_heavy_at_its_top(name):
    top = [node for node in tree(name).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
    of_charter = {name for name in names if name.startswith("charter")}
    assert of_charter <= {
        "charter.errors",
        "charter.metrics",
        "charter.commands",
        "charter.commands.options",
        "charter.commands.run",
        LIGHT,
    }
    assert not names & {*HEAVY, "rich", "pydantic", "yaml", "numpy", "scipy", "matplotlib"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_ships_loads(path):
    recipe = load_recipe(path)
    assert recipe.title != "Charter run", f"{path.name} has no title of its own"


def test_every_module_says_what_it_is_for():
    assert [name for name in MODULES if FILES[name].name != "__init__.py" and not ast.get_docstring(tree(name))] == []


# Records and settings whose fields say it all need no sentence that repeats their name.
NAME_SAYS_IT = {"Message", "Settings"}


@pytest.mark.parametrize(
    "name",
    [
        "records", "errors", "run.run", "run.files", "run.hashes", "training.losses", "training.advantages", "training.rewards",
        "training.loop", "training.updates", "training.methods.ppo", "training.methods.rloo", "training.methods.sft",
        "training.methods.reward_model",
    ],
)  # fmt: skip
def test_what_is_public_says_what_it_does(name):
    module = import_module(f"charter.{name}")
    silent = [
        key
        for key, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        and not key.startswith("_") and key not in NAME_SAYS_IT and not own_docstring(value)
    ]  # fmt: skip
    assert not silent, f"{', '.join(silent)} of charter.{name}: no docstring"


def own_docstring(value: object) -> str | None:
    """The docstring written there; a dataclass makes one up from its fields."""
    found = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return None if found and found.startswith(f"{value.__name__}(") else found
