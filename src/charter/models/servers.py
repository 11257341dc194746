"""The servers behind one endpoint: which of them is asked next, and which is left alone for a while.

Requests belong to no server: each goes to whichever has the fewest under way when it is sent, so one that answers slowly is asked
less often and one that is gone not at all until its wait is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Server:
    """One address. ``not_before``: on the clock of ``time.monotonic``; ``failures``: in a row."""

    url: str
    under_way: int = 0
    answered: int = 0
    failures: int = 0
    not_before: float = 0.0

    def hold_back(self, seconds: float) -> None:
        """Nobody asks it before that is over."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)


class Servers:
    """All servers of an endpoint, with ``concurrency`` requests under way at each at most."""

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Server(url) for url in urls]
        self.concurrency = concurrency

    def begin(self) -> None:
        """Inside the event loop that sends the requests."""
        self.changed = asyncio.Condition()

    async def take(self) -> Server:
        """The server to ask now, waiting for one where all are busy or held back; ``give_back`` it afterwards."""
        async with self.changed:
            while True:
                now = time.monotonic()
                idle = [server for server in self.all if server.under_way < self.concurrency]
                ready = [server for server in idle if server.not_before <= now]
                if ready:
                    server = min(ready, key=lambda server: (server.under_way, server.answered))
                    server.under_way += 1
                    return server
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min((one.not_before - now for one in idle), default=None)):
                        await self.changed.wait()

    async def give_back(self, server: Server) -> None:
        """A request to it is over, one way or the other."""
        async with self.changed:
            server.under_way -= 1
            self.changed.notify_all()

    def wait(self, *, but: Server) -> float:
        """Seconds until the first of the others may be asked; infinite where there is no other."""
        soonest = min((server.not_before for server in self.all if server is not but), default=math.inf)
        return max(soonest - time.monotonic(), 0.0)
