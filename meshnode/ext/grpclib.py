"""grpclib over the mesh: channels and servers. Extra: ``meshnode[grpclib]``.

It stands on what grpclib's own tests use to put a channel on another transport: the factories of its protocols.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from meshnode.ext.protocols import create_connection, handler_of
from meshnode.ext.requirement import require
from meshnode.ext.serving import Serving
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import LIMIT

require("grpclib", "grpclib", (0, 4, 8), (0, 5))

from grpclib import server  # noqa: E402
from grpclib.client import Channel  # noqa: E402
from grpclib.protocol import H2Protocol  # noqa: E402


class MeshChannel(Channel):
    """A channel to a service of another node, for the stubs of grpclib. Close it, or use it by ``async with``.

    Args:
        node: This node, which was started.
        peer: The server's node: an id, ``ID.mesh``, or a name.
        service: The name of its service.
        options: As ``grpclib.client.Channel``: ``codec``, ``status_details_codec``, ``config``.
    """

    def __init__(self, node: Node, peer: NodeId | str, service: str, **options: Any) -> None:
        super().__init__(f"{service}.{peer}.mesh", 80, **options)
        self._node, self._peer, self._service = node, peer, service

    async def _create_connection(self) -> H2Protocol:
        _, protocol = await create_connection(self._node, self._protocol_factory, self._peer, self._service)
        return protocol


def serve(
    node: Node,
    servables: Collection[Any],
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    announce: bool | None = None,
    meta: Mapping[str, str] | None = None,
    limit: int = LIMIT,
    **options: Any,
) -> Serving:
    """Serve gRPC services to other nodes.

    ``stream.peer.addr()`` is ``(ID, 0)`` with the id that the caller has proven; no metadata changes it.

    Args:
        node: The node, which was started.
        servables: The implementations of gRPC services, as ``grpclib.server.Server`` takes them.
        service: The name of the mesh service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        announce: As in ``node.serve``.
        meta: As in ``node.serve``.
        limit: How many connections it has at once.
        options: As ``grpclib.server.Server``: ``codec``, ``config`` and so on.

    Returns:
        The service; ``async with`` ends it, and the calls in progress.

    Raises:
        ConfigError: As ``node.serve``.
    """
    made = server.Server(servables, **options)
    nowhere: Any = _Nowhere()
    made._server = nowhere
    made._server_closed_fut = asyncio.get_running_loop().create_future()
    handler = handler_of(made._protocol_factory, lambda: serving.began())
    served = node.serve(service, handler, allow, announce=announce, meta=meta, limit=limit)
    serving = Serving(node, served, _life(made))
    return serving


@asynccontextmanager
async def _life(made: server.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        made.close()
        await made.wait_closed()


class _Nowhere:
    """The listener of a server that listens nowhere."""

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass
