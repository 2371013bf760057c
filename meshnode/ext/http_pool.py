"""What httpx and httpx2 have in common: a transport with a pool of mesh streams.

httpx2 goes on where httpx ended, with the same classes, and so does httpcore2 after httpcore. ``Library`` has what
differs: the modules themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from meshnode.errors import MeshError
from meshnode.ext.opener import Opener
from meshnode.ext.urls import HTTP, target
from meshnode.sdk.streams import MeshReader

SECURE = "a mesh stream is encrypted already and its peer proven, so URLs begin with http://"
CONNECT, READ, WRITE = "Connect", "Read", "Write"


class Library(NamedTuple):
    """An HTTP library and its core."""

    http: ModuleType
    core: ModuleType


class Transport:
    """An asynchronous transport whose connections are mesh streams."""

    library: Library
    body: type[Body]

    def __init__(self, node: Opener, limits: Any, retries: int) -> None:
        self._pool: Any = self.library.core.AsyncConnectionPool(
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            retries=retries,
            network_backend=_Backend(node, self.library.core),
        )

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, and return its response, whose body is read as it comes."""
        core, url = self.library.core, request.url
        if url.scheme != HTTP:
            raise self.library.http.UnsupportedProtocol(f"{url.scheme}: {SECURE}", request=request)
        wanted = core.Request(
            request.method,
            core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with errors_of(self.library, request):
            found = await self._pool.handle_async_request(wanted)
        body = self.body(self.library, found, request)
        return self.library.http.Response(found.status, headers=found.headers, stream=body, extensions=found.extensions)

    async def aclose(self) -> None:
        """Close all its streams."""
        await self._pool.aclose()


class Body:
    """The body of a response, read as it comes."""

    def __init__(self, library: Library, response: Any, request: Any) -> None:
        self._library = library
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with errors_of(self._library, self._request):
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        """Give the stream back to the pool, or close it when the body was not read to its end."""
        await self._response.aclose()


@contextmanager
def errors_of(library: Library, request: Any) -> Iterator[None]:
    """Raise the library's error of the same name in place of its core's, with the mesh's as its cause."""
    try:
        yield
    except Exception as error:
        kind = getattr(library.http, type(error).__name__, None)
        if kind is None or not isinstance(error, getattr(library.core, type(error).__name__, ())):
            raise
        first = error.__context__  # the pool has taken the cause away
        raise kind(str(error), request=request) from (first if isinstance(first, MeshError) else error)


class _Backend:
    """Opens streams for a pool; httpcore's ``AsyncNetworkBackend``."""

    def __init__(self, node: Opener, core: ModuleType) -> None:
        self._node = node
        self._core = core

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **_: object) -> _Stream:
        with _translated(self._core, CONNECT):
            async with asyncio.timeout(timeout):
                return _Stream(await self._node.open(*target(host, port)), self._core)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream:
    """A mesh stream with timeouts and a core's errors; httpcore's ``AsyncNetworkStream``."""

    def __init__(self, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], core: ModuleType) -> None:
        self._reader, self._writer = stream
        self._core = core

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(self._core, READ):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(self._core, WRITE):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()

    def get_extra_info(self, info: str) -> Any:
        """Return ``"peer"`` (the NodeId), ``"server_addr"`` and ``"client_addr"`` (overlay addresses), or None.

        ``"is_readable"`` is true when the peer has ended an idle stream in either direction, or has said something that
        answers nothing, so that it is not used again.
        """
        if info == "is_readable":
            is_over = self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()
            return is_over or _is_unfit(self._reader)
        names = {"peer": "peer", "server_addr": "peername", "client_addr": "sockname"}
        return self._writer.get_extra_info(names[info]) if info in names else None


def _is_unfit(reader: asyncio.StreamReader) -> bool:
    """Return whether a stream has something unread, or a peer that reads no more: its reset may be under way."""
    if not isinstance(reader, MeshReader):
        return False
    return bool(reader._held or reader._stream.unread or reader._stream.write_end)


@contextmanager
def _translated(core: ModuleType, what: str) -> Iterator[None]:
    """Raise a core's errors in place of the mesh's, with the mesh's as the cause."""
    try:
        yield
    except TimeoutError as error:
        raise getattr(core, f"{what}Timeout")(str(error)) from error
    except (MeshError, OSError) as error:  # a program that is attached may have no descriptor left
        hint = getattr(error, "hint", "")
        raise getattr(core, f"{what}Error")(f"{error} ({hint})" if hint else str(error)) from error
