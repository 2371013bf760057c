"""ASGI applications as services, by hypercorn and without any port.

Each stream of a peer is a connection of HTTP/1.1, HTTP/2 without TLS, or WebSocket. It stands on hypercorn's
``TCPServer``, which reads and writes asyncio streams. Extra: ``meshnode[hypercorn]``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from meshnode.ext.asgi_caller import App, with_caller
from meshnode.ext.requirement import require
from meshnode.ext.serving import Serving
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import LIMIT
from meshnode.sdk.streams import MeshReader, MeshWriter

require("hypercorn", "hypercorn", (0, 18), (0, 19))

from hypercorn.app_wrappers import ASGIWrapper  # noqa: E402
from hypercorn.asyncio.lifespan import Lifespan  # noqa: E402
from hypercorn.asyncio.tcp_server import TCPServer  # noqa: E402
from hypercorn.asyncio.worker_context import WorkerContext  # noqa: E402
from hypercorn.config import Config  # noqa: E402

KEEP_ALIVE_S = 75  # longer than the clients of meshnode.ext keep an idle stream, so that none is closed under a request


def serve(
    node: Node,
    app: App,
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    announce: bool | None = None,
    meta: Mapping[str, str] | None = None,
    limit: int = LIMIT,
    config: Config | None = None,
) -> Serving:
    """Serve an ASGI application to other nodes, as ``meshnode.ext.asgi.serve`` does.

    Args:
        node: The node, which was started.
        app: The application, of ASGI 3.
        service: The name of the service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        announce: As in ``node.serve``.
        meta: As in ``node.serve``.
        limit: How many connections it has at once.
        config: Settings of hypercorn; what they bind is not bound.

    Returns:
        The service and the application's lifespan; ``async with`` ends both.

    Raises:
        ConfigError: As ``node.serve``.
    """
    if config is None:
        config = Config()
        config.keep_alive_timeout = KEEP_ALIVE_S
    worker = _Worker(with_caller(node, app), config)

    async def connection(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await serving.began()
        await worker.connection(reader, writer)

    served = node.serve(service, connection, allow, announce=announce, meta=meta, limit=limit)
    serving = Serving(node, served, worker.lifespan())
    return serving


class _Worker:
    """What hypercorn's worker has beside its sockets."""

    def __init__(self, app: App, config: Config) -> None:
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = WorkerContext(None)
        self._state: dict[str, Any] = {}
        self._connections: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        lifespan = Lifespan(self._app, self._config, loop, self._state)
        living = loop.create_task(lifespan.handle_lifespan())
        try:
            await lifespan.wait_for_startup()
            if living.done():
                await living
            try:
                yield
            finally:
                await self._end_connections()
                await lifespan.wait_for_shutdown()
        finally:  # also of an application that takes too long for its beginning or its end
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)

    async def _end_connections(self) -> None:
        await self._context.terminated.set()
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._config.graceful_timeout)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def connection(self, reader: MeshReader, writer: MeshWriter) -> None:
        loop = asyncio.get_running_loop()
        known: Any = _Writer(writer)
        server = TCPServer(self._app, loop, self._config, self._context, self._state, reader, known)
        task = asyncio.ensure_future(server.run())
        self._connections.add(task)
        try:
            await task
        finally:
            task.cancel()
            self._connections.discard(task)


class _Writer:
    """A mesh writer with what hypercorn asks of a socket: the peer's id as its address."""

    family = socket.AF_INET6

    def __init__(self, writer: MeshWriter) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else self._writer.get_extra_info(name, default)

    def getpeername(self) -> tuple[str, int]:
        return (str(self._writer.peer), 0)

    def getsockname(self) -> tuple[str, int]:
        return (self._writer.get_extra_info("sockname")[0], 0)
