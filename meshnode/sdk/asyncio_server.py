"""A service whose streams drive asyncio protocols: the handle that ``create_server`` returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from meshnode.identity.node_id import NodeId
from meshnode.sdk.asyncio_transport import Ending, ProtocolTransport, until_lost
from meshnode.sdk.streams import MeshReader, MeshWriter


class Served(Protocol):
    """A service, as far as a server needs it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def is_served(self) -> bool:
        """True until it was closed."""

    def close(self) -> None:
        """Withdraw it."""


class ProtocolServer(asyncio.AbstractServer):
    """What ``asyncio.Server`` is for sockets: it ends the service, and waits for its connections.

    ``async with`` closes it at the end and waits until the connections that it has are over.
    """

    service: Served
    """The service; a node's own tells the mesh of its load and health."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self._factory = factory
        self._transports: dict[Ending, None] = {}
        self._forever: asyncio.Future[None] | None = None

    async def _handle(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        """Let a protocol have a stream of the service until it is over."""
        await self._until_over(ProtocolTransport(writer._stream, writer._transport.ends, self._factory))

    async def _until_over(self, transport: Ending) -> None:
        self._transports[transport] = None
        try:
            await until_lost(transport)
        finally:
            del self._transports[transport]

    def __repr__(self) -> str:
        state = f"{len(self._transports)} connections" if self.is_serving() else "closed"
        return f"<{type(self).__name__} of {self.service.name!r}: {state}>"

    @property
    def sockets(self) -> tuple[()]:
        """Always empty: the service has no port."""
        return ()

    def is_serving(self) -> bool:
        """Return whether it takes new connections.

        Returns:
            True until it was closed.
        """
        return self.service.is_served

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop.

        Returns:
            The one that runs, which is that of the node.
        """
        return asyncio.get_running_loop()

    async def start_serving(self) -> None:
        """Do nothing.

        It serves from the beginning.
        """

    async def serve_forever(self) -> None:
        """Wait until this call is cancelled; the server is closed then.

        Raises:
            RuntimeError: It was closed, or another call waits already.
        """
        if not self.is_serving() or self._forever is not None:
            raise RuntimeError("the server is closed, or serve_forever() runs already")
        self._forever = asyncio.get_running_loop().create_future()
        try:
            await self._forever
        finally:
            self._forever = None
            self.close()

    def close(self) -> None:
        """Withdraw the service; its connections go on. Safe to call twice.

        A call of ``serve_forever`` ends.
        """
        self.service.close()
        if self._forever is not None:
            self._forever.cancel()

    def close_clients(self) -> None:
        """Close every connection.

        Each is over when what was written has arrived.
        """
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Drop every connection at once.

        The peers' ends are lost with ConnectionLost.
        """
        for transport in list(self._transports):
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connections that it has are over.

        To be called after ``close``.
        """
        while self._transports:
            await next(iter(self._transports)).ended.wait()
            await asyncio.sleep(0)  # for the handler to leave
