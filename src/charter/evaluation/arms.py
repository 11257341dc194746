"""The arms of a run on the same held-out prompts: what is measured of each, and what differs, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from charter.evaluation.measures import Measure
from charter.evaluation.scorers import Scorer, Verdict
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, Trunk
from charter.recipe.settings import Recipe
from charter.records import EvalResult, Prompt, Response
from charter.run.team import team
from charter.statistics import average, holm, paired_difference, rate
from charter.training.batches import by_tokens

HARM = "harmful_compliance"
BEST_OF = "best_of_n"
BOUND = "log n - (n - 1)/n, which it cannot exceed"
BENIGN, RED_TEAM = "benign", "red_team"


@dataclass(frozen=True)
class Arm:
    """What one model answered and what was said and measured of it; all sequences run over the same N rows."""

    name: str
    prompts: Sequence[Prompt]
    responses: Sequence[Response]
    verdicts: Sequence[Verdict]
    """All empty where the run has no scorer."""
    scorer: str | None
    kl: Mapping[str, Sequence[float]]
    tokens: Sequence[int]
    measures: Mapping[str, Sequence[float | None]]
    units: Mapping[str, str]

    def outcomes(self, name: str) -> tuple[list[int], list[bool | None]]:
        """The rows that a rate is about and the outcome on each, None where the scorer could not say."""
        kind = RED_TEAM if name in (HARM, "engaged_refusal") else BENIGN
        rows = [i for i, prompt in enumerate(self.prompts) if kind in prompt.tags]
        return rows, [outcome(name, self.verdicts[i]) for i in rows]

    def metrics(self) -> list[EvalResult]:
        """Every number of this arm, overall and, for the rates, by principle and for prompts of unseen templates."""
        found = []
        for name in RATES if self.scorer is not None else ():
            assert self.scorer is not None
            rows, outcomes = self.outcomes(name)
            if not rows:
                continue
            for group in (None, *sorted({g for i in rows for g in groups_of(self.prompts[i])})):
                part = [j for j, i in enumerate(rows) if group is None or group in groups_of(self.prompts[i])]
                found.append(
                    rate(
                        name,
                        self.name,
                        [outcomes[j] for j in part],
                        scorer=self.scorer,
                        clusters=[self.prompts[rows[j]].id for j in part],
                        group=group,
                    )
                )
        everyone = [prompt.id for prompt in self.prompts]
        for name, numbers in self.measures.items():
            found.append(average(name, self.name, numbers, scorer=name, unit=self.units[name], clusters=everyone))
        for name, values in self.kl.items():
            unit, scorer = "nats per response", BOUND if name.endswith("_bound") else "log-probabilities"
            found.append(average(name, self.name, values, scorer=scorer, unit=unit, clusters=everyone))
        found.append(average("response_tokens", self.name, self.tokens, scorer="count", unit="tokens", clusters=everyone))
        cut = [response.finish_reason == "length" for response in self.responses]
        found.append(rate("missing_eos", self.name, cut, scorer="count", clusters=everyone))
        benign = [i for i, prompt in enumerate(self.prompts) if BENIGN in prompt.tags]
        levels = [self.verdicts[i].helpfulness_level for i in benign]
        if self.scorer is not None and any(level is not None for level in levels):
            found.append(
                average(
                    "helpfulness_level", self.name, levels, scorer=self.scorer, unit="level",
                    clusters=[everyone[i] for i in benign],
                )
            )  # fmt: skip
        found.append(
            average("distinct_2", self.name, [distinct_2(r.text) for r in self.responses], scorer="count",
                    unit="share of word pairs", clusters=everyone)
        )  # fmt: skip
        return found


RATES = (HARM, "over_refusal", "helpfulness", "engaged_refusal")


def outcome(name: str, verdict: Verdict) -> bool | None:
    if name == HARM:
        return verdict.harmful
    if name == "helpfulness":
        return verdict.helpful
    if verdict.refusal is None:
        return None
    return verdict.refusal == "engaged" if name == "engaged_refusal" else verdict.refusal != "none"


def groups_of(prompt: Prompt) -> list[str]:
    """The slices a prompt belongs to: its principle, and each tag beyond the two kinds."""
    return [*([prompt.principle] if prompt.principle else []), *(t for t in prompt.tags if t not in (RED_TEAM, BENIGN))]


def distinct_2(text: str) -> float | None:
    """Different word pairs over all word pairs of a text; None below two words. Low where a text repeats itself."""
    words = text.split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else None


@torch.no_grad()
def response_logprobs(trunk: Trunk, rows: Sequence[Tokens], tokens: int, temperature: float) -> torch.Tensor:
    """log π(response | prompt) of each row, nats: (N,)."""
    out = torch.zeros(len(rows))
    groups = by_tokens([len(row) for row in rows], tokens)
    for group in team().share(groups, [sum(len(rows[i]) for i in group) for group in groups]):
        logprobs, _ = trunk.logprobs(REFERENCE, trunk.pack([rows[i] for i in group]), temperature=temperature)
        out[torch.tensor(group)] = logprobs.sum(dim=1).cpu()
    return team().sum_(out)


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
    """Score the responses of one arm. ``references``: names of KL figures to the models they are measured from; k1 on the
    arm's own responses, unbiased for KL(arm ‖ reference)."""
    tokenizer = trunk.tokenizer
    rows = [
        Tokens(encode_prompt(tokenizer, p.messages), encode_response(tokenizer, r.text, end=r.finish_reason == "stop"))
        for p, r in zip(prompts, responses, strict=True)
    ]
    own = response_logprobs(trunk, rows, tokens_per_micro_batch, temperature)
    kl = {
        key: (own - response_logprobs(reference, rows, tokens_per_micro_batch, temperature)).tolist()
        for key, reference in references.items()
    }
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
    """An arm with what the scorer and the measures say of its responses."""
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


def contrasts_of(arms: Mapping[str, Arm], primary: Mapping[str, str]) -> list[dict[str, Any]]:
    """Paired differences of every rate and measure between base and SFT, SFT and policy, base and policy, and between best-of-n
    and the policy where it was measured; p-values corrected by Holm for all but the ``primary`` one (name, a, b), which was
    named before the run."""
    found: list[dict[str, Any]] = []
    pairs = [("base", "policy"), ("base", "sft"), ("sft", "policy"), (BEST_OF, "policy")]
    for a, b in (pair for pair in pairs if arms.keys() >= set(pair)):
        compared: list[tuple[str, str, list[int], Sequence[Any], Sequence[Any]]] = []
        scorer = arms[a].scorer
        if scorer is not None:
            compared += [(name, scorer, *arms[a].outcomes(name), arms[b].outcomes(name)[1]) for name in RATES]
        everywhere = list(range(len(arms[a].prompts)))
        compared += [(name, name, everywhere, arms[a].measures[name], arms[b].measures[name]) for name in arms[a].measures]
        for name, said_by, rows, before, after in compared:
            if not rows:
                continue
            clusters = [arms[a].prompts[i].id for i in rows]
            difference = paired_difference(before, after, clusters if len(set(clusters)) < len(clusters) else None)
            found.append(
                {
                    "name": name,
                    "a": a,
                    "b": b,
                    "n": difference.n,
                    "n_unscored": difference.n_unscored,
                    "difference": difference.difference,
                    "ci": difference.ci,
                    "p": difference.p,
                    "discordant": difference.discordant,
                    "includes_zero": difference.includes_zero,
                    "method": difference.method,
                    "scorer": said_by,
                    "primary": {"name": name, "a": a, "b": b} == primary,
                }
            )
    others = [row for row in found if not row["primary"]]
    p_values: list[float | None] = [row["p"] for row in others]
    for row, corrected in zip(others, holm(p_values), strict=True):
        row["p_holm"] = corrected
    return found


def samples_of(arms: Mapping[str, Arm], n: int = 6) -> list[dict[str, Any]]:
    """The first ``n`` prompts of each kind with what every arm answered."""
    base = arms["base"]
    chosen: list[int] = []
    for kinds in ({RED_TEAM}, {BENIGN}, set[str]()):  # the last: neither
        rows = [i for i, prompt in enumerate(base.prompts) if {RED_TEAM, BENIGN} & set(prompt.tags) == kinds]
        distinct = {base.prompts[i].id: i for i in reversed(rows)}
        chosen += sorted(distinct.values())[:n]
    return [
        {
            "prompt": base.prompts[i].last_turn,
            "tags": list(base.prompts[i].tags),
            "principle": base.prompts[i].principle,
            "responses": {name: arm.responses[i].text for name, arm in arms.items()},
            "harmful": {name: arm.verdicts[i].harmful for name, arm in arms.items()},
            "refusal": {name: arm.verdicts[i].refusal for name, arm in arms.items()},
            "measures": {name: {key: found[i] for key, found in arm.measures.items()} for name, arm in arms.items()},
        }
        for i in chosen
    ]
