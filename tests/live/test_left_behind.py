"""Nothing stays behind what has ended: connections, streams, peers, descriptors and memory are given back."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from operator import attrgetter
from pathlib import Path

import pytest

from meshnode import Config, ConnectionLost, Node
from meshnode.quic.connection import Connection, State
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.node import runtime_of
from meshnode.services.registry import ServiceBook
from meshnode.stack.session import Session
from tests.conftest import MakeNode, echo
from tests.given_time import HANG_S, GivenTime, wait_for

DEADLINE_S = 10.0
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def returns_to(count: Callable[[], int], wanted: int, seconds: float = DEADLINE_S) -> bool:
    """Wait until a count is down to what it was."""
    clock = GivenTime()
    while count() > wanted and clock.left_of(seconds) > 0:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return count() <= wanted


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Way:
    """A TCP target, exposed by one node and forwarded by another."""

    def __init__(self, nodes: tuple[Node, Node], port: int) -> None:
        self.nodes, self.port = nodes, port

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    def streams(self) -> int:
        """Streams to the service that either node has."""
        links = [link for node in self.nodes for link in runtime_of(node).stack.connections._peers.session_of]
        return sum(stream.service == "x" for link in links for stream in link.streams)


@asynccontextmanager
async def way(make_node: MakeNode, answer: Answer) -> AsyncIterator[Way]:
    there = await make_node()
    here = await make_node(seed=there)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=500)
    books = ServiceBook(there), ServiceBook(here)
    await books[0].expose("x", str(server.sockets[0].getsockname()[1]), ("any",))
    listen = (await books[1].forward("127.0.0.1:0", f"{there.id}/x"))["listen"]
    yield Way((there, here), int(listen.rpartition(":")[2]))
    for book in books:
        await book.close()
    server.close()


async def _lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_short_connections_a_quarter_of_them_broken_off_are_given_back(make_node: MakeNode) -> None:
    async with way(make_node, _lines) as through:

        async def one(number: int) -> bool:
            reader, writer = await through.client()
            writer.write(b"%d\n" % number)
            if number % 4 == 0:
                reset(writer)
                return True
            answer = await wait_for(reader.readline(), DEADLINE_S)
            writer.close()
            return answer == b"%d\n" % number

        async def crowd() -> None:
            for first in range(0, 400, 40):
                assert all(await asyncio.gather(*(one(first + n) for n in range(40))))
            assert await returns_to(through.streams, 0)

        await crowd()
        before = descriptors()
        gc.collect()
        alive = sum(isinstance(thing, Stream) for thing in gc.get_objects())
        await crowd()
        assert await returns_to(descriptors, before)
        gc.collect()
        assert sum(isinstance(thing, Stream) for thing in gc.get_objects()) <= alive


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_clients_that_give_up_on_a_target_that_hangs_are_given_back(
    make_node: MakeNode, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.splice.GONE_S", 0.1)
    monkeypatch.setattr("meshnode.services.splice.KEEP_ALIVE_S", 1)
    taken: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)  # says nothing, closes nothing, and asyncio's handler returns

    async with way(make_node, hang) as through:
        for _ in range(60):
            _, writer = await through.client()
            writer.write(b"hello\n")
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
            await asyncio.sleep(0.002)
            if how == "reset":
                reset(writer)
            else:
                writer.close()
        assert await returns_to(through.streams, 0)
        _, writer = await through.client()
        writer.write(b"still here?\n")
        assert await returns_to(lambda: -len(taken), -61), "a new client reaches the target"
        for each in [*taken, writer]:
            each.transport.abort()


async def test_a_client_that_leaves_half_an_answer_unread_is_given_back(make_node: MakeNode) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with way(make_node, flood) as through:
        clients = [await through.client() for _ in range(20)]
        assert [len(await reader.readexactly(1000)) for reader, _ in clients] == [1000] * 20
        for _, writer in clients:
            writer.close()
        assert await returns_to(through.streams, 0)


# ---- peers that come and go

KINDS = (Connection, Stream, Session)


def census() -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, KINDS))


def vanish(runtime: Runtime) -> None:
    """End a node as a killed process would: not one packet more."""
    runtime.sockets.abort()
    runtime.driver.close()
    runtime.is_closed = True


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
async def test_peers_that_come_once_and_vanish_leave_nothing_behind(
    make_node: MakeNode, tmp_path: Path, engine: str
) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    # A process that gets no CPU for a whole idle time loses those that are there too; and QUIC waits for three of its
    # own timeouts at least (RFC 9000 section 10.1), which are seconds where all these nodes wait for a CPU.
    server = await make_node(idle_timeout=5.0, seed_role=True, engine=engine)
    server.serve("echo", echo, allow="any")
    seed = f"{server.id}@{server.record.endpoints[0]}"

    async def talk(node: Node) -> None:
        reader, writer = await node.open(server.id, "echo")
        writer.write(b"once")
        assert await reader.readexactly(4) == b"once"

    async def visit(number: int) -> None:
        home = tmp_path / f"visitor{number}"
        config = Config(home=home, listen="127.0.0.1:0", mdns=False, port_mapping=False, seeds=(seed,), engine=engine)
        async with Node(config) as node:
            for last in (False, False, True):
                try:
                    await talk(node)
                    break
                except ConnectionLost:  # both had no CPU for a whole idle time, say
                    if last:
                        raise
            if number % 2:
                vanish(runtime_of(node))

    table = runtime_of(server).stack.connections._peers

    def held() -> Counter[str]:
        return census() + Counter(descriptors=descriptors(), sessions=len(table.sessions))

    async def crowd(first: int) -> Counter[str]:
        for number in range(first, first + 10, 5):
            await asyncio.gather(*(visit(each) for each in range(number, number + 5)))
        assert await returns_to(lambda: sum(link.state is State.READY for link in table.session_of), 0, HANG_S)
        return held()

    attempts = 5  # to reach a peer again that has vanished: some at any time, and now and then more, until they end
    first = await crowd(0)
    for number in (1, 2):
        await crowd(10 * number)
    assert await returns_to(lambda: max((held() - first).values(), default=0), attempts), (first, held())


@pytest.mark.parametrize(("engine", "part"), [("aioquic", "_quic.tls"), ("qh3", "_quic")])
async def test_what_an_ended_connection_held_is_free_without_a_garbage_collection(
    make_node: MakeNode, engine: str, part: str
) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    there = await make_node(engine=engine)
    there.serve("echo", echo, allow="any")
    here = await make_node(seed=there, engine=engine)
    reader, writer = await here.open(there.id, "echo")
    writer.write(b"once")
    assert await reader.readexactly(4) == b"once"
    links = [link for node in (there, here) for link in runtime_of(node).stack.connections._peers.session_of]
    assert len(links) == 2
    held = [weakref.ref(attrgetter(part)(link.engine)) for link in links]
    del links
    gc.collect()
    gc.disable()
    try:
        await here.close()
        assert await returns_to(lambda: sum(ref() is not None for ref in held), 0)
    finally:
        gc.enable()
    assert writer.get_extra_info("peername")  # the stream's two ends outlive its connection
