"""A pilot of the revise stage: ten prompts with everything that the models wrote, and what is likely wrong. Nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from charter.constitution.constitution import Constitution, load_few_shots
from charter.constitution.revise import answer_in_context, respond, revise_batch
from charter.evaluation.scorers import Scorer
from charter.models.sampling.sampler import Sampler
from charter.recipe.recipe import Recipe
from charter.records import Prompt, Response, Revision
from charter.stages.revise.exclusions import changes, cooler, excluded_words, stronger
from charter.stages.revise.settings import ReviseSettings
from charter.statistics import distinct_pairs

PROMPTS = 10
LOOPING = 0.5  # share of distinct word pairs below which a text of LONG words repeats itself
LONG = 20


@dataclass(frozen=True)
class PilotRound:
    """One round of one prompt: the principle's id and its questions, what was written, why the row is excluded."""

    principle: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str
    harmful: bool | None
    excluded: str | None


@dataclass(frozen=True)
class PilotRow:
    prompt: str
    answer: str
    harmful: bool | None
    rounds: tuple[PilotRound, ...]


def pilot(
    recipe: Recipe, settings: ReviseSettings, constitution: Constitution, generator: Sampler, critic: Sampler, scorer: Scorer,
    prompts: Sequence[Prompt],
) -> dict[str, Any]:  # fmt: skip
    """``rows`` with every text of the first prompts, made with the seeds of a run, and ``findings``: what is likely wrong, each
    with what to change. In JSON values."""
    prompts = prompts[: min(PROMPTS, settings.prompts)]
    answers = [group[0] for group in respond(generator, prompts, settings, seed=recipe.seed, what="revise", k=1)]
    if settings.context is not None:
        revisions = answer_in_context(critic, list(zip(prompts, answers, strict=True)), settings, seed=recipe.seed)
    else:
        shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
        revisions = revise_batch(
            critic, prompts, answers, constitution, settings, seed=recipe.seed,
            few_shots=[message for shot in shots for message in shot],
        )  # fmt: skip
    before = [verdict.harmful for verdict in scorer.score(prompts, [answer.text for answer in answers])]
    by_id = {prompt.id: prompt for prompt in prompts}
    after = [v.harmful for v in scorer.score([by_id[r.prompt_id] for r in revisions], [r.revision.text for r in revisions])]
    by_principle = {principle.id: principle for principle in constitution.principles}
    rows = [
        PilotRow(
            prompt.last_turn, answer.text, harmful,
            tuple(
                PilotRound(
                    r.principle, question(by_principle, r.principle, "critique"), r.critique.text,
                    question(by_principle, r.principle, "revision") or settings.context or "", r.revision.text, still, r.excluded,
                )
                for r, still in zip(revisions, after, strict=True)
                if r.prompt_id == prompt.id
            ),
        )
        for prompt, answer, harmful in zip(prompts, answers, before, strict=True)
    ]  # fmt: skip
    findings = findings_of(settings, answers, revisions, before, after)
    return {"rows": [asdict(row) for row in rows], "findings": findings}


def question(principles: dict[str, Any], principle: str, what: str) -> str:
    """The request for a critique or a revision under a principle; empty for answers in a context."""
    return getattr(principles.get(principle), what, None) or ""


def findings_of(
    settings: ReviseSettings, answers: Sequence[Response], revisions: Sequence[Revision], before: Sequence[bool | None],
    after: Sequence[bool | None],
) -> list[str]:  # fmt: skip
    """What is likely wrong, each with what to change. ``before`` and ``after``: whether answers and revisions do harm."""
    n = len(answers)
    n_cut = sum(answer.finish_reason == "length" for answer in answers)
    usable = [(row, harm) for row, harm in zip(revisions, after, strict=True) if not row.excluded]
    texts = [answer.text for answer in answers] + [row.revision.text for row in revisions]
    loops = sum(repeats_itself(text) for text in texts)
    unchanged = sum(row.revision.text.strip() == row.original.text.strip() for row, _ in usable)
    n_harmful, n_unscored = sum(harm is True for harm in before), sum(harm is None for harm in before)
    still = sum(harm is True for _, harm in usable)
    better = stronger(settings)
    checks = [
        (n_cut * 2 >= n, f"{n_cut} of {n} answers are cut off at {settings.max_new_tokens} tokens",
         [f"raise revise.max_new_tokens above {settings.max_new_tokens}", *cooler(settings)]),
        (n_unscored * 5 >= n, f"the scorer cannot say of {n_unscored} of {n} answers",
         ["use a scorer that reads them, or a model that writes what the scorer reads"]),
        (n_unscored < n and not n_harmful, f"none of {n - n_unscored} scored answers does harm",
         ["give harder red-team prompts, or choose a model that needs revision"]),
        (len(usable) < len(revisions), excluded_words(revisions), changes(revisions, settings)),
        (loops * 5 >= len(texts), f"{loops} of {len(texts)} texts repeat themselves",
         ["raise the temperature a little, or name a larger model"]),
        (bool(usable) and unchanged * 2 >= len(usable), f"{unchanged} of {len(usable)} usable revisions are what they revise",
         [better]),
        (bool(usable) and n_harmful > 0 and still >= max(1, len(usable) // 2),
         f"{still} of {len(usable)} usable revisions still do harm", [better]),
    ]  # fmt: skip
    return [f"{words}: {'; '.join(remedies)}" for wrong, words, remedies in checks if wrong]


def repeats_itself(text: str) -> bool:
    """Whether a long text says most of its pairs of words more than once."""
    return len(text.split()) >= LONG and (distinct_pairs([text]) or 0.0) < LOOPING
