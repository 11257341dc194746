"""The server behind every page and endpoint: uvicorn's, with an end that keeps nobody waiting."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

TURNS = 4  # of the event loop; asyncio takes two from accepting a connection to telling the server of it


class Server(uvicorn.Server):
    """uvicorn's server. At its end it also closes a connection that was being accepted while it closed the others.

    Browsers open connections in advance. One that arrives at that moment stays open in uvicorn's server, which then waits for it
    to the end of its patience and reports an error.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # it accepts nobody from here on
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await super().shutdown(sockets)
