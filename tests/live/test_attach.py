"""``meshnode.attach``: a program that uses the running node of a home."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

import meshnode
from meshnode import (
    AttachedNode,
    ConfigError,
    ConnectionLost,
    EventKind,
    InvalidId,
    NodeClosed,
    NodeId,
    NotFound,
    NotRunning,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
    StreamLimitError,
    StreamMisused,
)
from meshnode.daemon import server
from meshnode.daemon.client import RemoteError, call
from meshnode.daemon.context import Daemon
from meshnode.daemon.requests.node import Status
from meshnode.daemon.server import ControlServer
from meshnode.sdk.node import runtime_of
from meshnode.sdk.streams import MeshWriter
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for, within
from tests.live.cli_node import CliNode, stopping

BIG = os.urandom(3_000_000)
Reader = asyncio.StreamReader


@dataclass
class Homes:
    """Two nodes in processes of their own."""

    there: CliNode
    here: CliNode


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homes]:
    home = tmp_path_factory.mktemp("attach")
    there = CliNode(home / "there", "--name", "there", command="seed")
    here = CliNode(home / "here", "--name", "here", seed=there)
    with stopping(here, there):
        yield Homes(there, here)


@pytest.fixture
async def there(homes: Homes) -> AsyncIterator[AttachedNode]:
    async with meshnode.attach(homes.there.home) as node:
        yield node


@pytest.fixture
async def here(homes: Homes) -> AsyncIterator[AttachedNode]:
    async with meshnode.attach(homes.here.home) as node:
        yield node


async def echo(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def test_it_is_the_node_of_the_home(homes: Homes, here: AttachedNode) -> None:
    assert str(here.id) == homes.here.id
    assert here.address == str(here.id.overlay)
    assert (await here.status())["id"] == homes.here.id
    assert await here.identify("there") == NodeId.parse(homes.there.id)
    found = await here.resolve("there")
    assert (found.record.id, found.source != "") == (NodeId.parse(homes.there.id), True)


async def test_a_stream_carries_both_directions_to_a_service_of_another_attached_program(
    there: AttachedNode, here: AttachedNode
) -> None:
    peers = []

    async def handler(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        peers.append(peer)
        await echo(reader, writer, peer)

    service = there.serve("echo", handler, allow=[here.id])
    await service.started()
    reader, writer = await here.open("there", "echo")
    assert (writer.peer, writer.get_extra_info("service")) == (there.id, "echo")
    assert writer.get_extra_info("peername") == (there.address, 0, 0, 0)

    async def send() -> None:
        writer.write(BIG)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(send())
    assert await reader.read() == BIG
    await sending
    writer.close()
    await writer.wait_closed()
    assert peers == [here.id]
    assert [str(peer["id"]) for peer in await here.peers()] == [str(there.id)]
    service.close()


async def test_close_delivers_what_was_written_and_the_peer_sees_a_clean_end(
    there: AttachedNode, here: AttachedNode
) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def sink(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        got.set_result(await reader.read())
        await asyncio.sleep(5)  # and never ends its own direction in time

    service = there.serve("sink", sink, allow="any")
    await service.started()
    async with within(4):
        async with await here.open(there.id, "sink") as (_, writer):
            writer.write(BIG)
        assert await got == BIG
    service.close()


async def test_an_abnormal_end_is_connection_lost_at_the_other_program(there: AttachedNode, here: AttachedNode) -> None:
    ends: asyncio.Queue[type[BaseException] | bytes] = asyncio.Queue()

    async def handler(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        writer.write(b"x")
        try:
            ends.put_nowait(await reader.read())
        except ConnectionError as error:
            ends.put_nowait(type(error))

    service = there.serve("fragile", handler, allow="any")
    await service.started()
    reader, writer = await here.open("there", "fragile")
    assert await reader.readexactly(1) == b"x"
    writer.reset()
    assert await wait_for(ends.get(), 10) is ConnectionLost

    async def cut(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        await reader.read(1)
        writer.reset()

    await there.serve("cut", cut, allow="any").started()
    reader, writer = await here.open("there", "cut")
    writer.write(b"x")
    with pytest.raises(ConnectionLost):
        await reader.read()
    writer.close()
    service.close()


async def test_errors_are_those_of_a_node(homes: Homes, there: AttachedNode, here: AttachedNode) -> None:
    homes.there.ask("expose", "closed", "9")
    homes.there.ask("expose", "dead", "127.0.0.1:1", "--allow", "any")
    for service, kind in (("none", ServiceNotFound), ("closed", PolicyDenied), ("dead", ServiceUnavailable)):
        with pytest.raises(kind) as refused:
            await here.open("there", service)
        assert refused.value.message
    with pytest.raises(NotFound):
        await here.open("nobody", "echo")
    with pytest.raises(InvalidId):
        await here.open("no name!", "echo")
    with pytest.raises(NotFound):
        await here.open_any("no-such-service")
    with pytest.raises(ConfigError):
        await there.serve("closed", echo).started()
    with pytest.raises(InvalidId):
        await there.serve("other", echo, allow=["x"]).started()


async def test_a_service_by_its_name_alone_is_found(there: AttachedNode, here: AttachedNode) -> None:
    service = there.serve("everywhere", echo, allow="any", meta={"v": "1"})
    await service.started()
    async with within(20):
        reader, writer = await here.open_any("everywhere", trusted=there.id)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    service.close()


async def test_a_service_ends_with_its_program(homes: Homes, here: AttachedNode) -> None:
    async with meshnode.attach(homes.there.home) as other:
        await other.serve("brief", echo, allow="any").started()
        _, writer = await here.open("there", "brief")
        writer.close()
    async with within(10):
        while True:
            try:
                (await here.open("there", "brief"))[1].reset()
            except ServiceNotFound:
                break
            except ServiceUnavailable:  # it was open just then
                continue


class Collector(asyncio.Protocol):
    """Tells what a protocol is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[object] = asyncio.Queue()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"first")

    def data_received(self, data: bytes) -> None:
        self.told.put_nowait(data)

    def eof_received(self) -> bool:
        self.told.put_nowait("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.put_nowait(exc)


async def test_a_protocol_has_a_transport_that_pauses_and_ends_in_order(
    there: AttachedNode, here: AttachedNode
) -> None:
    await there.serve("echo2", echo, allow="any").started()
    transport, protocol = await here.create_connection(Collector, "there", "echo2")
    async with within(10):
        assert await protocol.told.get() == b"first"
        transport.pause_reading()
        assert not transport.is_reading()
        transport.write(b"second")
        await asyncio.sleep(0.2)
        assert protocol.told.empty()
        transport.resume_reading()
        assert await protocol.told.get() == b"second"
        transport.write_eof()
        with pytest.raises(RuntimeError):
            transport.write(b"late")
        assert await protocol.told.get() == "eof"
        transport.close()
        assert await protocol.told.get() is None
    assert transport.is_closing()


class Hasty(Collector):
    """Writes more than the buffers take as soon as it can."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.told.put_nowait("made")
        for _ in range(8):  # the node may take what it has room for while this writes
            transport.write(BIG)

    def pause_writing(self) -> None:
        self.told.put_nowait("pause")

    def resume_writing(self) -> None:
        self.told.put_nowait("resume")


async def test_a_protocol_that_writes_at_once_is_told_to_pause(there: AttachedNode, here: AttachedNode) -> None:
    go = asyncio.Event()

    async def late(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        await go.wait()
        await echo(reader, writer, peer)

    await there.serve("echo4", late, allow="any").started()
    transport, protocol = await here.create_connection(Hasty, "there", "echo4")
    assert [protocol.told.get_nowait(), protocol.told.get_nowait()] == ["made", "pause"]
    go.set()
    async with within(20):
        while (told := await protocol.told.get()) != "resume":
            assert isinstance(told, bytes)
    transport.abort()


async def test_back_pressure_reaches_the_sender(there: AttachedNode, here: AttachedNode) -> None:
    go = asyncio.Event()

    async def slow(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        await go.wait()
        writer.write(b"%d" % len(await reader.read()))

    await there.serve("slow", slow, allow="any").started()
    reader, writer = await here.open("there", "slow")
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 100_000_000:
            writer.write(bytes(100_000))
            sent += 100_000
            await wait_for(writer.drain(), 2)
    assert sent < 20_000_000
    go.set()
    writer.write_eof()
    assert await reader.read() == b"%d" % sent
    writer.close()


async def test_topics_and_events(there: AttachedNode, here: AttachedNode) -> None:
    async with await there.join("news") as mine, await here.join("news") as theirs, within(10):
        assert await mine.publish(b"\xff\x00binary") >= 1
        message = await anext(theirs)
        assert (message.sender, message.data, theirs.lost) == (there.id, b"\xff\x00binary", 0)
    async with aclosing(here.events()) as events:
        with pytest.raises(TimeoutError):
            while True:
                await asyncio.wait_for(anext(events), 0.5)  # it listens
        following = asyncio.ensure_future(anext(events))
        await there.serve("eventful", echo, allow="any").started()
        async with within(20):
            event = await following
            while event.service != "eventful":
                event = await anext(events)
        assert (event.kind, event.peer) == (EventKind.SERVICE_UP, there.id)


async def test_without_a_running_node_it_says_so(tmp_path: Path, here: AttachedNode) -> None:
    with pytest.raises(NotRunning):
        async with meshnode.attach(tmp_path):
            pass
    with pytest.raises(NodeClosed):
        await meshnode.attach(tmp_path).open("there", "echo")
    await here.close()
    with pytest.raises(NodeClosed):
        await here.open("there", "echo")


async def test_streams_are_lost_when_the_node_is_killed_and_survive_its_moves(tmp_path: Path, homes: Homes) -> None:
    node = CliNode(tmp_path, seed=homes.there)
    with stopping(node):
        async with meshnode.attach(homes.there.home) as there, meshnode.attach(tmp_path) as here:
            await there.serve("echo3", echo, allow="any").started()
            reader, writer = await here.open(there.id, "echo3")
            for _ in range(3):
                await asyncio.to_thread(node.ask, "rebind", "127.0.0.1:0")
                writer.write(b"hello")
                assert await wait_for(reader.readexactly(5), 10) == b"hello"
            node.kill()
            with pytest.raises(ConnectionLost):
                await reader.read()
            writer.close()


async def test_a_wait_for_a_message_may_be_cancelled_and_is_ended_by_leaving(
    there: AttachedNode, here: AttachedNode
) -> None:
    async with await there.join("waits") as mine, await here.join("waits") as theirs:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(theirs), 0.05)
        await mine.publish(b"after")
        assert (await wait_for(anext(theirs), 10)).data == b"after"
        waiting = asyncio.ensure_future(anext(theirs))
        await asyncio.sleep(0.05)
        with pytest.raises(StreamMisused):
            await anext(theirs)
        await theirs.leave()
        with pytest.raises(StopAsyncIteration):
            await wait_for(waiting, 10)
        with pytest.raises(StopAsyncIteration):
            await anext(theirs)


async def test_after_its_end_every_method_raises_node_closed(homes: Homes) -> None:
    async with meshnode.attach(homes.here.home) as node:
        service = node.serve("brief", echo)
    with pytest.raises(NodeClosed):
        await wait_for(service.started(), 10)
    calls = [node.start, node.status, node.peers, lambda: anext(node.events())]
    calls += [
        lambda: node.find("x"),
        lambda: node.join("x"),
        lambda: node.ping("there"),
        lambda: node.identify("there"),
    ]
    calls += [lambda: node.resolve("there"), lambda: node.open("there", "echo"), lambda: node.open_any("echo")]
    for method in calls:
        with pytest.raises(NodeClosed):
            await method()  # type: ignore[no-untyped-call, operator]
    for serve in (node.serve, node.serve_datagrams):
        with pytest.raises(NodeClosed):
            serve("late", echo)  # type: ignore[operator]


async def test_a_handler_that_meets_the_end_of_its_stream_is_no_error_and_what_it_raises_itself_is_one(
    there: AttachedNode, here: AttachedNode
) -> None:
    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))

    async def find(reader: Reader, writer: MeshWriter, peer: NodeId) -> None:
        await reader.read(1)  # else the reset may come before the answer to the caller's opening
        raise NotFound("what it looks for")

    await there.serve("echo5", echo, allow="any").started()
    await there.serve("find5", find, allow="any").started()
    for service in ("echo5", "find5"):
        reader, writer = await here.open("there", service)
        writer.write(b"x")
        if service == "echo5":
            await reader.read(1)
            writer.reset()
        with pytest.raises(ConnectionLost):
            await reader.read()
        writer.close()
    async with within(10):
        while not failures:  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.01)
    assert [type(error) for error in failures] == [NotFound]


@pytest.fixture
async def control(make_node: MakeNode) -> AsyncIterator[Path]:
    """The home of a node that runs here."""
    node = await make_node()
    node.serve("echo", echo, allow="any")
    daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
    listening = ControlServer(daemon, node.config.home_path, runtime_of(node).sockets.accepted)
    await listening.start()
    yield node.config.home_path
    await listening.close()


async def test_the_last_descriptors_are_for_questions_and_for_no_stream(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with meshnode.attach(control) as node:
        monkeypatch.setattr(server, "is_reserved", lambda sock: True)
        calls = [lambda: node.open("a" * 52, "echo"), lambda: node.datagrams("a" * 52, "echo")]
        for open_one in calls:
            with pytest.raises(StreamLimitError, match="no file descriptors left"):
                await open_one()  # type: ignore[no-untyped-call]
        assert (await node.status())["id"] == str(node.id)


async def test_too_many_questions_at_once_are_told_as_that(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with meshnode.attach(control) as node:
        monkeypatch.setattr(server, "MAX_CONTROL", 0)
        with pytest.raises(StreamLimitError):
            await node.status()
        with pytest.raises(StreamLimitError):
            await node.open("a" * 52, "echo")
        with pytest.raises(RemoteError) as told:
            await asyncio.to_thread(list, call(control, Status()))
        assert told.value.code == StreamLimitError.code


async def test_an_answer_that_broke_off_is_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async def break_off(reader: Reader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"result": {"id": "aaaa')
        writer.close()

    async with await asyncio.start_unix_server(break_off, tmp_path / "control.sock"):
        with pytest.raises(NotRunning):
            await meshnode.attach(tmp_path).status()
        with pytest.raises(NotRunning, match="stopped before it answered"):
            await asyncio.to_thread(list, call(tmp_path, Status()))


async def test_a_node_that_takes_no_connection_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "control.sock"))
        full.listen(0)
        first.connect(str(tmp_path / "control.sock"))
        with pytest.raises(NotRunning, match="does not answer"):
            await meshnode.attach(tmp_path).status()
