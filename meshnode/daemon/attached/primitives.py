"""What an attached program has beside streams: protocols and servers of asyncio, and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from meshnode.daemon.attached.parts import AttachedService
from meshnode.daemon.request import Request
from meshnode.daemon.requests.attached import Serve, Take
from meshnode.daemon.requests.services import Connect, Flow
from meshnode.errors import ConfigError, ConnectionLost, FlowClosed, NotFound, NotRunning
from meshnode.identity.node_id import NodeId
from meshnode.sdk.asyncio_server import ProtocolServer
from meshnode.sdk.asyncio_transport import driven
from meshnode.sdk.service import Handler

if TYPE_CHECKING:
    from socket import socket as Socket

    from meshnode.daemon.attached.flow import LocalFlow
    from meshnode.daemon.request import Json
    from meshnode.quic.stream import Stream
    from meshnode.sdk.datagrams import DatagramHandler, Datagrams
    from meshnode.sdk.sockets import MeshSocket

P = TypeVar("P", bound=asyncio.BaseProtocol)


def texts_of(nodes: str | NodeId | Iterable[str | NodeId] | None) -> tuple[str, ...]:
    """Return one or several nodes as texts; none for None."""
    several = () if nodes is None else (nodes,) if isinstance(nodes, str | NodeId) else tuple(nodes)
    return tuple(map(str, several))


class AttachedPrimitives:
    """The part of ``AttachedNode`` beside streams."""

    if TYPE_CHECKING:

        @property
        def id(self) -> NodeId:
            """As ``AttachedNode``."""

        def serve(
            self,
            name: str,
            handler: Handler,
            allow: str | NodeId | Iterable[str | NodeId] = (),
            *,
            announce: bool | None = None,
            meta: Mapping[str, str] | None = None,
            limit: int | None = None,
        ) -> AttachedService:
            """As ``AttachedNode``."""

        def _served(self, asked: Serve, handle: Callable[[Take], Coroutine[Any, Any, None]]) -> AttachedService: ...

        async def _answered(self, asked: Request, made: Callable[[Socket], LocalFlow]) -> tuple[LocalFlow, Json]: ...

        async def _carried(self, asked: Request) -> tuple[Stream, tuple[NodeId, NodeId]]: ...

    async def create_connection(
        self, protocol_factory: Callable[[], P], peer: NodeId | str, service: str
    ) -> tuple[asyncio.Transport, P]:
        """Open a stream and let a protocol of asyncio have it, as ``loop.create_connection`` does.

        Args:
            protocol_factory: Returns an ``asyncio.Protocol`` or ``asyncio.BufferedProtocol``.
            peer: The node, as for ``open``.
            service: The service's name there.

        Returns:
            The transport, and the protocol.

        Raises:
            As ``open``.
        """
        return driven(*await self._carried(Connect(f"{peer}/{service}")), protocol_factory)

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        service: str,
        allow: str | NodeId | Iterable[str | NodeId] = (),
        *,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> ProtocolServer:
        """Serve a name by protocols of asyncio, one for each stream, as ``Node.create_server``.

        Args:
            protocol_factory: Returns an ``asyncio.Protocol`` or ``asyncio.BufferedProtocol``.
            service: The service's name.
            allow: The nodes that may use it, as for ``serve``.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it.
            limit: How many connections it has at once, as for ``serve``.

        Returns:
            A server like ``asyncio.Server``, which serves until it is closed or this program ends.

        Raises:
            NotRunning: The node of this home has stopped.
            And as ``Node.create_server``.
        """
        server = ProtocolServer(protocol_factory)
        server.service = served = self.serve(service, server._handle, allow, announce=announce, meta=meta, limit=limit)
        try:
            await served.started()
        except BaseException:  # of a caller that gives up too: it has nothing by which to end it
            served.close()
            raise
        return server

    async def socket(self, peer: NodeId | str, service: str) -> MeshSocket:
        """Open a stream to a service as a connected socket of the operating system, as ``Node.socket``.

        A call that blocks must not be made in the thread of this program's loop, which carries its bytes.

        Args:
            peer: The node, as for ``open``.
            service: The service's name there.

        Returns:
            A blocking socket of the family AF_UNIX, with ``peer`` and ``service``.

        Raises:
            OSError: No descriptor is left.
            And as ``open``.
        """
        from meshnode.sdk.sockets import as_socket

        return await as_socket(*await self._carried(Connect(f"{peer}/{service}")))

    async def datagrams(self, peer: NodeId | str, service: str) -> Datagrams:
        """Open a flow of datagrams to a service of one node, as ``Node.datagrams``.

        Args:
            peer: The node, as for ``open``.
            service: The service's name there.

        Returns:
            The flow, as that of ``Node.datagrams``; ``unsent`` counts those that this program was too fast for.

        Raises:
            NotRunning: The node of this home has stopped.
            And as ``Node.datagrams``.
        """
        return await self._flow(Flow(f"{peer}/{service}"))

    async def datagrams_any(
        self, service: str, *, trusted: str | NodeId | Iterable[str | NodeId] | None = None
    ) -> Datagrams:
        """Open a flow of datagrams to an instance of a service that works, as ``Node.datagrams_any``.

        Args:
            service: The service's name.
            trusted: The nodes that may serve it, as for ``open_any``.

        Returns:
            The flow, as ``datagrams``.

        Raises:
            As ``Node.datagrams_any``, and NotRunning.
        """
        if "/" in service:
            raise ConfigError("a service's name has no slash", hint="datagrams(peer, service) is for one node")
        return await self._flow(Flow(service, texts_of(trusted)))

    async def _flow(self, asked: Request) -> Datagrams:
        from meshnode.daemon.attached.flow import LocalFlow

        flow, told = await self._answered(asked, LocalFlow)
        return flow.begin(told)

    def serve_datagrams(
        self,
        name: str,
        handler: DatagramHandler,
        allow: str | NodeId | Iterable[str | NodeId] = (),
        *,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AttachedService:
        """Serve a name by datagrams, as ``Node.serve_datagrams``, as long as this program runs.

        Args:
            name: The service's name.
            handler: A coroutine function of a Datagrams and the peer's NodeId.
            allow: The nodes that may use it, as for ``serve``.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it.
            limit: How many flows it serves at once, as for ``Node.serve_datagrams``.

        Returns:
            The service; ``await service.started()`` raises what the node refuses it with.
        """
        asked = Serve(name, texts_of(allow), announce, dict(meta or {}), limit, datagrams=True)
        return self._served(asked, lambda take: self._handle_flow(take, handler))

    async def _handle_flow(self, take: Take, handler: DatagramHandler) -> None:
        try:
            flow = await self._flow(take)
        except (NotFound, NotRunning):  # it was given up meanwhile, or the node has stopped
            return
        try:
            await handler(flow, flow.peer)
        except BaseException as error:
            is_over = flow.is_closed
            flow.reset()
            if not (is_over and isinstance(error, FlowClosed | ConnectionLost)):  # it only met the end of its flow
                raise
        else:
            flow.close()
