"""The report of a run, made from the results of its stages; a run that stopped gets a report of the stages it finished."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import charter
from charter.comparing.before import changes_since, contrasts_with_before
from charter.evaluation.arms import BEST_OF, primary_of
from charter.evaluation.model_card import write_cards
from charter.evaluation.page import rows_left_out, write_report
from charter.evaluation.side_by_side import write_side_by_side
from charter.evaluation.wins import win_rates
from charter.hacking.stored import TRAINING, findings_of
from charter.metrics import CONTROLS
from charter.reading.card import card_of
from charter.run.files import json_rows, read_json
from charter.statistics import trend
from charter.training.curve import over_optimisation
from charter.training.gold import ANSWERS, CURVE

if TYPE_CHECKING:
    from charter.constitution.constitution import Constitution
    from charter.recipe.recipe import Recipe
    from charter.run.run import Run
    from charter.stages.evaluate.scoring import Scoring
    from charter.stages.evaluate.settings import EvaluationSettings
    from charter.stages.gates import Gates
    from charter.stages.models import Models


@dataclass(frozen=True)
class Parts:
    """The parts of a run: the pipeline gives each stage the parts that it reads, and the report reads them all."""

    run: Run
    recipe: Recipe
    models: Models
    gates: Gates
    constitution: Constitution
    scoring: Scoring


ARM_WORDS = {
    "base": "the model before any training",
    "sft": "fine-tuned on its own revisions and helpful responses",
    "policy": "trained further with the recipe's RL method",
    "best_of_n": "no training: the response that the reward model scores highest among n of the SFT model",
    "flipped": "control: the same training on the judgments with chosen and rejected exchanged",
    "random": "control: the same training on random numbers",
    "length": "control: the same training on the length of the response",
    "shuffled": "control: the same training on judgments under principles of other topics",
}
SIDE_BY_SIDE = (("sft", "policy"), ("flipped", "policy"))
"""The arms whose answers stand in one table, answers.A-B.csv."""
TRAININGS = ("sft", "reward_model", "rl")
ROUND = re.compile(r"(?:feedback|rl)((?:-\d+)?)")
"""The stages of a round; in the group how its names end."""


def stage_kind(stage: str) -> str:
    """`rl` of `rl-2`, the stage of a second round."""
    return stage.partition("-")[0]


def declared(recipe: Recipe) -> dict[str, Any]:
    """The recipe's declarations before the run: the comparison that decides, the margins of its costs, and the arms."""
    evaluation = recipe.evaluation
    if evaluation is None:
        return {"arms": [], "margins": {}, "better": {}}
    trained = {"sft": recipe.sft is not None, "policy": recipe.rl is not None, "best_of_n": evaluation.best_of is not None}
    trained |= {name: name in recipe.controls for name in CONTROLS}
    arms = [name for name in ARM_WORDS if trained.get(name, True)]
    margins = {name: measure.margin for name, measure in evaluation.measures.items() if measure.margin is not None}
    if evaluation.scorer is not None:
        margins |= {"over_refusal": evaluation.over_refusal_margin, "helpfulness": evaluation.helpfulness_margin}
    return {
        "primary": primary_of(recipe, [name for name in arms if name != BEST_OF and name not in CONTROLS]),
        "margins": margins,
        "better": {name: measure.better for name, measure in evaluation.measures.items()},
        "arms": arm_rows(arms, recipe.model_dump(mode="json"), evaluation),
    }  # fmt: skip


def arm_rows(names: Sequence[str], recipe: Mapping[str, Any], settings: EvaluationSettings) -> list[dict[str, Any]]:
    """The arms of the report: what each is and how its answers are sampled. ``recipe``: in JSON values."""
    return [{"name": name, "description": arm_words(name, recipe), "sampling": arm_sampling(name, settings)} for name in names]


def arm_sampling(name: str, settings: EvaluationSettings) -> dict[str, Any]:
    """How the answers of an arm are sampled."""
    how = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
    how |= settings.filters.model_dump(exclude_none=True)
    return how | ({"best_of": settings.best_of} if name == "best_of_n" else {})


def arm_words(name: str, recipe: Mapping[str, Any]) -> str:
    """The description of an arm in the report."""
    if name == "sft" and recipe["revise"] is None:
        return "fine-tuned on examples"
    if name == "sft" and recipe["revise"]["context"] is not None:
        return "fine-tuned on its own responses to prompts with a context, without that context"
    if name == "policy" and recipe["rounds"] > 1:
        return f"trained further with the recipe's RL method, in {recipe['rounds']} rounds"
    return ARM_WORDS[name]


def write_run_report(parts: Parts, stopped: str | None = None) -> dict[str, Any]:
    """report.json, report.html and metrics.csv in the run folder; returns the report."""
    recipe = parts.recipe
    stages = {stage.name: stage for stage in parts.run.stages}
    results = {name: stage.result for name, stage in stages.items()}
    evaluation = results.get("evaluate", {})
    logs = {name: stage.metrics() for name, stage in stages.items() if stage_kind(name) in TRAININGS}
    report = {
        "title": recipe.title,
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "charter_version": charter.__version__,
        "stopped": stopped,
        **declared(recipe),
        **stored_figures(parts.run.folder, results, logs),
        "constitution": parts.constitution.model_dump(mode="json", exclude_unset=True) if recipe.constitution else None,
        "since": changes_since(parts.run.folder, parts.constitution, recipe.model_dump(mode="json")),
        "scorers": list(parts.scoring.cards),
        "data_card": data_card(parts, stages),
        "endpoints": {name: endpoint.client.account.figures() for name, endpoint in parts.models.endpoints.items()},
        "gates": parts.gates.met,
        "stages": [
            {"name": stage.name, "wall_s": round(stage.wall_s, 2), "skipped": stage.skipped, "done": stage.done}
            for stage in parts.run.stages
        ],
        "provenance": provenance(parts),
    }
    write_report(report, parts.run.folder)
    if evaluation and "prompts" in stages:
        write_side_by_side(stages["evaluate"].folder, stages["prompts"].path("prompts.jsonl"), SIDE_BY_SIDE, parts.run.folder)
    written: dict[str, Any] = read_json(parts.run.folder / "report.json")
    write_cards(parts.run.folder, written)
    return written


def stored_figures(
    run: Path, results: Mapping[str, Mapping[str, Any]], logs: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The part of the report that follows from what a run folder stores, in running order: the ``results`` of its finished stages
    by name, the ``logs`` of its trainings (metrics.jsonl), and the rows of the stages `rl` and `evaluate`."""
    evaluation, revise = (results.get(name, {}) for name in ("evaluate", "revise"))
    feedback, reward_model = (of_last_round(results, name) for name in ("feedback", "reward_model"))
    trained = [name for name in results if TRAINING.fullmatch(name)] or ["rl"]
    findings = findings_of(run, trained[-1]) if evaluation else []
    rounds = dict.fromkeys(match[1] for name in (*results, *logs) if (match := ROUND.fullmatch(name)))
    return {
        "metrics": evaluation.get("metrics", []),
        "contrasts": evaluation.get("contrasts", []),
        "samples": evaluation.get("samples", []),
        "win_rates": win_rates(run, results),
        "adherence": evaluation.get("adherence"),
        "contrasts_with_before": contrasts_with_before(run) if evaluation else [],
        "candidates": feedback.get("candidates"),
        "judges": [feedback["judge"]] if feedback.get("judge") else [],
        "reward_model": {k: v for k, v in reward_model.items() if k != "labelled"} or None,
        "reward_model_on_labelled_pairs": reward_model.get("labelled"),
        "revisions": {key: revise[key] for key in ("rounds", "excluded", "kept")} if "rounds" in revise else None,
        "left_out": rows_left_out(results),
        "sorting": results.get("prompts", {}).get("sorting", {}).get("words"),
        "curves": dict(logs),
        "over_optimisation": gold_curve(run, results),
        "ended": [{"stage": name, "steps": result["steps"], "reason": result["stopped"]}
                  for name, result in results.items() if result.get("stopped")],
        "alarms": [row for end in rounds for row in alarms(results.get(f"feedback{end}", {}), logs.get(f"rl{end}", []))]
        + [finding.alarm for finding in findings if finding.raised],
        "detectors": [finding.row for finding in findings],
    }  # fmt: skip


def of_last_round(results: Mapping[str, Mapping[str, Any]], stage: str) -> Mapping[str, Any]:
    """The result of a stage in the last round that has one; empty without any. Results are in running order."""
    rounds = [result for name, result in results.items() if re.fullmatch(rf"{stage}(-\d+)?", name)]
    return rounds[-1] if rounds else {}


def data_card(parts: Parts, stages: Mapping[str, Any]) -> dict[str, Any] | None:
    """The card of the run's prompts and of those who compared the responses; None before the prompts are chosen."""
    if "prompts" not in stages or not stages["prompts"].done:
        return None
    return card_of(parts.run.folder, principles=[principle.id for principle in parts.constitution.principles])


def gold_curve(run: Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the held-out reward says of the last training; None if nobody was asked."""
    trained = [name for name in results if TRAINING.fullmatch(name)]
    if not trained or "kept_step" not in results[trained[-1]]:
        return None
    result, (rows, answers) = results[trained[-1]], (json_rows(run / trained[-1] / name) for name in (CURVE, ANSWERS))
    return over_optimisation(rows, answers, kept=result["kept_step"], source=result["gold"], stopped=result.get("stopped"))


def alarms(feedback: Mapping[str, Any], rl: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Signs that a number of the run is not what it seems, from the result of the feedback and the step log of RL."""
    rows: list[dict[str, Any]] = []

    def alarm(detector: str, value: float, threshold: float, message: str) -> None:
        rows.append({"detector": detector, "value": value, "threshold": threshold, "message": message})

    comparisons, verdicts = feedback.get("comparisons", 0), feedback.get("verdicts", 0)
    if comparisons and feedback.get("judge") and verdicts < comparisons:
        alarm("no verdict", 1 - verdicts / comparisons, 0.0, f"the judge gave no verdict on {comparisons - verdicts} of "
              f"{comparisons} comparisons; Charter does not train on those")  # fmt: skip
    if rl and "kl" in rl[0]:  # a method that samples; a broken invariant has already stopped the run
        if rl[-1]["missing_eos"] > 0.2:
            alarm("missing EOS", rl[-1]["missing_eos"], 0.2,
                  "many responses are cut off; raise max_new_tokens or the penalty")  # fmt: skip
        rewards = trend([row["reward"] for row in rl])
        if rewards is not None and not rewards.rises:
            alarm("reward without trend", rewards.slope, rewards.threshold, "the reward did not rise (its slope is given in "
                  "standard errors); try more steps, a higher learning rate or better pairs")  # fmt: skip
        fifth = max(len(rl) // 5, 1)
        early, late = (column_mean(part, "response_tokens") for part in (rl[:fifth], rl[-fifth:]))
        if late > 1.5 * early:
            alarm("length growth", late, 1.5 * early,
                  "responses grew by more than half; check whether the reward pays for length")  # fmt: skip
        if late < early / 1.5:
            alarm("length fall", late, early / 1.5,
                  "responses shrank by more than a third; check whether the reward pays for short ones")  # fmt: skip
    return rows


def endpoint_words(used: dict[str, Any]) -> str:
    """The use of an endpoint in one line."""
    money = "" if used["money"] is None else f", money {used['money']:.4g}"
    return (
        f"{used['model']} at {used['url']}: {used['requests']} responses, {used['input_tokens']} tokens read, "
        f"{used['output_tokens']} written{money}; {used['cached']} taken from the cache, {used['repeated']} sent again"
    )


def column_mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows) / len(rows))


def provenance(parts: Parts) -> dict[str, Any]:
    """The origin of the numbers: hashes, versions, device."""
    import platform
    import sys

    import torch
    import transformers

    return {
        "model": Path(parts.recipe.model).name,
        "model_hash": parts.models.base.hash,
        **({"constitution_hash": parts.constitution.hash[:16]} if parts.recipe.constitution else {}),
        **({"scorer": parts.scoring.scorer.name} if parts.scoring.scorer is not None else {}),
        "stages": {stage.name: stage.fingerprint for stage in parts.run.stages},
        "charter": charter.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": parts.models.device,
        "threads": torch.get_num_threads(),
        **{
            f"endpoint {name}": endpoint_words(endpoint.client.account.figures())
            for name, endpoint in parts.models.endpoints.items()
        },
        "command": " ".join(Path(part).name if i == 0 else part for i, part in enumerate(sys.argv)),
    }
