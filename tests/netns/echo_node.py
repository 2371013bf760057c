"""A node to be moved about: ``listen`` serves, ``dial`` opens a stream on which numbers are counted at 100 Hz.

The numbers flow as ``--flow`` says: there and back (``echo``), to the listener only (``up``) or from it only
(``down``). With ``--bulk`` a second stream of the same connection carries as many bytes to the listener as it can.
Each mode prints one JSON line when it is ready. It then takes SIGUSR1 (forget the statistics; prints
``{"reset": true}``) and SIGUSR2 (print them); the end that the numbers come to has them. SIGTERM or the end of
standard input ends the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

from meshnode import Config, Node, NodeId
from meshnode.errors import MeshError
from meshnode.sdk.streams import MeshReader, MeshWriter

PERIOD_S = 0.01
NUMBER = 8
CHUNK = bytes(1 << 18)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Counter:
    """Writes numbers without waiting for their replies, and watches the replies."""

    def __init__(self) -> None:
        self.sent = 0
        self.expected = 0
        self.error: str | None = None
        self.begun = asyncio.Event()
        self.last = time.monotonic()
        self.reset()

    def reset(self) -> None:
        self.gap = 0.0
        self.lost = self.reordered = self.replies = self.bulk = 0

    def report(self) -> dict[str, Any]:
        silence = time.monotonic() - self.last  # a silence that goes on counts too
        return {
            "gap_ms": round(max(self.gap, silence) * 1000, 1),
            "lost": self.lost,
            "reordered": self.reordered,
            "replies": self.replies,
            "bulk_MB": round(self.bulk / 1e6, 1),
            "in_flight": max(0, self.sent - self.expected),
            "error": self.error,
        }

    async def write(self, writer: MeshWriter) -> None:
        due = time.monotonic()
        while True:
            writer.write(self.sent.to_bytes(NUMBER, "big"))
            self.sent += 1
            due += PERIOD_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def read(self, reader: MeshReader) -> None:
        while True:
            number = int.from_bytes(await reader.readexactly(NUMBER), "big")
            now = time.monotonic()
            self.gap = max(self.gap, now - self.last)
            self.last = now
            self.replies += 1
            self.begun.set()
            if number < self.expected:
                self.reordered += 1
            else:
                self.lost += number - self.expected
                self.expected = number + 1

    async def fill(self, writer: MeshWriter) -> None:
        while True:
            writer.write(CHUNK)
            await writer.drain()
            self.bulk += len(CHUNK)

    async def run(self, work: Any) -> None:
        """Note why the stream ended instead of dying of it, so that the report can tell."""
        try:
            await work
        except (MeshError, asyncio.IncompleteReadError) as error:
            self.error = self.error or repr(error)
            self.begun.set()


def answer_signals(node: Node, counter: Counter, peer: str | None = None) -> None:
    def reset() -> None:
        counter.reset()
        say(reset=True)

    def peer_at() -> str | None:
        return next((known["endpoint"] for known in node.peers() if known["id"] == peer), None)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, reset)
    loop.add_signal_handler(signal.SIGUSR2, lambda: say(**counter.report(), peer_at=peer_at()))


def serve(node: Node, counter: Counter) -> None:
    async def echo(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def up(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await counter.run(counter.read(reader))

    async def down(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await Counter().write(writer)

    async def sink(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        while await reader.read(1 << 18):
            pass

    for name, handler in (("echo", echo), ("up", up), ("down", down), ("sink", sink)):
        node.serve(name, handler, allow=["any"])


async def dial(node: Node, args: argparse.Namespace, counter: Counter, stop: asyncio.Event) -> None:
    peer, flow = args.peer, args.flow
    reader, writer = await node.open(peer, flow)
    work = []
    if flow != "down":
        work.append(counter.write(writer))
    if flow != "up":
        work.append(counter.read(reader))
    if args.bulk:
        work.append(counter.fill((await node.open(peer, "sink"))[1]))
    tasks = [asyncio.create_task(counter.run(one)) for one in work]
    if flow != "up":
        await counter.begun.wait()
    answer_signals(node, counter, peer)
    say(id=str(node.id), endpoints=node.status()["endpoints"])
    await stop.wait()
    for task in tasks:
        task.cancel()


async def main(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with suppress(PermissionError):  # a file or /dev/null, which cannot be waited for

        def readable() -> None:
            if not os.read(0, 4_096):
                loop.remove_reader(0)
                stop.set()

        loop.add_reader(0, readable)
    config = Config(
        home=args.home,
        mdns=False,
        listen=args.listen,
        seeds=args.seed,
        seed_role=args.seed_role,
        advertise=args.advertise,
    )
    counter = Counter()
    async with Node(config) as node:
        if args.mode == "dial":
            await dial(node, args, counter, stop)
        else:
            serve(node, counter)
            answer_signals(node, counter)
            say(id=str(node.id), endpoints=node.status()["endpoints"])
            await stop.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("listen", "dial"):
        command = modes.add_parser(mode)
        command.add_argument("--home", required=True)
        command.add_argument("--seed", action="append", default=[], metavar="ID@HOST:PORT")
        command.add_argument("--seed-role", action="store_true")
        command.add_argument("--listen", default="[::]:0")
        command.add_argument("--advertise", action="append", default=[], metavar="ADDR:PORT")
        if mode == "dial":
            command.add_argument("--flow", choices=("echo", "up", "down"), default="echo")
            command.add_argument("--bulk", action="store_true")
            command.add_argument("peer")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
