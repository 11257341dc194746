"""Documentation that cannot drift."""

import ast
import re
from pathlib import Path

import pytest
import typer.main

from charter import config
from charter.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").glob("*.md")),
]
CLASSES = [config.Recipe, config.PromptSettings, config.GateSettings, config.ReviseSettings, config.SFTSettings,
           config.FeedbackSettings, config.RewardModelSettings, config.PPOSettings, config.RLOOSettings,
           config.EvaluationSettings, config.LoRASettings]  # fmt: skip


def test_every_setting_is_in_the_table_of_recipes_with_its_default():
    text = (ROOT / "docs/recipes.md").read_text()
    for kind in CLASSES:
        for name, field in kind.model_fields.items():
            if isinstance(field.default, config.Settings) or (
                kind is config.Recipe and name in ("prompts", "evaluation")
            ):
                continue
            default = "required" if field.is_required() else f"`{field.default}`"
            assert f"| `{name}` | {default} |" in text, (kind.__name__, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def commands() -> list[tuple[str, str]]:
    """Every `charter …` that a page shows in backticks or in a shell block."""
    found = []
    for page in PAGES:
        text = page.read_text()
        found += [(page.name, line) for line in re.findall(r"`(charter [^`\n]+)`", text)]
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL):
            found += [(page.name, line.strip()) for line in block.splitlines() if line.strip().startswith("charter ")]
    return found


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_commands_that_are_shown_exist_with_their_options(page, line):
    command = typer.main.get_command(app)
    words = line.split("#")[0].split()[1:]
    while words and hasattr(command, "commands"):
        word = words.pop(0).rstrip(",")
        assert word in command.commands, f"{page}: {line}"
        command = command.commands[word]
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.split("=")[0] in options, f"{page}: {line}: {word}"


@pytest.mark.parametrize(
    ("module", "page"),
    [("ppo", "ppo"), ("rloo", "rloo"), ("sft", "sft"), ("reward_model", "reward-model")],
)
def test_every_logged_metric_is_explained(module, page):
    tree = ast.parse((ROOT / f"src/charter/training/{module}.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "record"]
    keys = {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}
    assert keys
    text = (ROOT / f"docs/{page}.md").read_text() + ((ROOT / "docs/ppo.md").read_text() if page == "rloo" else "")
    for key in keys | ({"reward", "kl", "response_tokens", "missing_eos"} if page in ("ppo", "rloo") else set()):
        assert f"`{key}`" in text, key
