"""A program's hold on a connection to one peer."""

from __future__ import annotations

import asyncio

from meshnode.errors import ConfigError, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.connection import State
from meshnode.quic.hello import CloseCode
from meshnode.sdk.streams import MeshReader, MeshWriter, accepted, wrap


class Connection:
    """A live, authenticated connection to one peer, as ``node.connect`` returns it.

    It survives every move of both nodes. Two nodes share one connection, however many objects like this there are.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def peer(self) -> NodeId:
        """The peer's id, which it has proven to hold the key of."""
        return self._link.peer

    @property
    def is_open(self) -> bool:
        """False once it is over; ``error`` then says why."""
        return self._link.state is State.READY

    @property
    def error(self) -> MeshError | None:
        """Why it is over; None while it is open, or when it was closed in the ordinary way."""
        return self._link.error

    async def open(self, service: str) -> tuple[MeshReader, MeshWriter]:
        """Open a stream to a service of the peer, and wait until the peer accepts it.

        Unlike ``node.open``, it does not connect again when the peer has restarted.

        Raises:
            ServiceNotFound: The peer has no such service.
            ServiceUnavailable: It has, but what is behind it does not answer.
            PolicyDenied: This node may not use it.
            StreamLimitError: The peer grants no more streams now.
            ConnectionLost, PeerRestarted: The connection is over.
            ConfigError: The service's name is empty or longer than 255 bytes.
        """
        try:
            stream = self._link.open(service)
        except ValueError as error:
            raise ConfigError(str(error), hint="`meshnode services` lists names") from error
        reader, writer = wrap(stream, self._link.peer)
        try:
            await accepted(stream, reader)
        except asyncio.CancelledError:
            stream.reset()
            raise
        return reader, writer

    def close(self) -> None:
        """Close the connection, and with it every stream that this node has to the peer."""
        self._link.close(CloseCode.NORMAL, "closed by the application")
