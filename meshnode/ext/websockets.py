"""Clients of the library websockets over the mesh: ``async with connect(node, "ws://SERVICE.NAME.mesh/")``.

It stands on ``websockets.connect``, whose method that opens the connection it replaces. Servers are ASGI applications,
or listen on a Unix socket that a node exposes. Extra: ``meshnode[websockets]``.
"""

from __future__ import annotations

from typing import Any

from meshnode.errors import ConfigError
from meshnode.ext.protocols import create_connection
from meshnode.ext.requirement import require
from meshnode.ext.urls import target
from meshnode.sdk.node import Node

require("websockets", "websockets", (17, 0), (18,))

from websockets.asyncio.client import ClientConnection  # noqa: E402
from websockets.asyncio.client import connect as _connect  # noqa: E402


class connect(_connect):
    """A WebSocket to a service of another node, used as ``websockets.connect``: by ``async with`` or ``await``.

    Args:
        node: This node, which was started.
        uri: ``ws://SERVICE.NAME.mesh/PATH`` or ``ws://SERVICE.ID.mesh/PATH``. With ``wss`` it is an error, for the
            stream is encrypted already.
        options: As ``websockets.connect``.

    Raises:
        ConfigError: The URI is none of these.
        And as ``websockets.connect`` and ``node.open``.
    """

    def __init__(self, node: Node, uri: str, **options: Any) -> None:
        super().__init__(uri, **options | {"proxy": None})
        if self.ws_uri.secure:
            raise ConfigError("a mesh stream is encrypted already, and its peer proven", hint="write ws:// in the URI")
        self._node = node

    async def open_tcp_connection(self) -> ClientConnection:
        """Open the stream; the name is that of websockets."""
        peer, service = target(self.ws_uri.host, self.ws_uri.port)
        _, connection = await create_connection(self._node, lambda: self.factory(self.ws_uri), peer, service)
        return connection
