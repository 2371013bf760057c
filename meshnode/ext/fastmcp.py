"""FastMCP's client over the mesh: ``fastmcp.Client(MeshTransport(node, "laptop", "tools"))``.

Servers of FastMCP are served by ``meshnode.ext.mcp.serve``. Extra: ``meshnode[fastmcp]``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from meshnode.ext.opener import Opener
from meshnode.ext.requirement import require
from meshnode.identity.node_id import NodeId

require("fastmcp", "fastmcp", (4, 0), (5,))

from fastmcp.client.transports import ClientTransport  # noqa: E402
from fastmcp.client.transports.base import TransportOptions  # noqa: E402
from mcp import ClientSession  # noqa: E402

from meshnode.ext.mcp import client  # noqa: E402


class MeshTransport(ClientTransport):
    """A session with an MCP server that is a service of another node.

    Args:
        node: This node, which was started, or one by ``meshnode.attach``.
        peer: The server's node: an id, ``ID.mesh``, or a name.
        service: The name of its service.
    """

    def __init__(self, node: Opener, peer: NodeId | str, service: str) -> None:
        self._node = node
        self._peer = peer
        self._service = service

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Any
    ) -> AsyncGenerator[ClientSession, None]:
        """Open the stream, and a session on it.

        Raises as ``node.open``.
        """
        kind = (transport_options or TransportOptions()).session_class
        async with (
            client(self._node, self._peer, self._service) as (read, write),
            kind(read, write, **session_kwargs) as session,
        ):
            yield session

    def __repr__(self) -> str:
        return f"<MeshTransport to {self._service!r} of {self._peer}>"
