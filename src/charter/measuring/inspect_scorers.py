"""Charter's scorers as scorers of inspect-ai, which finds them by the entry point `inspect_ai`: `charter/opinion`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import anyio.to_thread
from inspect_ai.scorer import Score, mean, metric, scorer, stderr
from pydantic import ValidationError

from charter.errors import InputError
from charter.evaluation.scorer_card import read_card
from charter.measuring.scorer_cards import asking, scorer_source
from charter.records import Message, Prompt
from charter.stages.evaluate.scoring import answers_hash

SHARES = ("recall", "specificity")
ROLES = ("system", "user", "assistant")


def measured_error() -> Any:
    """A metric of inspect-ai: recall and specificity of the scorer with their 95% intervals, from its card."""

    def error_of(scores: list[Any]) -> dict[str, float]:
        return next((dict(s.score.metadata["card"]) for s in scores if "card" in (s.score.metadata or {})), {})

    return error_of


def opinion(
    scorer: str = "refusal-words", measure: str = "refusal", card: str | None = None, threshold: float | None = None
) -> Any:
    """A scorer of inspect-ai: 1 where Charter's ``scorer`` says that an answer has ``measure`` (refusal, harmful, helpful, or the
    label of a classifier or reward model), 0 where not; unscored where it cannot say.

    scorer: as of `charter scorer card`. card: its file from that command; the log then shows recall and specificity beside the
    mean. threshold: a number above it is a yes. InputError if the card is of another scorer.
    """
    source = scorer_source(scorer)
    error = {} if card is None else card_figures(Path(card), answers_hash(source), measure, threshold)
    ask, lock = asking(source, [measure], threshold), Lock()

    def decide(prompt: Prompt, text: str) -> Any:
        with lock:  # one model, one answer at a time
            (said,) = ask([prompt], [text])[measure]
        metadata: dict[str, Any] = {
            key: v for key, v in (("probability", said.probability), ("number", said.score)) if v is not None
        }
        metadata |= {"card": error} if error else {}
        if said.verdict is None:
            return Score.unscored(reason="grader_failed", explanation=f"{scorer} cannot say", metadata=metadata)
        return Score(value=int(said.verdict), answer=text, metadata=metadata)

    async def score(state: Any, _: Any) -> Any:
        turns = [m for m in state.messages if not (m is state.messages[-1] and m.role == "assistant")]
        try:
            prompt = Prompt(messages=tuple(Message(role=m.role, content=m.text) for m in turns))
        except ValidationError:
            roles = ", ".join(dict.fromkeys(m.role for m in turns))
            return Score.unscored(reason="scoring_failed", explanation=f"needs turns of {', '.join(ROLES)}, not {roles}")
        return await anyio.to_thread.run_sync(partial(decide, prompt, state.output.completion))

    return score


def card_figures(file: Path, answers: str, measure: str, threshold: float | None) -> Mapping[str, float]:
    """Recall and specificity on a card, with the ends of their intervals. InputError if it is of another scorer or has no
    such measure."""
    card = read_card(file)
    if card.get("hash") != answers or card.get("threshold") != threshold:
        raise InputError("the card is of another scorer or threshold; write it again with charter scorer card", file=file)
    row = next((row for row in card["measures"] if row["measure"] == measure), None)
    if row is None:
        raise InputError(f"no figures of {measure!r}; label that column", file=file)
    return {
        f"scorer_{name}{end}": value
        for name in SHARES
        if row[name]["value"] is not None
        for end, value in zip(("", "_low", "_high"), (row[name]["value"], *(row[name]["ci"] or ())), strict=False)
    }


measured_error = metric("measured_error")(measured_error)
opinion = scorer(metrics=[mean(), stderr(), measured_error()], name="opinion")(opinion)
