"""TCP, TLS over TCP and ``aioquic.asyncio``: the sides of ``bench.quic``, each as a program. The argument names one.

Handshakes authenticate both ends with TLS; TCP has none, and ``aioquic.asyncio`` has no setting for a client's
certificate, so that its handshakes show the server's key alone.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import loads, quic
from bench.peers import harness


class Tcp(harness.Peer):
    """TCP as asyncio has it. Each stream is a connection."""

    def _contexts(self, folder: Path) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        return None, None

    @asynccontextmanager
    async def serve(self, host: str, handler: harness.Handler) -> AsyncIterator[str]:
        """Serve connections, each a stream."""
        folder = Path(tempfile.mkdtemp())
        bind = host if host.startswith("127.") else "0.0.0.0"
        server = await asyncio.start_server(handler, bind, 0, ssl=self._contexts(folder)[0])
        yield f"{host}:{server.sockets[0].getsockname()[1]} {folder}"

    def _connect(self, at: str) -> loads.Open:
        where, folder = at.split()
        host, port = where.split(":")
        context = self._contexts(Path(folder))[1]
        return lambda: asyncio.open_connection(host, int(port), ssl=context)

    @asynccontextmanager
    async def client(self, at: str) -> AsyncIterator[loads.Open]:
        """Connect for each stream."""
        yield self._connect(at)

    @asynccontextmanager
    async def dialler(self, at: str) -> AsyncIterator[harness.Dial]:
        """Connect, and have one byte echoed: only then both ends have what they need."""
        open_ = self._connect(at)

        async def dial() -> Callable[[], None]:
            reader, writer = await open_()
            writer.write(loads.ECHO + b"x")
            await reader.readexactly(1)
            return writer.close  # type: ignore[no-any-return]

        yield dial


class Tls(Tcp):
    """TLS 1.3 with a certificate at both ends."""

    halves = False

    def _contexts(self, folder: Path) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
        pair = folder / "crt", folder / "key"
        if not pair[0].exists():
            quic.certificate(folder)
        sides = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        sides[1].check_hostname = False
        for context in sides:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(*pair)
            context.load_verify_locations(pair[0])
        return sides


class Aioquic(harness.Peer):
    """aioquic's own asyncio API."""

    @asynccontextmanager
    async def serve(self, host: str, handler: harness.Handler) -> AsyncIterator[str]:
        """Serve as its documentation shows it."""
        bind = host if host.startswith("127.") else "0.0.0.0"
        async with quic.aioquic_server(bind, handler) as port:
            yield f"{host}:{port}"

    @asynccontextmanager
    async def client(self, at: str) -> AsyncIterator[loads.Open]:
        """Keep one connection."""
        from aioquic.asyncio import connect

        host, port = at.split(":")
        async with connect(host, int(port), configuration=quic.aioquic_configuration()) as client:
            yield client.create_stream

    @asynccontextmanager
    async def dialler(self, at: str) -> AsyncIterator[harness.Dial]:
        """Connect again each time."""
        from contextlib import AsyncExitStack

        from aioquic.asyncio import connect

        host, port = at.split(":")
        async with AsyncExitStack() as stack:

            async def dial() -> Callable[[], None]:
                context: Any = connect(host, int(port), configuration=quic.aioquic_configuration())
                client = await stack.enter_async_context(context)
                return client.close  # type: ignore[no-any-return]

            yield dial


PEERS: dict[str, type[harness.Peer]] = {"tcp": Tcp, "tls": Tls, "aioquic": Aioquic}

if __name__ == "__main__":
    harness.main(PEERS[sys.argv.pop(1)]())
