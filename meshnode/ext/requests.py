"""requests and urllib3 over the mesh, from any thread but the node's: ``session.mount("http://", MeshAdapter(node))``.

It stands on the pools of urllib3 and the adapters of requests. Extra: ``meshnode[requests]``.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import CancelledError
from typing import Any

from meshnode.errors import ConfigError, MeshError, NodeClosed
from meshnode.ext.requirement import require
from meshnode.ext.urls import target
from meshnode.sdk.node import Node

require("requests", "requests", (2, 32), (3,))
require("requests", "urllib3", (2, 0), (3,))

import requests.adapters  # noqa: E402
import urllib3  # noqa: E402
from urllib3.connection import HTTPConnection  # noqa: E402
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError  # noqa: E402

OPEN_S = 60.0  # how long a stream without a timeout of its own may take to open
LOOP_ENDED, LOOP_HINT = "the loop of the node has ended", "make requests as long as the node runs"


class MeshPoolManager(urllib3.PoolManager):
    """A pool manager of urllib3 for ``http://SERVICE.NAME.mesh/``; use it from other threads than the node's.

    A node that cannot be reached is ``NewConnectionError``, with the mesh's error as its cause. An ``https`` URL, of a
    redirect too, is ``URLSchemeUnknown``: the stream is encrypted already.

    Args:
        node: The node, which was started. Make the manager on its loop.
        options: As ``urllib3.PoolManager``.
    """

    def __init__(self, node: Node, **options: Any) -> None:
        super().__init__(**options)
        bridge = _Bridge(node)

        class Connection(HTTPConnection):
            """A connection that is a stream."""

            def _new_conn(self) -> socket.socket:
                return bridge.open(self)

        class Pool(urllib3.HTTPConnectionPool):
            """A pool of streams to one service."""

            ConnectionCls = Connection

        self.pool_classes_by_scheme = {"http": Pool}
        self.key_fn_by_scheme = {"http": self.key_fn_by_scheme["http"]}  # any other is URLSchemeUnknown


class MeshAdapter(requests.adapters.HTTPAdapter):
    """An adapter of requests for ``http://SERVICE.NAME.mesh/``; use its session from other threads than the node's.

    A node that cannot be reached is ``requests.ConnectionError``. Mount it at ``http://`` for all hosts, or at one URL.
    No proxy is asked for what it sends, whatever the environment (``HTTP_PROXY``) or the session says.

    Args:
        node: The node, which was started. Make the adapter on its loop.
        options: As ``requests.adapters.HTTPAdapter``.
    """

    def __init__(self, node: Node, **options: Any) -> None:
        self._node = node
        super().__init__(**options)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Make the pools; the name is that of requests."""
        self.poolmanager = MeshPoolManager(self._node, num_pools=connections, maxsize=maxsize, block=block, **options)

    def send(
        self,
        request: Any,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Any:
        """Send a request over the mesh, whatever ``proxies`` says; the names are those of requests."""
        return super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert)


class _Bridge:
    """Opens streams for threads, as sockets."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()

    def open(self, connection: HTTPConnection) -> socket.socket:
        """Return a connected socket. Raises errors of urllib3."""
        wanted = connection.timeout
        seconds = wanted if isinstance(wanted, int | float) else OPEN_S
        try:
            opened = self._open(connection.host, connection.port, seconds)
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, f"no stream to {connection.host} within {seconds} s") from error
        except MeshError as error:
            raise NewConnectionError(connection, f"{error} ({error.hint})") from error
        opened.settimeout(wanted if isinstance(wanted, int | float) else None)
        return opened

    def _open(self, host: str, port: int, seconds: float) -> socket.socket:
        try:
            running: object = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise ConfigError("requests waits, and would stop the node's own loop", hint="use asyncio.to_thread")
        asked = self._socket(host, port)
        try:
            opening = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError as error:  # it is closed
            asked.close()
            raise NodeClosed(LOOP_ENDED, hint=LOOP_HINT) from error
        try:
            return opening.result(seconds)
        except CancelledError as error:
            raise NodeClosed(LOOP_ENDED, hint=LOOP_HINT) from error
        finally:
            opening.cancel()

    async def _socket(self, host: str, port: int) -> socket.socket:
        return await self._node.socket(*target(host, port))
