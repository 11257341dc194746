"""The answers of two arms to the same held-out prompts, in one table for a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from charter.evaluation.arms import ScoredResponse
from charter.records import Prompt, Response
from charter.run.files import read_jsonl
from charter.votes.exports import write_csv

VERDICTS = ("harmful", "refusal", "helpful", "honest")


def write_side_by_side(evaluate: Path, prompts: Path, pairs: Sequence[tuple[str, str]], out: Path) -> list[Path]:
    """Write ``answers.A-B.csv`` into ``out`` for each pair of arms that the evaluation measured: a row of each prompt and sample
    with both answers and both verdicts. The paths of the tables."""
    written = []
    texts = {prompt.id: prompt for prompt in read_jsonl(prompts, Prompt)}
    for a, b in pairs:
        sides = [list(rows_of(evaluate, arm)) for arm in (a, b)]
        path = out / f"answers.{a}-{b}.csv"
        if not all(sides):
            path.unlink(missing_ok=True)  # of a run with other arms
            continue
        columns = ["prompt_id", "prompt", "principle", "tags"]
        columns += [f"{name}_{arm}" for name in ("response", *VERDICTS) for arm in (a, b)]
        rows = []
        for first, second in zip(*sides, strict=True):
            prompt = texts[first[1].prompt_id]
            cells: list[list[object]] = [[response.text for response, _ in (first, second)]]
            cells += [[getattr(verdict, name) for _, verdict in (first, second)] for name in VERDICTS]
            rows.append(
                [prompt.id, prompt.last_turn, prompt.principle, " ".join(prompt.tags), *(x for cell in cells for x in cell)]
            )
        write_csv(path, columns, rows)
        written.append(path)
    return written


def rows_of(evaluate: Path, arm: str) -> Iterator[tuple[Response, ScoredResponse]]:
    """(response, verdict) of each answer of an arm; nothing where the arm was not measured."""
    responses, verdicts = evaluate / f"responses.{arm}.jsonl", evaluate / f"verdicts.{arm}.jsonl"
    if not (responses.exists() and verdicts.exists()):
        return
    yield from zip(read_jsonl(responses, Response), read_jsonl(verdicts, ScoredResponse), strict=True)
