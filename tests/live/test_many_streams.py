"""More streams than there is room for: they wait their turn and not for ever; no service takes another's room."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import meshnode.sdk.connection
import meshnode.sdk.places
from meshnode import MeshReader, MeshWriter, NodeId
from meshnode.errors import ConfigError, ConnectionLost, ServiceUnavailable, StreamLimitError
from meshnode.sdk.node import runtime_of
from meshnode.sdk.transport import Signal
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode, echo
from tests.given_time import wait_for, within


async def _ask(opened: tuple[MeshReader, MeshWriter], text: bytes) -> bytes:
    reader, writer = opened
    writer.write(text)
    writer.write_eof()
    return await reader.read()


async def test_five_hundred_opens_after_five_hundred_all_succeed(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    held = await asyncio.gather(*(here.open(there.id, "echo") for _ in range(500)))
    more = await asyncio.gather(*(here.open(there.id, "echo") for _ in range(500)))
    answers = await asyncio.gather(*(_ask(opened, b"%d" % i) for i, opened in enumerate([*held, *more])))
    assert answers == [b"%d" % i for i in range(1000)]


@pytest.mark.parametrize(("engine", "count"), [("qh3", 500), ("aioquic", 3000)])
async def test_streams_over_what_the_engine_grants_wait_for_others_to_end(
    make_node: MakeNode, engine: str, count: int
) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    there = await make_node(engine=engine)
    here = await make_node(seed=there, engine=engine)
    there.serve("echo", echo, allow=["any"], limit=3000)

    async def ask(number: int) -> bytes:
        return await _ask(await here.open(there.id, "echo"), b"%d" % number)

    assert await asyncio.gather(*map(ask, range(count))) == [b"%d" % i for i in range(count)]


async def test_a_stream_that_is_not_granted_in_time_fails_and_the_next_ones_do_not(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshnode.sdk.connection, "GRANT_S", 0.5)
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    link = await runtime_of(here).connect(there.id)
    open_stream = link.engine.open_stream

    def none() -> int:
        raise StreamLimitError("no more")

    monkeypatch.setattr(link.engine, "open_stream", none)
    with pytest.raises(StreamLimitError):
        await here.open(there.id, "echo")
    waiting = [asyncio.ensure_future(here.open(there.id, "echo")) for _ in range(3)]
    await asyncio.sleep(0.05)
    waiting[1].cancel()
    monkeypatch.setattr(link.engine, "open_stream", open_stream)
    link.engine.ping()
    runtime_of(here).stack.connections.touch(link)  # what comes back may bring a grant
    runtime_of(here).driver.pump()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not link.streams.openers
    assert await _ask(waiting[0].result(), b"one") == b"one"
    assert await _ask(waiting[2].result(), b"two") == b"two"


async def test_what_waits_for_a_stream_learns_that_the_connection_is_lost(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    connection = await here.connect(there.id)
    link = await runtime_of(here).connect(there.id)

    def none() -> int:
        raise StreamLimitError("no more")

    monkeypatch.setattr(link.engine, "open_stream", none)
    waiting = asyncio.ensure_future(connection.open("echo"))
    await asyncio.sleep(0.05)
    connection.close()
    with pytest.raises(ConnectionLost):
        await wait_for(waiting, 5)


async def test_a_service_that_hangs_takes_no_stream_of_another(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)

    async def hang(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await asyncio.Event().wait()

    there.serve("hang", hang, allow=["any"], limit=3)
    there.serve("echo", echo, allow=["any"], limit=1)
    hung = [asyncio.ensure_future(here.open(there.id, "hang")) for _ in range(1500)]
    async with within(5):
        while sum(task.done() for task in hung) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # no fourth one
    assert sum(task.done() and task.exception() is None for task in hung) == 3
    answers = [await _ask(await here.open(there.id, "echo"), b"%d" % i) for i in range(20)]
    assert answers == [b"%d" % i for i in range(20)]
    for task in hung:
        task.cancel()


async def test_a_stream_over_a_services_limit_waits_its_turn_and_not_for_ever(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshnode.sdk.places, "WAIT_S", 0.5)
    monkeypatch.setattr(meshnode.sdk.places, "TAKE_S", 0.2)
    there = await make_node()
    here = await make_node(seed=there)
    running = most = 0

    async def work(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await reader.read()
        running -= 1

    there.serve("work", work, allow=["any"], limit=2)
    first, second = [await here.open(there.id, "work") for _ in range(2)]
    third = asyncio.ensure_future(here.open(there.id, "work"))
    await asyncio.sleep(0.1)
    assert not third.done()
    first[1].write_eof()
    await wait_for(third, 5)
    with pytest.raises(ServiceUnavailable):
        await here.open(there.id, "work")
    assert most == 2
    second[1].write_eof()


async def test_a_peer_that_holds_all_places_of_a_service_loses_one_to_another_peer(make_node: MakeNode) -> None:
    there = await make_node()
    hog, honest, other = [await make_node(seed=there) for _ in range(3)]

    async def hang(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await (asyncio.Event().wait() if peer == hog.id else echo(reader, writer, peer))

    there.serve("work", hang, allow=["any"], limit=4)
    first = await hog.open(there.id, "work")
    hung = [asyncio.ensure_future(hog.open(there.id, "work")) for _ in range(1000)]
    await asyncio.sleep(0.5)
    held = await wait_for(honest.open(there.id, "work"), 5)
    assert await _ask(await wait_for(other.open(there.id, "work"), 5), b"other") == b"other"
    assert await _ask(held, b"held") == b"held"
    first[1].write(b"still there")
    await first[1].drain()
    for task in hung:
        task.cancel()


async def test_a_limit_of_none_is_a_mistake(make_node: MakeNode) -> None:
    node = await make_node()
    with pytest.raises(ConfigError, match="limit"):
        node.serve("none", echo, limit=0)


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_each_of_many_ends_that_are_waited_for_is_woken_a_few_times(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    woken: Counter[Signal] = Counter()
    wait = Signal.wait

    async def counted(signal: Signal) -> None:
        await wait(signal)
        woken[signal] += 1

    monkeypatch.setattr(Signal, "wait", counted)
    there = await make_node(engine=engine)
    here = await make_node(seed=there, engine=engine)
    there.serve("echo", echo, allow=["any"])

    async def ask() -> None:
        async with await here.open(there.id, "echo") as (_, writer):
            writer.write(b"x" * 20_000)
            writer.close()
            await writer.wait_closed()

    await asyncio.gather(*(ask() for _ in range(60)))
    assert len(woken) >= 60
    assert max(woken.values()) <= 3, "once for its bytes, and for the other's end"


@pytest.mark.parametrize("count", [300, 1000])
async def test_hundreds_of_connections_at_once_through_one_forward_are_all_served(
    make_node: MakeNode, count: int
) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    book = ServiceBook(here)
    listen = (await book.forward("127.0.0.1:0", f"{there.id}/echo"))["listen"]
    port = int(listen.rpartition(":")[2])

    async def ask(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"%d" % number)
        writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()

    for _ in range(2):
        assert await asyncio.gather(*map(ask, range(count))) == [b"%d" % i for i in range(count)]
    await book.close()


async def test_clients_over_a_forwards_limit_wait_for_a_place_and_not_for_ever(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.forward.MAX_CLIENTS", 20)
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    book = ServiceBook(here)
    listen = (await book.forward("127.0.0.1:0", f"{there.id}/echo"))["listen"]

    async def client() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
        writer.write(b"x")
        return reader, writer

    held = [await client() for _ in range(20)]
    assert [await reader.readexactly(1) for reader, _ in held] == [b"x"] * 20
    late = [await client() for _ in range(5)]
    answers = [asyncio.ensure_future(reader.readexactly(1)) for reader, _ in late]
    assert not (await asyncio.wait(answers, timeout=0.2))[0]
    for _, writer in held[:5]:
        writer.close()
    assert await wait_for(asyncio.gather(*answers), 5) == [b"x"] * 5
    monkeypatch.setattr(meshnode.sdk.places, "WAIT_S", 0.2)
    monkeypatch.setattr(meshnode.sdk.places, "TAKE_S", 0.1)
    reader, writer = await client()
    with pytest.raises(ConnectionResetError):
        await wait_for(reader.readexactly(1), 5)
    for _, each in [*held[5:], *late, (reader, writer)]:
        each.close()
    await book.close()


async def test_a_host_that_holds_all_places_of_a_forward_loses_one_to_another_network(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.forward.MAX_CLIENTS", 20)
    monkeypatch.setattr(meshnode.sdk.places, "TAKE_S", 0.2)
    there = await make_node()
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    book = ServiceBook(here)
    port = int((await book.forward("127.0.0.1:0", f"{there.id}/echo"))["listen"].rpartition(":")[2])
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.9.1", 0))
    writer.write(b"hello")
    assert await wait_for(reader.readexactly(5), 5) == b"hello"
    for _, each in [*silent, (reader, writer)]:
        each.close()
    await book.close()


async def test_the_limit_of_an_exposed_target_is_kept_over_a_restart(make_node: MakeNode, tmp_path: Path) -> None:
    node = await make_node(home=tmp_path / "home")
    await ServiceBook(node).expose("web", "8000", ("any",), limit=7)
    await node.close()
    book = ServiceBook(await make_node(home=tmp_path / "home"))
    await book.restore()
    assert book.exposes["web"].setting.limit == 7
    with pytest.raises(ConfigError, match="limit"):
        await book.expose("web", "8000", ("any",), limit=0)
    assert book.exposes["web"].setting.limit == 7


@pytest.mark.skipif(not shutil.which("redis-benchmark"), reason="redis is not installed")
async def test_redis_benchmark_with_two_hundred_clients_runs_through_a_forward(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = probe.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    options = ["--port", str(target), "--bind", "127.0.0.1", "--save", ""]
    server = await asyncio.create_subprocess_exec("redis-server", *options, **quiet)
    try:
        assert server.stdout is not None
        async with within(20):
            while b"Ready to accept" not in await server.stdout.readline():
                pass
        await ServiceBook(there).expose("redis", str(target), ("any",))
        book = ServiceBook(here)
        port = (await book.forward("127.0.0.1:0", f"{there.id}/redis"))["listen"].rpartition(":")[2]
        load = ["-p", port, "-c", "200", "-n", "2000", "-t", "set,get", "--csv"]
        client = await asyncio.create_subprocess_exec("redis-benchmark", *load, **quiet)
        said, _ = await wait_for(client.communicate(), 60)
        await book.close()
    finally:
        server.kill()
        await server.communicate()
    assert client.returncode == 0
    assert {line.split(b",")[0] for line in said.splitlines()} >= {b'"SET"', b'"GET"'}
    assert b"rror" not in said
