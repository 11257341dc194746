"""The studio with 100 runs, one of them live with 20,000 steps: time to load its pages, and its share of a core while a page
watches; and how soon after Enter two models of the run answer in its chat, measured in Debian's chromium.

python benchmarks/studio.py RUN   (a finished run, which is copied 99 times)
"""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import uvicorn
from playwright.sync_api import sync_playwright

from charter.studio.serve import project_of, studio_app
from charter.studio.site import LOOK_S, Studio
from charter.web.access import COOKIE
from charter.web.serve import open_site

STEPS, LOOKS, TALKS, TOKENS = 20_000, 20, 10, 64
KEPT = ("report.json", "report.html", "*/manifest.json", "*/metrics.jsonl", "*/.timing.json")
WATCH = """() => {
  window.seen = [[], []];
  new MutationObserver((records) => {
    const cards = [...document.querySelectorAll("#answers .card")];
    for (const { target } of records) {
      if (target.classList.contains("assistant") && target.textContent) {
        seen[cards.findIndex((card) => card.contains(target))].push(performance.now() - began);
      }
    }
  }).observe(document.getElementById("answers"), { childList: true, subtree: true });
  addEventListener("keydown", () => { window.began = performance.now(); }, { capture: true });
}"""


def row(step: int) -> str:
    values = {name: random.random() for name in ("reward", "kl", "entropy", "response_tokens", "missing_eos", "loss")}
    return json.dumps({"step": step, **values}) + "\n"


def fill(root: Path, run: Path) -> None:
    """99 copies of a run, and a live one."""
    for number in range(99):
        for file in (file for pattern in KEPT for file in run.glob(pattern)):
            target = root / f"run-{number:02}" / file.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    live = root / "live/rl"
    live.mkdir(parents=True)
    (live / "manifest.json").write_text(json.dumps({"fingerprint": "", "settings": {"steps": 2 * STEPS}}))
    (live / "metrics.jsonl").write_text("".join(map(row, range(STEPS))))


@contextmanager
def served(root: Path) -> Iterator[tuple[Studio, str]]:
    """A studio in a thread, and its address."""
    with open_site(project_of(root), kind=partial(Studio, root=root)) as site:
        server = uvicorn.Server(uvicorn.Config(studio_app(site), port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield site, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        site.candidates.closed = server.should_exit = True
        thread.join()
        site.close()


def talk(run: Path) -> None:
    """Two models in the browser: seconds from Enter to the first text of the slower one, and how far their texts lie apart."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        root = Path(folder).resolve()
        (root / "demo").symlink_to(run.resolve())
        with served(root) as (site, home):
            page = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
            page.goto(f"{home}/join/{site.access.invite('owner', site.clock())[0]}")
            page.keyboard.press("Enter")
            page.wait_for_url("**/runs")
            page.goto(f"{home}/chat")
            page.fill("[name=tokens]", str(TOKENS))
            page.evaluate(WATCH)
            first, shift = [], []
            for number in range(TALKS + 1):
                page.click("#fresh")
                page.fill("[name=seed]", str(number))
                page.fill("[name=text]", "How can I mend a boat?")
                page.press("[name=text]", "Enter")
                page.wait_for_selector("#status:has-text('complete')")
                left, right = page.evaluate("() => seen")
                page.evaluate("() => { window.seen = [[], []]; }")
                if number:  # the first one loads the models
                    first.append(max(left[0], right[0]))
                    shift.append(max(abs(a - b) for a, b in zip(left, right, strict=False)))
            print(f"first text of the slower model: median {median(first):.0f} ms, longest {max(first):.0f} ms")
            print(f"largest lag of one stream behind the other: median {median(shift):.0f} ms")


def watch(run: Path) -> None:
    """Seconds to load a page, and processor time of server and reader while a page with events is open."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        fill(root, run)
        with open(root / "live/.lock", "w") as lock, served(root) as (site, home):
            fcntl.flock(lock, fcntl.LOCK_EX)
            session = site.access.join(site.access.invite("owner", site.clock())[0], site.clock())

            def get(path: str) -> HTTPResponse:
                return urlopen(Request(home + path, headers={"cookie": f"{COOKIE}={session}"}))  # type: ignore[no-any-return]

            started = time.perf_counter()
            site.runs()
            print(f"start, all runs read: {time.perf_counter() - started:.2f} s")
            for words, path in (("first load", "/runs"), ("live run", "/run?run=live"),
                                ("live run, next load", "/run?run=live")):  # fmt: skip
                started = time.perf_counter()
                size = len(get(path).read())
                print(f"{words}: {path}, {size / 1000:.0f} kB, {time.perf_counter() - started:.2f} s")
            for path in ("/runs/events", "/run/events?run=live"):
                with get(path) as events:
                    events.readline()
                    busy, begun = time.process_time(), time.perf_counter()
                    for number in range(LOOKS):
                        with open(root / "live/rl/metrics.jsonl", "a") as file:
                            file.write(row(STEPS + number))
                        while not events.readline().startswith(b"data:"):
                            pass
                    share = (time.process_time() - busy) / (time.perf_counter() - begun)
                print(f"{path} watched, {LOOKS} changes, one in {LOOK_S:g} s: {100 * share:.1f}% of a core")


if __name__ == "__main__":
    talk(Path(sys.argv[1]))
    watch(Path(sys.argv[1]))
