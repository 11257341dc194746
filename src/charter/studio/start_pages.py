"""Runs that the owner starts and stops from the studio: `charter run` as a process, whose folder then appears among the runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from charter.errors import InputError
from charter.recipe.files import check_files, find_recipe, load_recipe, shipped
from charter.run.yaml_files import read_yaml
from charter.studio.constitution_pages import constitutions_of
from charter.studio.site import Studio, studio_of
from charter.web.access import Role, Visitor
from charter.web.label_app import Page
from charter.web.site import allow, to

OWNS: frozenset[Role] = frozenset({"owner"})
Owner = Annotated[Visitor, Depends(allow(OWNS))]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def recipes_of(site: Studio) -> list[str]:
    """The recipes in the folder of runs and in the folder where the studio was started, then the names of those that ship."""
    files = [file for folder in dict.fromkeys((site.root, Path.cwd())) for file in sorted(folder.glob("*.yaml"))]
    return [*(str(file) for file in files if is_recipe(file)), *sorted(file.stem for file in shipped("recipes").glob("*.yaml"))]


def is_recipe(file: Path) -> bool:
    try:
        return "model" in read_yaml(file)
    except InputError:
        return False


def start_page(request: Request, visitor: Owner, constitution: str = "") -> Response:
    return show_start(studio_of(request), visitor, form={"constitution": constitution})


def show_start(site: Studio, visitor: Visitor, *, form: dict[str, str], problem: str = "") -> Response:
    jobs = {name: job for name, job in reversed(site.jobs.by_name.items()) if job.stays}
    return site.page("start.html", visitor, status=422 if problem else 200, problem=problem, form=form, jobs=jobs,
                     recipes=recipes_of(site), constitutions=constitutions_of(site), runs=site.runs())  # fmt: skip


def start_run(request: Request, visitor: Owner) -> Response:
    """Start `charter run` in a new folder. A recipe that cannot run is refused here, in its own words."""
    site, form = studio_of(request), request.state.form
    name, recipe, constitution = form.get("name", "").strip(), form.get("recipe", ""), form.get("constitution", "")
    try:
        if not NAME.fullmatch(name):
            raise InputError("the folder's name needs letters, digits, '.', '_' or '-', and begins with a letter or digit")
        if recipe not in recipes_of(site) or constitution not in ("", *(known := constitutions_of(site))):
            raise InputError("unknown recipe or constitution; load the page again")
        folder = site.root / name
        if folder.exists():
            raise InputError("is there already; choose another name", file=name)
        changes = [f"constitution={json.dumps(str(known[constitution]))}"] if constitution else []
        check_files(load_recipe(find_recipe(recipe), changes))
        arguments = ["run", recipe, "--out", str(folder), "--quiet", *(part for text in changes for part in ("--set", text))]
        site.jobs.start(name, arguments, site.project.folder / "logs" / f"{name}.txt", stays=True)
    except InputError as error:
        return show_start(site, visitor, form=form, problem=str(error))
    return to("/start")


def stop_run(request: Request, visitor: Owner) -> Response:
    """Interrupt a run that was started here; the same command resumes it."""
    site, form = studio_of(request), request.state.form
    try:
        site.jobs.stop(form.get("run", ""))
    except InputError as error:
        return show_start(site, visitor, form={}, problem=str(error))
    return to("/start")


ROUTES: tuple[Page, ...] = (("/start", "GET", start_page), ("/start", "POST", start_run), ("/stop", "POST", stop_run))
