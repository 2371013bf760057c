"""This mesh: the engine is that of MESHNODE_ENGINE.

A listener's budgets for first flights are lifted: a host that dials again and again is what they slow down.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench import handshakes, loads
from bench.peers import harness
from meshnode import Config, Node
from meshnode.services.expose import Expose
from meshnode.services.forward import Forward
from meshnode.services.setting import Setting

SERVICE, TUNNEL = "bench", "tcp"
QUIET: dict[str, Any] = {"listen": "127.0.0.1:0", "mdns": False, "port_mapping": False}
ALONE = QUIET | {"gossip": False, "dht": False}  # a node that dials and holds connections, and does nothing else
SETTLE_S = 4.0


@asynccontextmanager
async def _node(**settings: Any) -> AsyncIterator[Node]:
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Config(home=Path(folder) / "home", **settings)) as node:
            yield node


def _id(at: str) -> str:
    return at.partition("@")[0]


class Mesh(harness.Peer):
    """Nodes of this mesh."""

    @asynccontextmanager
    async def serve(self, host: str, handler: harness.Handler) -> AsyncIterator[str]:
        """Run a node that serves streams."""
        settings = QUIET if host.startswith("127.") else {"listen": "0.0.0.0:4242", "port_mapping": False}
        async with _node(**settings) as node:
            handshakes.lift(node)

            async def serve(reader: Any, writer: Any, peer: Any) -> None:
                await handler(reader, writer)

            node.serve(SERVICE, serve, allow=["any"])
            Expose(node, Setting(TUNNEL, (f"tcp://127.0.0.1:{self.target}",), ("any",)))
            yield f"{node.id}@{host}:{str(node.record.endpoints[0]).rpartition(':')[2]}"

    @asynccontextmanager
    async def client(self, at: str) -> AsyncIterator[loads.Open]:
        """Run a node that knows the server."""
        async with _node(**(QUIET | {"listen": "0.0.0.0:0", "seeds": (at,)})) as node:
            yield lambda: node.open(_id(at), SERVICE)

    @asynccontextmanager
    async def dialler(self, at: str) -> AsyncIterator[harness.Dial]:
        """Run a node that knows the server and keeps no link to it of its own."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        async with _node(**(ALONE | {"seeds": (at,)})) as node:
            await node.resolve(_id(at))

            async def dial() -> Callable[[], None]:
                return (await node.connect(_id(at))).close

            yield dial

    @asynccontextmanager
    async def dht(self, handler: harness.Handler) -> AsyncIterator[str]:
        """Run eight nodes, the last of which serves; the first is where others begin."""
        async with AsyncExitStack() as stack:
            seed = await stack.enter_async_context(_node(**QUIET, seed_role=True))
            first = f"{seed.id}@{seed.record.endpoints[0]}"
            nodes = [await stack.enter_async_context(_node(**QUIET, seeds=(first,))) for _ in range(7)]
            nodes[-1].serve(SERVICE, lambda reader, writer, peer: handler(reader, writer), allow=["any"])
            await asyncio.sleep(SETTLE_S)
            yield f"{nodes[-1].id} {first}"

    async def dial(self, at: str) -> tuple[float, float]:
        """Dial a key that is not known yet, without gossip, which would have told it; and once more."""
        peer, first = at.split()
        async with _node(**QUIET, gossip=False, seeds=(first,)) as node:
            await node.connect(_id(first))
            await asyncio.sleep(SETTLE_S)
            times = []
            for _ in range(2):
                started = time.perf_counter()
                connection = await node.connect(peer)
                times.append((time.perf_counter() - started) * 1000)
                connection.close()
                await asyncio.sleep(0.1)
            return times[0], times[1]

    @asynccontextmanager
    async def forward(self, at: str, port: int) -> AsyncIterator[int]:
        """Use the node's own forward, to what the server exposes."""
        async with _node(**QUIET, seeds=(at,)) as node:
            forward = Forward(node, "127.0.0.1:0", _id(at), TUNNEL)
            try:
                yield int((await forward.start()).rpartition(":")[2])
            finally:
                await forward.close()


if __name__ == "__main__":
    harness.main(Mesh())
