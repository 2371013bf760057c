"""A program of a benchmark at a transport of asyncio: its reader keeps pieces as they came, as a stream's does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from meshnode.services.local import LocalReader


class ProgramReader(LocalReader):
    """The reading half; a server's runs a handler with both halves."""

    def __init__(self, handler: Callable[[Any, Any], Awaitable[None]] | None = None) -> None:
        super().__init__(asyncio.get_running_loop())
        self._handler = handler
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's; begin to serve."""
        super().connection_made(transport)
        if self._handler is not None:
            self._task = asyncio.ensure_future(self._serve(self._handler, transport))

    async def _serve(self, handler: Callable[[Any, Any], Awaitable[None]], transport: asyncio.BaseTransport) -> None:
        try:
            await handler(self, self._writer(transport))
        except ConnectionError:
            transport.close()  # the client has gone

    def _writer(self, transport: asyncio.BaseTransport) -> asyncio.StreamWriter:
        return asyncio.StreamWriter(cast("asyncio.WriteTransport", transport), self, None, self._loop)

    async def readexactly(self, n: int) -> bytes:
        """Return exactly ``n`` bytes. Raises EOFError at an end before."""
        found = await self.read(n)
        while len(found) < n:
            if not (more := await self.read(n - len(found))):
                raise EOFError("the stream ended early")
            found += more
        return found


Connect = Callable[[Callable[[], ProgramReader]], Awaitable[tuple[Any, Any]]]


async def opened(connect: Connect) -> tuple[ProgramReader, asyncio.StreamWriter]:
    """Return both halves of a connection that ``connect`` makes for a protocol."""
    transport, reader = await connect(ProgramReader)
    return reader, reader._writer(transport)
