"""ASGI applications as services, by uvicorn and without any port.

Each stream of a peer is a connection of HTTP/1.1 or WebSocket. It stands on uvicorn's ``Server`` and protocol classes.
Extra: ``meshnode[asgi]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from meshnode.errors import MeshError
from meshnode.ext.asgi_caller import App, with_caller
from meshnode.ext.protocols import handler_of
from meshnode.ext.requirement import require
from meshnode.ext.serving import Serving
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import LIMIT

require("asgi", "uvicorn", (0, 40), (1,))

import uvicorn  # noqa: E402

KEEP_ALIVE_S = 75  # longer than the clients of meshnode.ext keep an idle stream, so that none is closed under a request
LIFESPAN_S = 10.0  # how long the application's shutdown may take
TICK_S = 1.0  # how often the Date header changes


def serve(
    node: Node,
    app: App,
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    announce: bool | None = None,
    meta: Mapping[str, str] | None = None,
    limit: int = LIMIT,
    graceful_s: float = 5.0,
    **options: Any,
) -> Serving:
    """Serve an ASGI application to other nodes.

    ``scope["client"]`` is ``(ID, 0)`` with the id that the caller has proven; ``scope["extensions"]["meshnode"]`` has
    its ``id``, ``name`` and ``roles``. No header changes them: ``X-Forwarded-For`` and the like are not believed.

    Args:
        node: The node, which was started.
        app: The application: FastAPI, Starlette, Django or any other of ASGI 3.
        service: The name of the service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        announce: As in ``node.serve``.
        meta: As in ``node.serve``.
        limit: How many connections it has at once.
        graceful_s: How long requests in progress may take to end after ``close``.
        options: More settings of ``uvicorn.Config``, as ``root_path`` or ``ws_max_size``.

    Returns:
        The service and the application's lifespan; ``async with`` ends both.

    Raises:
        ConfigError: As ``node.serve``.
        MeshError: The application did not start up; raised by ``await`` and ``async with``.

    Example:

        async with meshnode.ext.asgi.serve(node, FastAPI(), "web", allow=["laptop-id"]):
            await asyncio.Event().wait()
    """
    settings = {
        "http": "h11",
        "ws": "websockets-sansio",
        "log_config": None,
        "access_log": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": graceful_s,
    }
    config = uvicorn.Config(with_caller(node, app), **settings | options | {"proxy_headers": False})
    server = uvicorn.Server(config)

    def protocol() -> asyncio.BaseProtocol:
        made: Any = config.http_protocol_class
        found: asyncio.BaseProtocol = made(
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return found

    handler = handler_of(protocol, lambda: serving.began())
    served = node.serve(service, handler, allow, announce=announce, meta=meta, limit=limit)
    serving = Serving(node, served, _lifespan(server, graceful_s))
    return serving


@asynccontextmanager
async def _lifespan(server: uvicorn.Server, graceful_s: float) -> AsyncIterator[None]:
    """Run a server that listens nowhere."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    try:
        await server.startup(sockets=[])
    except SystemExit:  # how uvicorn gives up
        raise MeshError("the ASGI application did not start up", hint="its log says why") from None
    ticks = asyncio.ensure_future(_tick(server))
    try:
        yield
    finally:
        ticks.cancel()
        async with asyncio.timeout(graceful_s + LIFESPAN_S):
            await server.shutdown(sockets=[])


async def _tick(server: uvicorn.Server) -> None:
    while True:
        await server.on_tick(0)
        await asyncio.sleep(TICK_S)
