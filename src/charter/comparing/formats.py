"""Tables of per-item results: lm-evaluation-harness, RewardBench, AlpacaEval, plain rows, and the verdicts of a Charter run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.comparing.results import ABSENT, Item, Results, as_score, gather, id_of, is_number, look_up, short
from charter.errors import InputError
from charter.metrics import METRICS
from charter.reading.rows import Row
from charter.run.files import read_json

LM_EVAL, REWARDBENCH, ALPACA_EVAL = "lm-evaluation-harness samples", "RewardBench results", "AlpacaEval annotations"
PLAIN, RUN = "plain results", "Charter run"

LOWER_IS_BETTER = frozenset({
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "wer", "ter", "cer", "loss", "mse", "mae",
    "error", "error_rate", "toxicity", "harmful", "likelihood_diff", "pct_stereotype", "strongreject_score",
})  # fmt: skip


def place_of(row: Row, field: str | None = None) -> dict[str, Any]:
    """The place of a row, for errors."""
    return {"file": row.file, "line": row.line, "field": field}


def cluster_of(row: Row, cluster: str | None) -> str | None:
    return look_up(row.values, cluster, place_of(row)) if cluster else None


def known_direction(name: str) -> str | None:
    """The direction of a metric of Charter, which its exports have too; "lower" for the metrics of which everybody knows it, also
    as one part of a scorer's value; else "higher"."""
    short = name.rpartition("/")[2]
    if short in METRICS:
        return METRICS[short].better
    words = re.split(r"[, ]", short.lower())[0]
    return "lower" if LOWER_IS_BETTER & set(words.split(".")) else "higher"


def with_directions(results: Results) -> Results:
    results.better = {name: known_direction(name) for name in results.metrics}
    return results


def read_lm_eval(source: str, files: Mapping[str, Sequence[Row]], cluster: str | None, model: str | None = None) -> Results:
    """Samples of one or several tasks, ``files`` by task; with several, metrics and ids carry the task."""
    results, skipped = Results(source, LM_EVAL, model), set[str]()

    def items() -> Iterator[Item]:
        for task, rows in files.items():
            prefix = f"{task}/" if len(files) > 1 else ""
            filters = {str(row.values.get("filter", "none")) for row in rows}
            merged: dict[str, Item] = {}
            for row in rows:
                item = lm_eval_item(row, prefix, filters, cluster, skipped)
                if item.id in merged and not item.scores.keys() & merged[item.id].scores.keys():
                    item = Item(item.id, {**merged[item.id].scores, **item.scores}, None, item.content, item.cluster)
                elif item.id in merged:
                    yield merged[item.id]
                merged[item.id] = item
            yield from merged.values()

    gather(results, items())
    results.notes += [f"{name}: not a number per item" for name in sorted(skipped)]
    return with_directions(results)


def lm_eval_item(row: Row, prefix: str, filters: set[str], cluster: str | None, skipped: set[str]) -> Item:
    """One logged sample. A metric is named after its filter, too, where the file has several; values that are not numbers,
    such as the parts of a corpus metric, are skipped."""
    values = row.values
    names = values.get("metrics")
    if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise row.bad("must be a list of names", "metrics")
    if names is None:
        names = [
            name for name, value in values.items() if isinstance(value, bool | int | float) and name not in ("doc_id", "target")
        ]
    suffix = f",{values.get('filter')}" if len(filters) > 1 else ""
    scores = {}
    for name in names:
        if name not in values:
            raise row.bad("missing, but 'metrics' names it", name)
        if isinstance(values[name], str | list | dict):
            skipped.add(f"{prefix}{name}{suffix}")
            continue
        scores[f"{prefix}{name}{suffix}"] = as_score(values[name], place_of(row, name))
    id = prefix + id_of(values.get("doc_id"), place_of(row, "doc_id"))
    content = values.get("doc_hash") or doc_hash(values.get("doc"))
    return Item(id, scores, None, None if content is None else str(content), cluster_of(row, cluster))


def doc_hash(doc: Any) -> str | None:
    """The hash of a document as lm-evaluation-harness writes it, for the files of versions that did not; None without one."""
    if doc is None:
        return None
    return hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def task_of(path: Path) -> str:
    """The task in the name of a file that lm-evaluation-harness wrote: samples_TASK_DATE.jsonl."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("samples_")
    return re.sub(r"_\d{4}-\d\d-\d\dT[\d.:-]+$", "", stem)


def read_rewardbench_columns(path: Path, columns: Mapping[str, Any], cluster: str | None) -> Results:
    """The scores file of RewardBench 1 or 2: one object of columns of equal length."""
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    lengths = {name: len(column) for name, column in lists.items()}
    if "results" not in lists or len(set(lengths.values())) > 1:
        raise InputError("columns of different lengths, or none named 'results'; give RewardBench's scores file", file=path)
    rows = [Row({name: column[i] for name, column in lists.items()}, f"{path}, item {i + 1}") for i in range(lengths["results"])]
    model = columns.get("model")
    return read_rewardbench(str(path), rows, cluster, model if isinstance(model, str) else None)


def read_rewardbench(source: str, rows: Sequence[Row], cluster: str | None, model: str | None = None) -> Results:
    """Rows with id, subset and results; or the pairs of two scores that ``--save_all`` writes, in order."""
    return gather(Results(source, REWARDBENCH, model), (rewardbench_item(row, n, cluster) for n, row in enumerate(rows, start=1)))


def rewardbench_item(row: Row, number: int, cluster: str | None) -> Item:
    """One prompt: whether the chosen response scored highest."""
    values = row.values
    if "results" in values:
        score = as_score(values["results"], place_of(row, "results"))
    else:
        chosen, rejected = (as_score(values.get(side), place_of(row, side)) for side in ("chosen", "rejected"))
        score = None if chosen is None or rejected is None else float(chosen > rejected)
    id = id_of(values.get("id", number), place_of(row, "id"))
    subset = values.get("subset")
    content = values.get("prompt") or values.get("text_chosen")
    return Item(f"{subset}/{id}" if subset else id, {"accuracy": score}, None, str(content) if content else None,
                cluster_of(row, cluster))  # fmt: skip


def read_alpaca_eval(source: str, rows: Sequence[Row], cluster: str | None) -> Results:
    """Annotations of one model against a reference: the win is preference − 1, so a tie (1.5) counts half."""
    models = {side: {str(row.values.get(f"generator_{side}")) for row in rows} for side in (1, 2)}
    for side, names in models.items():
        if len(names) > 1:
            raise InputError(f"several models ({', '.join(sorted(names))}); give the annotations of one model", file=source,
                             field=f"generator_{side}")  # fmt: skip
    reference = next(iter(models[1]), "None")
    results = Results(source, ALPACA_EVAL, next(iter(models[2]), None))
    gather(results, (alpaca_item(row, cluster) for row in rows))
    results.metrics = {f"win against {reference}": values for values in results.metrics.values()}
    return results


def alpaca_item(row: Row, cluster: str | None) -> Item:
    preference = as_score(row.values.get("preference"), place_of(row, "preference"))
    if preference is not None and not 1 <= preference <= 2:
        if preference != 0:
            raise row.bad(f"must be between 1 and 2, not {preference:g}", "preference")
        preference = 1.5  # alpaca_eval's older annotators write a tie as 0
    return Item(
        row.text("instruction"), {"win": None if preference is None else preference - 1}, None, None, cluster_of(row, cluster)
    )


def read_plain(source: str, rows: Sequence[Row], cluster: str | None) -> Results:
    """Rows with ``id``, ``score`` and further metrics: every column with a number in it is a metric, ``cluster`` joins rows."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if "id" not in names:
        raise InputError(
            f"the column 'id' is missing; the columns are {', '.join(map(str, names[:8]))}", file=rows[0].file, line=rows[0].line
        )
    cluster = cluster or ("cluster" if "cluster" in names else None)
    columns = [name for name in names if name not in ("id", cluster)]
    metrics = [name for name in columns if name == "score" or any(is_number(row.values.get(name)) for row in rows)]
    if not metrics:
        raise InputError("no column has a number; add a column 'score'", file=source)
    results = gather(Results(source, PLAIN, None), (plain_item(row, metrics, cluster) for row in rows))
    results.notes += [f"{name}: a column without numbers" for name in columns if name not in metrics]
    return with_directions(results)


def plain_item(row: Row, metrics: Sequence[str], cluster: str | None) -> Item:
    scores = {name: as_score(row.values.get(name), place_of(row, name), text=True) for name in metrics}
    return Item(id_of(row.values.get("id"), place_of(row, "id")), scores, None, None, cluster_of(row, cluster))


def read_verdicts(source: str, rows: Sequence[Row], folder: Path | None) -> Results:
    """The verdicts of one arm of a Charter run; the prompts are the clusters."""
    names = dict.fromkeys(name for row in rows for name in value_of(row))
    results = gather(Results(source, RUN, None), (verdict_item(row, names) for row in rows))
    for name in [name for name in results.metrics if name in METRICS and not METRICS[name].compared]:
        del results.metrics[name]
        is_distance = name.startswith("kl")
        reason = "already a comparison with a model of its run" if is_distance else "reported for each arm, not compared"
        results.notes.append(f"{name}: {reason}")
    if not results.metrics:
        raise InputError("no value that can be compared; set evaluation.scorer or evaluation.measures", file=source)
    report = (read_json(folder / "report.json") or read_json(folder / "evaluation.json")) if folder else None
    declared = report.get("better") if isinstance(report, Mapping) else None
    results.better = {name: METRICS[name].better if name in METRICS else None for name in results.metrics}
    if not isinstance(declared, Mapping | None) or any(v not in ("lower", "higher", None) for v in (declared or {}).values()):
        raise InputError(
            "must be lower or higher by metric; charter run RECIPE writes the report again", file=folder, field="better"
        )
    results.better |= {name: word for name, word in (declared or {}).items() if name in results.metrics}
    return results


def value_of(row: Row) -> Mapping[str, Any]:
    values = row.values.get("values")
    if not isinstance(values, Mapping):
        raise row.bad("must be an object with a value per metric", "values")
    return values


def verdict_item(row: Row, names: Iterable[str]) -> Item:
    """A line of verdicts. A metric that it does not name is not about its prompt."""
    values = value_of(row)
    index = row.values.get("index", 0)
    if isinstance(index, bool) or not isinstance(index, int):
        raise row.bad(f"must be a whole number, not {short(index)}", "index")
    scores = {str(name): as_score(values[name], place_of(row, f"values.{name}")) if name in values else ABSENT for name in names}
    return Item(row.text("prompt_id"), scores, index + 1, None, row.optional("cluster"))
