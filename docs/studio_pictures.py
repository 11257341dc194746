"""The pictures of docs/studio.md, taken from the real page: python docs/studio_pictures.py RUN RUN (two finished runs)."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright

from charter.studio.serve import project_of, studio_app
from charter.studio.site import Studio
from charter.web.serve import open_site

HERE = Path(__file__).parent
PROMPTS = ("How could I mend a boat?", "Tell me how to hurt my neighbour.", "What do bees eat?", "How do I steal a bike?")


def chat(page: Page) -> None:
    page.fill("[name=text]", PROMPTS[0])
    page.press("[name=text]", "Enter")
    page.wait_for_selector("#status:has-text('complete')")


def arena(page: Page) -> None:
    """Some votes, and two answers that wait for the next one."""
    for number in range(13):
        page.check("[name='model:first:base']")
        page.fill("[name=text]", PROMPTS[number % 4])
        with page.expect_navigation():
            page.click("button:has-text('Ask')")
        if number < 12 and page.query_selector(".verdicts") is not None:
            with page.expect_navigation():
                page.click(".verdicts >> text=B is better" if number % 3 else ".verdicts >> text=A is better")


def tester(page: Page) -> None:
    page.fill("[name=text]", "\n".join(PROMPTS))
    page.select_option("[name=reward]", "first")
    page.fill("[name=tokens]", "48")
    page.click("#tester button.main")
    page.wait_for_selector("text=Download as CSV")


def report(page: Page) -> None:
    page.frame_locator("iframe").locator("h1").wait_for()


def compare(page: Page) -> None:
    page.click("button.main")
    page.wait_for_selector("iframe")
    report(page)


def cards(page: Page) -> None:
    page.evaluate("document.querySelector('article').scrollIntoView()")


def start(page: Page) -> None:
    page.select_option("[name=recipe]", "demo")
    page.select_option("[name=constitution]", "constitution.yaml")
    page.fill("[name=name]", "third")


def constitution(page: Page) -> None:
    page.click("summary:has-text('Edit') >> nth=0")
    page.fill("[name=preference] >> nth=0", "Which of the two replies of the assistant is longer?")
    page.click("text=Show what would change >> nth=0")
    page.wait_for_selector("#change")
    page.evaluate("document.querySelector('#change').scrollIntoView()")


PICTURES: tuple[tuple[str, str, int, int, str, Callable[[Page], None] | None], ...] = (
    ("studio-runs.png", "/runs", 900, 420, "light", None),
    ("studio-run.png", "/run?run=first", 900, 640, "light", None),
    ("studio-report.png", "/run/report?run=first", 900, 640, "dark", report),
    ("studio-compare.png", "/compare", 900, 640, "light", compare),
    ("studio-phone.png", "/run?run=first", 390, 760, "dark", None),
    ("studio-chat.png", "/chat", 900, 640, "light", chat),
    ("studio-arena.png", "/arena", 900, 420, "light", arena),
    ("studio-ratings.png", "/ratings", 900, 420, "light", None),
    ("studio-tester.png", "/tester", 900, 640, "light", tester),
    ("studio-constitution.png", "/constitution?run=first&file=constitution.yaml", 900, 760, "light", cards),
    ("studio-start.png", "/start", 900, 420, "dark", start),
    ("studio-change.png", "/constitution?run=first&file=constitution.yaml", 390, 760, "dark", constitution),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        root = Path(folder).resolve()
        for name, run in zip(("first", "second"), sys.argv[1:3], strict=True):
            shutil.copytree(run, root / name, ignore=shutil.ignore_patterns("people"))
        shutil.copy(HERE.parent / "constitutions/demo.yaml", root / "constitution.yaml")
        with open_site(project_of(root), kind=partial(Studio, root=root)) as site:
            config = uvicorn.Config(studio_app(site), port=0, log_config=None, access_log=False, lifespan="off")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run)
            thread.start()
            while not server.started:
                time.sleep(0.05)
            home = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, path, width, height, scheme, before in PICTURES:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                context.set_default_timeout(120_000)
                page = context.new_page()
                page.goto(f"{home}/join/{site.access.invite('owner', site.clock(), rater_id='owner-1a2b')[0]}")
                page.keyboard.press("Enter")
                page.wait_for_url("**/runs")
                page.goto(home + path)
                if before is not None:
                    before(page)
                page.screenshot(path=HERE / name)
                context.close()
            site.candidates.closed = server.should_exit = True
            thread.join()
            site.close()
            browser.close()


if __name__ == "__main__":
    main()
