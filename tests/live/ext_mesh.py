"""Two nodes that move, for the tests of adapters, and a small HTTP server without a library."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from meshnode import MeshReader, MeshWriter, Node, NodeId
from meshnode.runtime.status import name_of
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import within

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES, PAUSE_S = 100, 0.01
PLACES = itertools.cycle(range(2, 250))


class Pair(NamedTuple):
    """A node that serves, and one that dials it."""

    there: Node
    here: Node

    async def move(self) -> None:
        """Move both nodes to other addresses at once."""
        await asyncio.gather(*(node.rebind(f"127.0.4.{next(PLACES)}:0") for node in self))

    @asynccontextmanager
    async def moving(self, times: int = 3, every_s: float = 0.25) -> AsyncIterator[None]:
        """Move both nodes some times while the block runs; it must run for longer than that."""
        moves = asyncio.create_task(self._moves(times, every_s))
        try:
            yield
            assert moves.done(), "the block ended before the last move"
        finally:
            moves.cancel()
        await moves

    async def _moves(self, times: int, every_s: float) -> None:
        for _ in range(times):
            await asyncio.sleep(every_s)
            await self.move()


async def pair(make_node: MakeNode) -> Pair:
    """Return two nodes that know each other's name; a third is their seed and stays where it is."""
    seed = await make_node(seed_role=True)
    nodes = Pair(await make_node(seed=seed, name="there"), await make_node(seed=seed, name="here"))
    async with within(20):
        while not all(name_of(runtime_of(one), other.id) for one, other in (nodes, nodes[::-1])):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # names come by gossip, some time after the node
    return nodes


class HttpServer:
    """A service that answers GET requests: ``/lines`` slowly, ``/hang`` never, others at once with the path."""

    def __init__(self) -> None:
        self.streams = 0
        self.requests: list[bytes] = []

    async def __call__(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        self.streams += 1
        with_end = asyncio.IncompleteReadError
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                await self._answer(head.split()[1], writer)
        except with_end:
            return

    async def _answer(self, path: bytes, writer: MeshWriter) -> None:
        if path == b"/hang":
            await asyncio.Event().wait()
        if path == b"/end":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast")
            writer.write_eof()
        elif path == b"/half":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            writer.reset()
        elif path == b"/lines":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(LINES):
                writer.write(b"5\r\n%04d\n\r\n" % number)
                await asyncio.sleep(PAUSE_S)
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(path), path))
        await writer.drain()
