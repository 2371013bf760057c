"""aiohttp over the mesh: a connector for its client, and applications of its server without a port.

Extra: ``meshnode[aiohttp]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from meshnode.errors import MeshError
from meshnode.ext.protocols import create_connection, handler_of
from meshnode.ext.requirement import require
from meshnode.ext.serving import Serving
from meshnode.ext.urls import target
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node
from meshnode.sdk.service import LIMIT

require("aiohttp", "aiohttp", (3, 13), (4,))

import aiohttp  # noqa: E402
from aiohttp import web  # noqa: E402
from aiohttp.client_proto import ResponseHandler  # noqa: E402
from aiohttp.connector import Connection  # noqa: E402


class MeshConnector(aiohttp.BaseConnector):
    """A connector that reaches services of nodes: ``http://SERVICE.NAME.mesh/``, ``ws://SERVICE.NAME.mesh/``.

    A node that cannot be reached is ``aiohttp.ClientConnectionError``, with the mesh's error as its cause. No proxy is
    asked, whatever the environment (with ``trust_env``) or a request says.

    Args:
        node: The node, which was started. It is not closed with the connector.
        options: As ``aiohttp.BaseConnector``: ``limit``, ``limit_per_host``, ``keepalive_timeout``, ``force_close``.
    """

    allowed_protocol_schema_set = frozenset({"", "http", "ws"})

    def __init__(self, node: Node, **options: Any) -> None:
        super().__init__(**options)
        self._node = node

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection for a request; no proxy is asked, and none is written to."""
        req.update_proxy(None, None, None)
        return await super().connect(req, traces, timeout)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        try:
            peer, service = target(req.url.raw_host or "", req.url.port or 80)
            async with asyncio.timeout(timeout.sock_connect):
                _, protocol = await create_connection(self._node, self._factory, peer, service)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"timed out while connecting to {req.url.host}") from error
        except MeshError as error:
            raise aiohttp.ClientConnectionError(f"{error} ({error.hint})") from error
        return protocol


def serve(
    node: Node,
    app: web.Application,
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    announce: bool | None = None,
    meta: Mapping[str, str] | None = None,
    limit: int = LIMIT,
    graceful_s: float = 5.0,
    **options: Any,
) -> Serving:
    """Serve an application of aiohttp to other nodes.

    ``request.remote`` is the id of the node that calls, which it has proven; no header changes it.

    Args:
        node: The node, which was started.
        app: The application.
        service: The name of the service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        announce: As in ``node.serve``.
        meta: As in ``node.serve``.
        limit: How many connections it has at once.
        graceful_s: How long requests in progress may take to end after ``close``.
        options: As ``aiohttp.web.AppRunner``: ``access_log``, ``keepalive_timeout`` and so on.

    Returns:
        The service and the application's beginning and end; ``async with`` ends both.

    Raises:
        ConfigError: As ``node.serve``.
    """
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=graceful_s, **options)

    def protocol() -> asyncio.BaseProtocol:
        assert runner.server is not None
        return runner.server()

    handler = handler_of(protocol, lambda: serving.began())
    served = node.serve(service, handler, allow, announce=announce, meta=meta, limit=limit)
    serving = Serving(node, served, _life(runner))
    return serving


@asynccontextmanager
async def _life(runner: web.AppRunner) -> AsyncIterator[None]:
    await runner.setup()
    try:
        yield
    finally:
        await runner.cleanup()
