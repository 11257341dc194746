"""What a changed constitution would change in the labels of a run: its pairs are judged again where the question differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from charter.constitution.constitution import Constitution
from charter.errors import InputError
from charter.judging.judge import Comparison, comparisons_of, earlier_judgment, judgment
from charter.judging.principles import Figure
from charter.judging.protocols import PROTOCOLS
from charter.models.load import model_of_run, pick_device
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.source import parse_model
from charter.records import Judgment, Prompt, Response, Revision
from charter.run.files import read_json, read_jsonl
from charter.run.hashes import derive_seed

LOADING = ("precision", "quantization", "attention")


@dataclass(frozen=True)
class Labels:
    """The feedback of a run that a judge gave: prompts by id, responses of each prompt, judgments, and report.json."""

    folder: Path
    prompts: dict[str, Prompt]
    groups: list[list[Response]]
    judgments: list[Judgment]
    report: dict[str, Any]


def labels_of(run: Path) -> Labels:
    """InputError where the run has no report, or no judge compared its responses."""
    report, file = read_json(run / "report.json"), run / "feedback/judgments.jsonl"
    if not isinstance(report, dict) or not file.is_file():
        raise InputError("no report or no judgments of a judge; choose a finished run with feedback", file=run)
    prompts = {prompt.id: prompt for prompt in read_jsonl(run / "prompts/prompts.jsonl", Prompt)}
    responses = read_jsonl(run / "feedback/responses.jsonl", Response)
    groups = [list(group) for _, group in groupby(responses, key=lambda response: response.prompt_id)]
    return Labels(run, prompts, groups, list(read_jsonl(file, Judgment)), report)


def verdict_of(label: Judgment | None) -> str:
    """Which of the two responses is preferred: first, second, tie, or none without a verdict."""
    if label is None or not label.has_verdict:
        return "none"
    first, second = (label.ranks[key] for key in label.order)
    return "tie" if first == second else "first" if first == 1 else "second"


@dataclass(frozen=True)
class Flip:
    """One pair whose label changes."""

    comparison: Comparison
    before: str
    principle_before: str | None
    after: str


@dataclass(frozen=True)
class Change:
    """``pairs`` of the run under the new constitution; ``reached``: those whose principle or its text differs; ``judged`` of
    these, by outcome in ``counts`` (same, flipped, changed: to or from a tie or no verdict). ``share`` flips among the pairs
    judged. ``gone``: pairs of the run to which no principle applies any more."""

    pairs: int
    reached: int
    judged: int
    gone: int
    counts: Counter[str]
    share: Figure
    flips: list[Flip]


def what_would_change(labels: Labels, constitution: Constitution, most: int) -> Change:
    """Judge at most ``most`` of the pairs that the change reaches, drawn by a hash of their ids, with the run's judge as the run
    asked it. InputError where the judge cannot be asked here."""
    template = PROTOCOLS[protocol_of(labels)].template
    unchanged = earlier_judgment(labels.judgments, template)
    prompts = [labels.prompts[group[0].prompt_id] for group in labels.groups]
    compared = comparisons_of(prompts, labels.groups, constitution, labels.report["seed"])
    reached = [comparison for comparison in compared if unchanged(comparison) is None]
    drawn = sorted(reached, key=lambda c: derive_seed("flips", c.first.id, c.second.id))[:most]
    before = {label.order: label for label in labels.judgments}
    rows = []
    for comparison, label in zip(drawn, judged_again(labels, drawn), strict=True):
        old = before.get((comparison.first.id, comparison.second.id))
        rows.append(Flip(comparison, verdict_of(old), old.principle if old else None, verdict_of(label)))
    kinds = [kind_of(row) for row in rows]
    share = Figure.of([float(kind == "flipped") for kind in kinds], [row.comparison.prompt.id for row in rows])
    gone = before.keys() - {(c.first.id, c.second.id) for c in compared}
    changed = [row for kind in ("flipped", "changed") for row, of_row in zip(rows, kinds, strict=True) if of_row == kind]
    return Change(len(compared), len(reached), len(drawn), len(gone), Counter(kinds), share, changed)


def kind_of(row: Flip) -> str:
    if row.before == row.after:
        return "same"
    return "flipped" if {row.before, row.after} == {"first", "second"} else "changed"


def protocol_of(labels: Labels) -> str:
    """How the run asked its judge. InputError where it judged by priority."""
    settings = labels.report["recipe"]["feedback"]
    if settings["priorities"]:
        raise InputError("the run judged by priority, which cannot be previewed; start a run instead", file=labels.folder)
    card = ((read_json(labels.folder / "feedback/manifest.json") or {}).get("result") or {}).get("judge") or {}
    return str(card.get("protocol") or ("letters" if settings["protocol"] == "auto" else settings["protocol"]))


def judged_again(labels: Labels, comparisons: Sequence[Comparison]) -> list[Judgment]:
    """The judge's labels, as the feedback stage makes them."""
    recipe = labels.report["recipe"]
    settings, protocol = recipe["feedback"], protocol_of(labels)
    source = parse_model(settings["judge"], own=("base", "sft"))
    if source.kind == "endpoint":
        raise InputError("the run's judge is behind a server; the studio asks only models of this machine", file=labels.folder)
    folder = model_of_run(labels.folder, source.name) if source.kind == "run" else source.name
    if not comparisons:
        return []
    loading = {name: recipe[name] for name in LOADING}
    judge = PROTOCOLS[protocol](LocalSampler(load_trunk(folder, device=pick_device("auto"), **loading), settings["judge"]))
    size = recipe["batch_size"]
    preferences = [answer for i in range(0, len(comparisons), size) for answer in judge(comparisons[i : i + size])]
    return [
        judgment(comparison, preference, rater_id=judge.name, abstain_below=settings["abstain_below"], template=judge.template)
        for comparison, preference in zip(comparisons, preferences, strict=True)
    ]


def figures_of(labels: Labels) -> dict[str, dict[str, Any]]:
    """Of each principle of the run: ``drawn``, how many pairs were compared under it; ``decides``, the share of them that it
    decides; ``revisions`` that it asked for; ``judge``, the accuracy on labelled pairs; ``metrics`` of the report by arm."""
    revisions: Counter[str] = Counter()
    file = labels.folder / "revise/revisions.jsonl"
    if file.is_file():
        revisions.update(row.principle for row in read_jsonl(file, Revision))
    card = ((read_json(labels.folder / "feedback/manifest.json") or {}).get("result") or {}).get("judge") or {}
    by_principle: dict[str, list[Judgment]] = {}
    for label in labels.judgments:
        by_principle.setdefault(label.principle or "", []).append(label)
    names = {*by_principle, *revisions} - {""}
    return {
        name: {
            "drawn": len(rows := by_principle.get(name, [])), "revisions": revisions[name],
            "decides": Figure.of([verdict_of(row) in ("first", "second") for row in rows], [row.prompt_id for row in rows]),
            "judge": (card.get("groups") or {}).get(name), "metrics": metrics_of(labels.report, name),
        }
        for name in names
    }  # fmt: skip


def metrics_of(report: dict[str, Any], principle: str) -> dict[str, list[dict[str, Any]]]:
    """The metrics of the prompts of one principle, by name: a figure for each arm that has a value."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for metric in report["metrics"]:
        if metric["group"] == principle and metric["value"] is not None:
            rows.setdefault(metric["name"], []).append(metric)
    return rows
