"""A program's hold on a connection to one peer."""

from __future__ import annotations

import asyncio

from meshnode.errors import ConfigError, MeshError, StreamLimitError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.connection import State
from meshnode.quic.hello import CloseCode
from meshnode.quic.stream import Stream
from meshnode.sdk.streams import MeshReader, MeshWriter, accepted, wrap

GRANT_S = 10.0  # how long a stream over the peer's limit waits until others have ended


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
            StreamLimitError: The peer granted no more streams within 10 s.
            ConnectionLost, PeerRestarted: The connection is over.
            ConfigError: The service's name is empty or longer than 255 bytes.
        """
        try:
            stream = await _granted(self._link, service)
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


async def _granted(link: Link, service: str) -> Stream:
    """Return a stream once the peer grants one. Raises StreamLimitError, ConnectionLost, ValueError."""
    found: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    def answer(outcome: Stream | MeshError) -> None:
        if isinstance(outcome, Stream):
            found.set_result(outcome)
        else:
            found.set_exception(outcome)

    link.open_when_granted(service, answer)
    try:
        if not found.done():
            await asyncio.wait([found], timeout=GRANT_S)
    except asyncio.CancelledError:
        link.streams.give_up(answer)
        if found.done() and found.exception() is None:
            found.result().reset()
        raise
    if not found.done():
        link.streams.give_up(answer)
        raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")
    return found.result()
