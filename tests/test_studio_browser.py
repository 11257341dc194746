"""The studio in a real browser: every page, a run that grows while it is watched, phone width, and what axe says."""

from __future__ import annotations

import fcntl
import shutil
import threading

import pytest

from charter.studio.serve import studio_app
from test_label_browser import browser, pytestmark, serious  # noqa: F401 - the fixture, and the skip without a browser
from test_studio import opened, step, write_rows, write_run


@pytest.fixture
def served(tmp_path, finished_run):
    """A studio with a live run and two finished ones: (site, address, folder)."""
    import uvicorn

    root = tmp_path / "runs"
    for name in ("first", "second"):
        shutil.copytree(finished_run, root / name)
    write_run(root / "growing")
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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_by_keyboard(served, browser, width, scheme):  # noqa: F811
    site, home, root = served
    token, _ = site.access.invite("owner", site.clock())
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(10_000)
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
    context.close()
    assert problems == []
    assert all(url.startswith(home) for url in asked)
