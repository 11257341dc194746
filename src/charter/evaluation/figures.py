"""The figures of an evaluation, all of them functions of what is stored of each response; and the arms read back from there.

The stage `evaluate` and `charter verify` call the same :func:`figures_of`: the stage with arms that it has just measured, the
check with arms that :func:`stored_arm` reads from the run folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.arms import VALUES, Arm, ScoredResponse, contrasts_of
from charter.evaluation.contrasts import margins_of
from charter.evaluation.samples import samples_of
from charter.evaluation.scorers import Verdict
from charter.metrics import ADHERENCE, BOUND, LOGPROBS, METRICS, SCORER
from charter.records import EvalResult, Prompt, Response
from charter.run.files import read_jsonl
from charter.stages.evaluate.settings import EvaluationSettings
from charter.statistics import distinct_pairs, is_scored, quantile

LENGTH_QUANTILES = {"response_tokens_p50": 0.5, "response_tokens_p95": 0.95}
DIVERSITY = "diversity"


def figures_of(arms: Mapping[str, Arm], primary: Mapping[str, str], settings: EvaluationSettings) -> dict[str, Any]:
    """Metrics, contrasts and samples of the report."""
    better = {name: measure.better for name, measure in settings.measures.items()}
    return {
        "metrics": [m.model_dump(mode="json") for arm in arms.values() for m in (*arm.metrics(), *whole_arm_metrics(arm))],
        "contrasts": contrasts_of(arms, primary, margins_of(settings)),
        "samples": samples_of(arms, primary, better),
    }


def whole_arm_metrics(arm: Arm) -> list[EvalResult]:
    """The numbers of an arm that no single response has: quantiles of its lengths, and the diversity of all it wrote."""
    ids = [prompt.id for prompt in arm.prompts]
    results = []
    for name, q in LENGTH_QUANTILES.items():
        estimate, metric = quantile(arm.tokens, q, ids), METRICS[name]
        results.append(EvalResult(
            name=name, arm=arm.name, n=estimate.n, n_unscored=estimate.n_unscored, value=estimate.value, ci=estimate.ci,
            method=estimate.method, scorer=metric.source, unit=metric.unit,
        ))  # fmt: skip
    texts = [response.text for response in arm.responses]
    results.append(EvalResult(
        name=DIVERSITY, arm=arm.name, n=len(texts), n_unscored=0, value=distinct_pairs(texts), ci=None,
        method="over all responses of the arm", scorer=METRICS[DIVERSITY].source, unit=METRICS[DIVERSITY].unit,
    ))  # fmt: skip
    return results


def stored_arms(stage: Path, prompts: Path, settings: EvaluationSettings, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Arm]:
    """The arms of ``metrics`` as the folder of the stage `evaluate` has them. InputError names file, line and field of a row that
    cannot be read, or that names a prompt or a response that is not there."""
    by_id = {prompt.id: prompt for prompt in read_jsonl(prompts, Prompt)}
    names = dict.fromkeys(str(row["arm"]) for row in metrics)
    scorers = {row["arm"]: row["scorer"] for row in metrics if row["name"] in METRICS and METRICS[row["name"]].source == SCORER}
    return {name: stored_arm(name, stage, by_id, settings, scorers.get(name)) for name in names}


def stored_arm(name: str, stage: Path, prompts: Mapping[str, Prompt], settings: EvaluationSettings, scorer: str | None) -> Arm:
    """One arm from `responses.NAME.jsonl` and `verdicts.NAME.jsonl`, the values of models as they are stored."""
    file = verdict_file(stage, name)
    rows = list(read_jsonl(file, ScoredResponse))
    responses = {response.id: response for response in read_jsonl(stage / f"responses.{name}.jsonl", Response)}
    for line, row in enumerate(rows, start=1):
        for field, key, known in (("prompt_id", row.prompt_id, prompts), ("response_id", row.response_id, responses)):
            if key not in known:
                raise InputError(f"{key!r} is not among the stored rows", file=file, line=line, field=field)
    kl = [metric.name for metric in METRICS.values() if metric.source in (LOGPROBS, BOUND) and metric.name in rows[0].values]
    return Arm(
        name=name,
        prompts=[prompts[row.prompt_id] for row in rows],
        responses=[responses[row.response_id] for row in rows],
        verdicts=[Verdict(row.harmful, row.refusal, row.helpful, row.helpfulness_level, row.honest) for row in rows],
        scorer=scorer,
        kl={key: [float(stored(row, key, file, line)) for line, row in enumerate(rows, start=1)] for key in kl},
        tokens=[int(stored(row, "response_tokens", file, line)) for line, row in enumerate(rows, start=1)],
        measures={key: [row.values.get(key) for row in rows] for key in settings.measures},
        units={key: measure.unit for key, measure in settings.measures.items()},
        adherence={i: row.values[ADHERENCE] for i, row in enumerate(rows) if ADHERENCE in row.values},
    )


def verdict_file(stage: Path, arm: str) -> Path:
    """The file with the verdict and the values of each response of an arm."""
    return stage / f"verdicts.{arm}.jsonl"


def stored(row: ScoredResponse, key: str, file: Path, line: int) -> float:
    """A value that every row has. InputError if this row lacks it."""
    if (value := row.values.get(key)) is None:
        raise InputError("missing", file=file, line=line, field=f"values.{key}")
    return value


def changed_rows(arm: Arm, stage: Path) -> Iterator[tuple[int, str, str]]:
    """(line, field, words) where a stored row is not what its prompt, its response and its verdict give."""
    for i, row in enumerate(read_jsonl(verdict_file(stage, arm.name), ScoredResponse)):
        prompt, response = arm.prompts[i], arm.responses[i]
        copied = {"tags": prompt.tags, "principle": prompt.principle, "prompt_id": response.prompt_id}
        for field, value in copied.items():
            if getattr(row, field) != value:
                yield i + 1, field, f"{getattr(row, field)!r} is stored, its prompt or response has {value!r}"
        values = {m.name: VALUES[m.name](arm, i) for m in arm.measured if arm.is_about(m, i)}
        values |= {key: numbers[i] for key, numbers in arm.measures.items()}
        for key in {**values, **row.values}:
            if key not in row.values or key not in values or not is_same(row.values[key], values[key]):
                yield i + 1, f"values.{key}", f"{row.values.get(key)} is stored, the row gives {values.get(key)}"


def is_same(a: float | None, b: float | None) -> bool:
    """Equal, or both unscored."""
    return a == b or not (is_scored(a) or is_scored(b))
