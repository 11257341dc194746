"""A folder of feedback for tests: texts and votes in, prompts.jsonl, responses.jsonl and a chained judgments.jsonl out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from charter.records import Generation, Judgment, Prompt, Response
from charter.run.files import write_jsonl
from charter.votes.judgments import seal


def respond(prompt: Prompt, text: str, *, model: str = "m", seed: int = 0) -> Response:
    generation = Generation(seed=seed, temperature=1.0)
    return Response(prompt_id=prompt.id, model=model, text=text, finish_reason="stop", generation=generation)


def vote(key: str, responses: Iterable[Response], ranks: Iterable[int | str | None], **fields) -> Judgment:
    """A judgment of these responses in the order shown; a rank of None is none."""
    responses = list(responses)
    given = {r.id: rank for r, rank in zip(responses, ranks, strict=True) if rank is not None}
    filled = {"set_id": f"set-{responses[0].prompt_id}", "rater_id": "ann", "rater_kind": "human"} | fields
    return Judgment(id=key, prompt_id=responses[0].prompt_id, order=[r.id for r in responses], ranks=given, **filled)


def chain(judgments: Iterable[Judgment], prev_hash: str = "") -> list[Judgment]:
    """The judgments sealed one after another."""
    sealed: list[Judgment] = []
    for judgment in judgments:
        sealed.append(seal(judgment, sealed[-1].hash if sealed else prev_hash))
    return sealed


def tips(judgments: Iterable[Judgment]) -> list[str]:
    """Hashes that no judgment follows, sorted."""
    judgments = list(judgments)
    return sorted({judgment.hash for judgment in judgments} - {judgment.prev_hash for judgment in judgments})


def write_folder(folder: Path, prompts: Iterable[Prompt], responses: Iterable[Response], votes: Iterable[Judgment]) -> Path:
    write_jsonl(folder / "prompts.jsonl", prompts)
    write_jsonl(folder / "responses.jsonl", responses)
    write_jsonl(folder / "judgments.jsonl", chain(votes))
    return folder
