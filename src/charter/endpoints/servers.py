"""The servers behind one endpoint: which of them is asked next, and which is left alone for a while.

Requests belong to no server: each goes to whichever has the fewest under way when its turn comes, so one that answers slowly is
asked less often and one that is gone hardly at all. Turns are given in the order in which they were asked for.
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
    """One address. ``failures``: in a row, those counted as one that happened at the same time; times are those of
    ``time.monotonic``."""

    url: str
    under_way: int = 0
    answered: int = 0
    failures: int = 0
    not_before: float = 0.0
    failed_at: float = -math.inf

    def hold_back(self, seconds: float) -> None:
        """Nobody asks it before that is over."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)

    def succeeded(self) -> None:
        self.answered, self.failures = self.answered + 1, 0

    def failed(self, began: float) -> bool:
        """Count a failure of a request sent at ``began``; False where it was under way when the last one was counted."""
        if began < self.failed_at:
            return False
        self.failures, self.failed_at = self.failures + 1, time.monotonic()
        return True


class Servers:
    """All servers of an endpoint, with ``concurrency`` requests under way at each at most."""

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Server(url) for url in urls]
        self.concurrency = concurrency

    def begin(self) -> None:
        """Inside the event loop that sends the requests."""
        self.changed = asyncio.Condition()
        self.queue: deque[object] = deque()

    async def take(self, last: Server | None = None) -> Server:
        """The server to ask now, waiting for one where all are busy or held back; ``give_back`` it afterwards. First come, first
        served: a request that failed at ``last`` is not overtaken by those that begin, and does not go there again while another
        server is well. One that is not gets a single request, to see."""
        ticket, several = object(), len(self.all) > 1
        async with self.changed:
            self.queue.append(ticket)
            try:
                while True:
                    now = time.monotonic()
                    well = any(not server.failures for server in self.all if server is not last)
                    idle = [
                        server
                        for server in self.all
                        if server.under_way < (1 if several and server.failures else self.concurrency)
                        and not (server is last and well)
                    ]
                    ready = [server for server in idle if server.not_before <= now]
                    first = self.queue[0] is ticket
                    if ready and first:
                        server = min(ready, key=lambda one: (one.failures > 0, one.under_way, one.answered))
                        server.under_way += 1
                        return server
                    with contextlib.suppress(TimeoutError):
                        wait = min((one.not_before - now for one in idle), default=None) if first else None
                        async with asyncio.timeout(wait):
                            await self.changed.wait()
            finally:
                self.queue.remove(ticket)
                self.changed.notify_all()

    async def give_back(self, server: Server) -> None:
        """A request to it is over, one way or the other."""
        async with self.changed:
            server.under_way -= 1
            self.changed.notify_all()

    def wait(self, *, but: Server) -> float:
        """Seconds until the first of the others may be asked; infinite where there is no other."""
        soonest = min((server.not_before for server in self.all if server is not but), default=math.inf)
        return max(soonest - time.monotonic(), 0.0)

    @property
    def all_silent(self) -> bool:
        """Whether every one of them was tried, and none has ever answered."""
        return all(server.failures and not server.answered for server in self.all)
