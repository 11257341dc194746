"""The report of a run: ``report.json``, ``metrics.csv`` and one self-contained ``report.html``.

The page needs no network and no script. Everything in it may come from a model and is untrusted: Jinja2 escapes all of
it, and a content security policy in the page forbids scripts and foreign resources besides. The verdict is always
derived from the contrasts, never taken from the caller.

The report is a plain dict. Any key may be missing, so that a run that stopped at a gate has a page too. Shares are in
[0, 1], ``ci`` is [low, high] or None.

    title, recipe, seed, charter_version
    primary: {name, a, b}, margins: {name: number}, better: {name: "lower" | "higher"}; the rule of ``verdict``
    arms: [{name, description, sampling: {temperature, top_p, top_k, min_p, max_new_tokens, best_of}}]
                                                                    how its answers were sampled; a filter that is off is left out
    metrics: [EvalResult]                                           group: None overall, a principle, "unseen-template"
    contrasts: [{name, a, b, n, difference, ci, p, discordant, method, scorer, includes_zero}]
    sorting: a sentence on how prompts were sorted by principle
    candidates: {sampling: "plain" | "diverse", k, distinct_2, ci, n, n_unmeasured}
    judges: [{id, role, protocol, protocols: [{protocol, chosen, accuracy, ci, n}], n, accuracy, ci, swap_consistency, ece,
              position_bias_nats, same_position_share, verdict_rate, reliability: [{p, observed, n}],
              groups: {kind: {accuracy, ci, n}}, priorities: {noise_nats, accuracy, ci, n, undecided, decided: {id: n}}}]
    scorers: [{of, scorer, labelled, measures: [{measure, accuracy, recall, specificity, precision, n, n_unscored, brier, ece,
              by}]}]
                                                                    cards; of: "scorer" or the name of a measure
    reward_model: {accuracy, ci, n, baseline_shorter_wins, baseline_longer_wins, ece, reliability, groups}
    revisions: {rounds: [{round, n, harmful, ci, mean_chars}], excluded: {reason: n}, kept}
    left_out: [{stage, reason, n}], data_card: the prompts in numbers, as ``charter prompts card`` shows them
    over_optimisation: {source, rows: [{step, gold, gold_ci, proxy, proxy_ci, kl, sqrt_kl, n}], peak, kept, end, fit, fall,
              past_peak, words}                                     the held-out reward over the last training
    ended: [{stage, steps, reason}]                                 trainings that a rule of rl.stop ended
    curves: {sft | reward_model | rl: [{step, ...}]}                any number is drawn; x_sem is a band around x
    gates: [{name, passed, overridden, message, numbers}]
    alarms: [{detector, value, threshold, message, evidence: [{response_id, prompt_id, prompt, text}]}]
    detectors: [{detector, state: "alarm" | "no alarm" | "did not run", value, threshold, unit, n, message}]
    endpoints: {name: {model, url, requests, cached, repeated, input_tokens, output_tokens, unanswered_tokens, money}}
    adherence: {judge, independent}                                 of the metric principle_adherence
    constitution: {title, description, principles: [{id, title, preference, critique, revision, question, ...}]}
    since: {constitution_hash, changes: [{change, principle, words}], settings: [name]}
    contrasts_with_before: [{arm, name, n, n_missing, value_a, value_b, difference, ci, verdict}]
                                                                    from the evaluation under the constitution of before
    samples: [{pick, prompt, tags, principle, responses: {arm: text}, harmful: {arm: bool | None}}]
    stages: [{name, wall_s, skipped}], provenance: {...}
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.evaluation.panels import (
    ARM_COLOURS,
    MEASURE_OF,
    Panels,
    arms_of,
    by_arm,
    card_note,
    curves,
    directions,
    dots_panel,
    first_metrics,
    gold_view,
    headline_panels,
    judge_view,
    principles,
    revisions_view,
    reward_model_view,
    scorers_view,
    unique,
)
from charter.evaluation.verdict import contrast_of, declared_primary, gate_state, verdict
from charter.evaluation.words import (
    SHARE_UNITS,
    Report,
    contrast_words,
    difference_text,
    interval_of,
    interval_text,
    is_share,
    mappings_in,
    metric_cell,
    number_of,
    number_text,
    p_text,
    range_text,
    scored_by,
    seconds_text,
    sentence,
    title_of,
)
from charter.metrics import ADHERENCE, CONTROLS, HARM, METRICS
from charter.records import Record
from charter.run.files import write_json, write_text
from charter.statistics import holm

MAX_SAMPLES = 40


CUT_WORDS = {
    "rows": "cut to the most tokens of a row",
    "ends": "of these, cut at the end of the answer",
    "equal_pairs": "pair left out: chosen and rejected are the same tokens once they are cut",
}
PROMPT_WORDS = {"duplicates": "prompt left out: a duplicate", "too_long": "prompt left out: too long for the model"}


def candidates_view(report: Report) -> dict[str, Any] | None:
    """How much the responses to one prompt differ, with words for the value; None where none were sampled."""
    candidates = report.get("candidates")
    if not isinstance(candidates, Mapping) or number_of(candidates.get("distinct_2")) is None:
        return None
    ci = candidates.get("ci")
    span = f" [{range_text((ci[0], ci[1]), share=True)}]" if isinstance(ci, Sequence) and len(ci) == 2 else ""
    return {**candidates, "text": number_text(candidates["distinct_2"], share=True) + span}


def rows_left_out(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that stages left out or cut, from their results by name: {stage, reason, n} of each reason with a count."""
    rows = []
    for stage, result in results.items():
        counts = {f"left out: {reason}": n for reason, n in (result.get("excluded") or {}).items()}
        counts |= {words: result.get(key) for key, words in PROMPT_WORDS.items()}
        if {"comparisons", "verdicts", "ties"} <= result.keys():
            counts["comparison without a verdict"] = result["comparisons"] - result["verdicts"]
            counts["comparison with a tie"] = result["ties"]
        judge = result["judge"] if isinstance(result.get("judge"), Mapping) else {}
        counts["labelled pair to which no principle applies"] = judge.get("n_without_principle")
        counts["labelled pair that is a tie"] = judge.get("n_ties")
        counts |= {words: (result.get("cut") or {}).get(key) for key, words in CUT_WORDS.items()}
        rows += [{"stage": stage, "reason": reason, "n": n} for reason, n in counts.items() if n]
    return rows


def as_json(value: Any) -> Any:
    """The same content as JSON has it: records and dataclasses as dicts, NaN and infinity as None, text as UTF-8."""
    if isinstance(value, Record):
        return as_json(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {as_json(str(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\x00", "�")


def metric_table(report: Report, arms: Mapping[str, Any], group: str | None) -> list[dict[str, Any]]:
    """A row of each metric with a cell of each arm."""
    results = [r for r in mappings_in(report, "metrics") if r.get("group") == group]
    names, first = unique(r.get("name") for r in results), first_metrics(report)
    names.sort(key=lambda n: first.index(n) if n in first else len(first))
    table = []
    for name in names:
        rows = [r for r in results if r.get("name") == name]
        cells = {str(r.get("arm")): metric_cell(r) for r in rows}
        unit = next((str(r["unit"]) for r in rows if r.get("unit")), "")
        methods = ", ".join(unique(str(r["method"]) for r in rows if r.get("method")))
        scorers = ", ".join(unique(scored_by(r.get("scorer")) for r in rows))
        note = "; ".join(
            part for part in ("" if unit in SHARE_UNITS else unit, scorers, card_note(report, str(name)), methods) if part
        )
        table.append({"name": title_of(name), "note": note, "cells": [cells.get(arm) for arm in arms]})
    return table


def contrast_table(report: Report, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of each comparison, p-values corrected by Holm for all but the primary one."""
    primary = declared_primary(report)
    main = contrast_of(report, primary["name"], primary["a"], primary["b"])
    adjusted = holm([None if row is main else number_of(row.get("p")) for row in rows])
    table = []
    for row, corrected in zip(rows, adjusted, strict=True):
        name, p, discordant = row.get("name"), number_of(row.get("p")), row.get("discordant")
        table.append(
            {
                "name": title_of(name) + (f" · {row['group']}" if row.get("group") else ""),
                "primary": row is main,
                "arms": f"{row.get('a')} → {row.get('b')}",
                "difference": difference_text(row.get("difference"), name, report),
                "ci": interval_text(interval_of(row), name, report).removeprefix("95% interval "),
                "p": p_text(p),
                "holm": "primary" if row is main else p_text(number_of(row["p_holm"]) if "p_holm" in row else corrected),
                "n": row.get("n", "–"),
                "discordant": " / ".join(str(d) for d in discordant) if isinstance(discordant, Sequence) else "–",
                "words": "; ".join(filter(None, (contrast_words(row, report), equivalence_words(row, report)))),
                "detectable": size_text(row.get("minimum_detectable"), name, report),
                "adjusted": adjusted_text(row, report),
                "note": "; ".join([*([row["method"]] if row.get("method") else []), scored_by(row.get("scorer"))]),
            }
        )
    return table


def size_text(value: Any, name: Any, report: Report) -> str:
    """A difference without its sign."""
    return "–" if number_of(value) is None else difference_text(abs(float(value)), name, report).removeprefix("+")


def equivalence_words(row: Mapping[str, Any], report: Report) -> str:
    """The word "equivalent", where two one-sided tests at the declared margin allow it."""
    shown = row.get("equivalence")
    if not isinstance(shown, Mapping) or not shown.get("equivalent"):
        return ""
    return f"equivalent within {size_text(shown.get('margin'), row.get('name'), report)}"


def adjusted_text(row: Mapping[str, Any], report: Report) -> str:
    """The difference at equal length, with its interval; a dash where none was computed."""
    adjusted, name = row.get("length_adjusted"), row.get("name")
    if not isinstance(adjusted, Mapping) or number_of(adjusted.get("difference")) is None:
        return "–"
    ci = interval_of(adjusted)
    low_high = "" if ci is None else f" ({interval_text(ci, name, report).removeprefix('95% interval ')})"
    return difference_text(adjusted["difference"], name, report) + low_high


def contrast_tables(report: Report) -> dict[str, Any]:
    """The comparisons of the page: of the run's own arms, with a control arm, and by principle and tag, a table for each two
    arms."""
    rows = mappings_in(report, "contrasts")
    overall = [row for row in rows if row.get("group") is None]
    by_arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("group") is not None:
            by_arms.setdefault(f"{row.get('a')} → {row.get('b')}", []).append(row)
    return {
        "main": contrast_table(report, [row for row in overall if not {row.get("a"), row.get("b")} & set(CONTROLS)]),
        "controls": contrast_table(report, [row for row in overall if {row.get("a"), row.get("b")} & set(CONTROLS)]),
        "groups": [(arms, contrast_table(report, part)) for arms, part in by_arms.items()],
    }


def before_view(report: Report) -> dict[str, Any] | None:
    """What a changed constitution changed: the principles, and each metric before and now; None if nothing was kept."""
    since = report.get("since")
    if not isinstance(since, Mapping):
        return None
    rows = [
        {
            "name": title_of(name), "arm": row.get("arm"), "n": row.get("n"), "n_missing": row.get("n_missing"),
            "values": [number_text(row.get(key), is_share(name, report)) for key in ("value_a", "value_b")],
            "difference": difference_text(row.get("difference"), name, report),
            "ci": interval_text(interval_of(row), name, report).removeprefix("95% interval "),
            "p": p_text(number_of(row.get("p_corrected"))), "verdict": row.get("verdict"),
        }
        for row in mappings_in(report, "contrasts_with_before") for name in [row.get("name")]
    ]  # fmt: skip
    changes = None if since.get("changes") is None else mappings_in(since, "changes")
    return {"hash": since.get("constitution_hash"), "changes": changes, "settings": since.get("settings") or [], "rows": rows}


TEXTS = ("preference", "question", "critique", "revision", "allowed", "wording")


def constitution_view(report: Report) -> dict[str, Any] | None:
    """The principles with their texts, as models read them; None without a constitution."""
    constitution = report.get("constitution")
    principles = mappings_in(constitution, "principles")
    if not isinstance(constitution, Mapping) or not principles:
        return None
    rows = [{"id": p.get("id"), "title": p.get("title"), "tags": p.get("tags") or [],
             "texts": [(key, p[key]) for key in TEXTS if p.get(key)]} for p in principles]  # fmt: skip
    return {"title": constitution.get("title"), "description": constitution.get("description"), "principles": rows}


def win_rates_view(report: Report, panels: Panels) -> dict[str, Any] | None:
    """How often the last model's answers win, against each arm: a panel and a row each; None if no judge was asked."""
    rows = mappings_in(report, "win_rates")
    if not rows:
        return None
    shown = [(f"against {row.get('a')}", ARM_COLOURS.get(str(row.get("a")), 3 + i), row) for i, row in enumerate(rows)]
    raw = dots_panel(panels, f"Win rate of {rows[0].get('b')}", shown, share=True, limits=(0, 1), line=0.5, line_name="even")
    cells = []
    for row in rows:
        rate, equal = row.get("value"), row.get("at_equal_length")
        cells.append({
            "arm": row.get("a"), "rate": number_text(rate, True), "ci": range_text(interval_of(row), True),
            "equal": number_text(equal, True), "equal_ci": range_text(interval_of({"ci": row.get("ci_at_equal_length")}), True),
            **{key: row.get(key) for key in ("wins", "ties", "losses", "n", "n_unscored")},
        })  # fmt: skip
    return {"last": rows[0].get("b"), "panel": raw, "rows": cells,
            **{key: rows[0].get(key) for key in ("judge", "protocol", "independent")}}  # fmt: skip


def adherence_view(report: Report, arms: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of each principle with prompts a row of adherence and, if it applies to red-team prompts, a row of harm: a cell of each
    arm, and the paired difference from the base to the policy. ``by_preference``: the principles among them that have no question
    about a single answer. None if no judge was asked."""
    if not isinstance(about := report.get("adherence"), Mapping):
        return None
    rows, by_preference = [], []
    for principle in mappings_in(report.get("constitution"), "principles"):
        kinds = {"red_team", "benign"}.intersection(principle.get("tags") or ())
        followed = adherence_row(report, arms, principle, ADHERENCE)
        harm = None if kinds == {"benign"} else adherence_row(report, arms, principle, HARM)
        rows += [row for row in (followed, harm) if row] if followed else []
        if followed and not (principle.get("question") or principle.get("criteria")):
            by_preference.append(principle.get("title"))
    return {"judge": about.get("judge"), "independent": about.get("independent"), "rows": rows, "by_preference": by_preference}


def adherence_row(report: Report, arms: Mapping[str, Any], principle: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """One metric on the prompts of a principle, a cell of each arm, and its change in words; None where no arm has it."""
    results = {arm: result for arm, _, result in by_arm(report, name, principle.get("id"), arms)}
    change = [difference_text(row.get("difference"), name, report) + f"; {interval_text(interval_of(row), name, report)}"
              for row in mappings_in(report, "contrasts") if (row.get("name"), row.get("group")) == (name, principle.get("id"))
              and (row.get("a"), row.get("b")) == ("base", "policy")]  # fmt: skip
    cells = [metric_cell(results[arm]) if arm in results else None for arm in arms]
    title = {"principle": principle.get("title"), "name": title_of(name)}
    return {**title, "cells": cells, "change": " ".join(change)} if results else None


def steps_view(report: Report) -> list[dict[str, str]]:
    """The verdict of each training and of each control arm, a row each."""
    rows = [{"of": f"{step['a']} → {step['b']}", **step} for step in report["verdict"].get("steps", ())]
    rows += [{"of": f"control arm {name}", **found} for name, found in report["verdict"].get("controls", {}).items()]
    return rows if len(rows) > 1 else []


def last_arm(arms: Mapping[str, Any]) -> str | None:
    """The arm that the run ended with."""
    return next((arm for arm in ("policy", "sft", "base") if arm in arms), None)


def samples(report: Report, arms: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first prompts of the report, each with the responses of every arm."""
    views = []
    for sample in mappings_in(report, "samples")[:MAX_SAMPLES]:
        responses, harmful = sample.get("responses") or {}, sample.get("harmful") or {}
        views.append(
            {
                "traits": traits_of(sample, last_arm(arms)),
                "prompt": sample.get("prompt") or "",
                "tags": [t for t in [sample.get("principle"), *(sample.get("tags") or [])] if t],
                "responses": [
                    {"arm": arms[arm], "text": responses[arm] or "", "harmful": harmful.get(arm)}
                    for arm in arms
                    if arm in responses
                ],
            }
        )
    return views


PICKS = {"worst": "became worse", "best": "became better", "random": "drawn by lot"}
KINDS = {"red_team": "red-team prompts", "benign": "harmless prompts", "other": "other prompts"}
ANSWERS = {True: ("harmful", "harmful"), False: ("harmless", "not harmful"), None: ("unscored", "unscored")}


def traits_of(sample: Mapping[str, Any], arm: str | None) -> dict[str, tuple[str, str]]:
    """By filter, the (name, words) of a sample's choice: why it is shown, its kind of prompt, and the verdict on ``arm``."""
    pick, tags = str(sample.get("pick")), sample.get("tags") or ()
    pick = pick if pick in PICKS else "random"
    kind = next((kind for kind in KINDS if kind in tags), "other")
    harmful = (sample.get("harmful") or {}).get(arm)
    return {"pick": (pick, PICKS[pick]), "kind": (kind, KINDS[kind]),
            "answer": ANSWERS[harmful if isinstance(harmful, bool) else None]}  # fmt: skip


def filters_of(views: Sequence[Mapping[str, Any]], arm: str | None) -> list[dict[str, Any]]:
    """The filters of the samples with their choices, of each the number of samples; one with a single choice is left out."""
    filters = []
    for key, name in (("pick", "Shown because"), ("kind", "Prompts"), ("answer", f"Answer of {arm}")):
        counts = Counter(view["traits"][key] for view in views)
        if len(counts) > 1:
            filters.append({"key": key, "name": name, "choices": [(*choice, n) for choice, n in counts.items()]})
    return filters


def flat_rows(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, text)."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flat_rows(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, " ".join(str(item) for item in value))]
    return [(prefix, "–" if value is None else str(value))]


def stages(report: Report) -> list[dict[str, Any]]:
    """Each stage with its wall time and the length of its bar, in percent of the longest."""
    rows = [(row, number_of(row.get("wall_s")) or 0.0) for row in mappings_in(report, "stages")]
    longest = max((seconds for _, seconds in rows), default=0.0) or 1.0
    return [
        {"name": row.get("name"), "text": "reused" if row.get("skipped") else seconds_text(seconds),
         "width": 0 if row.get("skipped") else round(100 * seconds / longest, 1)}
        for row, seconds in rows
    ]  # fmt: skip


def hacking_words(detectors: Sequence[Mapping[str, Any]]) -> str:
    """The sentence on the detectors of reward hacking: which raised an alarm, how many ran, which did not."""
    names = {state: [str(row.get("detector")) for row in detectors if row.get("state") == state]
             for state in ("alarm", "no alarm", "did not run")}  # fmt: skip
    n_ran = len(names["alarm"]) + len(names["no alarm"])
    if not n_ran:
        return "No detector of reward hacking ran."
    raised = f"Detectors of reward hacking that raised an alarm: {', '.join(names['alarm'])}"
    lead = raised if names["alarm"] else "No detector of reward hacking raised an alarm"
    absent = f"; {len(names['did not run'])} did not run ({', '.join(names['did not run'])})" if names["did not run"] else ""
    return f"{lead}. {n_ran} ran{absent}."


def page_html(report: Report) -> str:
    """The page as HTML. ``report`` is as ``as_json`` leaves it, with its verdict."""
    from jinja2 import Environment, FileSystemLoader

    panels, arms = Panels(), arms_of(report)
    shown = samples(report, arms)
    gates = [{**gate, "state": gate_state(gate), "message": sentence(gate.get("message")),
              "numbers": flat_rows(gate.get("numbers") or {})} for gate in mappings_in(report, "gates")]  # fmt: skip
    groups = unique(r.get("group") for r in mappings_in(report, "metrics") if r.get("group") is not None)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    markers = dict(enumerate("●■◆▲▼✚✖★"))
    measured = unique(r.get("name") for r in mappings_in(report, "metrics"))
    return environment.get_template("report.html").render(
        title=report.get("title") or "Charter report",
        facts=[(label, report.get(key)) for label, key in (("Recipe", "recipe"), ("Seed", "seed"), ("Charter", "charter_version"))
               if report.get(key) is not None and not isinstance(report.get(key), Mapping)],
        verdict=report["verdict"],
        arms=list(arms.values()),
        markers=markers,
        headline=headline_panels(report, arms, panels),
        directions=directions(report),
        metrics=metric_table(report, arms, None),
        steps=steps_view(report),
        contrasts=contrast_tables(report),
        win_rates=win_rates_view(report, panels),
        adherence=adherence_view(report, arms),
        principles=principles(report, arms, panels),
        group_tables=[(group, metric_table(report, arms, group)) for group in groups],
        curves=curves(report, panels),
        gold=gold_view(report, panels),
        ended=mappings_in(report, "ended"),
        revisions=revisions_view(report.get("revisions") or {}, panels),
        candidates=candidates_view(report),
        judges=[judge_view(judge, panels) for judge in mappings_in(report, "judges")],
        scorers=scorers_view(report, panels),
        unchecked=not mappings_in(report, "scorers") and any(name in MEASURE_OF for name in measured),
        reward_model=reward_model_view(report.get("reward_model") or {}, panels),
        gates=gates,
        alarms=[{**alarm, "message": sentence(alarm.get("message")), "value": number_text(alarm.get("value")),
                 "threshold": number_text(alarm.get("threshold")), "evidence": mappings_in(alarm, "evidence")}
                for alarm in mappings_in(report, "alarms")],
        detectors=[{**row, "message": sentence(row.get("message")), "value": number_text(row.get("value")),
                    "threshold": number_text(row.get("threshold"))} for row in mappings_in(report, "detectors")],
        hacking=hacking_words(mappings_in(report, "detectors")),
        constitution=constitution_view(report),
        before=before_view(report),
        samples=shown,
        filters=filters_of(shown, last_arm(arms)),
        n_samples=len(mappings_in(report, "samples")),
        stages=stages(report),
        left_out=mappings_in(report, "left_out"),
        data_card=flat_rows(report.get("data_card") or {}),
        sorting=sentence(report.get("sorting")),
        glossary=[(title_of(name), METRICS[name].meaning) for name in METRICS if name in measured],
        provenance=flat_rows(report.get("provenance") or {})
        + (flat_rows(report["recipe"], "recipe") if isinstance(report.get("recipe"), Mapping) else []),
    )  # fmt: skip


def metrics_csv(report: Report) -> str:
    """One line per metric, ``ci`` as two columns; an unknown number is an empty field."""
    columns = ("name", "arm", "group", "value", "ci_low", "ci_high", "n", "n_unscored", "unit", "method", "scorer")
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in mappings_in(report, "metrics"):
        low, high = interval_of(row) or (None, None)
        writer.writerow({**row, "ci_low": low, "ci_high": high})
    return file.getvalue()


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.json``, ``metrics.csv`` and ``report.html`` into ``folder``; the path of the page.

    Any key of ``report`` may be missing. The verdict is derived anew, so that the page says no more than its numbers.
    """
    content = as_json(report)
    content["verdict"] = verdict(content)
    table, text = metrics_csv(content), page_html(content)  # a report that cannot be shown leaves the files as they are
    write_json(folder / "report.json", content)
    write_text(folder / "metrics.csv", table)
    page = folder / "report.html"
    write_text(page, text)
    return page
