"""The form of report.json. `python docs/report_schema.py` writes it as JSON Schema into docs/report.schema.json.

A key that a run does not have is left out or null, so every field is optional but those without which a row says nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float] | None
Word = Literal["worked", "no evidence", "worse", "over-optimised"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Primary(Part):
    """The comparison that decides, declared before the run."""

    name: str
    a: str
    b: str


class ArmOfReport(Part):
    name: str
    description: str
    sampling: dict[str, Any]
    """temperature, top_p, top_k, min_p, max_new_tokens, best_of; a filter that is off is left out."""


class MetricRow(Part):
    """One number of one arm. A share lies in [0, 1]."""

    name: str
    arm: str
    group: str | None = None
    """None over all prompts, else a principle or a tag."""
    value: float | None
    ci: Interval = None
    """95% interval."""
    n: int
    """Scored responses."""
    n_unscored: int = 0
    unit: str
    method: str
    scorer: str


class Equivalent(Part):
    margin: float
    ci: Interval
    """90% interval of the paired difference."""
    equivalent: bool


class AtEqualLength(Part):
    difference: float | None
    ci: Interval
    per_doubling: float | None
    """Change of the difference where b's response is twice as long as a's."""
    n: int
    method: str
    includes_zero: bool


class ContrastRow(Part):
    """A paired difference from arm a to arm b on the same prompts."""

    name: str
    a: str
    b: str
    group: str | None = None
    n: int
    n_unscored: int = 0
    difference: float | None
    ci: Interval
    p: float | None
    p_holm: float | None = None
    """Corrected over all contrasts of the run but the primary one; those by group are a family of their own."""
    discordant: tuple[int, int] | None = None
    """Pairs of which only a, and only b, is true."""
    includes_zero: bool
    method: str
    scorer: str
    primary: bool
    minimum_detectable: float | None = None
    """The smallest true difference that is found with probability .8."""
    equivalence: Equivalent | None = None
    length_adjusted: AtEqualLength | None = None


class WinRate(Part):
    """How often a judge prefers the answers of arm b to those of arm a, in both orders; a tie counts half."""

    a: str
    b: str
    value: float | None
    ci: Interval
    n: int
    n_unscored: int = 0
    wins: int
    ties: int
    """The two orders disagree, or the answers are the same."""
    losses: int
    at_equal_length: float | None = None
    ci_at_equal_length: Interval = None
    judge: str
    protocol: str = "letters"
    """How the judge was asked."""
    independent: bool
    """False where the same judge gave the feedback or the reward that the model was trained on."""
    method: str


class AdherenceJudge(Part):
    """Who was asked whether an answer follows its principle; the figures are among metrics and contrasts, by group."""

    judge: str
    independent: bool
    """False where the same judge gave the feedback or the reward that the last model was trained on."""


class Found(Part):
    word: Word
    rule: str


class StepFound(Found):
    a: str
    b: str


class VerdictOfReport(Found):
    steps: list[StepFound] = []
    """Each training by its own contrast."""
    controls: dict[str, Found] = {}
    """Each control arm by the rule of the run."""


class Alarm(Part):
    detector: str
    value: float | None
    threshold: float | None
    message: str
    evidence: list[Any] = []


class Gate(Part):
    name: str
    stage: str
    passed: bool
    overridden: bool
    message: str


class StageRow(Part):
    name: str
    wall_s: float
    skipped: bool
    done: bool


class LeftOut(Part):
    stage: str
    reason: str
    n: int


class EndedTraining(Part):
    """A training that a rule of `rl.stop` ended after `steps` steps."""

    stage: str
    steps: int
    reason: str


class ChangedContrast(Part):
    """A metric of the last model from before the constitution changed (a) to now (b), on the same prompts."""

    arm: str
    name: str
    n: int
    n_missing: int
    """Answers that only one of the two evaluations has."""
    n_unscored: int
    value_a: float | None
    value_b: float | None
    difference: float | None
    ci: Interval
    p: float | None
    p_corrected: float | None
    method: str
    verdict: str


class ReportFile(Part):
    """report.json of a run."""

    title: str
    recipe: dict[str, Any]
    """Every setting of the run."""
    seed: int
    charter_version: str
    stopped: str | None = None
    """The gate that ended the run."""
    verdict: VerdictOfReport
    primary: Primary | None = None
    margins: dict[str, float] = {}
    better: dict[str, Literal["lower", "higher"]] = {}
    arms: list[ArmOfReport] = []
    metrics: list[MetricRow] = []
    contrasts: list[ContrastRow] = []
    contrasts_with_before: list[ChangedContrast] = []
    since: dict[str, Any] | None = None
    """What changed since the report in the folder `before`: `constitution_hash` of then, `changes` of principles, `settings`."""
    constitution: dict[str, Any] | None = None
    """Title, description and principles, as the constitution's file has them."""
    samples: list[dict[str, Any]] = []
    win_rates: list[WinRate] = []
    candidates: dict[str, Any] | None = None
    """How much the `k` responses to one prompt of the feedback differ: `distinct_2`, its interval, over `n` prompts."""
    adherence: AdherenceJudge | None = None
    judges: list[dict[str, Any]] = []
    scorers: list[dict[str, Any]] = []
    """Cards of scorers and measures, as `charter scorer card` writes them; `of` is `scorer` or the measure."""
    reward_model: dict[str, Any] | None = None
    reward_model_on_labelled_pairs: dict[str, Any] | None = None
    revisions: dict[str, Any] | None = None
    left_out: list[LeftOut] = []
    sorting: str | None = None
    endpoints: dict[str, Any] = {}
    over_optimisation: dict[str, Any] | None = None
    ended: list[EndedTraining] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    gates: list[Gate] = []
    alarms: list[Alarm] = []
    detectors: list[dict[str, Any]] = []
    data_card: dict[str, Any] | None = None
    """The run's prompts: counts by split, tag, principle and script, lengths, duplicates, groups of raters, what is missing."""
    stages: list[StageRow] = []
    provenance: dict[str, Any] = {}


def report_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of report.json."""
    schema = ReportFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
