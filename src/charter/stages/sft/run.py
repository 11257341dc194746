"""Supervised fine-tuning on revisions, helpful answers and examples from files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from charter.models.trunk import Trunk
from charter.reading.demonstrations import read_demonstrations
from charter.reading.places import naming_the_row
from charter.records import Prompt, Response, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed, file_hash
from charter.run.run import Run, Stage
from charter.stages.models import Models, within_memory
from charter.stages.revise.left import usable_revisions
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.sft import sft_tokens, train_sft
from charter.votes.exports import export_sft

if TYPE_CHECKING:
    from charter.models.cut import Cut
    from charter.recipe.recipe import Recipe


def sft_examples(
    settings: SFTSettings, seed: int, prompts: Stage | None, revise: Stage | None
) -> tuple[list[tuple[Prompt, str]], dict[str, int]]:
    """Revisions that are fit, the last or all of each prompt, the helpful answers that ended by themselves, and the examples of
    the recipe's files; and how many rows of those files were left out, by reason."""
    files = [read_demonstrations(Path(file)) for file in settings.data]
    data = [example for file in files for example in file]
    excluded = dict(sum((Counter(file.excluded) for file in files), Counter[str]()))
    if settings.max_examples is not None and len(data) > settings.max_examples:
        drawn = np.random.default_rng(derive_seed(seed, "sft data")).permutation(len(data))
        data = [data[i] for i in sorted(drawn[: settings.max_examples].tolist())]
    if revise is None or prompts is None:
        return data, excluded
    by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
    revisions = usable_revisions(revise)
    if settings.use_revisions == "last":
        revisions = list({r.prompt_id: r for r in sorted(revisions, key=lambda r: r.round)}.values())
    helpful_file = revise.path("helpful.jsonl")
    helpful = [r for r in read_jsonl(helpful_file, Response) if r.finish_reason == "stop"] if helpful_file.exists() else []
    examples = [(by_id[r.prompt_id], r.revision.text) for r in revisions]
    return examples + [(by_id[r.prompt_id], r.text) for r in helpful] + data, excluded


def train_supervised(
    run: Run, recipe: Recipe, settings: SFTSettings, models: Models, prompts: Stage | None, revise: Stage | None
) -> Stage:
    """The base model fine-tuned on revisions and helpful answers, on examples from files, or on both. Leaves model/, a plain
    Hugging Face folder."""
    inputs = {"model": models.base.hash, "precision": recipe.arithmetic}
    if revise is not None:
        inputs["revise"] = revise.output_hash
    if settings.data:
        inputs["data"] = content_id([file_hash(Path(file)) for file in settings.data])
    with run.stage("sft", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        examples, excluded = sft_examples(settings, recipe.seed, prompts, revise)
        export_sft(stage.export("sft.csv"), examples)

        def learn(settings: SFTSettings) -> tuple[Trunk, Cut]:
            trunk = models.trunk(recipe.model, settings.lora, trains=True)
            limit = settings.max_tokens or trunk.room
            with naming_the_row([Path(file) for file in settings.data]):
                rows = sft_tokens(trunk, [(prompt.messages, text) for prompt, text in examples], limit)
            return trunk, train_sft(trunk, rows, settings, stage)

        trunk, cut = within_memory(stage, settings, learn, models.release)
        trunk.save_language_model("policy", stage.path("model"))
        losses = [row["loss"] for row in stage.metrics()]
        stage.finish(
            {"examples": len(examples), "excluded": excluded, "cut": cut.figures, "updates": len(losses),
             "first_loss": losses[0], "last_loss": losses[-1], "trainable_share": trunk.trainable_share("policy")}
        )  # fmt: skip
    return stage
