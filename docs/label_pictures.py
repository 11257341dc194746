"""The pictures of docs/label.md, taken from the real page: python docs/label_pictures.py

The testbed's labelled pairs stand for an afternoon's work, and three simulated people for the team: each says of a pair what is
known of it, with a chance of 10, 15 or 25 % to say the opposite. The reward model is trained by the page itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from playwright.sync_api import Page, sync_playwright

from charter.reading.pairs import read_pairs
from charter.run.files import write_jsonl
from charter.testbed.data import write_data
from charter.web import tables as t
from charter.web.label_app import label_app
from charter.web.project import open_project
from charter.web.serve import open_site
from charter.web.site import Site
from charter.web.store import RaterAnswer

HERE = Path(__file__).parent
TEAM = {"amber-heron-4f1c": 0.10, "jade-otter-90b2": 0.15, "teal-wren-c3d8": 0.25}
N_PAIRS = 400

RANKED = {
    "prompt": "My tomato seedlings are tall and thin and keep falling over. What am I doing wrong?",
    "responses": [
        "They are reaching for light. Move them to your brightest window, or put a lamp **5 to 10 cm** above them for 14 "
        "hours a day. When you pot them on, set them deep: the buried stem grows roots.",
        "Tomatoes are a popular plant in many gardens around the world. There are many kinds of tomatoes, for example "
        "cherry tomatoes. Plants need water, light and soil.",
        "Too little light, most likely.\n\n1. More light, closer to the plants\n2. Cooler nights, about 16 °C\n"
        "3. A fan, or a hand that brushes them once a day: moving stems grow stronger",
    ],
}

PRINCIPLES = {"title": "garden", "principles": [
    {"id": "practical", "title": "Says what to do", "preference": "Which reply says what to do?"},
    {"id": "true", "title": "Is correct", "preference": "Which reply is correct?"},
    {"id": "short", "title": "Wastes no words", "preference": "Which reply wastes no words?"},
]}  # fmt: skip


def vote(site: Site, known: dict[frozenset[str], str]) -> None:
    """The three people label everything, each at their own pace; their clocks run faster than ours."""
    clocks = dict.fromkeys(TEAM, time.time() - 2 * 3600)
    draws = {rater: random.Random(rater) for rater in TEAM}
    version = site.instructions()[0]
    with site.store.write() as db:
        db.execute(t.raters.insert(), [{"id": rater, "created": clocks[rater], "read": version} for rater in TEAM])
    while clocks:
        rater = min(clocks, key=clocks.__getitem__)
        draw = draws[rater]
        handout = site.store.claim(rater, clocks[rater])
        if handout is None:
            del clocks[rater]
            continue
        shown = {one.id: one.text for one in handout.responses}
        better = next(key for key in shown if shown[key] == known[frozenset(shown.values())])
        if draw.random() < TEAM[rater]:
            better = next(key for key in shown if key != better)
        strength = draw.choice([2, 3, 3, 4]) * (1 if better == handout.order[0] else -1)
        seconds = draw.lognormvariate(3.2, 0.4)
        clocks[rater] += seconds
        ranks: dict[str, Any] = {key: 1 if key == better else 2 for key in shown}
        answer = RaterAnswer(ranks, strength, timings={"active_s": round(seconds, 1)})
        site.store.vote(rater, handout, answer, clocks[rater], instructions_hash=version)
    site.mirror.wake()


def shoot(page: Page, name: str, *, full: bool = False) -> None:
    page.wait_for_timeout(200)
    page.screenshot(path=HERE / name, full_page=full)
    print(name, (HERE / name).stat().st_size)


def enter(page: Page, site: Site, home: str, role: str, who: str) -> None:
    page.goto(f"{home}/join/{site.access.invite(role, time.time(), rater_id=who)[0]}")  # type: ignore[arg-type]
    page.click("text=Go in")
    if role != "viewer":
        page.goto(f"{home}/instructions")
        page.click("button.main")
        page.wait_for_url("**/label")


def serve(site: Site) -> tuple[uvicorn.Server, threading.Thread, str]:
    server = uvicorn.Server(uvicorn.Config(label_app(site), port=0, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        folder = Path(place)
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        (folder / "a.jsonl").write_text(json.dumps(RANKED) + "\n" + json.dumps(RANKED | {"prompt": "Second"}) + "\n")
        (folder / "a").mkdir()
        (folder / "a/garden.yaml").write_text(yaml.safe_dump(PRINCIPLES))
        settings = {"title": "Garden answers", "repeat_share": 0.0, "principles": "garden.yaml"}
        (folder / "a/label.yaml").write_text(yaml.safe_dump(settings))
        with open_site(open_project(folder / "a.jsonl", folder / "a")) as site:
            server, thread, home = serve(site)
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            enter(page, site, home, "labeler", "amber-heron-4f1c")
            page.keyboard.press("1")
            page.keyboard.press("j")
            page.keyboard.press("q")
            shoot(page, "label-rank.png")
            page.goto(f"{home}/instructions")
            shoot(page, "label-instructions.png")
            phone = browser.new_page(viewport={"width": 375, "height": 740}, color_scheme="dark", device_scale_factor=1.5)
            enter(phone, site, home, "labeler", "jade-otter-90b2")
            shoot(phone, "label-phone.png")
            server.should_exit = True
            thread.join()

        write_data(folder / "testbed", 0)
        pairs = read_pairs(folder / "testbed/judge_pairs.jsonl").pairs
        one_each = list({pair.prompt.id: pair for pair in pairs if "\n" not in pair.chosen}.values())[:N_PAIRS]
        known = {frozenset((pair.chosen, pair.rejected)): pair.chosen for pair in one_each}
        write_jsonl(folder / "b.jsonl", one_each)
        (folder / "b").mkdir()
        settings = {"title": "Testbed answers", "kind": "pair", "overlap": 1.5, "repeat_share": 0.03}
        (folder / "b/label.yaml").write_text(yaml.safe_dump(settings))
        with open_site(open_project(folder / "b.jsonl", folder / "b")) as site:
            vote(site, known)
            server, thread, home = serve(site)
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            enter(page, site, home, "owner", "owner-1a2b")
            page.goto(f"{home}/label")
            page.goto(f"{home}/lead/people")
            page.click("text=Make a link")
            page.eval_on_selector(".link", "box => { box.value = box.value.replace(/join.*/, 'join/…') }")
            shoot(page, "label-people.png")
            page.goto(f"{home}/lead")
            shoot(page, "label-lead.png")
            page.goto(f"{home}/lead/contested")
            shoot(page, "label-contested.png")
            page.goto(f"{home}/lead/model")
            page.click("text=Train now")
            while site.retrain.running:
                time.sleep(1)
            page.goto(f"{home}/lead/model")
            shoot(page, "label-model.png", full=True)
            server.should_exit = True
            thread.join()
        browser.close()


if __name__ == "__main__":
    main()
