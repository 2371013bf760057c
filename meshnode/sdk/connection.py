"""A program's hold on a connection to one peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.errors import DatagramsUnsupported, MeshError, StreamLimitError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.connection import State
from meshnode.quic.hello import CloseCode
from meshnode.quic.preface import FLOW, Purpose
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.arguments import flow_of, service_of
from meshnode.sdk.datagrams import Datagrams
from meshnode.sdk.streams import MeshStream, wrap
from meshnode.sdk.transport import Signal, accepted

GRANT_S = 10.0  # how long a stream over the peer's limit waits until others have ended


class Connection:
    """A live, authenticated connection to one peer, as ``node.connect`` returns it.

    It survives every move of both nodes. Two nodes share one connection, however many objects like this there are.
    """

    def __init__(self, link: Link, runtime: Runtime) -> None:
        self._link = link
        self._runtime = runtime

    @property
    def peer(self) -> NodeId:
        """The peer's id, which it has proven to hold the key of."""
        return self._link.peer

    @property
    def peer_roles(self) -> frozenset[str]:
        """The peer's roles, as its grants give them; empty where the mesh has no authority, and once it is over."""
        return self._runtime.roles_of(self._link.peer)

    @property
    def key_exchange(self) -> str:
        """The group of TLS's key exchange: X25519MLKEM768, the hybrid with ML-KEM-768, or X25519."""
        return self._link.handshake.group

    @property
    def is_open(self) -> bool:
        """False once it is over; ``error`` then says why."""
        return self._link.state is State.READY

    @property
    def error(self) -> MeshError | None:
        """Why it is over; None while it is open, or when it was closed in the ordinary way."""
        return self._link.error

    async def open(self, service: str) -> MeshStream:
        """Open a stream to a service of the peer, and wait until the peer accepts it.

        Unlike ``node.open``, it does not connect again when the peer has restarted.

        Args:
            service: The service's name there.

        Returns:
            A reader and a writer with asyncio's semantics.

        Raises:
            ServiceNotFound: The peer has no such service.
            ServiceUnavailable: It has, but what is behind it does not answer.
            PolicyDenied: This node may not use it.
            StreamLimitError: The peer granted no more streams within 10 s.
            ConnectionLost, PeerRestarted: The connection is over.
            ConfigError: The service's name is empty or longer than 255 bytes.
        """
        stream = await _granted(self._link, service_of(service), self._runtime.stack.context.ran)
        opened = wrap(stream, (self._link.own, self._link.peer))
        await self._accepted(stream, opened.writer._transport.signal)
        return opened

    async def datagrams(self, service: str) -> Datagrams:
        """Open a flow of datagrams to a service of the peer, and wait until the peer accepts it.

        Unlike ``node.datagrams``, it does not connect again when the peer has restarted.

        Args:
            service: The service's name there.

        Returns:
            The flow.

        Raises:
            DatagramsUnsupported: The peer runs a version of meshnode without datagrams.
            ServiceNotFound: The peer has no service of that name that takes datagrams.
            ConfigError: The service's name is empty or longer than 249 bytes.
            And as ``open``.
        """
        link = self._link
        named = FLOW + flow_of(service)
        if link.state is State.READY and not link.engine.datagrams.supported:
            raise DatagramsUnsupported(
                f"{link.peer.short} runs a version of meshnode without datagrams", hint="update it, or open a stream"
            )
        stream = await _granted(link, named, self._runtime.stack.context.ran)
        flow = link.streams.flows.open(stream.id)
        if flow is None:
            stream.reset()
            raise StreamLimitError("too many flows of datagrams are open to this peer", hint="close some")
        opened = Datagrams(stream, flow, link)
        await self._accepted(stream, opened._signal)
        return opened

    async def _accepted(self, stream: Stream, signal: Signal) -> None:
        """Wait until the peer has accepted a stream, and note the outcome; raises why not."""
        try:
            await accepted(stream, signal)
        except asyncio.CancelledError:
            stream.reset()
            raise
        except MeshError as error:
            self._note(stream, error)
            raise
        self._note(stream, None)

    def _note(self, stream: Stream, error: MeshError | None) -> None:
        if stream.purpose is not Purpose.ASK:
            self._runtime.audit.on_used(self._link, stream, error)

    def close(self) -> None:
        """Close the connection, and with it every stream that this node has to the peer.

        They end with ConnectionLost at both ends. Safe to call twice.
        """
        self._link.close(CloseCode.NORMAL, "closed by the application")


async def _granted(link: Link, service: str, ran: Callable[[], float]) -> Stream:
    """Return a stream once the peer grants one. Raises StreamLimitError, ConnectionLost, ValueError.

    ``ran`` is the clock by which it is waited for (``Context.ran``).
    """
    if not link.streams.openers:  # nearly always there is one, and waiting costs a future
        try:
            return link.open(service)
        except StreamLimitError:
            pass  # some are in use: one is granted when they have ended
    found: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    def answer(outcome: Stream | MeshError) -> None:
        if isinstance(outcome, Stream):
            found.set_result(outcome)
        else:
            found.set_exception(outcome)

    link.open_when_granted(service, answer)
    try:
        until = ran() + GRANT_S
        while not found.done() and (left := until - ran()) > 0:
            await asyncio.wait([found], timeout=left)
    except asyncio.CancelledError:
        link.streams.give_up(answer)
        if found.done() and found.exception() is None:
            found.result().reset()
        raise
    if not found.done():
        link.streams.give_up(answer)
        raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")
    return found.result()
