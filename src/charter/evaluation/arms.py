"""The arms of a run on the same held-out prompts: their metrics, and their differences prompt by prompt."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field

from charter.evaluation.contrasts import effects_of
from charter.evaluation.measures import Measure
from charter.evaluation.scorers import Scorer, Verdict
from charter.metrics import ADHERENCE, BOUND, CONTROLS, HARM, LOGPROBS, METRICS, SCORER, Metric
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.logprobs import BLOCK_ELEMENTS, blocks, exact_logprobs
from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, Trunk
from charter.recipe.recipe import Recipe
from charter.records import EvalResult, Prompt, Record, Response
from charter.run.files import write_jsonl
from charter.run.team import team
from charter.statistics import average, distinct_pairs, holm, is_scored, paired_difference, rate
from charter.training.batches import by_tokens

BEST_OF = "best_of_n"
BENIGN, RED_TEAM = "benign", "red_team"


class ScoredResponse(Record):
    """A line of ``evaluate/verdicts.<arm>.jsonl``: one response, its verdict, and its value of every metric about its prompt, by
    the metric's name in the report. The report's number is the mean of a value over the lines that have it."""

    prompt_id: str
    response_id: str
    index: int
    """0 for the arm's first response to this prompt, 1 for the second, …"""
    tags: Annotated[tuple[str, ...], Field(strict=False)]
    principle: str | None
    harmful: bool | None
    refusal: str | None
    helpful: bool | None
    helpfulness_level: float | None
    honest: bool | None = None
    values: dict[str, bool | int | float | None]


@dataclass(frozen=True)
class Arm:
    """The responses of one model and what was measured of each; all sequences run over the same N rows."""

    name: str
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    verdicts: Sequence[Verdict]
    """All empty if the run has no scorer."""
    scorer: str | None
    kl: Mapping[str, Sequence[float]]
    tokens: Sequence[int]
    measures: Mapping[str, Sequence[float | None]]
    units: Mapping[str, str]
    adherence: Mapping[int, float | None] = field(default_factory=dict)
    """By row, of the prompts with a principle that a judge was asked about: P(the response follows it); None if unscored."""

    @cached_property
    def measured(self) -> list[Metric]:
        """The built-in metrics that this arm has; an optional one only where its scorer says it of some response."""

        def has(metric: Metric) -> bool:
            if metric.source == SCORER and self.scorer is None:
                return False
            if metric.source in (LOGPROBS, BOUND) and metric.name not in self.kl:
                return False
            rows, values = self.values(metric)
            return any(map(is_scored, values)) if metric.optional else bool(rows)

        return [metric for metric in METRICS.values() if metric.kind != "whole" and has(metric)]

    def values(self, metric: Metric) -> tuple[list[int], list[float | None]]:
        """The rows that a metric is about and its value on each, None if the scorer could not say."""
        rows = [i for i in range(len(self.prompts)) if self.is_about(metric, i)]
        return rows, [VALUES[metric.name](self, i) for i in rows]

    def is_about(self, metric: Metric, i: int) -> bool:
        """Whether a metric is about the prompt of row i."""
        if metric.over == "principle":
            return i in self.adherence
        return metric.over == "all" or metric.over in self.prompts[i].tags

    def source(self, metric: Metric) -> str:
        """The name of the scorer or count behind a metric, for the report."""
        return self.scorer if metric.source == SCORER and self.scorer is not None else metric.source

    def metrics(self) -> list[EvalResult]:
        """Every number of this arm, overall and, for the scorer's rates and the adherence, by principle and by tag."""
        everyone = [prompt.id for prompt in self.prompts]
        results = [result for metric in self.measured if metric.by_principle for result in self.results(metric)]
        for name, numbers in self.measures.items():
            (values,) = as_truths(numbers)
            results.append(average(name, self.name, values, scorer=name, unit=self.units[name], clusters=everyone))
        results += [result for metric in self.measured if not metric.by_principle for result in self.results(metric)]
        return results

    def results(self, metric: Metric) -> list[EvalResult]:
        """One built-in metric, with its groups where it has them."""
        rows, values = self.values(metric)
        ids = [self.prompts[i].id for i in rows]
        groups = [groups_of(self.prompts[i]) if metric.by_principle else [] for i in rows]
        results = []
        for group in (None, *sorted({name for names in groups for name in names})):
            part = [j for j, names in enumerate(groups) if group is None or group in names]
            labels: dict[str, Any] = {"scorer": self.source(metric), "clusters": [ids[j] for j in part], "group": group}
            if metric.kind == "mean":
                numbers = [values[j] for j in part]
                results.append(average(metric.name, self.name, numbers, unit=metric.unit, **labels))
            else:
                outcomes = [None if values[j] is None else bool(values[j]) for j in part]
                results.append(rate(metric.name, self.name, outcomes, **labels))
        return results


VALUES: dict[str, Callable[[Arm, int], float | None]] = {
    HARM: lambda arm, i: arm.verdicts[i].harmful,
    "over_refusal": lambda arm, i: arm.verdicts[i].refused,
    "helpfulness": lambda arm, i: arm.verdicts[i].helpful,
    "engaged_refusal": lambda arm, i: arm.verdicts[i].engaged,
    **{
        metric.name: lambda arm, i, name=metric.name: arm.kl[name][i]  # type: ignore[misc]
        for metric in METRICS.values()
        if metric.source in (LOGPROBS, BOUND)
    },
    "response_tokens": lambda arm, i: arm.tokens[i],
    "missing_eos": lambda arm, i: arm.responses[i].finish_reason == "length",
    "honesty": lambda arm, i: arm.verdicts[i].honest,
    ADHERENCE: lambda arm, i: arm.adherence[i],
    "helpfulness_level": lambda arm, i: arm.verdicts[i].helpfulness_level,
    "distinct_2": lambda arm, i: distinct_pairs([arm.responses[i].text]),
}
"""The value of each built-in metric on row i of an arm."""


def as_truths(*columns: Sequence[float | None]) -> Iterator[list[float | None]]:
    """The columns of a measure, as truth values where every score in all of them is 0 or 1: they have the intervals of shares,
    which have a width where no score differs."""
    binary = all(value in (0, 1) for column in columns for value in column if is_scored(value))
    for column in columns:
        yield [bool(value) if binary and value is not None and is_scored(value) else value for value in column]


def write_verdicts(path: Path, arm: Arm) -> None:
    """Write one ``ScoredResponse`` for every response of an arm, atomically: any figure of the report can be recomputed from them
    without asking the scorer again."""
    values: list[dict[str, float | None]] = [{} for _ in arm.prompts]
    for metric in arm.measured:
        for i, value in zip(*arm.values(metric), strict=True):
            values[i][metric.name] = value
    for name, numbers in arm.measures.items():
        for i, value in enumerate(numbers):
            values[i][name] = value
    seen: Counter[str] = Counter()
    rows = []
    for i, (prompt, response, verdict) in enumerate(zip(arm.prompts, arm.responses, arm.verdicts, strict=True)):
        rows.append(ScoredResponse(
            prompt_id=prompt.id, response_id=response.id, index=seen[prompt.id], tags=prompt.tags, principle=prompt.principle,
            **dataclasses.asdict(verdict), values=values[i],
        ))  # fmt: skip
        seen[prompt.id] += 1
    write_jsonl(path, rows)


def groups_of(prompt: Prompt) -> list[str]:
    """The groups of a prompt: its principle, and each tag beyond the two kinds."""
    return [*([prompt.principle] if prompt.principle else []), *(t for t in prompt.tags if t not in (RED_TEAM, BENIGN))]


@torch.no_grad()
def distances(
    trunk: Trunk, references: Mapping[str, Trunk], rows: Sequence[Tokens], tokens: int, temperature: float
) -> dict[str, list[float]]:
    """What the probabilities of a model say of each of the N rows: by name N numbers, nats a response, but for the entropy.

    ``entropy``: of the next token, mean over the response, nats. For each of ``references``, by its name: ``NAME`` is k1,
    the sum of log π(y) - log π_ref(y), unbiased for KL(π ‖ π_ref); ``NAME_k3`` the sum of π_ref/π - 1 - log(π_ref/π), at least 0
    (Schulman 2020, "Approximating KL divergence"); ``NAME_full`` the sum over the response of the KL of the two distributions
    of the next token, which the chosen token does not enter. All are of float32 logits of the whole vocabulary.
    """
    names = ["entropy", *(f"{name}{kind}" for name in references for kind in ("", "_k3", "_full"))]
    sums = {name: torch.zeros(len(rows), device=trunk.device) for name in names}
    groups = by_tokens([len(row) for row in rows], tokens)
    for group in team().share(groups, [sum(len(rows[i]) for i in group) for group in groups]):
        part = [rows[i] for i in group]
        packed = trunk.pack(part)
        targets, owners = packed.targets[packed.mask], torch.tensor(group, device=trunk.device)[packed.mask.nonzero()[:, 0]]
        states = {model: model_states(model, part) for model in {trunk, *references.values()}}
        for block in blocks(len(targets), trunk.model.get_output_embeddings().weight.shape[0], BLOCK_ELEMENTS):

            def read(model: Trunk, block: slice = block, states: Mapping[Trunk, torch.Tensor] = states) -> torch.Tensor:
                logprobs = exact_logprobs(model.model, states[model][block], model.vocabulary)
                return torch.log_softmax(logprobs / temperature, dim=-1) if temperature != 1 else logprobs

            own, target = read(trunk), targets[block].unsqueeze(1)
            sums["entropy"].index_add_(0, owners[block], -(own.exp() * own).sum(dim=-1))
            for name, model in references.items():
                other = own if model is trunk else read(model)
                k1 = (own - other).gather(1, target).squeeze(1)
                for kind, values in (
                    ("", k1),
                    ("_k3", torch.expm1(-k1) + k1),
                    ("_full", (own.exp() * (own - other)).sum(dim=-1)),
                ):
                    sums[f"{name}{kind}"].index_add_(0, owners[block], values)
    lengths = torch.tensor([max(len(row.response), 1) for row in rows], device=trunk.device)
    totals = {name: team().sum_(numbers) for name, numbers in sums.items()}
    totals["entropy"] = totals["entropy"] / lengths
    return {name: numbers.tolist() for name, numbers in totals.items()}


def model_states(model: Trunk, rows: Sequence[Tokens]) -> torch.Tensor:
    """The state (n, H) before each response token of the rows, in the order of the rows."""
    packed = model.pack(rows)
    return model.through(REFERENCE, lambda causal: model.hidden(causal, packed, packed.before[packed.mask]))


def measure_arm(
    name: str,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    scorer: Scorer | None,
    measures: Mapping[str, Measure],
    trunk: Trunk,
    references: Mapping[str, Trunk],
    *,
    tokens_per_micro_batch: int,
    temperature: float,
) -> Arm:
    """Score the responses of one arm. ``references``: the model from which each KL metric is measured, by the metric's name."""
    tokenizer = trunk.tokenizer
    rows = [
        Tokens(encode_prompt(tokenizer, p.messages), encode_response(tokenizer, r.text, end=r.finish_reason == "stop"))
        for p, r in zip(prompts, responses, strict=True)
    ]
    kl = distances(trunk, references, rows, tokens_per_micro_batch, temperature)
    return scored_arm(name, prompts, responses, scorer, measures, kl, [len(row.response) for row in rows])


def scored_arm(
    name: str,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    scorer: Scorer | None,
    measures: Mapping[str, Measure],
    kl: Mapping[str, Sequence[float]],
    tokens: Sequence[int],
) -> Arm:
    """An arm with the scorer's verdicts and the measures of its responses."""
    texts = [response.text for response in responses]
    verdicts = scorer.score(prompts, texts) if scorer is not None else [Verdict()] * len(texts)
    numbers = {key: measure.of(prompts, texts) for key, measure in measures.items()}
    units = {key: measure.unit for key, measure in measures.items()}
    return Arm(name, prompts, responses, verdicts, scorer.name if scorer else None, kl, tokens, numbers, units)


def primary_of(recipe: Recipe, arms: Sequence[str]) -> dict[str, str]:
    """The comparison that decides, named before the run: harm, or the first measure, from the base to the last model."""
    assert recipe.evaluation is not None
    name = HARM if recipe.scorer is not None else next(iter(recipe.evaluation.measures))
    return {"name": name, "a": "base", "b": arms[-1]}


def compared_values(a: Arm, b: Arm) -> Iterator[tuple[str, str, list[int], list[float | None], list[float | None]]]:
    """(name, scorer, rows, values of a, values of b) of every metric and measure that both arms have."""
    everywhere = list(range(len(a.prompts)))
    shared = [metric for metric in a.measured if metric.compared and metric in b.measured]
    built_in = [(metric, (metric.name, a.source(metric), *a.values(metric), b.values(metric)[1])) for metric in shared]
    yield from (row for metric, row in built_in if metric.by_principle)
    for name in a.measures:
        before, after = as_truths(a.measures[name], b.measures[name])
        yield name, name, everywhere, before, after
    yield from (row for metric, row in built_in if not metric.by_principle)


def pairs_to_compare(names: Iterable[str]) -> list[tuple[str, str]]:
    """The arms that are compared, each with the one before it, with the base, and with every control."""
    present = list(names)
    controls = [name for name in present if name in CONTROLS]
    pairs = [("base", "policy"), ("base", "sft"), ("sft", "policy"), (BEST_OF, "policy")]
    pairs += [(control, "policy") for control in controls]
    pairs += [pair for control in controls for pair in (("base", control), ("sft", control))]
    pairs += [("random", control) for control in controls if control != "random"]
    return [pair for pair in pairs if set(pair) <= set(present)]


def contrasts_of(
    arms: Mapping[str, Arm], primary: Mapping[str, str], margins: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Paired differences of every metric but the KLs, and of every measure, between the arms that are compared. Where the
    policy is compared, the scorer's rates by principle and by tag too (``group``). Holm corrects the p-values of all but the
    ``primary`` one (name, a, b), which was named before the run; those by group are a family of their own."""
    contrasts: list[dict[str, Any]] = []
    for a, b in pairs_to_compare(arms):
        for name, scorer, rows, before, after in compared_values(arms[a], arms[b]):
            prompts = [arms[a].prompts[i] for i in rows]
            lengths = [[arms[arm].tokens[i] for i in rows] for arm in (a, b)]
            groups = sorted({group for prompt in prompts for group in groups_of(prompt)}) if b == "policy" else []
            by_group = groups if name in METRICS and METRICS[name].by_principle else []
            for group in (None, *by_group):
                part = [j for j, prompt in enumerate(prompts) if group is None or group in groups_of(prompt)]
                ids = [prompts[j].id for j in part]
                clusters = ids if len(set(ids)) < len(ids) else None
                first, second = ([values[j] for j in part] for values in (before, after))
                sizes = [[tokens[j] for j in part] for tokens in lengths]
                difference = paired_difference(first, second, clusters)
                contrasts.append({
                    "name": name, "a": a, "b": b, "group": group, "n": difference.n, "n_unscored": difference.n_unscored,
                    "difference": difference.difference, "ci": difference.ci, "p": difference.p,
                    "discordant": difference.discordant, "includes_zero": difference.includes_zero, "method": difference.method,
                    "scorer": scorer, "primary": group is None and {"name": name, "a": a, "b": b} == primary,
                    **effects_of(name, first, second, sizes, clusters, difference.ci, margins),
                })  # fmt: skip
    for family in (
        [row for row in contrasts if row["group"] is None and not row["primary"]],
        [row for row in contrasts if row["group"] is not None],
    ):
        for row, corrected in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = corrected
    return contrasts
