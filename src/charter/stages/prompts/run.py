"""The prompt stage: read, without duplicates, sorted by principle, split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.constitution.categorise import Sorting, categorise, choose_way, usual_way
from charter.constitution.constitution import PROMPT_TAGS, Constitution
from charter.errors import InputError
from charter.models.sampling.generate import context_length
from charter.reading.prompts import KINDS, is_kind, read_prompts
from charter.reading.spool import BATCH, prepare_prompts
from charter.records import Prompt, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import file_hash
from charter.run.progress import track
from charter.run.run import Run, Stage
from charter.stages.models import Models
from charter.stages.prompts.settings import PromptSettings

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def choose_prompts(run: Run, recipe: Recipe, settings: PromptSettings, models: Models, constitution: Constitution) -> Stage:
    """Read, de-duplicate, sort by principle, split. Leaves prompts.jsonl: train and test, red_team and benign."""
    inputs = {
        # A name counts: it may say which kind of prompts a public set has.
        "files": content_id([[Path(file).name, file_hash(Path(file))] for file, _ in settings.sources]),
        "topics": content_id([(p.id, p.title, *([p.about] if p.about else [])) for p in constitution.topics()]),
        "labelled": file_hash(Path(settings.labelled)) if settings.labelled else "",
        "model": models.base.hash,
        "precision": recipe.arithmetic,
    }
    with run.stage("prompts", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        sorting = how_to_sort(settings, models, constitution)
        result = prepare_prompts(
            prompts_of(settings), stage.path("prompts.jsonl"), train=settings.train, test=settings.test,
            test_fraction=settings.test_fraction, seed=recipe.seed,
            shorter=lambda: most_characters(models.trunk(recipe.model).model),
            sort=lambda batch: categorise(batch, constitution, models.sampler(models.base), sorting),
            progress=lambda batches: track(
                batches, "prompts: sorting by principle", unit=BATCH, total=sum(map(len, batches)), quiet=run.quiet
            ),
        )  # fmt: skip
        if recipe.revise is not None:
            check_red_team(result["counts"])
        if neither := of_neither_kind(result["counts"]):
            models.say(f"prompts: {neither} have neither the tag red_team nor benign; no stage counts them as one of the two")
        if sorting is not None:
            models.say(f"prompts: {sorting.words()}")
        stage.finish(result | ({"sorting": sorting.figures()} if sorting is not None else {}))
    return stage


def how_to_sort(settings: PromptSettings, models: Models, constitution: Constitution) -> Sorting | None:
    """The way of sorting by principle, chosen by labelled prompts where there are any; None without topics."""
    topics = constitution.topics()
    if not topics:
        return None
    if settings.labelled is None:
        return Sorting(usual_way(topics))
    labelled = list(read_prompts(Path(settings.labelled)))
    return choose_way(labelled, constitution, models.sampler(models.base))


def prompts_of(settings: PromptSettings) -> Iterator[Prompt]:
    """The prompts of a recipe's files, in order, each with the tags of its file, cut to their first words where that is asked.
    InputError for a prompt of two kinds: every stage would count it twice."""
    for file, tags in settings.sources:
        for prompt in read_prompts(Path(file), tags=tags):
            if PROMPT_TAGS.issubset(prompt.tags):
                words = f"the prompt {prompt.last_turn[:60]!r} is tagged red_team and benign; keep one of the two tags"
                raise InputError(words, file=file)
            yield prompt if settings.first_words is None else beginning(prompt, settings.first_words)


def beginning(prompt: Prompt, n_words: int) -> Prompt:
    """The prompt with the first words of its last turn."""
    *before, last = prompt.messages
    cut = last.model_copy(update={"content": " ".join(last.content.split()[:n_words])})
    return Prompt(messages=(*before, cut), **prompt.model_dump(include={"source", "principle", "tags", "split"}))


def most_characters(model: Any) -> int | None:
    """Prompts of so many characters or more are left out; None if the model names no limit. An eighth of its tokens is for the
    prompt, the rest for what is written about the prompt."""
    limit = context_length(model)
    return None if limit is None else 8 * max(limit // 8, 16)


def of_neither_kind(counts: dict[str, int]) -> int:
    """How many prompts are of neither kind, where others are of one; 0 where all are tasks."""
    tasks = sum(n for name, n in counts.items() if name.endswith(" task"))
    return tasks if sum(counts.values()) > tasks else 0


def check_red_team(counts: dict[str, int]) -> None:
    """InputError if revision has no prompt to begin from."""
    if not counts.get("train red_team"):
        raise InputError("no training prompt is tagged red_team; list a file under prompts.red_team, or tag the file's prompts")


def read_stage_prompts(stage: Stage, split: str, kind: str) -> list[Prompt]:
    """The prompts of a split and kind that the stage left, in its order."""
    return [p for p in read_jsonl(stage.path("prompts.jsonl"), Prompt) if p.split == split and is_kind(p.tags, kind)]


def prompts_to_compare(prompts: Stage, n: int) -> list[Prompt]:
    """``n`` training prompts, as many of each kind that there is, from the end of the file: revision began at its start."""
    return last_of_each_kind([read_stage_prompts(prompts, "train", kind) for kind in KINDS], n)


def last_of_each_kind(prompts: Sequence[list[Prompt]], n: int) -> list[Prompt]:
    """``n`` prompts, as many of each kind that there is, from the end of its list. ``prompts``: a list for each kind."""
    by_kind = [rows for rows in prompts if rows]
    return [p for rows in by_kind for p in rows[-max(1, n // len(by_kind)) :]]
