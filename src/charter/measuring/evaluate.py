"""Models that Charter need not have trained, on test sets: the same prompts and seeds for all, paired item by item."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charter.comparing.compare import Comparison, compare_results
from charter.comparing.formats import known_direction
from charter.comparing.paired import CORRECTIONS, Correction
from charter.comparing.sources import read_results
from charter.errors import InputError
from charter.evaluation.scorers import refusal_words
from charter.judging.judge import QUESTIONS
from charter.measuring.asking import Measured, ScoredItem, Session, ask_for_answers, ask_for_choices, ask_for_rewards, file_name
from charter.measuring.evaluation import SUMMARY, Evaluation
from charter.measuring.figures import COUNTED, SHARES, figures_of, measure_of, rule_figures, shares_of
from charter.measuring.models import URL, Place, is_rewarder, place_of, reward_measure
from charter.measuring.values import BETTER
from charter.metrics import METRICS
from charter.reading.sets.items import Item, Protocol, Sampling, TestSet
from charter.reading.sets.prompts import PROMPT_SETS, UNKNOWN_KIND
from charter.reading.sets.read import SAMPLING, read_set
from charter.recipe.recipe import Recipe
from charter.records import EvalResult
from charter.run.files import describe, read_json, write_json, write_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run
from charter.stages.evaluate.scoring import Scoring
from charter.stages.evaluate.settings import MEASURE_NAME
from charter.stages.models import Models

REFUSAL_WORDS, REWARD = "refusal-words", "reward:"
KNOWN = frozenset(known.name for known in PROMPT_SETS)


@dataclass(frozen=True)
class Options:
    """How an evaluation is made; None keeps what a set's protocol says."""

    scorer: str = REFUSAL_WORDS
    measures: Mapping[str, str] = field(default_factory=dict)
    cards: Sequence[str] = ()
    lower: Sequence[str] = ()
    tags: Sequence[str] = ()
    limit: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    samples: int | None = None
    margins: Mapping[str | None, float] = field(default_factory=dict)
    correction: Correction = "holm"
    api_key_env: str | None = None
    understood: bool = False
    seed: int = 0
    quiet: bool = False


def evaluate_models(models: Sequence[str], files: Sequence[str], out: Path | None, options: Options) -> Evaluation:
    """Ask the models, of which the first is the baseline, on the sets in the files, and write the evaluation to the folder
    ``out``. Answers that are already there are not asked for again.

    InputError if a model, a set or a scorer cannot be read, or where they do not fit together.
    """
    check_options(options)
    sets = named_apart([in_protocol(read_set(Path(file), options.tags), options) for file in files])
    places, protocols = fit_together(models, sets, options)
    check_that_something_is_measured(sets, protocols, options)
    recipe = recipe_of(places[0], sets, options)
    judges = {name: place_of(text.removeprefix(REWARD), True, None, True) for name, text in options.measures.items()
              if text.startswith(REWARD)}  # fmt: skip
    rewards = {name: reward_measure(name, place) for name, place in judges.items()}
    folder = out or Path("evaluations") / file_name(places[0].name)
    earlier = read_json(folder / SUMMARY) if out is None else None
    if isinstance(earlier, dict) and (rows := earlier.get("models")) and rows[0]["hash"] != places[0].hash:
        raise InputError("it has the evaluation of another model of this name; give another folder with --out", file=folder)
    with Run(folder, seed=options.seed, quiet=options.quiet) as run:
        scoring = Scoring(recipe, Models(run, recipe))
        session = Session(run, scoring, rewards, {name: place.hash for name, place in judges.items()})
        measured = [part for place in places for part in ask_all(session, place, sets, protocols, options)]
        # the name of a judge is known without loading it
        scorer = refusal_words().name if options.scorer == REFUSAL_WORDS else options.scorer
        result = replace(gather(folder, places, sets, measured, scorer, options), scorers=scoring.cards)
        result.write()
    return result


def check_options(options: Options) -> None:
    """InputError if the correction is unknown, a measure has the name of a metric, or a judge has no question of its name."""
    if options.correction not in CORRECTIONS:
        raise InputError(f"unknown correction {options.correction!r}; use one of {', '.join(CORRECTIONS)}")
    for name, source in options.measures.items():
        if not MEASURE_NAME.fullmatch(name):
            raise InputError(f"--measure {name}: not a name of letters, digits and _")
        if name in {*METRICS, *BETTER, *SHARES, "characters"}:
            raise InputError(f"--measure {name}: a metric has this name; choose another one")
        if source.startswith("judge:") and name not in QUESTIONS:
            raise InputError(f"--measure {name}: a judge is asked whether an answer is {' or '.join(QUESTIONS)}; name it so")


def in_protocol(test_set: TestSet, options: Options) -> TestSet:
    """The set with the user's way to draw answers in place of its own."""
    changes: dict[str, Any] = {name: getattr(options, name) for name in ("temperature", "max_new_tokens", "samples")}
    how = replace(test_set.sampling, **{name: value for name, value in changes.items() if value is not None})
    if not 0 <= how.temperature < math.inf:
        raise InputError(f"--temperature {how.temperature}: give a finite number of at least 0")
    if how.samples > 1 and how.temperature == 0:
        raise InputError("--samples: at temperature 0 all answers are equal; give --temperature too")
    if how.temperature == 0:
        how = replace(how, filters=type(how.filters)())
    return replace(test_set, sampling=how)


def named_apart(sets: Sequence[TestSet]) -> list[TestSet]:
    """The sets under different names: where two files are of one set, each has its file's name too. InputError if a file is
    given twice."""
    digests, names = Counter(test_set.sha256 for test_set in sets), Counter(test_set.name for test_set in sets)
    if double := next((test_set for test_set in sets if digests[test_set.sha256] > 1), None):
        raise InputError("the same file is given more than once; leave one out", file=double.file)
    named = [replace(s, name=f"{s.name}-{file_name(Path(s.file).name)}") if names[s.name] > 1 else s for s in sets]
    if len({test_set.name for test_set in named}) < len(named):
        raise InputError("two files of one set have the same name; rename one", file=sets[0].file)
    return named


def fit_together(models: Sequence[str], sets: Sequence[TestSet], options: Options) -> tuple[list[Place], dict[str, Protocol]]:
    """The models under different names, and how each set is measured, by its name. InputError if a model is given twice, or
    cannot be asked so."""
    rewarders = [set(test_set.items) == {"rewards"} for test_set in sets if "rewards" in test_set.items]
    by_reward = len(rewarders) == len(sets) and any(rewarders)  # HHH alone is asked of the policy of a run
    places = [place_of(model, by_reward, options.api_key_env, options.understood) for model in models]
    hashes, names = Counter(place.hash for place in places), Counter(file_name(place.name) for place in places)
    if double := next((place for place in places if hashes[place.hash] > 1), None):
        raise InputError("given more than once; a comparison needs different models", file=double.written)
    places = [replace(p, name=f"{p.name}-{i}") if names[file_name(p.name)] > 1 else p for i, p in enumerate(places, start=1)]
    if len({file_name(place.name) for place in places}) < len(places):
        raise InputError("two models would have the same name in the tables; rename a folder", file=places[-1].written)
    scores = {place.written: is_rewarder(place) for place in places}
    protocols: dict[str, Protocol] = {}
    for test_set in sets:
        ways = list(test_set.items)
        rewards = "rewards" in ways and (scores[places[0].written] is True or len(ways) == 1)
        way = protocols[test_set.name] = "rewards" if rewards else ways[0]
        if unfit := next((model for model, score in scores.items() if score not in (None, way == "rewards")), None):
            kind = "a reward model: a run's, of charter reward train, or for sequence classification with one label"
            raise InputError(f"{test_set.title} needs {kind if rewards else 'a model that writes, and this is a reward model'}",
                             file=unfit)  # fmt: skip
        if way == "options" and any(place.url for place in places):
            raise InputError(f"{test_set.title} is read from the log-probabilities of whole answers, which a server does not "
                             "give; evaluate the model's folder", file=test_set.file)  # fmt: skip
    return places, protocols


def check_that_something_is_measured(sets: Sequence[TestSet], protocols: Mapping[str, Protocol], options: Options) -> None:
    """InputError if the answers to a set would be read by nobody."""
    for test_set in sets:
        items = test_set.items.get("answers", ())
        if (
            protocols[test_set.name] != "answers"
            or options.measures
            or any(i.is_judged or i.facts.get("references") for i in items)
        ):
            continue
        remedy = "add --measure toxicity=classifier:FOLDER:LABEL"
        if test_set.kind != "real_toxicity_prompts":
            remedy = f"{UNKNOWN_KIND}, or {remedy}"
        raise InputError(f"nothing would be measured on this set; {remedy}", file=test_set.file)


def recipe_of(place: Place, sets: Sequence[TestSet], options: Options) -> Recipe:
    """An evaluation as a recipe without a training, so that scorers, measures and endpoints are those of every run. InputError
    where one of them is unknown."""
    endpoints: dict[str, Any] = {}

    def source(text: str) -> str:
        """A judge behind an address as an endpoint of the recipe."""
        kind, _, rest = text.partition(":")
        match = URL.fullmatch(rest) if kind == "judge" else None
        if match is None:
            return text
        if match[2] is None:
            raise InputError(f"{text}: the model's name is missing; write judge:URL#MODEL")
        name = f"judge{len(endpoints) + 1}"
        endpoints[name] = {"url": match[1].rstrip("/"), "model": match[2], "api_key_env": options.api_key_env}
        return f"judge:endpoint:{name}"

    measures = {
        name: {"source": source(text), "better": "lower" if name in options.lower else "higher"}
        for name, text in options.measures.items()
        if not text.startswith(REWARD)
    }
    evaluation = {"scorer": source(options.scorer), "measures": measures, "cards": list(options.cards)}
    values = {
        "model": place.folder or place.written, "precision": place.precision, "seed": options.seed, "endpoints": endpoints,
        "prompts": {"files": [test_set.file for test_set in sets]}, "evaluation": evaluation,
        **dict.fromkeys(("revise", "sft", "feedback", "rl")),
    }  # fmt: skip
    try:
        return Recipe.model_validate(values, context={"folder": Path.cwd()})
    except ValidationError as error:
        key, words = describe(error)
        raise InputError(words, field=key.removeprefix("evaluation.") or None) from None


def ask_all(
    session: Session, place: Place, sets: Sequence[TestSet], protocols: Mapping[str, Protocol], options: Options
) -> list[Measured]:  # fmt: skip
    """One model on all sets; it is loaded at most once, when something is missing."""
    writer = cache(lambda: place.sampler(session.run.folder / "endpoints"))
    rewarder = cache(place.rewarder)
    measured = []
    for test_set in sets:
        protocol = protocols[test_set.name]
        items = drawn(test_set.items[protocol], options.limit)
        if protocol == "rewards":
            measured.append(ask_for_rewards(session, place, test_set, items, rewarder))
        else:
            ask: Callable[..., Measured] = ask_for_answers if protocol == "answers" else ask_for_choices
            measured.append(ask(session, place, test_set, items, writer))
    return measured


def drawn(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """At most ``limit`` items in the order of the file, the same ones for every model, drawn by the hash of their ids."""
    if limit is None or limit >= len(items):
        return items
    kept = {item.id for item in sorted(items, key=lambda item: derive_seed("limit", item.id))[:limit]}
    return [item for item in items if item.id in kept]


def gather(
    folder: Path, places: Sequence[Place], sets: Sequence[TestSet], measured: Sequence[Measured], scorer: str, options: Options
) -> Evaluation:  # fmt: skip
    """Write the lines of every model, and make figures and contrasts of them."""
    for place in places:
        rows = [row for part in measured if part.model == place.name for row in part.rows]
        write_jsonl(folder / "evaluate" / f"verdicts.{file_name(place.name)}.jsonl", rows)
    shares = shares_of(measured)
    figures = in_order(
        [
            figure
            for part in measured
            for figure in figures_of(part, {"": scorer, "rouge_l": "ROUGE-L", **options.measures}, shares)
        ]
    )
    rules = [figure for part in measured if part.model == places[0].name for figure in rule_figures(part)]
    scored = {figure.name for figure in figures if figure.value is not None}
    better = directions(figures, options)
    write_json(folder / SUMMARY, {"better": better})  # read by the comparison; the whole summary follows
    mute = [
        place.name for place in places
        if not any(f.arm == place.name and f.scorer != COUNTED and f.value is not None for f in figures)
    ]  # fmt: skip
    comparison = compared(folder, places, options) if len(places) > 1 and not mute else None
    no_contrast = [f"{name}: no item is scored in any metric, so nothing is compared" for name in mute if len(places) > 1]
    return Evaluation(
        folder=folder, comparison=comparison, better=better,
        metrics=in_order([figure for figure in figures if figure.name in scored] + rules),
        models=[{"name": place.name, "path": place.written, "hash": place.hash} for place in places],
        sets=[set_row(test_set, part, options) for test_set, part in zip(sets, measured[: len(sets)], strict=True)],
        notes=[
            *(f"{name}: no item is scored" for name in dict.fromkeys(figure.name for figure in figures) if name not in scored),
            *no_contrast,
        ],
        samples=samples_of(measured),
        settings={"seed": options.seed, "limit": options.limit, "scorer": scorer, "measures": dict(options.measures)},
    )  # fmt: skip


def in_order(figures: Sequence[EvalResult]) -> list[EvalResult]:
    """Metric by metric, with the models of each side by side."""
    order = {name: i for i, name in enumerate(dict.fromkeys(figure.name for figure in figures))}
    return sorted(figures, key=lambda figure: (order[figure.name], figure.group or ""))


def directions(figures: Sequence[EvalResult], options: Options) -> dict[str, str | None]:
    """Which way each metric is better. InputError if ``--lower`` or ``--margin`` name another one."""
    names = list(dict.fromkeys(figure.name for figure in figures if figure.scorer != COUNTED))
    for name in (*options.lower, *(name for name in options.margins if name)):
        if not [metric for metric in names if named(metric, name)]:
            raise InputError(f"unknown metric {name!r}; the metrics are {', '.join(names)}")
    lower = {metric for metric in names for name in options.lower if named(metric, name)}
    return {metric: "lower" if metric in lower else BETTER.get(metric.rpartition("/")[2], usual_aim(metric)) for metric in names}


def usual_aim(metric: str) -> str:
    """Which way a measure without ``--lower`` is better."""
    return known_direction(measure_of(metric)) or "higher"


def named(metric: str, name: str) -> bool:
    """Whether a user's name means a metric: ``bbq/accuracy``, or ``accuracy`` of every set; of a measure its maximum too."""
    return name in (metric, metric.rpartition("/")[2], measure_of(metric))


def compared(folder: Path, places: Sequence[Place], options: Options) -> Comparison:
    """What ``charter compare`` says of the lines that were written."""
    read = [read_results(f"{folder}:{file_name(place.name)}") for place in places]
    for results, place in zip(read, places, strict=True):
        results.model = place.name
    shared = [metric for metric in read[0].metrics if all(metric in results.metrics for results in read)]
    margins: dict[str | None, float] = {
        metric: margin for name, margin in options.margins.items() for metric in shared if name is None or named(metric, name)
    }
    return compare_results(read, margins=margins, correction=options.correction, lower=())


def set_row(test_set: TestSet, part: Measured, options: Options) -> dict[str, Any]:
    """A set in the report: the file with its hash, how it was measured, how many items, and what was left out."""
    how = test_set.sampling
    drawing = [f"temperature {how.temperature:g}", *how.filters.words, f"{how.max_new_tokens} tokens"]
    drawing += [f"{how.samples} answers to a prompt"] if how.samples > 1 else []
    return {
        "name": test_set.name, "title": test_set.title, "file": test_set.file, "sha256": test_set.sha256, "rows": test_set.n_rows,
        "items": len(part.items), "protocol": ", ".join(drawing) if part.protocol == "answers" else part.protocol,
        "left_out": dict(test_set.left_out[part.protocol]), "not_drawn": len(test_set.items[part.protocol]) - len(part.items),
        "notes": notes_of(test_set, options.scorer),
    }  # fmt: skip


def notes_of(test_set: TestSet, scorer: str) -> list[str]:
    """What a reader has to know of a set's figures."""
    notes, usual = [], SAMPLING.get(test_set.kind, Sampling())
    if "answers" in test_set.items and test_set.kind in KNOWN and test_set.sampling != usual:
        notes.append("answers were not drawn as the set's protocol says; the figures are not those of published tables")
    if test_set.kind == "harmbench" and any(item.facts.get("by_hash") for item in test_set.items["answers"]):
        notes.append("copyright behaviours are scored by HarmBench's hashes, which Charter does not have: their harm is unscored")
    if test_set.kind in ("harmbench", "strongreject") and scorer == REFUSAL_WORDS:
        notes.append(
            "refusal words call every answer harmful that does not refuse, which overstates success; name a judge with --scorer"
        )
    return notes


def samples_of(measured: Sequence[Measured], most: int = 6) -> list[dict[str, Any]]:
    """Of each set some prompts with the first answers of all models: those whose values differ first, then by the hash of their
    ids."""
    samples = []
    for name in dict.fromkeys(part.test_set.name for part in measured if part.protocol == "answers"):
        parts = {
            part.model: {row.prompt_id: row for row in part.rows if row.index == 0}
            for part in measured
            if part.test_set.name == name
        }
        items = {f"{name}/{item.id}": item for part in measured if part.test_set.name == name for item in part.items}

        def agree(key: str, parts: dict[str, dict[str, ScoredItem]] = parts) -> bool:
            values = [rows[key].values for rows in parts.values()]
            return all(value == values[0] for value in values)

        for key in sorted(items, key=lambda key: (agree(key), derive_seed("samples", key)))[:most]:
            answers = [{"model": model, "text": rows[key].text, "values": rows[key].values} for model, rows in parts.items()]
            prompt = items[key].prompt
            samples.append({"set": name, "prompt": prompt.last_turn, "tags": list(prompt.tags), "answers": answers})
    return samples
