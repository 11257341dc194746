"""The label page under load: many labelers without think time, and with --kills a server that dies under them.

    taskset -c 1 python benchmarks/label_load.py
    taskset -c 1 python benchmarks/label_load.py --kills 20

Clients and server share the cores they are given. A request's latency is what a client waits for it, the client's own time
included. Afterwards the database and the file are compared with what the clients were told: every vote that was acknowledged must
be in both, no slot may be voted twice, nobody may have a set twice, and the chain of hashes must verify.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

from charter.votes.judgments import read_judgments

TOKEN = re.compile(rb'name="form_token" value="([^"]+)"')
SET = re.compile(rb'name="set_id" value="([^"]+)"')
RANK = re.compile(rb'data-response="([^"]+)"')
SERVERS: list[subprocess.Popen[str]] = []


Reply = tuple[int, dict[bytes, bytes], bytes]


class Client:
    """One browser: keeps its cookie and its connection, and comes back when the server does."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie = port, ""
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, form: dict[str, str] | None = None) -> Reply:
        """One request and its answer; ConnectionError where the server is gone."""
        body = urlencode(form or {}).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncookie: {self.cookie}\r\n"
        if method == "POST":
            head += f"content-type: application/x-www-form-urlencoded\r\ncontent-length: {len(body)}\r\n"
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self.reader is not None
            self.writer.write(head.encode() + b"\r\n" + (body if method == "POST" else b""))
            lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            headers = {}
            for line in lines[1:]:
                key, _, value = line.partition(b": ")
                headers[key.lower()] = value
            found = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        except (OSError, asyncio.IncompleteReadError) as error:
            if self.writer is not None:
                self.writer.close()
            self.reader = self.writer = None
            raise ConnectionError from error
        if b"set-cookie" in headers:
            self.cookie = headers[b"set-cookie"].split(b";")[0].decode()
        return int(lines[0].split()[1]), headers, found

    async def insist(self, method: str, path: str, form: dict[str, str] | None = None) -> Reply:
        """The same, asked again until the server is back."""
        while True:
            try:
                return await self.send(method, path, form)
            except ConnectionError:
                await asyncio.sleep(0.05)


async def label(
    client: Client, rater: str, acknowledged: dict[tuple[str, str], dict[str, int]], latencies: dict[str, list[float]],
    extras: list[str],
) -> None:  # fmt: skip
    """Vote until there is nothing left; note what was acknowledged and how long each request took."""
    while True:
        before = time.perf_counter()
        status, _, page = await client.insist("GET", "/label")
        latencies["GET /label"].append(time.perf_counter() - before)
        assert status == 200, (status, page[:500])
        if (found := SET.search(page)) is None:
            return
        set_id, token = found[1].decode(), TOKEN.search(page)
        assert token is not None
        ranks = {key.decode(): random.randint(1, 3) for key in RANK.findall(page)}
        form = {"form_token": token[1].decode(), "set_id": set_id} | {f"rank:{k}": str(v) for k, v in ranks.items()}
        before = time.perf_counter()
        status, headers, page = await client.insist("POST", "/vote", form)
        latencies["POST /vote"].append(time.perf_counter() - before)
        assert status == 303, (status, page[:500])
        acknowledged[rater, set_id] = ranks
        if b"was=extra" in headers[b"location"]:
            extras.append(set_id)


def start(folder: Path, port: int, table: Path) -> tuple[subprocess.Popen[str], str]:
    """The server and the owner's link, once it answers."""
    command = [sys.executable, "-m", "charter", "label", str(table), "--out", str(folder), "--port", str(port), "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    SERVERS.append(server)
    assert server.stdout is not None
    return server, json.loads(server.stdout.readline())["link"]


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    table = folder / "responses.jsonl"
    table.write_text("".join(
        json.dumps({"prompt": f"Question {i}?", "responses": [f"Answer {j} to question {i}." for j in range(3)]}) + "\n"
        for i in range(arguments.sets)
    ))  # fmt: skip
    project = folder / "project"
    project.mkdir()
    (project / "label.yaml").write_text(f"overlap: {arguments.overlap}\nrepeat_share: 0\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server, link = await asyncio.to_thread(start, project, port, table)
    owner = Client(port)
    path = link.split(str(port))[1]
    assert (await owner.send("POST", path))[0] == 303
    token = TOKEN.search((await owner.send("GET", "/lead/people"))[2])
    assert token is not None
    clients = {}
    for _ in range(arguments.clients):
        form = {"form_token": token[1].decode(), "role": "labeler", "days": "1"}
        page = (await owner.send("POST", "/lead/invite", form))[2]
        joined = re.search(rb'value="http://[^/]+(/join/[^"]+)"', page)
        who = re.search(rb"The link for <strong>([^<]+)", page)
        assert joined is not None
        assert who is not None
        client = Client(port)
        client.cookie = ""
        status, _, page = await client.send("POST", joined[1].decode())
        assert status == 303, page
        page = (await client.send("GET", "/instructions"))[2]
        own, version = TOKEN.search(page), re.search(rb'name="hash" value="([^"]+)"', page)
        assert own is not None
        assert version is not None
        await client.send("POST", "/instructions", {"form_token": own[1].decode(), "hash": version[1].decode()})
        clients[who[1].decode()] = client
    acknowledged: dict[tuple[str, str], dict[str, int]] = {}
    latencies: dict[str, list[float]] = {"GET /label": [], "POST /vote": []}
    extras: list[str] = []
    cpu_before = cpu_seconds(server.pid)
    started = time.perf_counter()
    work = asyncio.gather(*(label(client, who, acknowledged, latencies, extras) for who, client in clients.items()))
    kills, total = 0, arguments.sets * arguments.overlap
    # Counted in votes, so that every kill falls under load.
    moments = sorted(random.uniform(0.02, 0.9) * total for _ in range(arguments.kills))
    for moment in moments:
        while len(acknowledged) < moment and not work.done():
            await asyncio.sleep(random.uniform(0.0, 0.02))
        server.send_signal(signal.SIGKILL)
        server.wait()
        kills += 1
        server, _ = await asyncio.to_thread(start, project, port, table)
    await work
    wall = time.perf_counter() - started
    n_requests = sum(map(len, latencies.values()))
    cpu = cpu_seconds(server.pid)
    server.send_signal(signal.SIGINT)
    server.wait()
    return check(project, arguments, acknowledged, extras) | {
        "clients": arguments.clients, "sets": arguments.sets, "overlap": arguments.overlap, "kills": kills,
        "votes_per_s": round(len(acknowledged) / wall), "wall_s": round(wall, 1),
        **({} if kills else {"server_cpu_ms_per_request": round(1000 * (cpu - cpu_before) / n_requests, 2)}),
        **{name: {"p50_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99), "max_ms": quantile(values, 1.0)}
           for name, values in latencies.items()},
    }  # fmt: skip


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], share: float) -> float:
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1)


def check(project: Path, arguments: argparse.Namespace, acknowledged: dict[tuple[str, str], dict[str, int]],
          extras: list[str]) -> dict[str, object]:  # fmt: skip
    """What went wrong, by counting; zeros all is the aim."""
    with sqlite3.connect(project / "labels.db") as db:
        stored = {(rater, key): json.loads(record)["ranks"] for rater, key, record in
                  db.execute("select rater_id, set_id, record from judgment where current and action = 'vote'")}  # fmt: skip
        twice = len(list(db.execute("select 1 from slot group by set_id, rater_id having rater_id is not null and count(*) > 1")))
        done = list(db.execute("select set_id, count(*) from slot where state = 'done' and not extra group by set_id"))
    chain = read_judgments(project / "judgments.jsonl")
    in_file = {(one.rater_id, one.set_id): one.ranks for one in chain}
    per_person = Counter((one.rater_id, one.set_id) for one in chain)
    return {
        "votes_acknowledged": len(acknowledged),
        "lost_in_database": sum(stored.get(key) != ranks for key, ranks in acknowledged.items()),
        "lost_in_file": sum(in_file.get(key) != ranks for key, ranks in acknowledged.items()),
        "slots_voted_twice": sum(count > arguments.overlap for _, count in done) + twice,
        "sets_twice_to_one_person": sum(count > 1 for count in per_person.values()),
        "sets_with_all_votes": sum(count == arguments.overlap for _, count in done),
        "extra_votes": len(extras),
        "chain": "verifies",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = asyncio.run(run(arguments, Path(folder)))
        finally:
            SERVERS[-1].kill()
    print(json.dumps(result | {"cores": len(os.sched_getaffinity(0))}, indent=1))
    if any(result[name] for name in ("lost_in_database", "lost_in_file", "slots_voted_twice", "sets_twice_to_one_person")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
