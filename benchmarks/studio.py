"""The studio with 100 runs, one of them live with 20,000 steps: time to load its pages, and its share of a core while a page
watches; and how soon two models of the run answer in its chat.

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
from functools import partial
from pathlib import Path
from statistics import median

import httpx
import uvicorn
from starlette.testclient import TestClient

from charter.studio.run_pages import LIST, PARTS, fragments, open_run, view_of
from charter.studio.serve import project_of, studio_app
from charter.studio.site import LOOK_S, Studio
from charter.web.access import COOKIE
from charter.web.serve import open_site

STEPS, LOOKS, TALKS = 20_000, 30, 20
KEPT = ("report.json", "report.html", "*/manifest.json", "*/metrics.jsonl", "*/.timing.json")


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


def talk(run: Path) -> None:
    """Two models over HTTP: seconds from the request to the first text of each, and how far apart their texts end."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "demo").symlink_to(run.resolve())
        with open_site(project_of(root), kind=partial(Studio, root=root)) as site:
            server = uvicorn.Server(uvicorn.Config(studio_app(site), port=0, log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run)
            thread.start()
            while not server.started:
                time.sleep(0.05)
            home = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            session = site.access.join(site.access.invite("owner", site.clock())[0], site.clock())
            client = httpx.Client(base_url=home, cookies={COOKIE: session}, timeout=60)
            token = client.get("/session").json()["form_token"]
            first, shift = [], []
            for number in range(TALKS + 1):
                seen: dict[int, list[float]] = {0: [], 1: []}
                requests = [
                    {"model": f"demo:{name}", "messages": [{"role": "user", "content": "How can I mend a boat?"}], "seed": number,
                     "max_tokens": 64} for name in ("base", "policy")
                ]  # fmt: skip
                begun = time.perf_counter()
                form = {"form_token": token, "requests": json.dumps(requests)}
                with client.stream("POST", "/chat/stream", data=form) as answer:
                    for line in answer.iter_lines():
                        if "text" in (row := json.loads(line)):
                            seen[row["i"]].append(time.perf_counter() - begun)
                if number:  # the first one loads the models
                    first.append(max(times[0] for times in seen.values()))
                    common = min(map(len, seen.values()))
                    shift.append(max(abs(a - b) for a, b in zip(seen[0][:common], seen[1][:common], strict=True)))
            print(f"first text of the slower model: median {1000 * median(first):.0f} ms, longest {1000 * max(first):.0f} ms")
            print(f"largest lag of one stream behind the other: median {1000 * median(shift):.0f} ms")
            server.should_exit = True
            thread.join()
            site.loaded.close()


def main() -> None:
    talk(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root, Path(sys.argv[1]))
        with open(root / "live/.lock", "w") as lock, open_site(project_of(root), kind=partial(Studio, root=root)) as site:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = TestClient(studio_app(site), base_url="http://127.0.0.1")
            client.cookies.set(COOKIE, site.access.join(site.access.invite("owner", site.clock())[0], site.clock()))
            for words, path in (("first load", "/runs"), ("next load", "/runs"), ("live run", "/run?run=live"),
                                ("live run, next load", "/run?run=live")):  # fmt: skip
                started = time.perf_counter()
                page = client.get(path)
                print(f"{words}: {path}, {len(page.content) / 1000:.0f} kB, {time.perf_counter() - started:.2f} s")
            open_run(site, "live")
            for words, look in (
                ("list of runs", lambda: fragments(site, LIST, {"runs": site.runs()})),
                ("live run", lambda: fragments(site, PARTS, {"run_name": "live", **view_of(site.runs()["live"])})),
            ):
                busy = time.process_time()
                for number in range(LOOKS):
                    with open(root / "live/rl/metrics.jsonl", "a") as file:
                        file.write(row(STEPS + number))
                    look()
                    time.sleep(LOOK_S)
                print(f"{words} watched: {100 * (time.process_time() - busy) / (LOOKS * LOOK_S):.1f}% of a core")


if __name__ == "__main__":
    main()
