"""The studio in a real browser: every page, a run that grows while it is watched, phone width, and what axe says."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading

import pytest

from charter.measuring.asking import ScoredItem
from charter.reading.sets.read import read_set
from charter.studio.serve import studio_app
from conftest import write_tiny_recipe
from test_label_browser import browser, pytestmark, serious  # noqa: F401 - the fixture, and the skip without a browser
from test_studio import opened, step, write_rows, write_run


@pytest.fixture
def served(tmp_path, finished_run, random_llama):
    """A studio with a live run, two finished ones, a recipe, and a result of the prompt tester: (site, address, folder)."""
    import uvicorn

    root = tmp_path / "runs"
    for name in ("first", "second"):
        shutil.copytree(finished_run, root / name)
    write_run(root / "growing")
    write_tiny_recipe(root, random_llama)
    write_test(root / "studio/tests/001")
    with opened(root) as site:
        server = uvicorn.Server(uvicorn.Config(studio_app(site), port=0, log_config=None, access_log=False, lifespan="off"))
        ready, start = threading.Event(), server.startup

        async def startup(sockets=None):
            await start(sockets)
            ready.set()

        server.startup = startup
        thread = threading.Thread(target=server.run)
        thread.start()
        ready.wait()
        yield site, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", root
        site.candidates.closed = server.should_exit = True
        thread.join()
        site.close()


def write_test(folder):
    """A result as `charter evaluate` leaves it."""
    write_rows(folder / "prompts.jsonl", [{"prompt": "Who?", "tags": ["benign"]}])
    figure = {"name": "prompts/over_refusal", "arm": "m", "group": None, "value": 0.0, "ci": [0.0, 0.8], "n": 1, "n_unscored": 0}
    (folder / "evaluation.json").write_text(json.dumps({"models": [{"name": "m"}], "metrics": [figure], "notes": [], "sets": []}))
    (folder / "request.json").write_text(json.dumps({"models": ["first:policy"], "scorer": "refusal-words", "reward": ""}))
    item = read_set(folder / "prompts.jsonl").items["answers"][0]
    row = ScoredItem(prompt_id=f"prompts/{item.id}", index=0, set="prompts", group=None, cluster=None, text="Nobody.", numbers=(),
                     values={"prompts/over_refusal": 0.0}, counts={})  # fmt: skip
    write_rows(folder / "evaluate/verdicts.m.jsonl", [row.model_dump()])


def walk_the_arena(page, home, look):
    """Two answers without names, a vote, the names, the ratings; and a result of the prompt tester."""
    page.goto(f"{home}/arena")
    look()
    page.fill("[name=text]", "How can I mend the boat?")
    page.focus("button.main")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Which answer is better?')")
    assert "first:" not in page.inner_text("main")
    look()
    page.focus("text=B is better")
    page.keyboard.press("Enter")
    page.wait_for_selector(".banner:has-text('Saved: B is better. A was first:')")
    page.click("main >> text=Ratings")
    page.wait_for_selector("th[scope=row]:has-text('first:')")
    look()
    page.goto(f"{home}/tester")
    page.set_input_files("#file", {"name": "p.jsonl", "mimeType": "text/plain", "buffer": b'{"prompt": "Who?"}'})
    page.wait_for_function("document.querySelector('[name=text]').value.includes('Who?')")
    assert page.input_value("[name=way]") == "jsonl"
    look()
    page.goto(f"{home}/test?name=001")
    page.wait_for_selector("td:has-text('Nobody.')")
    look()


def walk_from_principles_to_a_run(page, home, look, site):
    """A principle is edited, the flips are shown, the version is saved, and a run starts with it."""
    page.goto(f"{home}/constitution?run=first&file=constitution.yaml")
    look()
    page.focus("article:has-text('harmless') summary:has-text('Edit')")
    page.keyboard.press("Enter")
    page.fill("article:has-text('harmless') [name=preference]", "Which reply names a colour?")
    page.click("article:has-text('harmless') >> text=Show what would change")
    page.wait_for_selector("#change:has-text('pairs of first')")
    look()
    page.click("article:has-text('harmless') >> text=Save as a new version")
    page.wait_for_selector("strong:has-text('harmless reworded')")
    look()
    page.goto(f"{home}/start")
    page.select_option("[name=recipe]", str(site.root / "recipe.yaml"))
    page.select_option("[name=constitution]", "studio/constitutions/constitution-v2.yaml")
    page.fill("[name=name]", "mine")
    page.keyboard.press("Enter")
    page.wait_for_selector("li:has-text('mine: running')")
    look()
    with page.expect_navigation():  # else the next page may come in the way of the one that answers the click
        page.click("text=Stop mine")
    site.jobs.by_name["mine"].process.wait(60)
    page.goto(f"{home}/start")
    page.wait_for_selector("li:has-text('mine: stopped')")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_by_keyboard(served, browser, width, scheme):  # noqa: F811
    site, home, root = served
    token, _ = site.access.invite("owner", site.clock())
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))

    def look():
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious(page) == []

    page.goto(f"{home}/join/{token}")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs")
    assert page.inner_text("tr:has-text('growing') .mark") == "interrupted"
    look()
    with open(root / "growing/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page.wait_for_selector("tr:has-text('growing') .live")  # without loading the page again
        page.focus("a:has-text('growing')")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state .now:has-text('4 of 20 steps')")
        look()
        write_rows(root / "growing/rl/metrics.jsonl", [step(4), step(5)], "a")
        write_rows(root / "growing/rl/rollouts.jsonl", [{"step": 5, "prompt": "The newest?", "response": "Yes."}], "a")
        page.wait_for_selector("#state .now:has-text('6 of 20 steps')")
        page.wait_for_selector("#curves figure:has-text('step 5')")
        page.wait_for_selector("#samples h3:has-text('The newest?')")
    page.wait_for_selector("#state .mark:has-text('interrupted')")
    page.goto(f"{home}/run?run=first")
    page.wait_for_selector("#curves figure")
    look()
    page.click("main >> text=Report")
    assert page.frame_locator("iframe").locator("h1").inner_text() == "tiny"
    look()
    page.goto(f"{home}/compare")
    look()
    page.focus("button.main")
    page.keyboard.press("Enter")
    page.wait_for_selector("iframe")
    assert "no evidence" in page.frame_locator("iframe").locator("body").inner_text().lower()
    look()
    page.goto(f"{home}/chat")
    look()
    page.fill("[name=tokens]", "8")
    page.fill("[name=text]", "How can I mend the boat?")
    page.focus("[name=text]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status:has-text('All answers are complete.')")
    assert [len(card.query_selector_all(".turn")) for card in page.query_selector_all("#answers .card")] == [2, 2]
    assert all(turn.inner_text().strip() for turn in page.query_selector_all("#answers .turn.user"))
    look()
    walk_the_arena(page, home, look)
    walk_from_principles_to_a_run(page, home, look, site)
    context.close()
    assert problems == []
    assert all(url.startswith(home) for url in asked)
