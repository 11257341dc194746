"""The answers and values of a run's arms as logs of other tools, which those tools and :mod:`charter.comparing.sources` read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from charter.comparing.alpaca_annotations import run_annotations
from charter.comparing.formats import value_of, verdict_item
from charter.errors import InputError
from charter.reading.rows import Row, read_rows
from charter.records import Prompt, Response, content_id
from charter.run.files import read_json, read_jsonl, write_text

STOPS = {"stop": "stop", "length": "max_tokens"}
"""How inspect-ai names the reasons to stop."""


@dataclass(frozen=True)
class Answer:
    """One answer of an arm. ``number``: of its prompt in the run, from 0. ``values`` by metric; None is unscored, and a metric
    that is not about the prompt is missing."""

    number: int
    prompt: Prompt
    response: Response
    epoch: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class ArmLog:
    """The answers of one arm. ``task``: the title of the run. ``written``: when the arm was measured."""

    task: str
    model: str
    written: datetime
    answers: Sequence[Answer]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for answer in self.answers for name in answer.values))

    def scored(self, name: str) -> list[float]:
        """The values of a metric where it has one."""
        return [value for answer in self.answers if (value := answer.values.get(name)) is not None]


def export_arms(run: Path, out: Path, format: str) -> dict[str, Any]:
    """Write a file for each arm of a run into the new folder ``out``; the summary. InputError if the run was not evaluated,
    an answer or a prompt is missing, or ``out`` has files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the folder exists already; choose another --out", file=out)
    files = dict(tool_files(run, format))  # all are made before the first is written
    for name, (text, _) in files.items():
        write_text(out / name, text)
    rows = sum(count for _, count in files.values())
    return {"format": format, "rows": rows, "files": [str(out / name) for name in files], "out": str(out)}


def tool_files(run: Path, format: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """(name, (text, rows)) of each file of a format."""
    if format == "alpaca-eval":
        for arm, rows in run_annotations(run):
            yield f"{arm}/annotations.json", (json.dumps(rows, indent=1, ensure_ascii=False), len(rows))
        return
    for log in arm_logs(run):
        task, written = plain_name(log.task), f"{log.written:%Y-%m-%dT%H-%M-%S}"
        if format == "inspect":  # which reads the fields in their order
            name = f"{written}+00-00_{task}_{content_id(log.model)}.json"
            yield name, (json.dumps(inspect_log(log), indent=1, ensure_ascii=False), len(log.answers))
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lm_eval_rows(log))
            yield f"{log.model}/samples_{task}_{written}.000000.jsonl", (text, len(log.answers))


def arm_logs(run: Path) -> Iterator[ArmLog]:
    """The arms of a run in the order of their names."""
    verdicts = sorted(run.glob("evaluate/verdicts.*.jsonl"))
    if not verdicts:
        raise InputError("evaluate/verdicts.*.jsonl are missing; give a run that was evaluated", file=run)
    prompts = read_jsonl(run / "prompts/prompts.jsonl", Prompt)
    numbers = {prompt.id: (number, prompt) for number, prompt in enumerate(prompts)}
    report = read_json(run / "report.json")
    title = report.get("title") if isinstance(report, dict) else None
    for file in verdicts:
        arm = file.name.removeprefix("verdicts.").removesuffix(".jsonl")
        responses = {r.id: r for r in read_jsonl(file.with_name(f"responses.{arm}.jsonl"), Response)}
        answers = [answer_of(row, numbers, responses) for row in read_rows(file)]
        written = datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
        yield ArmLog(str(title or run.resolve().name), f"{run.resolve().name}-{arm}", written, answers)


def answer_of(row: Row, numbers: Mapping[str, tuple[int, Prompt]], responses: Mapping[str, Response]) -> Answer:
    """The answer of a line of verdicts. InputError if its prompt or its text is missing."""
    prompt_id, response_id = row.text("prompt_id"), row.text("response_id")
    if prompt_id not in numbers:
        raise row.bad("the prompt is missing in prompts/prompts.jsonl; evaluate the run again", "prompt_id")
    if response_id not in responses:
        raise row.bad("the response is missing in responses.*.jsonl; evaluate the run again", "response_id")
    item = verdict_item(row, value_of(row))
    return Answer(*numbers[prompt_id], responses[response_id], item.repeat or 1, item.scores)


def plain_name(text: str) -> str:
    """A text as part of the name of a file: other characters than letters, digits and hyphens become hyphens."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")[:60] or "charter"


def inspect_log(log: ArmLog) -> dict[str, Any]:
    """The log of inspect-ai (version 2 of its JSON form): a scorer for each metric, an epoch for each answer to a prompt."""
    created = log.written.isoformat()
    ids = list(dict.fromkeys(answer.prompt.id for answer in log.answers))
    return {
        "version": 2, "status": "success",
        "eval": {
            "eval_id": content_id([log.model, created]), "run_id": content_id([log.task, created]), "created": created,
            "task": log.task, "task_id": content_id(log.task), "model": log.model,
            "dataset": {"name": log.task, "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "config": {"epochs": max(answer.epoch for answer in log.answers)},
        },
        "plan": {}, "stats": {},
        "results": {
            "total_samples": len(log.answers), "completed_samples": len(log.answers),
            "scores": [inspect_score(log, name) for name in log.metrics],
        },
        "samples": [inspect_sample(answer, log.model) for answer in log.answers],
    }  # fmt: skip


def inspect_score(log: ArmLog, name: str) -> dict[str, Any]:
    """The mean of a metric over the answers that have a value."""
    values = log.scored(name)
    mean = {"mean": {"name": "mean", "value": fmean(values), "params": {}}} if values else {}
    return {"name": name, "scorer": name, "scored_samples": len(values), "unscored_samples": len(log.answers) - len(values),
            "params": {}, "metrics": mean}  # fmt: skip


def inspect_sample(answer: Answer, model: str) -> dict[str, Any]:
    """One answer as a sample. A metric without a value has no score."""
    turns = [{"role": message.role, "content": message.content} for message in answer.prompt.messages]
    reply = {"role": "assistant", "content": answer.response.text, "model": model, "source": "generate"}
    reason = STOPS[answer.response.finish_reason]
    return {
        "id": answer.prompt.id, "epoch": answer.epoch, "input": turns if len(turns) > 1 else turns[0]["content"], "target": "",
        "messages": [*turns, reply],
        "output": {"model": model, "choices": [{"message": reply, "stop_reason": reason}], "completion": answer.response.text},
        "scores": {name: {"value": value} for name, value in answer.values.items() if value is not None},
        "metadata": {"tags": list(answer.prompt.tags), "principle": answer.prompt.principle, "response_id": answer.response.id},
    }  # fmt: skip


def lm_eval_rows(log: ArmLog) -> Iterator[dict[str, Any]]:
    """The samples as lm-evaluation-harness logs those of a task that generates text, a row for each answer."""
    for answer in log.answers:
        turns = [{"role": message.role, "content": message.content} for message in answer.prompt.messages]
        doc = {"id": answer.prompt.id, "messages": turns, "tags": list(answer.prompt.tags), "principle": answer.prompt.principle}
        text, words = json.dumps(turns, ensure_ascii=False), answer.response.text
        row = {
            "doc_id": answer.number, "doc": doc, "target": "", "arguments": {"gen_args_0": {"arg_0": text, "arg_1": {}}},
            "resps": [[words]], "filtered_resps": [words], "filter": "none", "metrics": list(answer.values),
            "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)), "prompt_hash": sha256(text),
            "target_hash": sha256(""),
        }  # fmt: skip
        if clash := sorted(row.keys() & answer.values.keys()):
            raise InputError(f"the measure {clash[0]!r} has the name of a field of lm-eval; rename it", file=log.model)
        yield {**row, **answer.values}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
