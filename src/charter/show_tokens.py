"""The first batch of each stage, token by token: what is read, what carries loss, where the reward lands.

Everything goes through the functions that the stages use, so what is shown is what is trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charter.chat import visible
from charter.config import Recipe
from charter.constitution.constitution import load_constitution
from charter.constitution.revise import respond, revise_batch
from charter.errors import InputError
from charter.feedback.judge import LETTERS, ask, comparisons_of
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.load import pick_device
from charter.models.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.prompts import read_prompts
from charter.records import Message, Pair, Prompt
from charter.stages import existing
from charter.training.batches import Tokens, pad
from charter.training.reward_model import pair_tokens
from charter.training.rewards import last_token
from charter.training.rollouts import collect
from charter.training.sft import sft_tokens

ROWS = 2


def first_batches(recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """For each stage the rows of a small first batch: ids, pieces, mask, special, reward_position (None where no score is read).

    Answers are sampled from the base model with the recipe's settings, since later models do not exist yet.
    """
    found = [p for file in recipe.prompts.files for p in read_prompts(existing(file), tags=recipe.prompts.tags)]
    prompts = [p for p in found if "red_team" in p.tags and p.split != "test"][:ROWS]
    if not prompts:
        raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
    constitution = load_constitution(Path(recipe.constitution))
    trunk = load_trunk(recipe.model, device=pick_device(recipe.device), seed=recipe.seed)
    tokenizer, sampler = trunk.tokenizer, LocalSampler(trunk, "base")
    groups = respond(
        sampler, prompts, seed=recipe.seed, what="revise", k=2, temperature=recipe.revise.temperature,
        max_new_tokens=recipe.revise.max_new_tokens,
    )  # fmt: skip
    originals = [group[0] for group in groups]
    settings = recipe.revise.model_copy(update={"rounds": 1})
    revisions = revise_batch(sampler, prompts, originals, constitution, settings, seed=recipe.seed)
    principles = {p.id: p for p in constitution.principles}
    batches: dict[str, list[Tokens]] = {"revise": [], "feedback": []}
    for prompt, row in zip(prompts, revisions, strict=True):
        dialogue = [
            *prompt.messages, Message(role="assistant", content=row.original.text),
            Message(role="user", content=principles[row.principle].critique or ""),
        ]  # fmt: skip
        batches["revise"].append(
            Tokens(encode_prompt(tokenizer, dialogue), encode_response(tokenizer, row.critique.text))
        )
    batches["sft"] = sft_tokens(trunk, [(p.messages, r.revision.text) for p, r in zip(prompts, revisions, strict=True)])
    for comparison in comparisons_of(prompts, groups, constitution, recipe.seed)[:ROWS]:
        question = encode_prompt(tokenizer, ask(comparison))
        batches["feedback"] += [Tokens(question, encode_response(tokenizer, letter, end=False)) for letter in LETTERS]
    pairs = [
        Pair(prompt=p, chosen=group[0].text, rejected=group[1].text, group_id=p.id)
        for p, group in zip(prompts, groups, strict=True)
    ]
    batches["reward_model"] = [row for pair in pairs for row in pair_tokens(trunk, pair)]
    shown = {name: [describe(tokenizer, row, name == "reward_model") for row in rows] for name, rows in batches.items()}
    shown["rl"] = rl_rows(trunk, prompts, recipe)
    return {name: shown[name] for name in ("revise", "sft", "feedback", "reward_model", "rl")}


def rl_rows(trunk: Any, prompts: list[Prompt], recipe: Recipe) -> list[dict[str, Any]]:
    """A rollout as the trainer sees it, the reward on its last response token."""
    trunk.add_role("policy")
    rollout = collect(trunk, prompts, recipe.rl.model_copy(update={"samples_per_prompt": 2, "lora": None}), recipe.seed)
    places = last_token(rollout.mask).tolist()
    rows = []
    for i, place in enumerate(places):
        width = int(rollout.attention[i].sum())
        ids, mask = rollout.ids[i, :width].tolist(), rollout.mask[i, :width].tolist()
        rows.append(as_row(trunk.tokenizer, ids, mask, place))
    return rows


def describe(tokenizer: Any, row: Tokens, scored: bool) -> dict[str, Any]:
    padded = pad([row])
    ids, mask = padded.ids[0].tolist(), padded.mask[0].tolist()
    return as_row(tokenizer, ids, mask, len(ids) - 1 if scored else None)


def as_row(tokenizer: Any, ids: list[int], mask: list[bool], reward_position: int | None) -> dict[str, Any]:
    special = set(tokenizer.all_special_ids)
    pieces = [visible(tokenizer.decode([i])).replace("\n", "⏎") for i in ids]
    return {"ids": ids, "pieces": pieces, "mask": mask, "special": [i in special for i in ids],
            "reward_position": reward_position}  # fmt: skip


WORDS = {
    "revise": "the critique is sampled after the answer and the principle's question",
    "sft": "only the response and its end carry loss",
    "feedback": "the question, once with each letter; their log-probabilities are compared, in both orders",
    "reward_model": "a response and its rival; the score is read at the last token",
    "rl": "a rollout; ratio, KL and entropy count on the response, the reward lands on its last token",
}


def print_batches(batches: dict[str, list[dict[str, Any]]]) -> None:
    """Print the batches in colour; without colour, [brackets] mark the response and ▲ the place of the score."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    legend = Text("prompt ")
    legend.append("template token", style="black on cyan")
    legend.append(" ")
    legend.append("[response, in the mask]", style="bold green")
    legend.append(" ")
    legend.append("▲ the score is read or the reward lands here", style="bold white on red")
    console.print(legend)
    for name, rows in batches.items():
        console.print(Text(f"\n{name}: {WORDS[name]}", style="bold"))
        for row in rows:
            line = Text("  ")
            inside = False
            for k, piece in enumerate(row["pieces"]):
                if row["mask"][k] != inside:
                    line.append("[" if row["mask"][k] else "]", style="bold green")
                    inside = row["mask"][k]
                style = "black on cyan" if row["special"][k] else "bold green" if row["mask"][k] else "dim"
                line.append(piece, style=style)
                if k == row["reward_position"]:
                    line.append("▲", style="bold white on red")
            console.print(line + Text("]" if inside else "", style="bold green"), soft_wrap=True)
            n = sum(row["mask"])
            console.print(Text(f"  {len(row['ids'])} tokens, {n} in the mask", style="italic"))
