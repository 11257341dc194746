"""The pictures of docs/studio.md, taken from the real page: python docs/studio_pictures.py RUN RUN (two finished runs)."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

from charter.studio.serve import project_of, studio_app
from charter.studio.site import Studio
from charter.web.serve import open_site

HERE = Path(__file__).parent
PICTURES = (("studio-runs.png", "/runs", 900, 420, "light"), ("studio-run.png", "/run?run=first", 900, 640, "light"),
            ("studio-chat.png", "/chat", 900, 640, "light"),
            ("studio-phone.png", "/run?run=first", 390, 760, "dark"))  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        root = Path(folder)
        for name, run in zip(("first", "second"), sys.argv[1:3], strict=True):
            shutil.copytree(run, root / name)
        with open_site(project_of(root), kind=partial(Studio, root=root)) as site:
            config = uvicorn.Config(studio_app(site), port=0, log_config=None, access_log=False, lifespan="off")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run)
            thread.start()
            while not server.started:
                time.sleep(0.05)
            home = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, path, width, height, scheme in PICTURES:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                page.goto(f"{home}/join/{site.access.invite('owner', site.clock(), rater_id='owner-1a2b')[0]}")
                page.keyboard.press("Enter")
                page.wait_for_url("**/runs")
                page.goto(home + path)
                if path == "/chat":
                    page.fill("[name=text]", "How could I mend a boat?")
                    page.press("[name=text]", "Enter")
                    page.wait_for_selector("#status:has-text('complete')")
                page.screenshot(path=HERE / name)
                context.close()
            site.candidates.closed = server.should_exit = True
            thread.join()
            site.close()
            browser.close()


if __name__ == "__main__":
    main()
