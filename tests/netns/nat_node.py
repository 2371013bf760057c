"""A node that takes orders: one JSON object a line on standard input, one JSON object a line in answer.

    {"do": "open", "peer": ID}     open an echo stream and count through it at 100 Hz; ``first_byte_ms``
    {"do": "report"}               what the counter has seen since the last reset; the paths in use
    {"do": "reset"}                forget the counter's statistics
    {"do": "pull", "peer": ID, "bytes": N}   fetch so many bytes from the peer; ``MBps``
    {"do": "status"}               node.status(), the resident memory and the processor time

The first line that it prints holds its id and its address. The end of standard input ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

from meshnode import Config, Node
from meshnode.errors import MeshError
from meshnode.sdk.streams import MeshReader, MeshWriter
from tests.netns.echo_node import Counter, say

AROUND_S = 1.0  # a switch's gap is looked for this long before and behind it
PIECE = bytes(65_536)


async def echo(reader: MeshReader, writer: MeshWriter, peer: object) -> None:
    """Send back what comes."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def source(reader: MeshReader, writer: MeshWriter, peer: object) -> None:
    """Send as many bytes as the first eight say."""
    left = int.from_bytes(await reader.readexactly(8), "big")
    while left > 0:
        writer.write(PIECE[: min(left, len(PIECE))])
        left -= len(PIECE)
        await writer.drain()


class Timed(Counter):
    """A counter that remembers when its replies came."""

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=12_000)
        super().__init__()

    async def read(self, reader: MeshReader) -> None:
        class Noting:
            @staticmethod
            async def readexactly(count: int) -> bytes:
                data = await reader.readexactly(count)
                self.times.append(time.monotonic())
                return data

        await super().read(Noting())  # type: ignore[arg-type]

    def gap_around(self, moment: float) -> float:
        """The longest silence, in ms, near a moment."""
        near = [t for t in self.times if abs(t - moment) < AROUND_S]
        return round(max((b - a for a, b in pairwise(near)), default=0.0) * 1000, 1)


class Driven:
    """Carries out the orders."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._counter: Timed | None = None
        self._peer = ""
        self._opened = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one."""
        what = order["do"]
        if what == "open":
            return await self._open(order["peer"])
        if what == "pull":
            return await self._pull(order["peer"], order["bytes"])
        if what == "reset":
            assert self._counter is not None
            self._counter.reset()
            return {"reset": True}
        if what == "status":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            used = {"rss_MB": pages * 4096 / 1e6, "cpu_s": time.process_time()}
            return {**self._node.status(), **used, "paths": self._node.peers()}
        return self._report()

    async def _open(self, peer: str) -> dict[str, Any]:
        self._peer = peer
        self._opened = time.monotonic()
        counter = self._counter = Timed()
        reader, writer = await self._node.open(peer, "echo")
        for work in (counter.write(writer), counter.read(reader)):
            self._tasks.append(asyncio.create_task(counter.run(work)))
        await counter.begun.wait()
        return {"first_byte_ms": round((time.monotonic() - self._opened) * 1000, 1), "path": self._path()}

    def _path(self) -> str:
        """``lan``, ``direct``, ``relay``, ``tunnel`` or ``none``."""
        known = next((p for p in self._node.peers() if p["id"] == self._peer), None)
        if known is None:
            return "none"
        endpoint = known["endpoint"] or ""
        return "tunnel" if endpoint.startswith("wss!") else str(known["path"])

    def _report(self) -> dict[str, Any]:
        known = next((p for p in self._node.peers() if p["id"] == self._peer), None)
        found: dict[str, Any] = {"path": self._path(), "endpoint": known["endpoint"] if known else None}
        if self._counter is not None:
            found |= self._counter.report()
        now, since = time.monotonic(), None
        for step in known["history"] if known is not None else ():
            direct = bool(step["endpoint"]) and "!" not in step["endpoint"] and step["why"] != "dial"
            at = now - step["ago_s"]
            since = None if not direct or at < self._opened else since or at
        if since is not None:
            found["direct_after_ms"] = round((since - self._opened) * 1000, 1)
            if self._counter is not None:
                found["switch_gap_ms"] = self._counter.gap_around(since)
        return found

    async def _pull(self, peer: str, count: int) -> dict[str, Any]:
        reader, writer = await self._node.open(peer, "source")
        began = time.monotonic()
        writer.write(count.to_bytes(8, "big"))
        got = 0
        while got < count and (data := await reader.read(262_144)):
            got += len(data)
        took = time.monotonic() - began
        writer.close()
        return {"MBps": round(got / took / 1e6, 3), "bytes": got, "seconds": round(took, 3)}

    def stop(self) -> None:
        """End the stream."""
        for task in self._tasks:
            task.cancel()


async def main(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    config = Config(
        home=args.home,
        mdns=False,
        listen="[::]:0",
        seeds=args.seed,
        seed_role=args.seed_role,
        gossip=not args.no_gossip,
        relay_mb_per_s=args.relay_mb,
        relay_total_mb_per_s=args.relay_mb * 5,
    )
    async with Node(config) as node:
        node.serve("echo", echo, allow=["any"])
        node.serve("source", source, allow=["any"])
        driven = Driven(node)
        say(id=str(node.id), endpoints=node.status()["endpoints"])
        while line := await lines.readline():
            try:
                say(**await driven.do(json.loads(line)))
            except (MeshError, asyncio.IncompleteReadError) as error:
                say(failed=repr(error))
        driven.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--seed", action="append", default=[], metavar="ID@HOST:PORT")
    parser.add_argument("--seed-role", action="store_true")
    parser.add_argument("--no-gossip", action="store_true")
    parser.add_argument("--relay-mb", type=float, default=10.0)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
