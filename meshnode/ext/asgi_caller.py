"""The caller of an ASGI application over the mesh: its proven id, in the scope."""

from __future__ import annotations

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


def with_caller(node: Node, app: App) -> App:
    """Return an application that is told its caller.

    ``scope["client"]`` is ``(ID, 0)`` already, from the transport; ``scope["extensions"]["meshnode"]`` becomes
    ``{"id": ID, "name": NAME, "roles": [ROLE, ...]}``. The name is "" where this node knows none.
    """

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: _caller(node, scope["client"][0])}
        await app(scope, receive, send)

    return told


def _caller(node: Node, peer_id: str) -> dict[str, Any]:
    peer, runtime = NodeId.parse(peer_id), runtime_of(node)
    return {"id": peer_id, "name": name_of(runtime, peer), "roles": sorted(runtime.roles_of(peer))}
