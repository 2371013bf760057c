"""A program that is attached to a node, where that stops, or where the program itself gives up in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import meshnode
from meshnode import AttachedNode, ConnectionLost, Datagrams, NodeId, NotRunning
from meshnode.daemon.client import STOPPED_HINT
from meshnode.daemon.context import Daemon
from meshnode.daemon.server import ControlServer
from meshnode.sdk.node import runtime_of
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for, within

DEADLINE_S = 10.0
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@asynccontextmanager
async def attached(home: Path, answer: Answer) -> AsyncIterator[AttachedNode]:
    """A program, attached to a node that answers each question so."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await answer(reader, writer)
        writer.close()

    async with await asyncio.start_unix_server(client, home / "control.sock"):
        node = meshnode.attach(home)
        yield node
        await node.close()


async def hold(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
    await reader.read()


async def hold_flow(flow: Datagrams, peer: NodeId) -> None:
    await flow.receive()


async def test_a_service_ends_with_one_plain_error_when_the_node_stops(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = asyncio.Event()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"result": {"serving": "x"}}\n')
        await stop.wait()

    async with attached(home, serve) as node:
        services = [node.serve("one", hold), node.serve_datagrams("two", hold_flow)]
        for service in services:
            await wait_for(service.started(), DEADLINE_S)
        stop.set()
        async with within(DEADLINE_S):
            while len(told := [r for r in caplog.records if r.name == "meshnode.services"]) + len(failures) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for service in services:
            assert not service.is_served
            with pytest.raises(NotRunning, match="the node has stopped"):
                await service.started()
    assert not failures
    assert [record.getMessage() for record in told] == [
        f"service {name} is served no more: the node has stopped ({STOPPED_HINT})" for name in ("one", "two")
    ]
    assert not any(record.exc_info for record in told)


async def test_a_stream_that_came_when_the_node_stopped_is_no_fault_of_the_program(home: Path) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            writer.write(b'{"result": {"serving": "x"}}\n')
            writer.write(b'{"result": {"stream": "word", "peer": "%s"}}\n' % (b"a" * 52))
            await reader.read()

    async with attached(home, serve) as node:
        node._own = NodeId(bytes(32))
        await wait_for(node.serve("one", hold).started(), DEADLINE_S)
        async with within(DEADLINE_S):
            while asked < 2 or len(node._tasks) > 1:  # noqa: ASYNC110 - the question is over
                await asyncio.sleep(0)
    assert not failures


async def test_a_server_whose_start_is_given_up_is_not_served(home: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        gone.set()

    async with attached(home, wait) as node:
        starting = asyncio.create_task(node.create_server(asyncio.Protocol, "one"))
        await wait_for(asked.wait(), DEADLINE_S)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await wait_for(gone.wait(), DEADLINE_S)


@pytest.mark.parametrize("what", ["open", "datagrams"])
async def test_what_is_given_up_before_its_service_accepts_is_given_up_there(make_node: MakeNode, what: str) -> None:
    there = await make_node()
    here = await make_node(seed=there)
    asked: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def never(*came: object) -> None:
        asked.set_result(came[0])
        await asyncio.Event().wait()

    serve = there.serve if what == "open" else there.serve_datagrams
    serve("never", never, allow="any", accept=False)
    daemon = Daemon(here, ServiceBook(here), ProxyBook(here))
    control = ControlServer(daemon, here.config.home_path, runtime_of(here).sockets.accepted)
    await control.start()
    async with meshnode.attach(here.config.home_path) as node:
        opening = asyncio.ensure_future(getattr(node, what)(there.id, "never"))
        came = await wait_for(asked, 10)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with pytest.raises(ConnectionLost):
            await wait_for(came.read(1) if what == "open" else came.receive(), 10)  # type: ignore[attr-defined]
    await control.close()
