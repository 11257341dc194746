"""The end of `charter label`: a real process, a signal, and what is there afterwards."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn
import yaml

from charter.votes.judgments import read_judgments
from charter.web.project import open_project
from charter.web.serve import open_site
from charter.web.server import Server
from label_project import World, field, write_table


class Browser:
    """One connection that stays open, as a browser keeps it, and its cookie."""

    def __init__(self, port: int) -> None:
        self.connection, self.cookie = http.client.HTTPConnection("127.0.0.1", port, timeout=60), ""

    def ask(self, method: str, path: str, **form: str) -> str:
        """The page at the end of the way."""
        headers = {"cookie": self.cookie, "content-type": "application/x-www-form-urlencoded"}
        self.connection.request(method, path, urlencode(form) if form else None, headers)
        answer = self.connection.getresponse()
        page = answer.read().decode()
        self.cookie = (answer.getheader("set-cookie") or self.cookie).partition(";")[0]
        assert answer.status in (200, 303), page
        return self.ask("GET", answer.getheader("location")) if answer.status == 303 else page


def children(pid: int) -> list[int]:
    """Processes that a process started and that still run."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(place.parent.name))
    return found


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_training_and_leaves_every_vote_in_the_file(tmp_path, random_llama, by):
    (tmp_path / "p").mkdir()
    settings = {"kind": "pair", "retrain": {"model": str(random_llama), "epochs": 50}, "repeat_share": 0.0}
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump(settings))
    table = write_table(tmp_path / "t.jsonl", 12, 2)
    command = [sys.executable, "-m", "charter", "label", str(table), "--out", str(tmp_path / "p"), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    browsers = []
    try:
        link = json.loads(server.stdout.readline())["link"]
        port = int(re.search(r":(\d+)/", link)[1])
        owner = Browser(port)
        browsers.append(owner.connection)
        page = owner.ask("POST", link[link.index("/join") :], go="in")
        page = owner.ask("GET", "/instructions")
        page = owner.ask("POST", "/instructions", form_token=field(page, "form_token"), hash=field(page, "hash"))
        for _ in range(12):
            form = {name: field(page, name) for name in ("form_token", "set_id")}
            page = owner.ask("POST", "/vote", strength="1", **form)
        owner.ask("POST", "/lead/train", form_token=field(page, "form_token"))
        while not (training := children(server.pid)):
            assert server.poll() is None
        browsers.append(socket.create_connection(("127.0.0.1", port)))  # browsers open connections that they may need
        os.killpg(server.pid, getattr(signal, by))  # as a terminal does it
        assert server.wait(timeout=60) == 0
        assert server.stderr.read() == ""
    finally:
        server.kill()
        server.communicate()
        for browser in browsers:
            browser.close()
    assert not Path(f"/proc/{training[0]}").exists()
    assert len(read_judgments(tmp_path / "p/judgments.jsonl")) == 12
    with open_site(open_project(table, tmp_path / "p")) as site:
        world = World(site)
        assert "Training 001: cut off" in world.person("owner").get("/lead/model").text


@pytest.mark.parametrize("turns", range(7))
def test_a_connection_that_arrives_at_the_end_keeps_nobody_waiting(turns, caplog):
    clients = []

    class Ending(Server):
        async def main_loop(self) -> None:
            clients.append(socket.create_connection(door.getsockname()))
            for _ in range(turns):  # from not yet accepted to known to the server
                await asyncio.sleep(0)

    async def answer(_scope, _receive, _send) -> None:
        raise AssertionError("nobody asks")

    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        Ending(uvicorn.Config(answer, log_config=None, lifespan="off", timeout_graceful_shutdown=1)).run(sockets=[door])
    for client in clients:
        client.close()
    with warnings.catch_warnings():  # asyncio leaves the connection that it was making when the server closed to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
