"""grpcio over the mesh, by Unix sockets: its core opens connections itself, and takes nothing but addresses.

Extra: ``meshnode[grpc]``. A server that has to know which node calls is one of grpclib: there ``stream.peer`` tells.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from meshnode.base.files import short_folder
from meshnode.ext.requirement import require
from meshnode.ext.unix_socket import unix_socket
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import Service
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.health import connect_unix
from meshnode.services.splice import splice

require("grpc", "grpcio", (1, 76), (2,))

import grpc.aio  # type: ignore[import-untyped]  # noqa: E402


@asynccontextmanager
async def channel(node: Node, peer: NodeId | str, service: str, **options: Any) -> AsyncIterator[Any]:
    """Open a channel to a service of another node; it is ready when its first call is.

    Args:
        node: This node, which was started.
        peer: The server's node: an id, ``ID.mesh``, or a name.
        service: The name of its service.
        options: As ``grpc.aio.insecure_channel``: ``options``, ``compression``, ``interceptors``. The stream below is
            encrypted, and its peer proven.

    Yields:
        A ``grpc.aio.Channel``, for stubs.
    """
    async with unix_socket(node, peer, service) as path:
        opened = grpc.aio.insecure_channel(f"unix:{path}", **options)
        try:
            yield opened
        finally:
            await opened.close()


@asynccontextmanager
async def serve(
    node: Node,
    server: Any,
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    graceful_s: float = 5.0,
    **options: Any,
) -> AsyncIterator[Service]:
    """Serve a ``grpc.aio.Server`` to other nodes.

    It listens on a Unix socket in a folder that only this user may enter.

    Args:
        node: The node, which was started.
        server: The server, with its handlers, which was not started.
        service: The name of the mesh service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        graceful_s: How long calls in progress may take to end.
        options: As ``node.serve``: ``announce``, ``meta``, ``limit``.

    Yields:
        The service. At the end it is withdrawn, and the server stopped.

    Raises:
        ConfigError: As ``node.serve``.
    """
    with tempfile.TemporaryDirectory(prefix="meshnode-", dir=short_folder()) as folder:
        path = str(Path(folder) / "grpc")
        server.add_insecure_port(f"unix:{path}")
        await server.start()

        async def connection(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
            await splice(await connect_unix(path), (reader, writer))

        try:
            async with node.serve(service, connection, allow, **options) as served:
                yield served
        finally:
            await server.stop(graceful_s)
