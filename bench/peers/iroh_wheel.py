"""iroh's wheel as shipped, without relays and without its makers' servers: addresses are given, keys are checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import iroh

from bench import loads
from bench.peers import harness

ALPN = b"bench"
CHUNK = 1 << 16


class Stream(harness.Pair):
    """One of its bidirectional streams."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._send, self._recv = stream.send(), stream.recv()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._send.write_all(data)

    async def receive(self) -> bytes:
        """Return what comes next."""
        return bytes(await self._recv.read(CHUNK))

    async def finish(self) -> None:
        """End the writing side."""
        await self._send.finish()


async def _endpoint(bind: str) -> Any:
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(), bind_addr=bind, alpns=[ALPN], relay_mode=iroh.RelayMode.disabled()
    )
    return await iroh.Endpoint.bind(options)


def _addr(at: str) -> Any:
    key, where = at.split("@")
    return iroh.EndpointAddr(iroh.EndpointId.from_string(key), None, [where])


async def _open(connection: Any) -> tuple[Any, Any]:
    stream = Stream(await connection.open_bi())
    return stream, stream


class Iroh(harness.Peer):
    """Endpoints of iroh."""

    async def _serve(self, stream: Any, handler: harness.Handler) -> None:
        pair = Stream(stream)
        await handler(pair, pair)

    async def _accept(self, incoming: Any, handler: harness.Handler) -> None:
        connection = await (await incoming.accept()).connect()
        try:
            while True:
                self.loop.spawn(self._serve(await connection.accept_bi(), handler))
        except iroh.IrohError:
            return

    @asynccontextmanager
    async def serve(self, host: str, handler: harness.Handler) -> AsyncIterator[str]:
        """Run an endpoint."""
        endpoint = await _endpoint(f"{host if host.startswith('127.') else '0.0.0.0'}:0")

        async def accept() -> None:
            while (incoming := await endpoint.accept_next()) is not None:
                self.loop.spawn(self._accept(incoming, handler))

        self.loop.spawn(accept())
        port = next(where for where in endpoint.bound_sockets() if "[" not in where).rpartition(":")[2]
        yield f"{endpoint.id()}@{host}:{port}"

    @asynccontextmanager
    async def client(self, at: str) -> AsyncIterator[loads.Open]:
        """Keep one connection."""
        endpoint = await _endpoint("0.0.0.0:0")
        connection = await endpoint.connect(_addr(at), ALPN)
        yield lambda: _open(connection)

    @asynccontextmanager
    async def dialler(self, at: str) -> AsyncIterator[harness.Dial]:
        """Run one endpoint that connects again each time."""
        endpoint = await _endpoint("0.0.0.0:0")

        async def dial() -> Callable[[], None]:
            connection = await endpoint.connect(_addr(at), ALPN)
            return lambda: connection.close(0, b"")

        yield dial

    async def dial(self, at: str) -> tuple[float, float]:
        """Nothing: its discovery runs on its makers' servers."""
        raise harness.NotOfferedError("its discovery runs on its makers' servers")


if __name__ == "__main__":
    harness.main(Iroh())
