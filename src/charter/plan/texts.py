"""What a run reads: prompts counted as the prompt stage will choose them, tokens of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.constitution.categorise import CATEGORISE, NONE, usual_way
from charter.constitution.constitution import Constitution, load_few_shots
from charter.judging.judge import QUESTIONS, ask, comparisons_of
from charter.judging.protocols import protocols_of
from charter.judging.rubrics import questions_of
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.packing import Tokens, clip
from charter.models.sampling.sampler import fill
from charter.reading.demonstrations import read_demonstrations
from charter.reading.pairs import read_pairs
from charter.reading.prompts import KINDS
from charter.reading.ratings import read_ratings
from charter.reading.spool import taken_prompts
from charter.recipe.recipe import Recipe
from charter.records import Generation, Message, Prompt, Response
from charter.stages.feedback.run import stances_of
from charter.stages.load import Given, Lengths
from charter.stages.prompts.run import check_red_team, prompts_of
from charter.stages.rl.settings import ILQLSettings, PairSettings

SAMPLE = 200  # prompts whose tokens are counted


def measure_lengths(recipe: Recipe, constitution: Constitution, prompts: Sequence[Prompt], tokenizer: Any) -> Lengths:
    """Tokens of prompts, requests and questions under the model's own template. Where nothing is sampled the prompts are those of
    the examples and pairs."""
    sample = list(prompts)[:: max(1, len(prompts) // SAMPLE)][:SAMPLE]
    encoded = [len(encode_prompt(tokenizer, prompt.messages)) for prompt in sample]

    def turn(text: str) -> int:
        return len(encode_prompt(tokenizer, [Message(role="user", content=text)]))

    titles = [*(topic.title for topic in constitution.topics()), NONE]
    asks_model = recipe.prompts is not None and (
        recipe.prompts.labelled is not None or usual_way(constitution.topics()) == "title"
    )
    questions = [fill(CATEGORISE, prompt=p.last_turn, topics=", ".join(titles)) for p in sample[:20]]
    few_shots = recipe.revise.few_shots if recipe.revise is not None else None
    shots = load_few_shots(Path(few_shots)) if few_shots else []
    shot_messages = [message for shot in shots for message in shot]
    revisers = [p for p in constitution.principles if p.critique is not None and p.revision is not None]
    empty = [
        [Response(prompt_id=p.id, model="", text="", finish_reason="stop", generation=Generation(seed=j, temperature=0.0))
         for j in range(2)] for p in sample[:20]
    ]  # fmt: skip
    questions_of_judge = [ask(comparison) for comparison in comparisons_of(sample[:20], empty, constitution, recipe.seed)]
    feedback = recipe.feedback
    return Lengths(
        prompt=mean(encoded),
        longest_prompt=max(encoded, default=0),
        few_shots=sum(len(encode_response(tokenizer, message.content)) for message in shot_messages),
        critique=mean([turn(p.critique or "") for p in revisers]),
        revision=mean([turn(p.revision or "") for p in revisers]),
        topic_question=mean([turn(question) for question in questions]),
        topics=sum(len(encode_response(tokenizer, title, end=False)) for title in titles)
        if asks_model and len(titles) > 1
        else 0,
        n_topics=len(titles),
        comparison=mean([len(encode_prompt(tokenizer, question)) for question in questions_of_judge]),
        question=mean([turn(text) for text in QUESTIONS.values()]),
        protocols=len(protocols_of(feedback.protocol, feedback.judge.kind == "endpoint", constitution)) if feedback else 0,
        criteria=mean([len(questions_of(p)) for p in constitution.principles if p.preference is not None]),
        applying=mean([len(constitution.for_comparison(prompt)) for prompt in sample]),
        stance=mean([turn(text) for text in stances_of(feedback)]) if feedback is not None else 0.0,
        context=turn(recipe.revise.context) if recipe.revise is not None and recipe.revise.context else 0.0,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def count_prompts(recipe: Recipe, shorter: int | None = None) -> tuple[list[Prompt], dict[str, int], int]:
    """Training prompts as the prompt stage takes them, those of fewer than ``shorter`` characters; counts by split and kind;
    prompts that the stage sorts by principle."""
    settings = recipe.prompts
    if settings is None:
        return [], {f"{part} {kind}": 0 for part in ("train", "test") for kind in KINDS}, 0
    with taken_prompts(
        prompts_of(settings), train=settings.train, test=settings.test, test_fraction=settings.test_fraction, seed=recipe.seed,
        shorter=shorter,
    ) as taken:  # fmt: skip
        if recipe.revise is not None:
            check_red_team(taken.counts)
        return [p for kind in KINDS for p in taken.read("train", kind, SAMPLE)], taken.counts, taken.unsorted


def measure_rows(rows: Sequence[tuple[Prompt, str]], tokenizer: Any, limit: int | None) -> Given:
    """Tokens of a sample of prompts and responses."""
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    cut = [
        clip(Tokens(encode_prompt(tokenizer, prompt.messages), encode_response(tokenizer, text)), limit)
        for prompt, text in sample
    ]
    return Given(len(rows), mean([len(tokens.prompt) for tokens in cut]), mean([len(tokens.response) for tokens in cut]))


def read_given(recipe: Recipe, tokenizer: Any, positions: int | None) -> tuple[Given, Given]:
    """Examples of `sft.data` and, both sides counted as one row each, pairs of `feedback.pairs`, or the rows of `rl.ratings`."""
    examples, pairs = Given(), Given()
    if recipe.sft is not None and recipe.sft.data:
        demonstrations = [row for file in recipe.sft.data for row in read_demonstrations(Path(file))]
        examples = measure_rows(demonstrations[: recipe.sft.max_examples], tokenizer, recipe.sft.max_tokens or positions)
    if recipe.feedback is not None and recipe.feedback.pairs:
        read = [pair for file in recipe.feedback.pairs for pair in read_pairs(Path(file)).pairs]
        sides = [(p.prompt, text) for p in read[: recipe.feedback.max_pairs] for text in (p.chosen, p.rejected)]
        limit = recipe.rl.max_tokens if isinstance(recipe.rl, PairSettings) else recipe.reward_model.max_tokens
        pairs = measure_rows(sides, tokenizer, limit or positions)
    if isinstance(recipe.rl, ILQLSettings) and recipe.rl.ratings:
        rated = [(r.prompt, r.response) for file in recipe.rl.ratings for r in read_ratings(Path(file)).ratings]
        pairs = measure_rows(rated, tokenizer, recipe.rl.max_tokens or positions)
    return examples, pairs
