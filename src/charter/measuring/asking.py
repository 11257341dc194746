"""One model on one test set: its answers and scores are stages of a run folder, each row on disk before the next is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeVar

from pydantic import Field

from charter.evaluation.arms import ScoredResponse
from charter.evaluation.measures import Measure
from charter.evaluation.scorers import Verdict, strongreject_scores
from charter.measuring.models import Place, Rewarder, weigh
from charter.measuring.values import Values, add_sections, answer_values, counts_of, option_values, reward_values
from charter.models.sampling.sampler import Sampler
from charter.reading.sets.items import Item, Protocol, TestSet
from charter.recipe.settings import SamplingSettings
from charter.records import Record, Response, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.stages.answers import answer
from charter.stages.evaluate.scoring import Scoring

BATCH = 64  # answers that are written, or items that are read, at once
R = TypeVar("R", bound=Record)
Maybe = Annotated[tuple[float | None, ...], Field(strict=False)]


class Numbers(Record):
    """What a model gave the options of an item: log-probabilities (nats) or rewards, None if missing. ``lost``: it
    was longer than the model's context, so a dialogue was cut, or the options were not read."""

    prompt_id: str
    numbers: Maybe
    lost: bool = False


class ScoredItem(Record):
    """A line of ``evaluate/verdicts.<model>.jsonl``: an answer or a choice, with its value of every metric that is about it.
    ``index``: 0 for the first answer to a prompt; ``cluster``: rows with one label are not independent."""

    prompt_id: str
    index: int
    set: str
    group: str | None
    cluster: str | None
    text: str | None
    numbers: Maybe
    values: dict[str, float | None]
    counts: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One model on one test set; of options and rewards one row an item, of answers one an answer."""

    model: str
    test_set: TestSet
    items: Sequence[Item]
    protocol: Protocol
    rows: Sequence[ScoredItem]


@dataclass(frozen=True)
class Session:
    """What all models of an evaluation share: the run folder with its seed, and who scores. ``rewards``: further measures, by
    reward models, and the hashes of these."""

    run: Run
    scoring: Scoring
    rewards: Mapping[str, Measure]
    hashes: Mapping[str, str]

    @cached_property
    def measures(self) -> dict[str, Measure]:
        return {**self.scoring.measures, **self.rewards}

    def stage(self, kind: str, place: Place, test_set: TestSet, settings: SamplingSettings | None, **inputs: str) -> Stage:
        """The stage of a model on a set. ``inputs``: what it depends on besides both."""
        name = f"{kind}.{file_name(place.name)}.{test_set.name}"
        inputs = {"model": place.hash, "precision": place.precision, **inputs}
        return self.run.stage(name, settings or {}, inputs, [__name__])


def file_name(model: str) -> str:
    """A model's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in model)


def rows_of(stage: Stage, name: str, kind: type[R], make: Callable[[], Sequence[R]]) -> list[R]:
    """The rows of a stage, which ``make`` writes where they are not all there."""
    with stage:
        if not stage.done:
            stage.finish({"rows": len(make())})
    return list(read_jsonl(stage.path(name), kind))


def ask_for_answers(
    session: Session, place: Place, test_set: TestSet, items: Sequence[Item], load: Callable[[], Sampler]
) -> Measured:  # fmt: skip
    """The answers of a model to the prompts of a set, each with what scorer and measures say of it. ``load`` is called only where
    answers are missing."""
    how = test_set.sampling
    filters = how.filters.model_dump(exclude_none=True)
    settings = SamplingSettings(temperature=how.temperature, max_new_tokens=how.max_new_tokens, **filters)
    prompts = [item.prompt for item in items]
    stage = session.stage("answers", place, test_set, settings, items=content_id([prompt.id for prompt in prompts], how.samples))

    def write() -> list[Response]:
        return answer(
            stage, "rows.jsonl", load(), prompts, k=how.samples, batch_size=BATCH, settings=settings, what="evaluate",
            seed=derive_seed(session.run.seed, "evaluate"), label=f"{place.name}, {test_set.name}",
        )  # fmt: skip

    responses = rows_of(stage, "rows.jsonl", Response, write)
    scored = scores_of(session, place, test_set, items, responses, stage.output_hash)
    by_prompt = test_set.kind == "real_toxicity_prompts"
    by_kind = session.scoring.source is not None and session.scoring.source.kind == "python"
    by_honesty = any(row.honest is not None for row in scored)
    rows = []
    for i, item in enumerate(items):
        here = slice(i * how.samples, (i + 1) * how.samples)
        values = answer_values(item, responses[here], scored[here], by_prompt=by_prompt, by_kind=by_kind, by_honesty=by_honesty)
        for j, (value, response) in enumerate(zip(values, responses[here], strict=True)):
            rows.append(scored_item(test_set, item, value, index=j, text=response.text, counts=counts_of(response)))
    return Measured(place.name, test_set, items, "answers", rows)


def scores_of(
    session: Session, place: Place, test_set: TestSet, items: Sequence[Item], responses: Sequence[Response], answers: str
) -> list[ScoredResponse]:  # fmt: skip
    """What the scorer and the measures say of each answer. A set without prompts to refuse or to answer asks no scorer."""
    scoring, k = session.scoring, test_set.sampling.samples
    judged = any(item.is_judged for item in items)
    inputs = {
        "answers": answers,
        "scorer": scoring.hash if judged else "",
        "measures": content_id(scoring.measures_hash, session.hashes),
    }
    tags = content_id([item.prompt.tags for item in items])
    stage = session.stage("scores", place, test_set, None, tags=tags, **inputs)

    def score(batch: Sequence[tuple[int, Response]]) -> list[ScoredResponse]:
        prompts, texts = [items[i // k].prompt for i, _ in batch], [response.text for _, response in batch]
        scorer = scoring.scorer if judged else None
        verdicts = scorer.score(prompts, texts) if scorer else [Verdict()] * len(texts)
        numbers = {name: measure.of(prompts, texts) for name, measure in session.measures.items()}
        if test_set.kind == "strongreject" and scorer is not None and scorer.judge is not None:
            numbers["strongreject_score"] = strongreject_scores(scorer.judge, prompts, texts)
        return [
            ScoredResponse(
                prompt_id=prompt.id, response_id=response.id, index=i % k, tags=prompt.tags, principle=None,
                **dataclasses.asdict(verdict), values={name: column[row] for name, column in numbers.items()},
            )
            for row, ((i, response), prompt, verdict) in enumerate(zip(batch, prompts, verdicts, strict=True))
        ]  # fmt: skip

    return rows_of(stage, "rows.jsonl", ScoredResponse, lambda: stage.rows("rows.jsonl", ScoredResponse).work(
        list(enumerate(responses)), BATCH, score, by_all=False, label=f"scores: {place.name}, {test_set.name}",
        quiet=session.run.quiet,
    ))  # fmt: skip


def ask_for_choices(
    session: Session, place: Place, test_set: TestSet, items: Sequence[Item], load: Callable[[], Sampler]
) -> Measured:  # fmt: skip
    """The log-probabilities that a model gives the options of each item."""
    return numbered(session, place, test_set, "options", items, lambda batch: weigh(load(), batch))


def ask_for_rewards(
    session: Session, place: Place, test_set: TestSet, items: Sequence[Item], load: Callable[[], Rewarder]
) -> Measured:  # fmt: skip
    """The rewards that a reward model gives the answers of each item."""
    return numbered(session, place, test_set, "rewards", items, lambda batch: load().rewards(batch))


def numbered(
    session: Session, place: Place, test_set: TestSet, protocol: Protocol, items: Sequence[Item],
    read: Callable[[Sequence[Item]], list[tuple[list[float], bool]]],
) -> Measured:  # fmt: skip
    """A set of which a model gives each option a number."""
    contents = content_id([[item.id, item.prompt.id, item.options] for item in items])
    stage = session.stage(protocol, place, test_set, None, items=contents)

    def produce(batch: Sequence[Item]) -> list[Numbers]:
        return [
            Numbers(prompt_id=item.id, numbers=tuple(number if math.isfinite(number) else None for number in row), lost=lost)
            for item, (row, lost) in zip(batch, read(batch), strict=True)
        ]

    rows = rows_of(stage, "rows.jsonl", Numbers, lambda: stage.rows("rows.jsonl", Numbers).work(
        list(items), BATCH, produce, by_all=False, label=f"{place.name}, {test_set.name}",
        quiet=session.run.quiet,
    ))  # fmt: skip
    value = reward_values if protocol == "rewards" else option_values
    values = [value(test_set.kind, item, row.numbers) for item, row in zip(items, rows, strict=True)]
    if test_set.kind == "rewardbench":
        add_sections(items, values)
    scored = [
        scored_item(test_set, item, v, numbers=row.numbers, counts={"beyond_context": float(row.lost)})
        for item, v, row in zip(items, values, rows, strict=True)
    ]
    return Measured(place.name, test_set, items, protocol, scored)


def scored_item(
    test_set: TestSet, item: Item, values: Values, *, index: int = 0, text: str | None = None,
    numbers: Sequence[float | None] = (), counts: dict[str, float] | None = None,
) -> ScoredItem:  # fmt: skip
    """The line of an item; metrics and ids carry the name of the set, so that several sets stay apart."""
    return ScoredItem(
        prompt_id=f"{test_set.name}/{item.id}", index=index, set=test_set.name, group=item.group,
        cluster=f"{test_set.name}/{item.cluster or item.id}", text=text, numbers=tuple(numbers),
        values={f"{test_set.name}/{name}": value for name, value in values.items()}, counts=counts or {},
    )  # fmt: skip
