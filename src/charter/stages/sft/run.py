"""Supervised fine-tuning on revisions, helpful answers and examples from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from charter.models.trunk import Trunk
from charter.reading.demonstrations import read_demonstrations
from charter.recipe.settings import SFTSettings
from charter.records import Prompt, Response, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed, file_hash
from charter.run.run import Stage
from charter.stages.revise.run import usable_revisions
from charter.stages.work import Work, within_memory
from charter.training.sft import sft_tokens, train_sft
from charter.votes.exports import export_sft


def sft_examples(work: Work, prompts: Stage | None, revise: Stage | None) -> list[tuple[Prompt, str]]:
    """Revisions that are fit, the last or all of each prompt, the helpful answers that ended by themselves, and the examples of
    the recipe's files."""
    settings = work.recipe.sft
    assert settings is not None
    data = [example for file in settings.data for example in read_demonstrations(Path(file))]
    if settings.max_examples is not None and len(data) > settings.max_examples:
        drawn = np.random.default_rng(derive_seed(work.recipe.seed, "sft data")).permutation(len(data))
        data = [data[i] for i in sorted(drawn[: settings.max_examples].tolist())]
    if revise is None or prompts is None:
        return data
    by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
    revisions = usable_revisions(revise)
    if settings.use_revisions == "last":
        revisions = list({r.prompt_id: r for r in sorted(revisions, key=lambda r: r.round)}.values())
    helpful_file = revise.path("helpful.jsonl")
    helpful = [r for r in read_jsonl(helpful_file, Response) if r.finish_reason == "stop"] if helpful_file.exists() else []
    examples = [(by_id[r.prompt_id], r.revision.text) for r in revisions]
    return examples + [(by_id[r.prompt_id], r.text) for r in helpful] + data


def train_supervised(work: Work, prompts: Stage | None, revise: Stage | None) -> Stage:
    """The base model fine-tuned on revisions and helpful answers, on examples from files, or on both. Leaves model/, a plain
    Hugging Face folder."""
    recipe, settings = work.recipe, work.recipe.sft
    assert settings is not None
    inputs = {"model": work.model_hash, "precision": recipe.arithmetic}
    if revise is not None:
        inputs["revise"] = revise.output_hash
    if settings.data:
        inputs["data"] = content_id([file_hash(Path(file)) for file in settings.data])
    with work.run.stage("sft", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        examples = sft_examples(work, prompts, revise)
        export_sft(work.run.folder / "sft.csv", examples)

        def learn(settings: SFTSettings) -> Trunk:
            trunk = work.trunk(recipe.model, settings.lora, trains=True)
            limit = settings.max_tokens or trunk.room
            rows = sft_tokens(trunk, [(prompt.messages, text) for prompt, text in examples], limit)
            train_sft(trunk, rows, settings, stage)
            return trunk

        trunk = within_memory(stage, settings, learn, work.release)
        trunk.save_language_model("policy", stage.path("model"))
        losses = [row["loss"] for row in stage.metrics()]
        stage.finish(
            {"examples": len(examples), "updates": len(losses), "first_loss": losses[0], "last_loss": losses[-1],
             "trainable_share": trunk.trainable_share("policy")}
        )  # fmt: skip
    return stage
