"""More streams than there is room for: they wait their turn and not for ever; no service takes another's room."""

from __future__ import annotations

import asyncio

import pytest

import meshnode.sdk.connection
import meshnode.sdk.service
from meshnode import MeshReader, MeshWriter, NodeId
from meshnode.errors import ConfigError, ConnectionLost, ServiceUnavailable, StreamLimitError
from meshnode.sdk.node import runtime_of
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode, echo


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
        await asyncio.wait_for(waiting, 5)


async def test_a_service_that_hangs_takes_no_stream_of_another(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)

    async def hang(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await asyncio.Event().wait()

    there.serve("hang", hang, allow=["any"], limit=3)
    there.serve("echo", echo, allow=["any"], limit=1)
    hung = [asyncio.ensure_future(here.open(there.id, "hang")) for _ in range(1500)]
    await asyncio.wait(hung, timeout=2)
    assert sum(task.done() and task.exception() is None for task in hung) == 3
    answers = [await _ask(await here.open(there.id, "echo"), b"%d" % i) for i in range(20)]
    assert answers == [b"%d" % i for i in range(20)]
    for task in hung:
        task.cancel()


async def test_a_stream_over_a_services_limit_waits_its_turn_and_not_for_ever(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshnode.sdk.service, "WAIT_S", 0.5)
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
    await asyncio.wait_for(third, 5)
    with pytest.raises(ServiceUnavailable):
        await here.open(there.id, "work")
    assert most == 2
    second[1].write_eof()


async def test_a_limit_of_none_is_a_mistake(make_node: MakeNode) -> None:
    node = await make_node()
    with pytest.raises(ConfigError, match="limit"):
        node.serve("none", echo, limit=0)


@pytest.mark.parametrize("count", [300, 900])
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
