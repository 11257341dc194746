"""`charter show-tokens`: the first rows of each stage as the model sees them.

Nothing is put together here for show. Each stage makes its rows in its `show`, with the functions that its run calls, and the
questions of the sampling stages are those that reached the sampler. The base model stands in for what an earlier stage of a run
would have made (the fine-tuned model, its responses), and for a server or another generator or critic, with the settings of the
recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from charter.constitution.categorise import categorise
from charter.constitution.constitution import EMPTY, load_constitution
from charter.models.load import pick_device
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.files import check_files
from charter.recipe.recipe import Recipe
from charter.stages.feedback.show import show_feedback
from charter.stages.prompts.show import training_prompts
from charter.stages.revise.show import show_revise
from charter.stages.reward_model.show import show_reward_model
from charter.stages.rl.show import show_rl
from charter.stages.rows import ROWS, Preview, Row, Shown
from charter.stages.sft.show import show_sft

# In the order of a run: each may leave something in the preview for those after it.
STAGES: dict[str, Callable[[Preview], Shown | None]] = {
    "revise": show_revise, "sft": show_sft, "feedback": show_feedback, "reward_model": show_reward_model, "rl": show_rl,
}  # fmt: skip


def first_batches(recipe: Recipe) -> dict[str, Any]:
    """The first rows of revise, sft, feedback, reward_model and rl, in JSON values.

    ``stages``: each with ``stage``, ``about`` and ``rows``; a row has, position by position, ``ids``, ``pieces`` (control
    characters spelled out), ``attention`` (1 on real tokens, 0 on padding), ``mask`` (1 on response tokens), ``template``
    (1 on special tokens and those of the chat template), and ``reward_position`` (index, or None if the stage has no
    reward). InputError if the model, a file, or a prompt of the kind that a stage needs is missing.
    """
    check_files(recipe)
    constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
    trunk = load_trunk(recipe.model, device=pick_device(recipe.device), seed=recipe.seed, **recipe.loading)
    prompts = training_prompts(recipe, trunk)
    first = {kind: categorise(rows[:ROWS], constitution, LocalSampler(trunk, "base")) for kind, rows in prompts.items()}
    preview = Preview(recipe, trunk, constitution, prompts, first)
    shown = {name: show(preview) for name, show in STAGES.items()}
    stages = [{"stage": name, "about": part[0], "rows": part[1]} for name, part in shown.items() if part is not None]
    return {"model": recipe.model, "stages": stages}


LEGEND = (
    ("How│ can", "cyan", "prompt, read but not learned; │ is between tokens"),
    ("⟨<|user|>⟩", "magenta", "special token or chat template"),
    ("⟦No│.⟧", "bold green", "response tokens, mask 1: what sft and rl learn from"),
    ("★", "bold white on red", "the reward belongs to the token before"),
    ("∅×3", "dim", "padding, which nothing attends to"),
)


def print_batches(batches: dict[str, Any]) -> None:
    """The rows in colour; every colour has a mark as well, so that nothing is lost without colours."""
    console = Console(highlight=False, markup=False)
    console.print(Text("Legend", style="bold"))
    for mark, style, words in LEGEND:
        console.print(Text.assemble("  ", (f"{mark:12}", style), words))
    console.print("Model output that a run would have by then is sampled from the base model.", style="dim")
    for stage in batches["stages"]:
        console.print(Text.assemble("\n", (stage["stage"], "bold underline"), f": {stage['about']}"))
        for row in stage["rows"]:
            console.print(Text(f"\n  {summary_of(row)}", style="bold"))
            real = [str(n) for n, on in zip(row["ids"], row["attention"], strict=True) if on]
            lines = [styled_row(row), Text(f"ids {' '.join(real)}", style="dim")]
            if "options" in row:
                lines.append(options_of(row))
            for line in lines:
                console.print(Padding(line, (0, 0, 0, 4), expand=False))


def summary_of(row: Row) -> str:
    """A row in figures."""
    real = sum(row["attention"])
    parts = [f"{row['what']}: {real} tokens"]
    if padding := len(row["ids"]) - real:
        parts.append(f"{padding} of padding")
    if any(row["mask"]):
        parts.append(f"{sum(row['mask'])} of the response")
    if row["reward_position"] is not None:
        parts.append(f"reward at position {row['reward_position']}")
    return ", ".join(parts)


def styled_row(row: Row) -> Text:
    """A row with its marks and colours."""
    text = Text()
    length = len(row["ids"])
    before = ""  # what stands to the left: a line parts two plain tokens, the other marks part by themselves
    for i in range(length):
        piece, template, response = row["pieces"][i], row["template"][i], row["mask"][i]
        if not row["attention"][i]:
            if i == 0 or row["attention"][i - 1]:
                stop = next((j for j in range(i, length) if row["attention"][j]), length)
                text.append(f"∅×{stop - i}", style="dim")
            before = ""
            continue
        if response and not row["mask"][i - 1]:
            text.append("⟦", style="bold green")
            before = ""
        if before == "plain" and not template:
            text.append("│", style="dim")
        style = "magenta" if template else "bold green" if response else "cyan"
        text.append(f"⟨{piece}⟩" if template else piece, style=style)
        before = "" if template else "plain"
        if response and (i + 1 == length or not row["mask"][i + 1]):
            text.append("⟧", style="bold green")
        if i == row["reward_position"]:
            text.append("★", style="bold white on red")
    return text


def options_of(row: Row) -> Text:
    """The continuations whose log-probabilities are compared."""
    text = Text("compared: ", style="bold")
    for number, option in enumerate(row["options"]):
        text.append(" against " if number else "", style="not bold")
        text.append(f"⟦{'│'.join(option['pieces'])}⟧", style="bold yellow")
        text.append(f" (ids {' '.join(map(str, option['ids']))})", style="dim not bold")
    return text
