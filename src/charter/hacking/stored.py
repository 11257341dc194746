"""The detectors on the rows that a run stored: the same rows give the same alarms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from charter.evaluation.refusals import declines
from charter.hacking.answers import Answer
from charter.hacking.detectors import Finding, detect, ensemble_disagreement
from charter.records import Prompt, Response
from charter.run.files import json_rows, read_json, read_jsonl

TRAINING = re.compile(r"rl(-\d+)?")
"""The stage of a training of the policy, `rl` or that of a later round; the control arms have stages of other names."""


def prompts_of(run: Path) -> dict[str, Prompt]:
    """The prompts of a run by id."""
    return {prompt.id: prompt for prompt in read_jsonl(run / "prompts" / "prompts.jsonl", Prompt)}


def stored_answers(run: Path, arm: str, prompts: Mapping[str, Prompt]) -> list[Answer]:
    """The answers of an arm of a run's evaluation. A refusal is what the scorer said, else what the rule on words says."""
    verdicts = {row["response_id"]: row for row in json_rows(run / "evaluate" / f"verdicts.{arm}.jsonl")}
    answers = []
    for response in read_jsonl(run / "evaluate" / f"responses.{arm}.jsonl", Response):
        prompt, verdict = prompts[response.prompt_id], verdicts.get(response.id, {})
        refusal = verdict.get("refusal")
        refused = declines(response.text) if refusal is None else refusal != "none"
        answers.append(Answer(response.id, prompt.id, prompt.last_turn, response.text, red_team="red_team" in prompt.tags,
                              cut=response.finish_reason == "length", refused=refused))  # fmt: skip
    return answers


def findings_of(run: Path, training: str = "rl") -> list[Finding]:
    """Every detector on the policy of a run folder against the model that its training started from (the SFT model, else the
    base), and on the gold curve and the step log of the last ``training`` up to the model that was kept; empty if no policy
    was evaluated."""
    folder = run / "evaluate"
    if not (folder / "verdicts.policy.jsonl").exists():
        return []
    prompts = prompts_of(run)
    reference = "sft" if (folder / "verdicts.sft.jsonl").exists() else "base"
    before, after = (stored_answers(run, arm, prompts) for arm in (reference, "policy"))
    last = run / training
    curve, points, steps = (json_rows(last / name) for name in ("gold.jsonl", "gold_responses.jsonl", "metrics.jsonl"))
    kept = (read_json(last / "manifest.json") or {}).get("result", {}).get("kept_step")
    if kept is not None:
        curve, steps = [row for row in curve if row["step"] <= kept], steps[:kept]
    return [*detect(before, after, curve, points), *ensemble_disagreement(steps)]
