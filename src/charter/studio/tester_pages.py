"""The prompt tester: prompts against models of the runs, by `charter evaluate`; a row for each prompt, with what scorers say."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from charter.errors import InputError
from charter.measuring.asking import ScoredItem, file_name
from charter.measuring.evaluation import SUMMARY
from charter.models.load import model_of_run, run_and_model
from charter.reading.sets.read import read_set
from charter.run.files import read_json, read_jsonl, write_json, write_text
from charter.studio.models import folder_of, names_of
from charter.studio.run_pages import events, fragments
from charter.studio.runs import last_line
from charter.studio.site import Studio, studio_of
from charter.web.access import LEADS, WATCHES, RequestRefused, Visitor
from charter.web.answers import BadAnswer, text_of
from charter.web.label_app import Page
from charter.web.site import allow, to
from charter.web.words import REFUSALS

Lead = Annotated[Visitor, Depends(allow(LEADS))]
Watcher = Annotated[Visitor, Depends(allow(WATCHES))]
MOST_CHARACTERS, MOST_TOKENS = 200_000, 1024
ENDINGS = {"lines": "jsonl", "jsonl": "jsonl", "csv": "csv"}
KINDS = {"benign": ["--tag", "benign"], "red_team": ["--tag", "red_team"], "file": []}
WORDS = "refusal-words"
JOB = "prompt tester"  # one at a time; no run can have this name
KEPT_S = 60.0  # of a table in memory
PARTS = {"result": "test_result.html"}


def tests_of(site: Studio) -> Path:
    return site.project.folder / "tests"


def tester_page(request: Request, visitor: Lead) -> Response:
    return show_tester(studio_of(request), visitor)


def show_tester(site: Studio, visitor: Visitor, problem: str = "", form: dict[str, str] | None = None) -> Response:
    tests = [(place.name, view_of(site, place)) for place in sorted(tests_of(site).glob("[0-9]*"), reverse=True)]
    return site.page(
        "tester.html", visitor, status=422 if problem else 200, problem=problem, form=form or {}, models=names_of(site.runs()),
        rewards=[run for run, watch in site.runs().items() if (watch.folder / "reward_model/model").is_dir()], tests=tests,
        most=MOST_CHARACTERS, most_tokens=MOST_TOKENS, refusal_words=WORDS,
    )  # fmt: skip


def start_test(request: Request, visitor: Lead) -> Response:
    """Write the prompts into a folder of their own, and evaluate them there."""
    site, form = studio_of(request), request.state.form
    try:
        text = text_of(form, "text", MOST_CHARACTERS)
        if site.jobs.state(JOB) == "running":
            raise InputError("a test is running; wait until it ends")
        place, arguments = write_test(site, form, text)
        site.jobs.start(JOB, arguments, place / "log.txt", stays=False)
    except (InputError, BadAnswer) as error:
        return show_tester(site, visitor, str(error), form)
    return to(f"/test?name={place.name}")


def write_test(site: Studio, form: dict[str, str], text: str) -> tuple[Path, list[str]]:
    """The new folder with the prompts and the request, and the arguments of `charter evaluate`. InputError, before anything is
    written, where the form is not complete or a model does not exist."""
    way, kind, tokens = form.get("way", "lines"), form.get("kind", "benign"), form.get("tokens", "")
    scorer, reward = form.get("scorer") or WORDS, form.get("reward", "")
    models = [name for name in names_of(site.runs()) if f"model:{name}" in form]
    if not models:
        raise InputError("choose at least one model")
    if way not in ENDINGS or kind not in KINDS or reward not in ("", *site.runs()):
        raise InputError("unknown choice in the form; load the page again")
    if not (tokens.isascii() and tokens.isdigit() and len(tokens) <= 4 and 1 <= int(tokens) <= MOST_TOKENS):
        raise InputError(f"the longest answer is {tokens[:20]!r}; write a number from 1 to {MOST_TOKENS}")
    if not text.strip():
        raise InputError("write at least one prompt, or choose a file")
    if way == "lines":
        lines = [line.strip() for line in text.split("\n") if line.strip()]  # U+2028 ends no prompt
        text = "".join(json.dumps({"prompt": line}, ensure_ascii=False) + "\n" for line in lines)
    first, *others = (f"{folder_of(name, site.runs())}:{run_and_model(name)[1]}" for name in models)
    judge = WORDS if scorer == WORDS else f"judge:{model_of_run(folder_of(scorer, site.runs()), run_and_model(scorer)[1])}"
    numbers = [int(place.name) for place in tests_of(site).glob("[0-9]*") if place.name.isdigit()]
    place = tests_of(site) / f"{max(numbers, default=0) + 1:03}"
    place.mkdir(parents=True)
    file = place / f"prompts.{ENDINGS[way]}"
    write_text(file, text)
    write_json(place / "request.json", {"models": models, "scorer": scorer, "reward": reward})
    arguments = ["evaluate", first, *(part for other in others for part in ("--against", other)), "--set", str(file), "--out",
                 str(place), "--quiet", "--scorer", judge, "--max-new-tokens", tokens, *KINDS[kind]]  # fmt: skip
    return place, arguments + (["--measure", f"reward=reward:{site.runs()[reward].folder}"] if reward else [])


def test_of(site: Studio, name: str) -> Path:
    place = tests_of(site) / name
    if not (name.isascii() and name.isdigit() and place.is_dir()):
        raise RequestRefused(404, REFUSALS["page"])
    return place


def view_of(site: Studio, place: Path) -> dict[str, Any]:
    """State, request and, of a test that is done, its figures."""
    summary = read_json(place / SUMMARY)
    asked = read_json(place / "request.json") or {}
    done = isinstance(summary, dict) and "metrics" in summary
    if done:  # the models by the studio's names
        names = dict(zip((model["name"] for model in summary["models"]), asked["models"], strict=True))
        summary["names"] = names
        for figure in summary["metrics"]:
            figure["arm"] = names.get(figure["arm"], figure["arm"])
    job = site.jobs.by_name.get(JOB)
    state = "done" if done else job.state if job is not None and job.log.parent == place else "interrupted"
    return {"state": state, "asked": asked, "summary": summary if done else None,
            "words": last_line(place / "log.txt") if state == "failed" else ""}  # fmt: skip


def table_of(place: Path, summary: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the values, and for each prompt {prompt, answers: of each model {model, text, values}}."""
    test_set = read_set(next(place.glob("prompts.*")))
    prompts = {f"{test_set.name}/{item.id}": item.prompt.last_turn for item in test_set.items.get("answers", ())}
    rows: dict[str, dict[str, Any]] = {}
    names: dict[str, None] = {}
    for written, model in summary["names"].items():
        for row in read_jsonl(place / f"evaluate/verdicts.{file_name(written)}.jsonl", ScoredItem):
            values = {name.rpartition("/")[2]: value for name, value in row.values.items()}
            names |= dict.fromkeys(values)
            entry = rows.setdefault(row.prompt_id, {"prompt": prompts.get(row.prompt_id, row.prompt_id), "answers": []})
            entry["answers"].append({"model": model, "text": row.text or "", "values": values})
    return list(names), list(rows.values())


def result_of(site: Studio, place: Path) -> dict[str, Any]:
    view, names, rows = view_of(site, place), list[str](), list[dict[str, Any]]()
    if view["summary"]:  # it does not change any more
        names, rows = site.keep(f"test {place.name}", KEPT_S, lambda: table_of(place, view["summary"]))
    return {"number": place.name, "view": view, "names": names, "rows": rows}


def test_page(request: Request, visitor: Watcher, name: str) -> Response:
    site = studio_of(request)
    return site.page("test.html", visitor, **result_of(site, test_of(site, name)))


def test_events(request: Request, visitor: Watcher, name: str) -> Response:
    site = studio_of(request)
    place = test_of(site, name)
    return events(site, lambda: fragments(site, PARTS, result_of(site, place)))


def test_csv(request: Request, visitor: Watcher, name: str) -> Response:
    """The table as CSV, a row for each answer."""
    site = studio_of(request)
    result = result_of(site, test_of(site, name))
    if not result["rows"]:
        raise RequestRefused(404, REFUSALS["page"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prompt", "model", "answer", *result["names"]])
    for row in result["rows"]:
        for answer in row["answers"]:
            words = map(as_cell, (row["prompt"], answer["model"], answer["text"]))
            writer.writerow([*words, *(answer["values"].get(name) for name in result["names"])])
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8",
                    headers={"content-disposition": f'attachment; filename="test-{name}.csv"'})  # fmt: skip


def as_cell(text: str) -> str:
    """A text for a spreadsheet, which would run one that begins like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


ROUTES: tuple[Page, ...] = (
    ("/tester", "GET", tester_page),
    ("/tester/start", "POST", start_test),
    ("/test", "GET", test_page),
    ("/test/events", "GET", test_events),
    ("/test/csv", "GET", test_csv),
)
