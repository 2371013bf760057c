"""py-libp2p over its QUIC transport; it runs on trio."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr

from bench import loads
from bench.peers import harness

PROTOCOL: Any = "/bench/1"
CHUNK = 1 << 16


class Trio:
    """What ``harness.Asyncio`` is, on trio."""

    def __init__(self) -> None:
        self._nursery: Any = None

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the program."""

        async def run() -> None:
            async with trio.open_nursery() as self._nursery:
                await main()
                self._nursery.cancel_scope.cancel()

        trio.run(run)

    async def line(self) -> str:
        """Return the next line of standard input."""
        return await trio.to_thread.run_sync(sys.stdin.readline)

    async def gather(self, *work: Coroutine[Any, Any, Any]) -> None:
        """Await them all."""
        async with trio.open_nursery() as nursery:
            for each in work:
                nursery.start_soon(_same, each)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await trio.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside the rest."""
        self._nursery.start_soon(_same, work)


async def _same(work: Coroutine[Any, Any, Any]) -> None:
    await work


class Stream(harness.Pair):
    """One of its streams."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        for at in range(0, len(data), CHUNK):
            await self._stream.write(data[at : at + CHUNK])

    async def receive(self) -> bytes:
        """Return what comes next."""
        return bytes(await self._stream.read(CHUNK))

    async def finish(self) -> None:
        """End the writing side."""
        await self._stream.close_write() if hasattr(self._stream, "close_write") else await self._stream.close()


class Libp2p(harness.Peer):
    """Hosts of py-libp2p."""

    loop = Trio()

    @asynccontextmanager
    async def serve(self, host: str, handler: harness.Handler) -> AsyncIterator[str]:
        """Run a host that serves streams."""
        bind = host if host.startswith("127.") else "0.0.0.0"
        node = new_host(enable_quic=True, key_pair=create_new_key_pair())

        async def serve(stream: Any) -> None:
            pair = Stream(stream)
            await handler(pair, pair)

        async with node.run(listen_addrs=[multiaddr.Multiaddr(f"/ip4/{bind}/udp/4001/quic")]):
            node.set_stream_handler(PROTOCOL, serve)
            yield f"/ip4/{host}/udp/4001/quic/p2p/{node.get_id()}"

    @asynccontextmanager
    async def client(self, at: str) -> AsyncIterator[loads.Open]:
        """Keep one connection."""
        info = info_from_p2p_addr(multiaddr.Multiaddr(at))
        node = new_host(enable_quic=True, key_pair=create_new_key_pair())
        async with node.run(listen_addrs=[]):
            await node.connect(info)

            async def open_() -> tuple[Any, Any]:
                stream = Stream(await node.new_stream(info.peer_id, [PROTOCOL]))
                return stream, stream

            yield open_

    @asynccontextmanager
    async def dialler(self, at: str) -> AsyncIterator[harness.Dial]:
        """Run one host, which connects again once it has disconnected."""
        info = info_from_p2p_addr(multiaddr.Multiaddr(at))
        node = new_host(enable_quic=True, key_pair=create_new_key_pair())
        async with node.run(listen_addrs=[]):

            async def dial() -> Callable[[], None]:
                await node.disconnect(info.peer_id)
                await node.connect(info)
                return lambda: None

            yield dial

    def forward(self, at: str, port: int) -> Any:
        """Nothing: the forward of this bench is one of asyncio's."""
        raise harness.NotOfferedError("no forward on trio here")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    harness.main(Libp2p())
