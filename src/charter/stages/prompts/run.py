"""The prompt stage: read, without duplicates, sorted by principle, split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from charter.constitution.categorise import categorise
from charter.errors import InputError
from charter.reading.prompts import KINDS, is_kind, read_prompts
from charter.reading.spool import BATCH
from charter.reading.spool import prepare_prompts as sort_and_split
from charter.recipe.settings import PromptSettings
from charter.records import Prompt, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import file_hash
from charter.run.progress import track
from charter.run.run import Stage
from charter.stages.work import Work


def prepare_prompts(work: Work) -> Stage:
    """Read, de-duplicate, sort by principle, split. Leaves prompts.jsonl: train and test, red_team and benign."""
    recipe, run = work.recipe, work.run
    settings = recipe.prompts
    assert settings is not None
    inputs = {
        "files": content_id([file_hash(Path(file)) for file, _ in settings.sources]),
        "topics": content_id([(p.id, p.title) for p in work.constitution.topics()]),
        "model": work.model_hash,
    }
    with run.stage("prompts", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage

        def most_characters() -> int | None:
            limit = context_room(work)
            return 8 * limit if limit else None

        result = sort_and_split(
            prompts_of(settings), stage.path("prompts.jsonl"), train=settings.train, test=settings.test,
            test_fraction=settings.test_fraction, seed=recipe.seed, shorter=most_characters,
            sort=lambda batch: categorise(batch, work.constitution, work.sampler(recipe.model, "base")),
            progress=lambda batches: track(batches, "prompts: sorting by principle", unit=BATCH, quiet=run.quiet),
        )  # fmt: skip
        if recipe.revise is not None and not result["counts"].get("train red_team"):
            raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
        stage.finish(result)
    return stage


def prompts_of(settings: PromptSettings) -> Iterator[Prompt]:
    """The prompts of a recipe's files, in order, each with the tags of its file, cut to their first words where that is asked."""
    for file, tags in settings.sources:
        for prompt in read_prompts(Path(file), tags=tags):
            yield prompt if settings.first_words is None else beginning(prompt, settings.first_words)


def beginning(prompt: Prompt, n_words: int) -> Prompt:
    """The prompt with the first words of its last turn."""
    *before, last = prompt.messages
    cut = last.model_copy(update={"content": " ".join(last.content.split()[:n_words])})
    return Prompt(messages=(*before, cut), **prompt.model_dump(include={"source", "principle", "tags", "split"}))


def context_room(work: Work) -> int | None:
    """Tokens left for a prompt beside the longest thing said about it, None where the model names no limit."""
    from charter.models.generate import context_length

    limit = context_length(work.trunk(work.recipe.model).model)
    return None if limit is None else max(limit // 8, 16)


def read_stage_prompts(stage: Stage, split: str, kind: str) -> list[Prompt]:
    return [p for p in read_jsonl(stage.path("prompts.jsonl"), Prompt) if p.split == split and is_kind(p.tags, kind)]


def prompts_to_compare(prompts: Stage, n: int) -> list[Prompt]:
    """``n`` training prompts, as many of each kind that there is, from the end of the file: revision began at its start."""
    by_kind = [found for kind in KINDS if (found := read_stage_prompts(prompts, "train", kind))]
    return [p for found in by_kind for p in found[-(n // len(by_kind)) :]]
