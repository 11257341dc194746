"""Feedback out to a dataset, with a manifest from which the same bytes can be made again.

The manifest stands beside the dataset as ``NAME.manifest.json``: format and filters, what was left out and why, raters, hashes of
their instructions, the tips of the chain of judgments, the number of rows and the SHA-256 of the result. It has no time and no
path, so that it is itself a function of the feedback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import charter
from charter.errors import GateError, InputError
from charter.reading.card import read_groups
from charter.reading.pairs import number, read_pairs
from charter.reading.rows import read_rows
from charter.run.files import describe, read_json, write_json
from charter.votes.containers import sha256_of, write_container
from charter.votes.evidence import FILES, SETS, Evidence, RecordFile, feedback_of, find_judgments, new_folder
from charter.votes.layouts import LAYOUTS, NO_TRANSCRIPT, REASONS, Layout
from charter.votes.training_rows import (
    Selection,
    Tally,
    aggregated_rows,
    attempt_rows,
    group_rows,
    label_rows,
    labels_of_pairs,
    pair_rows,
    rows_of_pairs,
)

RAW = "raw"
FORMATS = (*LAYOUTS, RAW)
SUFFIX_WORDS = {"": "a folder without a suffix"}
ID_COLUMNS = ("response_id", "response", "item", "id")
SCORE_COLUMNS = ("score", "rating")


def export_feedback(
    source: Path,
    out: Path,
    format: str,
    selection: Selection,
    *,
    ratings: Path | None = None,
    groups: Path | None = None,
    tips: list[str] | None = None,
) -> dict[str, Any]:
    """Write judgments (a file, a folder of feedback, a run) or a file of pairs as a dataset with its manifest.

    Returns the manifest. ``tips`` cuts the judgments back to those that these hashes close. InputError where the source cannot be
    used, names responses that are missing, mixes signs, or holds nothing to export.
    """
    check_format(format, out)
    place = source if source.is_dir() else source.parent
    sources = (source, *(place / folder / name for folder in ("", "feedback", "prompts") for name in FILES))
    if out.exists() and any(file.exists() and out.samefile(file) for file in sources):
        raise InputError("is a file of the source; name another --out", file=out)
    for name, table in (("ratings", ratings), ("groups", groups)):
        if (selection.soft == name) != (table is not None):
            raise InputError(f"--soft-labels {name} and --{name} FILE belong together")
    judgments = find_judgments(source)
    if judgments is None and source.is_dir():
        if not (pairs := feedback_of(source) / "pairs.jsonl").exists():
            raise InputError("judgments.jsonl is missing; name a folder of feedback, a run, or a file of pairs", file=source)
        source = pairs
    manifest: dict[str, Any] = {
        "charter": charter.__version__,
        "format": format,
        "filters": TypeAdapter(Selection).dump_python(selection, mode="json"),
    }
    manifest["filters"]["ratings"] = None if ratings is None else sha256_of(ratings)
    if groups is not None:
        manifest["filters"]["groups"] = sha256_of(groups)
    if judgments is None:
        described = _export_pairs(source, out, format, selection)
    else:
        with Evidence(judgments) as evidence:
            among = None if tips is None else evidence.judgments.up_to(tips)
            scores, of_groups = read_scores(ratings) if ratings else None, read_groups(groups) if groups else None
            described = _export_evidence(evidence, out, format, selection, among, scores, of_groups)
            described["tips"] = sorted(tips) if tips is not None else evidence.judgments.tips()
    manifest |= described
    manifest["sha256"] = sha256_of(out)
    write_json(manifest_path(out), manifest)
    return manifest


def export_again(
    source: Path, out: Path, manifest: Path, *, ratings: Path | None = None, groups: Path | None = None
) -> dict[str, Any]:
    """Make the dataset of a manifest anew, from feedback that may have grown since; the manifest.

    InputError where the manifest or the source is another's, GateError where the bytes differ.
    """
    card = read_json(manifest)
    try:
        filters = dict(card["filters"])
        tables = {"ratings": filters.pop("ratings"), "groups": filters.pop("groups", None)}
        format, digest, tips = str(card["format"]), str(card["sha256"]), card.get("tips")
        if tips is not None and not (isinstance(tips, list) and all(isinstance(tip, str) for tip in tips)):
            raise InputError("is not a list of hashes", file=manifest, field="tips")
    except (TypeError, KeyError, ValueError):
        raise InputError("no such file" if card is None else "not a manifest of charter export", file=manifest) from None
    selection = selection_of(filters, manifest)
    for (name, known), table in zip(tables.items(), (ratings, groups), strict=True):
        if known is not None and (table is None or sha256_of(table) != known):
            raise InputError(f"was made with a {name} file whose SHA-256 is {known}; name it with --{name}", file=manifest)
    made = export_feedback(source, out, format, selection, ratings=ratings, groups=groups, tips=tips)
    if made["sha256"] != digest:
        raise GateError(f"{out}: SHA-256 {made['sha256']} is not that of the manifest, {digest}: the source is another one, or "
                        f"charter {made['charter']} writes another form than {card.get('charter')}")  # fmt: skip
    return made


def selection_of(values: dict[str, Any], place: Path | None = None) -> Selection:
    """A selection from values as they come from outside. InputError names the one that is wrong."""
    try:
        selection = TypeAdapter(Selection).validate_python(values)
    except ValidationError as error:
        field, words = describe(error)
        raise InputError(words, file=place, field=field) from None
    if not 0 < selection.calibration < float("inf"):
        raise InputError(f"is {selection.calibration}; give a number above 0", file=place, field="calibration")
    return selection


def manifest_path(out: Path) -> Path:
    """Where the manifest of a dataset stands."""
    return out.with_name(out.name + ".manifest.json")


def check_format(format: str, out: Path) -> None:
    """InputError where the format is unknown or ``out`` is not named as one of its files."""
    if format not in FORMATS:
        raise InputError(f"--to {format!r}: one of {', '.join(FORMATS)}")
    suffixes = ("",) if format == RAW else LAYOUTS[format].suffixes
    if out.suffix not in suffixes:
        named = ", ".join(SUFFIX_WORDS.get(suffix, suffix) for suffix in suffixes)
        raise InputError(f"{format} is written as {named}; rename --out", file=out)
    if out.is_dir() and out.suffix:
        raise InputError("is a folder, not a file", file=out)


def read_scores(path: Path) -> dict[str, float]:
    """Scores in nats by response id: a table with a column of ids (response_id, response, item or id) and one of scores (score or
    rating), such that sigma of a difference is P(the first beats the second)."""
    scores: dict[str, float] = {}
    for row in read_rows(path):
        id_column = next((name for name in ID_COLUMNS if row.values.get(name) is not None), None)
        score_column = next((name for name in SCORE_COLUMNS if row.values.get(name) is not None), None)
        if id_column is None or score_column is None:
            raise row.bad(f"no rating; give a column {' or '.join(ID_COLUMNS)} and a column {' or '.join(SCORE_COLUMNS)}")
        score = number(row, score_column)
        key = row.text(id_column)
        if score is None or scores.setdefault(key, score) != score:
            raise row.bad("is missing" if score is None else f"{key!r} was rated before, and differently", score_column)
    return scores


def _export_evidence(
    evidence: Evidence, out: Path, format: str, selection: Selection, among: set[str] | None, scores: dict[str, float] | None,
    groups: dict[str, str] | None,
) -> dict[str, Any]:  # fmt: skip
    if not evidence.judgments:
        raise InputError("no judgment in it; label or import first", file=evidence.judgments.path)
    if format == RAW:
        return _write_raw(evidence, out, among)
    tally, layout = Tally(), LAYOUTS[format]
    if selection.reasons and (selection.soft != "judgment" or "rater_id" not in layout.columns):
        words = f"--soft-labels {selection.soft}" if selection.soft != "judgment" else format
        raise InputError(f"--reasons are of one rater each, and a row of {words} is not; leave one of them out")
    if selection.calibration != 1 and (selection.soft != "judgment" or "weight" not in layout.columns):
        words = f"--soft-labels {selection.soft}" if selection.soft != "judgment" else format
        raise InputError(f"--calibration makes the weight of a judge's pair, which {words} does not have; leave one of them out")
    if layout.kind == "pairs":
        rows: Iterator[Any] = (
            pair_rows(evidence, selection, tally, among)
            if selection.soft == "judgment"
            else aggregated_rows(evidence, selection, tally, among, scores, groups)
        )
    elif selection.soft != "judgment":
        raise InputError(f"--soft-labels {selection.soft} makes pairs, and {format} keeps the votes of each rater; leave it out")
    else:
        views = {"labels": label_rows, "groups": group_rows, "attempts": attempt_rows}
        rows = views[layout.kind](evidence, selection, tally, among)
    count = _write(out, layout, rows, tally, str(evidence.judgments.path), REASONS if selection.reasons else {})
    return {"source": {"kind": "judgments"}, "rows": count, **tally.summary()}


def _export_pairs(source: Path, out: Path, format: str, selection: Selection) -> dict[str, Any]:
    if selection != Selection():
        raise InputError("is a file of pairs; filters and soft labels need the judgments behind them", file=source)
    if format == RAW or LAYOUTS[format].kind in ("groups", "attempts"):
        raise InputError(f"is a file of pairs; {format} needs the judgments behind them", file=source)
    loaded = read_pairs(source)
    tally, layout = Tally(), LAYOUTS[format]
    tally.left_out.update(loaded.excluded)
    pairs = rows_of_pairs(loaded.pairs)
    count = _write(out, layout, pairs if layout.kind == "pairs" else labels_of_pairs(pairs, tally), tally, str(source), {})
    return {"source": {"kind": "pairs", "sha256": sha256_of(source)}, "rows": count,
            "left_out": tally.summary()["left_out"]}  # fmt: skip


def _write(out: Path, layout: Layout, rows: Iterator[Any], tally: Tally, source: str, more: Mapping[str, str]) -> int:
    """Write the rows that the layout can hold, with the columns ``more`` (name to type) of fields that rows have."""

    def cells() -> Iterator[dict[str, Any]]:
        empty = True
        for row in rows:
            if (encoded := layout.encode(row)) is None:
                tally.left_out[NO_TRANSCRIPT] += 1
            else:
                empty = False
                yield {**encoded, **{name: getattr(row, name) for name in more}}
        if empty:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted((+tally.left_out).items()))
            raise InputError("nothing to export" + (f" ({reasons})" if reasons else ""), file=source)

    count = write_container(out, {**layout.columns, **more}, cells())
    tally.left_out = +tally.left_out
    return count


def _write_raw(evidence: Evidence, out: Path, among: set[str] | None) -> dict[str, Any]:
    """All records, superseded and unjudged ones included, each file in the order of its ids."""
    parts: dict[str, RecordFile[Any]] = dict(zip(FILES, (evidence.prompts, evidence.responses, evidence.judgments), strict=True))
    if evidence.sets is not None:
        parts[SETS] = evidence.sets
    counts = {}
    with new_folder(out) as folder:
        for name, part in parts.items():
            keys = sorted(part if among is None or part is not evidence.judgments else among)
            counts[name.removesuffix(".jsonl")] = len(keys)
            with open(folder / name, "w", encoding="utf-8", newline="\n") as file:
                for key in keys:
                    file.write(part[key].model_dump_json() + "\n")
    return {"source": {"kind": "judgments"}, "rows": counts["judgments"], "records": counts}
