"""The opinions of any scorer on answers, and its card on answers that people labelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.measures import Measure, as_number, measure_of
from charter.evaluation.scorer_card import VERDICTS, Opinion, card_of_scorer, read_labelled
from charter.evaluation.scorers import Verdict, as_verdict, refusal_words
from charter.judging.judge import QUESTIONS
from charter.measuring.models import TOKENS_PER_PASS
from charter.models.cut import answer_rows
from charter.models.load import pick_device
from charter.models.reward_trunk import load_reward_model, reward_folder
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.models.trunk import load_trunk
from charter.recipe.source import Accepts, Source
from charter.records import Prompt
from charter.run.files import write_json
from charter.run.hashes import file_hash
from charter.stages.evaluate.scoring import answers_hash
from charter.stages.evaluate.settings import MeasureSettings
from charter.training.methods.reward_model import reward_scores

SCORERS = Accepts("scorer", ("python", "judge", "classifier", "model"), words=("refusal-words",))
Ask = Callable[[Sequence[Prompt], Sequence[str]], Mapping[str, list[Opinion]]]
"""(prompts, answers) to an opinion of each answer, by measure."""


def scorer_source(scorer: str) -> Source:
    """The source that a scorer's words name. InputError if it is unknown or lives in a recipe."""
    try:
        source = SCORERS.parse(scorer).located(Path.cwd())
    except ValueError as error:
        raise InputError(str(error)) from None
    if source.model.kind == "endpoint":
        raise InputError(f"{scorer!r}: an endpoint is described in a recipe; give a folder")
    return source


def write_card(
    scorer: str, file: Path, *, label: str | None, by: Sequence[str], threshold: float | None, out: Path | None
) -> tuple[dict[str, Any], Path]:
    """The card of ``scorer`` on the labels of ``file`` and the path where it is written: FILE.card.json beside the file or in
    ``out``. InputError if the scorer or the file does not fit."""
    source = scorer_source(scorer)
    rows, left_out = read_labelled(file, [label] if label else [], by)
    ask = asking(source, list(rows[0].labels), threshold)
    card = card_of_scorer(rows, ask([row.prompt for row in rows], [row.response for row in rows]), left_out)
    card |= {"scorer": scorer, "hash": answers_hash(source), "labelled": file.name, "labelled_hash": file_hash(file)}
    if threshold is not None:
        card["threshold"] = threshold
    path = (out or file.parent) / f"{file.stem}.card.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, card)
    return card, path


def asking(source: Source, labels: Sequence[str], threshold: float | None) -> Ask:
    """A scorer as a function that gives its opinions of the measures ``labels``; a model is loaded at the first call and stays.
    InputError if the scorer decides none of them, or where the measure of its one number is not clear."""
    if source.kind == "built-in":
        refuse_threshold(threshold)
        if "refusal" not in labels:
            raise InputError(
                f"{source} decides what is a refusal, and the labels are of {', '.join(labels)}; give a column refusal"
            )
        return lambda prompts, texts: verdicts_by_measure(refusal_words().score(prompts, texts), ["refusal"])
    if source.kind == "python":
        return asking_function(source, labels, threshold)
    if source.kind == "model":
        name = only(labels)
        sign = -1 if name == "harmful" else 1  # a reward model pays for what is good
        rewards = rewarder(source)
        return lambda prompts, texts: {name: [decided(sign * s, sign * (threshold or 0.0)) for s in rewards(prompts, texts)]}
    asked = [only(labels)] if source.kind == "classifier" else [name for name in labels if name in QUESTIONS]
    if not asked and "refusal" not in labels:
        raise InputError(f"the labels are of {', '.join(labels)}, and a judge decides {', '.join(QUESTIONS)}; name the column so")
    measures = measures_of(source, asked)

    def ask(prompts: Sequence[Prompt], texts: Sequence[str]) -> Mapping[str, list[Opinion]]:
        cut = 0.5 if threshold is None else threshold
        said = {m.name: [decided(value, cut, probability=True) for value in m.of(prompts, texts)] for m in measures}
        if (
            "refusal" in labels and "refusal" not in asked
        ):  # as the scorer of a recipe, which leaves refusals to the rule on words
            said |= verdicts_by_measure(refusal_words().score(prompts, texts), ["refusal"])
        return said

    return ask


def asking_function(source: Source, labels: Sequence[str], threshold: float | None) -> Ask:
    """The same of a user's function, which returns a scorer's keys or a number."""
    function = source.load()

    def ask(prompts: Sequence[Prompt], texts: Sequence[str]) -> Mapping[str, list[Opinion]]:
        results = [function(prompt.last_turn, text) for prompt, text in zip(prompts, texts, strict=True)]
        if any(isinstance(result, Mapping) for result in results):
            refuse_threshold(threshold)
            return verdicts_by_measure([as_verdict(result, str(source)) for result in results], labels)
        numbers = [as_number(result, str(source), "scorer") for result in results]
        return {only(labels): [decided(n, 0.5 if threshold is None else threshold) for n in numbers]}

    return ask


def refuse_threshold(threshold: float | None) -> None:
    """InputError if a threshold is given for a scorer that has none."""
    if threshold is not None:
        raise InputError("--threshold: this scorer gives verdicts and no numbers; leave it out")


def verdicts_by_measure(verdicts: Sequence[Verdict], labels: Sequence[str]) -> dict[str, list[Opinion]]:
    """Opinions from the verdicts of a scorer. InputError if no label is one of its measures."""
    names = [name for name in labels if name in VERDICTS]
    if not names:
        raise InputError(
            f"the labels are of {', '.join(labels)}, and this scorer decides {', '.join(VERDICTS)}; rename the column"
        )
    key = {"refusal": "refused"}
    return {name: [Opinion(getattr(verdict, key.get(name, name))) for verdict in verdicts] for name in names}


def only(labels: Sequence[str]) -> str:
    """The one measure of a scorer that gives one number."""
    if len(labels) > 1:
        raise InputError(f"this scorer gives one number, and the file has labels of {', '.join(labels)}; choose with --label")
    return labels[0]


def decided(score: float | None, threshold: float, *, probability: bool = False) -> Opinion:
    """A yes for a number above the threshold."""
    if score is None or not math.isfinite(score):
        return Opinion(None)
    return Opinion(score > threshold, score if probability else None, score)


def measures_of(source: Source, names: Sequence[str]) -> list[Measure]:
    """What a judge or a classifier measures, as a recipe has it."""

    @cache
    def judge(model: Source) -> Sampler:
        return LocalSampler(load_trunk(model.name, device=pick_device("auto")), Path(model.name).name)

    return [measure_of(name, MeasureSettings(source=source, better="higher"), judge, pick_device("auto")) for name in names]


def rewarder(source: Source) -> Callable[[Sequence[Prompt], Sequence[str]], list[float]]:
    """Standardised scores of a trained reward model."""
    trunk, scorers = load_reward_model(reward_folder(Path(source.name)), device=pick_device("auto"))

    def rewards(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        rows = [row for prompt, text in zip(prompts, texts, strict=True)
                for row in answer_rows(trunk.tokenizer, prompt.messages, [text], trunk.room)]  # fmt: skip
        return [float(score) for score in reward_scores(trunk, scorers, rows, TOKENS_PER_PASS)]

    return rewards
