"""The constitution editor: principles with their figures from a run, new versions of them, and what a change would change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.responses import Response

from charter.constitution.constitution import Constitution, Principle, load_constitution, save_constitution
from charter.constitution.difference import STAGES, differences
from charter.errors import InputError
from charter.run.files import describe, read_json
from charter.studio.flips import Change, Labels, figures_of, labels_of, what_would_change
from charter.studio.site import Studio, studio_of
from charter.web.access import LEADS, WATCHES, RequestRefused, Visitor
from charter.web.label_app import Page
from charter.web.site import allow, to
from charter.web.words import REFUSALS

Lead = Annotated[Visitor, Depends(allow(LEADS))]
Watcher = Annotated[Visitor, Depends(allow(WATCHES))]
TEXTS = ("title", "preference", "question", "critique", "revision")
MOST_JUDGED = 40
VERSION = re.compile(r"-v[0-9]+$")


def versions_folder(site: Studio) -> Path:
    return site.project.folder / "constitutions"


def constitutions_of(site: Studio, run: str = "") -> dict[str, Path]:
    """The constitutions that may be opened, by name: that of the run, files of the folder, and versions made here, the newest
    first."""
    files = [*site.root.glob("*.yaml"), *sorted(versions_folder(site).glob("*.yaml"), key=lambda f: -f.stat().st_mtime)]
    known = {str(file.relative_to(site.root)): file for file in files if is_constitution(file)}
    watch = site.runs().get(run)
    report = read_json(watch.folder / "report.json") if watch is not None else None
    used = (report.get("recipe") or {}).get("constitution") if isinstance(report, dict) else None
    if isinstance(used, str) and Path(used).is_file() and Path(used) not in known.values():
        known = {used: Path(used), **known}
    return known


def is_constitution(file: Path) -> bool:
    """Whether it is one, a broken one included: that is opened with its error."""
    try:
        return "\nprinciples:" in "\n" + file.read_text(encoding="utf-8", errors="replace")[: 2**20]
    except OSError:
        return False


def constitution_page(request: Request, visitor: Watcher, run: str = "", file: str = "", base: str = "") -> Response:
    return show_constitution(studio_of(request), visitor, run, file, base)


def show_constitution(
    site: Studio, visitor: Visitor, run: str, file: str, base: str = "", *, problem: str = "",
    draft: dict[str, str] | None = None, change: Change | None = None,
) -> Response:  # fmt: skip
    """The principles of one file; with ``base`` what differs from that one; ``draft``: a form that was not saved."""
    runs = [name for name, watch in site.runs().items() if watch.has_report]
    run = run or next(iter(runs), "")
    known = constitutions_of(site, run)
    file = file or next(iter(known), "")
    if (file and file not in known) or (base and base not in known) or (run and run not in site.runs()):
        raise RequestRefused(404, REFUSALS["page"])
    values: dict[str, Any] = {"constitution": None, "figures": {}, "labels": None, "differences": [], "stages": []}
    status = 422 if problem else 200
    try:
        constitution = values["constitution"] = load_constitution(known[file]) if file else None
        if constitution is not None and base:
            rows = values["differences"] = differences(load_constitution(known[base]), constitution)
            values["stages"] = [stage for stage in STAGES if any(stage in row.stages for row in rows)]
        if run:
            values["labels"] = labels = labels_of(site.runs()[run].folder)
            values["figures"] = figures_of(labels)
    except InputError as error:
        problem = problem or str(error)
    return site.page(
        "constitution.html", visitor, status=status, run_name=run, runs=runs, known=known, file=file, base=base, problem=problem,
        draft=draft or {}, change=change, most=MOST_JUDGED, texts=TEXTS, **values,
    )  # fmt: skip


def edited(constitution: Constitution, form: dict[str, str], action: str) -> Constitution:
    """The constitution with one principle changed, added or removed. InputError where that is not a constitution."""
    key = form.get("id", "").strip()
    texts = {name: form[name].replace("\r\n", "\n").strip() for name in TEXTS if name in form}
    values = {name: text for name, text in texts.items() if text}
    rows = [principle.model_dump(exclude_unset=True) for principle in constitution.principles]
    if action == "remove":
        rows = [row for row in rows if row["id"] != key]
    elif action == "add":
        rows.append({"id": key, **values})
    else:
        row = next((row for row in rows if row["id"] == key), None)
        if row is None:
            raise InputError(f"unknown principle {key[:100]!r}; load the page again")
        for name in texts:
            row.pop(name, None)
        row |= values
        row |= weight_of(form, next(p for p in constitution.principles if p.id == key))
    try:
        return Constitution.model_validate({**constitution.model_dump(exclude_unset=True), "principles": rows})
    except ValidationError as error:
        field, words = describe(error)
        raise InputError(words, field=field) from None


def weight_of(form: dict[str, str], principle: Principle) -> dict[str, float]:
    """The weight of the form where it is another one than the form showed, in six digits."""
    try:
        weight = float(form.get("weight", principle.weight))
    except ValueError:
        raise InputError(f"{form['weight'][:40]!r} is not a number", field="weight") from None
    return {} if f"{weight:g}" == f"{principle.weight:g}" else {"weight": weight}


def asked_for(site: Studio, form: dict[str, str], action: str) -> Constitution:
    """The changed constitution of a form. InputError where it is unchanged or cannot be."""
    known = constitutions_of(site, form.get("run", ""))
    if form.get("file") not in known:
        raise InputError("the constitution is not in the folder any more; load the page again")
    old = load_constitution(known[form["file"]])
    new = edited(old, form, action)
    if not differences(old, new):
        raise InputError("nothing changed; edit a text or the weight")
    return new


def save_version(request: Request, visitor: Lead, action: str = "change") -> Response:
    """Save the change as a file of its own, and show how it differs."""
    site, form = studio_of(request), request.state.form
    run, file = form.get("run", ""), form.get("file", "")
    try:
        place = new_version(site, asked_for(site, form, action), file)
    except InputError as error:
        return show_constitution(site, visitor, run, file, problem=str(error), draft=form)
    return to("/constitution?" + urlencode({"run": run, "file": str(place.relative_to(site.root)), "base": file}))


def new_version(site: Studio, constitution: Constitution, file: str) -> Path:
    """The file of a new version, in the folder `studio/constitutions`; no version is overwritten."""
    folder, stem = versions_folder(site), VERSION.sub("", Path(file).stem)
    folder.mkdir(parents=True, exist_ok=True)
    with site.saving:
        number = 2
        while (place := folder / f"{stem}-v{number}.yaml").exists():
            number += 1
        save_constitution(constitution, place)
    return place


def preview(request: Request, visitor: Lead, action: str = "change") -> Response:
    """Judge pairs of the run again under the change that the form describes."""
    site, form = studio_of(request), request.state.form
    run, file = form.get("run", ""), form.get("file", "")
    change, problem = None, ""
    try:
        constitution = asked_for(site, form, action)
        if run not in site.runs():
            raise InputError("choose a run whose pairs are judged again")
        labels: Labels = labels_of(site.runs()[run].folder)
        change = what_would_change(labels, constitution, MOST_JUDGED)
    except InputError as error:
        problem = str(error)
    return show_constitution(site, visitor, run, file, problem=problem, draft=form, change=change)


ROUTES: tuple[Page, ...] = (
    ("/constitution", "GET", constitution_page),
    ("/constitution/save", "POST", save_version),
    ("/constitution/preview", "POST", preview),
)
