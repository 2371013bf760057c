"""The caller of an ASGI application over the mesh: its proven id, in the scope."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from meshnode.identity.node_id import NodeId
from meshnode.runtime.status import name_of
from meshnode.sdk.node import Node, runtime_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

EXTENSION = "meshnode"
_OWN = re.compile(rb"meshnode[^a-z0-9]", re.IGNORECASE)  # any spelling that a framework may take for the header's


def with_caller(node: Node, app: App) -> App:
    """Return an application that is told its caller.

    ``scope["client"]`` is ``(ID, 0)`` already, from the transport; ``scope["extensions"]["meshnode"]`` becomes
    ``{"id": ID, "name": NAME, "roles": [ROLE, ...]}``. The name is "" where this node knows none. Headers
    ``Meshnode-...``, by which a service of HTTP is told its caller, are left out, for here they are the caller's own.
    """

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = [header for header in scope["headers"] if not _OWN.match(header[0])]
            scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: _caller(node, scope["client"][0])}
        await app(scope, receive, send)

    return told


def _caller(node: Node, peer_id: str) -> dict[str, Any]:
    peer, runtime = NodeId.parse(peer_id), runtime_of(node)
    return {"id": peer_id, "name": name_of(runtime, peer), "roles": sorted(runtime.roles_of(peer))}
