"""Services of several targets: a dead one is told to the mesh in time, and no caller is sent to it; ranges of ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from meshnode import Node, NodeId
from meshnode.daemon.describe import describe_exposes, describe_forwards
from meshnode.errors import ConfigError, NotFound, ServiceUnavailable
from meshnode.runtime import host_names
from meshnode.services import expose
from meshnode.services.ends import End
from meshnode.services.health import reach
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for, within

DEADLINE_S = 10.0
ANNOUNCED_S = 2.0


class Program:
    """A TCP server that tells its name; it can be stopped and started at the same port."""

    def __init__(self, name: str) -> None:
        self.name, self.port, self.met = name.encode(), 0, 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> Program:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.met += 1
        self._writers.append(writer)
        writer.write(self.name)
        with suppress(OSError):  # a check is gone already
            writer.write_eof()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()


async def called(node: Node, trusted: str | NodeId = "any") -> bytes:
    async with await node.open_any("db", trusted=trusted) as (reader, writer):
        answer = await wait_for(reader.read(), DEADLINE_S)
        writer.close()
    return answer


async def until(true: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Wait for something to be."""
    async with within(seconds):
        while not true():  # noqa: ASYNC110 - a state announces no change
            await asyncio.sleep(0.01)


def state(node: Node, of: Node) -> str | None:
    """What the mesh says of an instance, as another node sees it."""
    from meshnode.sdk.node import runtime_of

    registry = runtime_of(node).stack.registry
    assert registry is not None
    found = registry.directory.instances("db", 0.0, runtime_of(node).clock.wall())
    return next((each.state for each in found if each.node == of.id), None)


@pytest.mark.parametrize("health", ["auto", "connect"])
async def test_a_dead_target_is_announced_no_caller_is_sent_to_it_and_it_comes_back_by_itself(
    make_node: MakeNode, health: str
) -> None:
    one = await make_node()
    two, caller = [await make_node(seed=one) for _ in range(2)]
    first, second = [await Program(name).start() for name in ("one", "two")]
    books = ServiceBook(one), ServiceBook(two)
    await books[0].expose("db", str(first.port), ("any",), health=health)
    await books[1].expose("db", str(second.port), ("any",), health=health)
    await until(lambda: (state(caller, one), state(caller, two)) == ("up", "up"))
    assert (await called(caller, one.id), await called(caller, two.id)) == (b"one", b"two")
    await first.stop()
    await until(lambda: state(caller, one) == "failing", ANNOUNCED_S)
    assert {await called(caller) for _ in range(20)} == {b"two"}
    assert state(caller, one) == "failing", "none was sent there, or it would have failed"
    await first.start()
    await until(lambda: state(caller, one) == "up")
    assert await called(caller, one.id) == b"one"
    for book, program in zip(books, (first, second), strict=True):
        await book.close()
        await program.stop()


async def test_where_nothing_checks_a_caller_finds_a_dead_target_and_it_is_well_again_by_itself(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expose, "RECOVER_S", 0.05)
    there = await make_node()
    caller = await make_node(seed=there)
    program = await Program("one").start()
    book = ServiceBook(there)
    await book.expose("db", str(program.port), ("any",), health="none")
    assert await called(caller, there.id) == b"one"
    await program.stop()
    await asyncio.sleep(2)
    assert state(caller, there) == "up"
    with pytest.raises(ServiceUnavailable):
        await called(caller, there.id)
    await until(lambda: not book.exposes["db"].pool.healthy)
    await program.start()
    await until(lambda: book.exposes["db"].pool.healthy)
    await book.close()
    await program.stop()


async def test_callers_never_notice_that_one_of_two_targets_died(make_node: MakeNode) -> None:
    there = await make_node()
    caller = await make_node(seed=there)
    first, second = [await Program(name).start() for name in ("one", "two")]
    book = ServiceBook(there)
    told = await book.expose("db", [str(first.port), str(second.port)], ("any",))
    assert told["target"] == f"tcp://127.0.0.1:{first.port}, tcp://127.0.0.1:{second.port}"
    await until(lambda: state(caller, there) == "up")
    assert [await called(caller) for _ in range(4)].count(b"one") == 2, "by turns"
    await first.stop()
    assert {await called(caller) for _ in range(10)} == {b"two"}
    assert state(caller, there) == "up"
    (shown,) = describe_exposes(book)
    assert (shown["state"], shown["last_error"]) == ("up", None)
    assert [each["last_error"] for each in shown["targets"]] == ["connection refused", None]
    await first.start()
    await until(lambda: not book.exposes["db"].pool.members[0].error)
    assert {await called(caller) for _ in range(4)} == {b"one", b"two"}
    await book.close()
    for program in (first, second):
        await program.stop()


async def test_a_target_that_says_it_is_ill_gets_no_callers(make_node: MakeNode) -> None:
    """By its answers over HTTP alone: it accepts connections all the while."""
    status, met = b"200 OK", 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        asked = await reader.readuntil(b"\r\n\r\n")
        met += b"/call" in asked
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    there = await make_node()
    caller = await make_node(seed=there)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    book = ServiceBook(there)
    await book.expose("db", str(server.sockets[0].getsockname()[1]), ("any",), health="http:/health")
    await until(lambda: state(caller, there) == "up")

    async def call() -> bytes:
        async with await caller.open(there.id, "db") as (reader, writer):
            writer.write(b"GET /call HTTP/1.1\r\n\r\n")
            return await wait_for(reader.readline(), DEADLINE_S)

    assert await call() == b"HTTP/1.1 200 OK\r\n"
    status = b"503 Ill"
    await until(lambda: state(caller, there) == "failing", ANNOUNCED_S)
    with pytest.raises(ConnectionError, match="does not answer"):
        await call()
    assert met == 1
    status = b"200 OK"
    await until(lambda: state(caller, there) == "up")
    assert await call() == b"HTTP/1.1 200 OK\r\n"
    await book.close()
    server.close()


async def test_a_range_of_ports_goes_through_and_is_withdrawn_as_one(make_node: MakeNode, tmp_path: Path) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    programs: list[Program] = []
    while len(programs) < 2 or programs[1].port != programs[0].port + 1:
        programs = [await Program("a").start(), Program("b")]
        programs[1].port = programs[0].port + 1
        try:
            await programs[1].start()
        except OSError:
            programs = []
    first = programs[0].port
    books = ServiceBook(there), ServiceBook(here)
    told = await books[0].expose("game", f"127.0.0.1:{first}-{first + 1}", ("any",))
    assert told["names"] == [f"game-{first}", f"game-{first + 1}"]
    free = await Program("c").start()
    await free.stop()
    with pytest.raises(ConfigError, match="no ranges"):
        await books[1].forward(f"127.0.0.1:{free.port}-{free.port - 1}", f"{there.id}/game")
    listens = f"127.0.0.9:{first}-{first + 1}"
    made = await books[1].forward(listens, f"{there.id}/game")
    assert made == {
        "listen": listens,
        "to": f"{there.id}/game",
        "listens": [f"127.0.0.9:{first}", f"127.0.0.9:{first + 1}"],
    }
    for number, name in enumerate((b"a", b"b")):
        reader, writer = await asyncio.open_connection("127.0.0.9", first + number)
        assert await wait_for(reader.read(), DEADLINE_S) == name
        writer.close()
    again = ServiceBook(there)
    await books[0].close()
    await again.restore()
    assert (await again.unexpose("game"))["name"] == "game"
    assert not again.exposes
    with pytest.raises(NotFound):
        await again.unexpose("game")
    await books[1].unforward(listens)
    assert describe_forwards(books[1]) == []
    for program in programs:
        await program.stop()


async def test_a_range_that_fails_half_way_changes_nothing(make_node: MakeNode) -> None:
    node = await make_node()
    book = ServiceBook(node)
    await book.expose("game-2", "9", ("any",))
    with pytest.raises(ConfigError, match="exists already"):
        node.serve("game-3", lambda reader, writer, peer: asyncio.sleep(0))
        await book.expose("game", "1-4", ("any",))
    assert {name: e.target for name, e in book.exposes.items()} == {"game-2": "tcp://127.0.0.1:9"}
    holder = await asyncio.start_server(lambda reader, writer: None, "127.0.0.9", 0)
    taken = holder.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="another program"):
        await book.forward(f"127.0.0.9:{taken - 1}-{taken}", "one/game")
    assert not book.forwards
    holder.close()
    await book.close()


async def test_a_port_of_localhost_that_only_listens_at_the_other_loopback_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def look_up(host: str) -> list[str]:
        return ["127.0.0.1"] if host == "localhost" else [host]

    monkeypatch.setattr(host_names, "look_up", look_up)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as target:
        (await reach(End("localhost", target.getsockname()[1]))).close()
