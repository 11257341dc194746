"""Critique and revision (Bai et al. 2022, section 3): the model answers, criticises its answer, and revises it.

Every round draws a principle and criticises the revision of the round before it. All texts are stored with their seeds and finish
reasons. Rows that would teach the wrong thing are marked with the reason, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from charter.constitution.constitution import Constitution, Principle, draw
from charter.errors import InputError
from charter.models.sampling.sampler import Sampler, Seeds
from charter.recipe.settings import SamplingSettings
from charter.records import Generation, Message, Prompt, Response, Revision
from charter.run.hashes import derive_seed
from charter.stages.revise.settings import ReviseSettings

TEMPLATE_TOKENS = re.compile(
    r"\[/?INST\]|<</?SYS>>|<\|[a-z_]+\|>|</?s>|<(?:start|end)_of_turn>"
    r"|(?m:^\s*(?:user|human|assistant|system|critique|revision|critiquerequest|revisionrequest)\s*:)",
    re.IGNORECASE,
)


IN_CONTEXT = "context"
"""In place of a principle, in a row whose answer was given in a context."""


def respond(
    sampler: Sampler, prompts: Sequence[Prompt], settings: SamplingSettings, *, seed: int, what: str, k: int,
    stances: Sequence[str] = (),
) -> list[list[Response]]:  # fmt: skip
    """K responses to each prompt. Seeds are derived from (run seed, ``what``, prompt, number). With ``stances`` (at least K) each
    is asked for under another of them, drawn for the prompt, and belongs to the prompt as it was."""
    seeds = [[derive_seed(seed, what, prompt.id, j) for j in range(k)] for prompt in prompts]
    if not stances:
        return responses_to(sampler, prompts, [prompt.messages for prompt in prompts], seeds, settings.temperature, settings)
    dialogues = [dialogue for prompt in prompts for dialogue in under_stances(prompt, stances, seed, k)]
    alone = [[number] for row in seeds for number in row]
    asked = [prompt for prompt in prompts for _ in range(k)]
    groups = responses_to(sampler, asked, dialogues, alone, settings.temperature, settings)
    return [[group[0] for group in groups[i : i + k]] for i in range(0, len(groups), k)]


def under_stances(prompt: Prompt, stances: Sequence[str], seed: int, k: int) -> list[tuple[Message, ...]]:
    """The prompt under K stances drawn for it: each is the system turn, or its last paragraph where the prompt has one."""
    first, turns = prompt.messages[0], prompt.messages
    before = f"{first.content}\n\n" if first.role == "system" else ""
    turns = turns[1:] if before else turns
    drawn = Random(derive_seed(seed, "stances", prompt.id)).sample(list(stances), k)
    return [(Message(role="system", content=before + stance), *turns) for stance in drawn]


def responses_to(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    dialogues: Sequence[Sequence[Message]],
    seeds: Seeds,
    temperature: float,
    settings: SamplingSettings,
) -> list[list[Response]]:
    """A response for each seed to each dialogue, which belongs to the prompt of the same place; as ``settings`` say, but for the
    temperature."""
    filters = settings.filters
    samples = sampler.generate(
        dialogues, seeds, temperature=temperature, max_new_tokens=settings.max_new_tokens, filters=filters
    )  # fmt: skip
    return [
        [
            Response(
                prompt_id=prompt.id,
                model=sampler.name,
                text=sample.text,
                finish_reason=sample.finish_reason,
                generation=Generation(seed=seed, temperature=temperature, **filters.model_dump()),
            )
            for sample, seed in zip(group, row, strict=True)
        ]
        for prompt, group, row in zip(prompts, samples, seeds, strict=True)
    ]


def revise_batch(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    originals: Sequence[Response],
    constitution: Constitution,
    settings: ReviseSettings,
    *,
    seed: int,
    few_shots: Sequence[Message] = (),
) -> list[Revision]:
    """All rounds for a batch of prompts, prompt by prompt and round by round: ``rounds`` rows for each prompt."""
    current = list(originals)
    rounds: list[list[Revision]] = []
    for number in range(1, settings.rounds + 1):
        principles = [choose_principle(constitution, prompt, seed, number) for prompt in prompts]
        dialogues = [
            [*few_shots, *prompt.messages, Message(role="assistant", content=answer.text), request(principle.critique)]
            for prompt, answer, principle in zip(prompts, current, principles, strict=True)
        ]
        critiques = speak(sampler, prompts, dialogues, seed, f"critique {number}", settings.temperature, settings)
        for dialogue, critique, principle in zip(dialogues, critiques, principles, strict=True):
            dialogue += [Message(role="assistant", content=critique.text), request(principle.revision)]
        revisions = speak(sampler, prompts, dialogues, seed, f"revision {number}", settings.revision_temperature, settings)
        rounds.append(
            [
                Revision(
                    prompt_id=prompt.id,
                    round=number,
                    principle=principle.id,
                    original=original,
                    critique=critique,
                    revision=revision,
                    excluded=why_excluded(critique, revision),
                )
                for prompt, original, critique, revision, principle in zip(
                    prompts, current, critiques, revisions, principles, strict=True
                )
            ]
        )
        # The next round cannot start from an excluded row; it starts from the answer before it.
        current = [row.original if row.excluded else row.revision for row in rounds[-1]]
    return [rounds[number][i] for i in range(len(prompts)) for number in range(settings.rounds)]


def answer_in_context(
    sampler: Sampler, batch: Sequence[tuple[Prompt, Response]], settings: ReviseSettings, *, seed: int
) -> list[Revision]:
    """In place of a revision, each prompt's answer with ``settings.context`` before its last turn (Askell et al. 2021): one row
    for a prompt, of round 1, with an empty critique."""
    prompts = [prompt for prompt, _ in batch]
    assert settings.context is not None
    dialogues = [asked_for(prompt, settings.context).messages for prompt in prompts]
    answers = speak(sampler, prompts, dialogues, seed, "context", settings.temperature, settings)
    silent = Generation(seed=0, temperature=0.0)
    return [
        Revision(
            prompt_id=prompt.id,
            round=1,
            principle=IN_CONTEXT,
            original=original,
            critique=Response(prompt_id=prompt.id, model="", text="", finish_reason="stop", generation=silent),
            revision=answer,
            excluded=why_excluded(None, answer),
        )
        for (prompt, original), answer in zip(batch, answers, strict=True)
    ]


def asked_for(prompt: Prompt, words: str) -> Prompt:
    """The prompt with ``words`` before its last turn."""
    *before, last = prompt.messages
    extended = last.model_copy(update={"content": f"{words} {last.content}"})
    return Prompt(messages=(*before, extended), principle=prompt.principle, tags=prompt.tags, split=prompt.split)


def choose_principle(constitution: Constitution, prompt: Prompt, seed: int, number: int) -> Principle:
    principles = constitution.for_revision(prompt.tags)
    if not principles:
        tags = ", ".join(prompt.tags) or "none"
        raise InputError(f"no principle with critique and revision applies to a prompt tagged {tags}; add such a principle")
    return draw(principles, seed, "principle", prompt.id, number)


def request(text: str | None) -> Message:
    """A turn of the user that asks for a critique or a revision."""
    assert text is not None  # choose_principle draws among principles that can criticise and revise
    return Message(role="user", content=text)


def speak(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    dialogues: Sequence[Sequence[Message]],
    seed: int,
    what: str,
    temperature: float,
    settings: ReviseSettings,
) -> list[Response]:
    seeds = [[derive_seed(seed, what, prompt.id)] for prompt in prompts]
    groups = responses_to(sampler, prompts, dialogues, seeds, temperature, settings)
    return [group[0] for group in groups]


def why_excluded(critique: Response | None, revision: Response) -> str | None:
    """The reason to exclude a row from training, None if it is fit. ``critique`` is None for answers without a critique."""
    text = revision.text.strip()
    if revision.finish_reason == "length":
        return "revision cut off"
    if not text:
        return "empty revision"
    if TEMPLATE_TOKENS.search(revision.text):
        return "template tokens in the revision"
    if critique is None:
        return None
    if not critique.text.strip():
        return "empty critique"
    if text == critique.text.strip():
        return "revision equals critique"
    if critique.finish_reason == "length":
        return "critique cut off"
    if TEMPLATE_TOKENS.search(critique.text):
        return "template tokens in the critique"
    return None
