"""The win rates of a run as annotations of AlpacaEval: the judge's verdict on each pair of answers, the last model second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.wins import STAGE, judgments_name, outcome
from charter.reading.prompts import prompt_text
from charter.records import Judgment, Prompt, Response
from charter.run.files import read_jsonl


def run_annotations(run: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(arm, annotations) of each arm that the judge compared with the last model. InputError if no judge was asked, or where a
    prompt or an answer is missing."""
    files = sorted((run / STAGE).glob(judgments_name("*")))
    if not files:
        raise InputError(f"{STAGE}/{judgments_name('*')} are missing; set a judge for the win rates and evaluate again", file=run)
    prompts = {prompt.id: prompt for prompt in read_jsonl(run / "prompts/prompts.jsonl", Prompt)}
    answers: dict[str, tuple[str, str]] = {}
    for file in sorted(run.glob("evaluate/responses.*.jsonl")):
        model = f"{run.resolve().name}-{file.name.removeprefix('responses.').removesuffix('.jsonl')}"
        answers |= {response.id: (model, response.text) for response in read_jsonl(file, Response)}
    before, after = judgments_name("*").split("*")
    for file in files:
        rows = [annotation(judgment, prompts, answers, file) for judgment in read_jsonl(file, Judgment)]
        yield file.name.removeprefix(before).removesuffix(after), rows


def annotation(
    judgment: Judgment, prompts: Mapping[str, Prompt], answers: Mapping[str, tuple[str, str]], file: Path
) -> dict[str, Any]:
    """One pair: `preference` 1 for the first answer, 2 for the second, 1.5 for a tie, null without a verdict. A dialogue is its
    messages as JSON."""
    missing = [id for id in judgment.order if id not in answers] + [id for id in [judgment.prompt_id] if id not in prompts]
    if missing:
        raise InputError(f"judgment {judgment.id!r}: the prompt or the answer {missing[0]!r} is missing; evaluate the run again",
                         file=file)  # fmt: skip
    (first_model, first), (second_model, second) = (answers[id] for id in judgment.order)
    won = outcome(judgment)
    return {
        "instruction": prompt_text(prompts[judgment.prompt_id]), "output_1": first, "generator_1": first_model,
        "output_2": second, "generator_2": second_model, "annotator": judgment.rater_id,
        "preference": None if won is None else 1 + won,
    }  # fmt: skip
