"""What a node offers programs that have no use for a reader and a writer: asyncio's protocols, sockets, datagrams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from meshnode.identity.node_id import NodeId
from meshnode.quic.preface import Purpose
from meshnode.sdk.arguments import flow_of, peer_of, service_of, trusted_of, wrong
from meshnode.sdk.datagrams import DatagramHandler, Datagrams
from meshnode.sdk.life import Life
from meshnode.sdk.service import LIMIT, Service, ServiceTable
from meshnode.sdk.streams import unwrapped

if TYPE_CHECKING:
    from meshnode.sdk.asyncio_server import ProtocolServer
    from meshnode.sdk.sockets import MeshSocket

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Primitives:
    """The part of ``Node`` beside streams."""

    _life: Life
    _services: ServiceTable

    async def create_connection(
        self, protocol_factory: Callable[[], P], peer: NodeId | str, service: str
    ) -> tuple[asyncio.Transport, P]:
        """Open a stream to a service and let a protocol of asyncio have it, as ``loop.create_connection`` does.

        The transport is whole: reading pauses and resumes (the peer's writer waits meanwhile), ``pause_writing`` is
        called above the write limits (1 MiB unacknowledged by default), directions end separately (``write_eof``),
        ``abort`` resets. ``connection_lost`` gets None after a clean end and the error after any other.
        ``get_extra_info("peername")`` is the peer's NodeId.

        Args:
            protocol_factory: Returns an ``asyncio.Protocol`` or ``asyncio.BufferedProtocol``.
            peer: The node: an id, ``ID.mesh``, or a node's name.
            service: The service's name there.

        Returns:
            The transport, and the protocol, whose ``connection_made`` was called.

        Raises:
            As ``open``.

        Example:

            transport, protocol = await node.create_connection(MyProtocol, "laptop", "echo")
        """
        from meshnode.sdk.asyncio_transport import driven

        opened = await self._life.running().failover.open_at(peer_of(peer), service_of(service))
        return driven(*unwrapped(opened), protocol_factory)

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        service: str,
        allow: str | NodeId | Iterable[str | NodeId] | None = (),
        *,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int = LIMIT,
    ) -> ProtocolServer:
        """Serve a name by protocols of asyncio, one for each stream, as ``loop.create_server`` does for a port.

        Args:
            protocol_factory: Returns an ``asyncio.Protocol`` or ``asyncio.BufferedProtocol``, whose transport is one of
                ``create_connection``.
            service: The service's name.
            allow: The nodes that may use it, as for ``serve``.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it, as for ``serve``.
            limit: How many connections it has at once, as for ``serve``.

        Returns:
            A server like ``asyncio.Server``: ``close``, ``wait_closed``, ``serve_forever``, ``async with``. Its
            ``sockets`` are none.

        Raises:
            As ``serve``.

        Example:

            async with await node.create_server(MyProtocol, "echo", allow=["any"]) as server:
                await server.serve_forever()
        """
        from meshnode.sdk.asyncio_server import ProtocolServer

        self._life.check_open()
        if not callable(protocol_factory):
            raise wrong("protocol_factory", "a function that returns a protocol", protocol_factory)
        server = ProtocolServer(protocol_factory)
        server.service = self._services.add(service, server._handle, allow, announce=announce, meta=meta, limit=limit)
        return server

    async def socket(self, peer: NodeId | str, service: str) -> MeshSocket:
        """Open a stream to a service as a connected socket of the operating system, for code that takes nothing else.

        It is one end of a pair of Unix sockets. Data, back-pressure, half-close and resets are carried as TCP carries
        them: a stream that is lost is ECONNRESET, never an EOF, and closing the socket with something unread resets the
        stream. A call that blocks must not be made in the thread of the node's loop, which does the carrying: use
        ``asyncio.to_thread``, or ``setblocking(False)`` with ``loop.sock_recv`` and its like.

        Args:
            peer: The node: an id, ``ID.mesh``, or a node's name.
            service: The service's name there.

        Returns:
            A blocking socket of the family AF_UNIX, with ``peer`` and ``service``. TCP's options do not exist on it.
            Once its descriptor was detached and shut down for writing, a reset is an EOF to it.

        Raises:
            OSError: No descriptor is left.
            And as ``open``.

        Example:

            sock = await node.socket("laptop", "ssh")
            await asyncio.to_thread(client.connect, "laptop", sock=sock)
        """
        from meshnode.sdk.sockets import as_socket

        opened = await self._life.running().failover.open_at(peer_of(peer), service_of(service))
        return await as_socket(*unwrapped(opened))

    async def datagrams(self, peer: NodeId | str, service: str) -> Datagrams:
        """Open a flow of datagrams to a service of one node, connecting first when needed.

        The flow survives every move of both nodes. A peer that restarts meanwhile is tried once more.

        Args:
            peer: The node: an id, ``ID.mesh``, or a node's name.
            service: The service's name there, which ``serve_datagrams`` serves.

        Returns:
            The flow; ``async with`` closes it.

        Raises:
            DatagramsUnsupported: The peer runs a version of meshnode without datagrams.
            ServiceNotFound: The peer has no service of that name that takes datagrams.
            ServiceUnavailable: It has, but serves too many flows already.
            PolicyDenied: This node may not use it.
            StreamLimitError: Too many flows are open to the peer.
            ConnectionLost: The connection ended meanwhile.
            ConfigError: The service's name is empty or longer than 249 bytes.
            And as ``connect``.

        Example:

            async with await node.datagrams("laptop", "dns") as flow:
                flow.send(query)
                answer = await asyncio.wait_for(flow.receive(), 2.0)
        """
        return await self._life.running().failover.flow_at(peer_of(peer), flow_of(service))

    async def datagrams_any(
        self, service: str, *, trusted: str | NodeId | Iterable[str | NodeId] | None = None, sticky: bool = False
    ) -> Datagrams:
        """Open a flow of datagrams to an instance of a service that works, as ``open_any`` does a stream.

        The flow ends when its instance falls silent while another trusted one answers: call this again then.

        Args:
            service: The service's name.
            trusted: The nodes that may serve it, as for ``open_any``. Several make failover.
            sticky: Prefer the instance of the last time while it works.

        Returns:
            The flow; ``async with`` closes it, and ``flow.peer`` is the instance's node.

        Raises:
            As ``open_any`` and ``datagrams``.

        Example:

            async with await node.datagrams_any("dns", trusted=["rack1", "rack2"]) as flow:
                flow.send(query)
        """
        return await self._life.running().failover.flow(flow_of(service), trusted=trusted_of(trusted), sticky=sticky)

    def serve_datagrams(
        self,
        name: str,
        handler: DatagramHandler,
        allow: str | NodeId | Iterable[str | NodeId] | None = (),
        *,
        accept: bool = True,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int = LIMIT,
    ) -> Service:
        """Serve a name by datagrams: each flow that a peer opens to it runs ``handler(flow, peer)``.

        The flow is closed when the handler returns, and dropped when it raises. A name is served by streams or by
        datagrams. May be called before the start.

        Args:
            name: 1 to 64 visible characters without a slash, where it is announced.
            handler: A coroutine function of a Datagrams and the peer's NodeId (type ``DatagramHandler``).
            allow: The nodes that may use it, as for ``serve``. A flow is reset when its peer may use it no longer.
            accept: False leaves it to the handler to call ``flow.accept()``; when it returns without, the peer gets
                ServiceUnavailable.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it, as for ``serve``.
            limit: How many flows it serves at once, as for ``serve``; of one peer at most 1,024.

        Returns:
            The service, as ``serve``.

        Raises:
            ConfigError: The name is served already, or cannot be announced, or the limit is below 1.
            InvalidId: Something in ``allow`` is no id.
            NodeClosed: The node was closed.

        Example:

            async def echo(flow, peer):
                async for data in flow:
                    flow.send(data)


            node.serve_datagrams("echo", echo, allow=["any"])
        """
        self._life.check_open()
        flows = Purpose.FLOW
        return self._services.add(
            name, handler, allow, purpose=flows, accept=accept, announce=announce, meta=meta, limit=limit
        )
