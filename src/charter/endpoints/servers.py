"""The servers behind one endpoint: which server gets the next request, and which is avoided for a while.

A request goes to the server with the fewest requests under way when its turn comes, so a slow server gets fewer requests and a
dead server hardly any. Requests take their turns in the order in which they arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Server:
    """One address. ``failures``: in a row, simultaneous ones counted once; times are those of ``time.monotonic``."""

    url: str
    under_way: int = 0
    answered: int = 0
    failures: int = 0
    not_before: float = 0.0
    failed_at: float = -math.inf

    def hold_back(self, seconds: float) -> None:
        """Send it no request for so long."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)

    def succeeded(self) -> None:
        self.answered, self.failures = self.answered + 1, 0

    def failed(self, began: float) -> bool:
        """Count a failure of a request sent at ``began``; False if it was under way when the last failure was counted."""
        if began < self.failed_at:
            return False
        self.failures, self.failed_at = self.failures + 1, time.monotonic()
        return True


class Servers:
    """All servers of an endpoint, each with at most ``concurrency`` requests under way."""

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Server(url) for url in urls]
        self.concurrency = concurrency

    def begin(self) -> None:
        """To be called inside the event loop that sends the requests."""
        self.changed = asyncio.Condition()
        self.queue: deque[object] = deque()

    async def take(self, last: Server | None = None) -> Server:
        """The server for the next request; waits while all are busy or held back. ``give_back`` it afterwards. First come, first
        served: new requests do not overtake one that failed at ``last``, and it does not go there again while another server is
        healthy. A server that failed gets a single request, as a trial."""
        ticket, several = object(), len(self.all) > 1
        async with self.changed:
            self.queue.append(ticket)
            try:
                while True:
                    now = time.monotonic()
                    healthy = any(not server.failures for server in self.all if server is not last)
                    idle = [
                        server
                        for server in self.all
                        if server.under_way < (1 if several and server.failures else self.concurrency)
                        and not (server is last and healthy)
                    ]
                    ready = [server for server in idle if server.not_before <= now]
                    first = self.queue[0] is ticket
                    if ready and first:
                        server = min(ready, key=lambda s: (s.failures > 0, s.under_way, s.answered))
                        server.under_way += 1
                        return server
                    with contextlib.suppress(TimeoutError):
                        wait = min((server.not_before - now for server in idle), default=None) if first else None
                        async with asyncio.timeout(wait):
                            await self.changed.wait()
            finally:
                self.queue.remove(ticket)
                self.changed.notify_all()

    async def give_back(self, server: Server) -> None:
        """A request to it has ended, one way or the other."""
        async with self.changed:
            server.under_way -= 1
            self.changed.notify_all()

    def wait(self, *, but: Server) -> float:
        """Seconds until the first of the other servers may get a request; infinite without another."""
        soonest = min((server.not_before for server in self.all if server is not but), default=math.inf)
        return max(soonest - time.monotonic(), 0.0)

    @property
    def all_silent(self) -> bool:
        """Whether every server was tried and none ever answered."""
        return all(server.failures and not server.answered for server in self.all)
