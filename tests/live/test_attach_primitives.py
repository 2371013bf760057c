"""What an attached program has beside streams: instances, echoes, servers, sockets, datagrams; and what it lacks."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import pytest

import meshnode
from meshnode import AttachedNode, ConfigError, Datagrams, NodeId, PolicyDenied
from meshnode.base.limits import FLOW_QUEUE
from meshnode.daemon.attached.control import ask
from meshnode.daemon.attached.flow import LocalFlow
from meshnode.daemon.requests.attached import Serve, Take
from meshnode.errors import ConnectionLost, FlowClosed, NotFound, ServiceNotFound, ServiceUnavailable
from meshnode.sdk.streams import MeshWriter
from tests.given_time import wait_for, within
from tests.live.cli_node import CliNode, stopping

BIG = os.urandom(2_000_000)
DEADLINE_S = 20.0


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


class Echo(asyncio.Protocol):
    """Sends back what comes, and ends when the peer has."""

    made: ClassVar[list[Echo]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.lost: list[Exception | None] = []
        Echo.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def echo(reader: asyncio.StreamReader, writer: MeshWriter, peer: NodeId) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def drop(reader: asyncio.StreamReader, writer: MeshWriter, peer: NodeId) -> None:
    await reader.readexactly(4)
    writer.reset()


async def test_the_instances_of_a_service_are_found(homes: Homes, there: AttachedNode, here: AttachedNode) -> None:
    service = there.serve("found", echo, [homes.here.id], meta={"zone": "a"})
    await service.started()
    assert (service.name, service.is_served) == ("found", True)
    async with within(DEADLINE_S):
        while not (instances := await here.find("found")):  # it waits for a moment by itself
            pass
    (found,) = instances
    assert (str(found.node), found.service, found.meta) == (homes.there.id, "found", {"zone": "a"})
    assert (found.offer.restricted, found.offer.healthy) == (True, True)
    assert found.expires > 0
    assert await here.find("nothing") == []
    with pytest.raises(ConfigError):
        await here.find("")
    service.close()
    assert not service.is_served


async def test_an_echo_tells_the_round_trip_and_the_path(homes: Homes, here: AttachedNode) -> None:
    found = await here.ping("there", timeout=5.0)
    assert found.rtt is not None
    assert 0 < found.rtt < 5
    assert found.path in ("direct", "lan")
    assert str(found.endpoint) == homes.there.endpoint


async def test_a_server_of_protocols_serves_and_ends_in_order(there: AttachedNode, here: AttachedNode) -> None:
    Echo.made.clear()
    server = await there.create_server(Echo, "protocol", ["any"])
    async with server:
        assert (server.is_serving(), server.sockets) == (True, ())
        reader, writer = await here.open("there", "protocol")
        writer.write(BIG)
        writer.write_eof()
        assert await wait_for(reader.read(), DEADLINE_S) == BIG
        writer.close()
        await writer.wait_closed()
        (protocol,) = Echo.made
        assert protocol.transport.get_extra_info("peer") == here.id
    assert not server.is_serving()
    assert protocol.lost == [None]  # it was waited for


async def test_the_clients_of_a_server_are_aborted(there: AttachedNode, here: AttachedNode) -> None:
    server = await there.create_server(Echo, "aborted", ["any"])
    reader, writer = await here.open("there", "aborted")
    writer.write(b"here")
    assert await wait_for(reader.readexactly(4), DEADLINE_S) == b"here"
    server.close()
    waiting = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.1)
    assert not waiting.done(), "closing ends no connection"
    server.abort_clients()
    await wait_for(waiting, DEADLINE_S)
    with pytest.raises(ConnectionError):
        await wait_for(reader.read(1), DEADLINE_S)
    with pytest.raises(ConfigError):
        await there.create_server(Echo, "", ["any"])


async def test_a_stream_is_a_socket(there: AttachedNode, here: AttachedNode) -> None:
    for name, handler in (("socket", echo), ("drop", drop)):
        await there.serve(name, handler, ["any"]).started()
    sock = await here.socket("there", "socket")
    assert (sock.peer, sock.service) == (there.id, "socket")
    sending = asyncio.create_task(asyncio.to_thread(sock.sendall, BIG))
    got = await asyncio.to_thread(_exactly, sock, len(BIG))
    await sending
    sock.shutdown(socket.SHUT_WR)
    assert (got, await asyncio.to_thread(sock.recv, 1)) == (BIG, b"")
    sock.close()
    with await here.socket("there", "drop") as lost:
        lost.sendall(b"half")
        lost.settimeout(DEADLINE_S)
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(lost.recv, 1)


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        data = sock.recv(1 << 16)
        assert data, "it ended early"
        got += data
    return bytes(got)


async def test_errors_are_those_of_a_node(homes: Homes, there: AttachedNode, here: AttachedNode) -> None:
    await there.serve("closed", echo, [homes.there.id]).started()
    with pytest.raises(PolicyDenied):
        await here.socket("there", "closed")
    with pytest.raises(ServiceNotFound):
        await here.datagrams("there", "none")


class UdpEcho(asyncio.DatagramProtocol):
    """A target of datagrams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def test_datagrams_come_whole_and_what_is_too_long_is_told(homes: Homes, here: AttachedNode) -> None:
    loop = asyncio.get_running_loop()
    target, _ = await loop.create_datagram_endpoint(UdpEcho, ("127.0.0.1", 0))
    port = target.get_extra_info("sockname")[1]
    await asyncio.to_thread(homes.there.ask, "expose", "echoes", f"udp://127.0.0.1:{port}", "--allow", "any")
    async with await here.datagrams("there", "echoes") as flow:
        assert (str(flow.peer), flow.service, flow.max_size) == (homes.there.id, "echoes", 1_160)
        for data in (b"one", os.urandom(flow.max_size)):
            assert flow.send(data)
            assert await wait_for(flow.receive(), DEADLINE_S) == data
        with pytest.raises(ValueError, match="at most 1160 bytes"):
            flow.send(bytes(flow.max_size + 1))
        assert not flow.is_closed
    with pytest.raises(FlowClosed):
        flow.send(b"late")
    async with await here.datagrams_any("echoes", trusted="any") as flow:
        flow.send(b"any")
        assert await wait_for(flow.receive(), DEADLINE_S) == b"any"
        await asyncio.to_thread(homes.there.ask, "unexpose", "echoes")
        with pytest.raises(ConnectionError):
            await wait_for(flow.receive(), DEADLINE_S)
    target.close()


async def test_datagrams_are_served_as_a_node_serves_them(there: AttachedNode, here: AttachedNode) -> None:
    ended: asyncio.Queue[tuple[NodeId, str]] = asyncio.Queue()

    async def answer(flow: Datagrams, peer: NodeId) -> None:
        async for data in flow:
            flow.send(b"<" + data)
        ended.put_nowait((peer, flow.service))

    service = there.serve_datagrams("answers", answer, allow="any", meta={"kind": "udp"})
    await service.started()
    async with await here.datagrams("there", "answers") as flow, await here.datagrams("there", "answers") as other:
        for data in (b"one", b"", os.urandom(flow.max_size - 1)):
            assert flow.send(data)
            assert await wait_for(flow.receive(), DEADLINE_S) == b"<" + data
        other.send(b"two")
        assert await wait_for(other.receive(), DEADLINE_S) == b"<two"
    for _ in range(2):
        assert await wait_for(ended.get(), DEADLINE_S) == (here.id, "answers")

    async def is_told() -> bool:
        return [dict(one.offer.meta) for one in await here.find("answers")] == [{"kind": "udp"}]

    await _until(is_told)
    service.close()

    async def is_gone() -> bool:
        with suppress(ServiceUnavailable):  # its node is just told that the program serves it no more
            async with await here.datagrams("there", "answers"):
                return False
        return False

    with pytest.raises(ServiceNotFound):
        await _until(is_gone)


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with within(DEADLINE_S):
        for _ in range(1_000):
            if await holds():
                return
            await asyncio.sleep(0.02)


async def test_a_handler_of_datagrams_ends_its_flow(there: AttachedNode, here: AttachedNode) -> None:
    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: failures.append(told["exception"]))

    async def once(flow: Datagrams, peer: NodeId) -> None:
        flow.send(await flow.receive())

    async def fail(flow: Datagrams, peer: NodeId) -> None:
        raise LookupError(await flow.receive())

    async def wait(flow: Datagrams, peer: NodeId) -> None:
        await flow.receive()

    for name, handler in (("once", once), ("fail", fail), ("wait", wait)):
        await there.serve_datagrams(name, handler, [here.id]).started()
    flow = await here.datagrams("there", "once")
    flow.send(b"x")
    assert await wait_for(flow.receive(), DEADLINE_S) == b"x"
    with pytest.raises(FlowClosed):
        await wait_for(flow.receive(), DEADLINE_S)
    flow = await here.datagrams("there", "fail")
    flow.send(b"x")
    with pytest.raises(ConnectionLost):
        await wait_for(flow.receive(), DEADLINE_S)
    for end in (Datagrams.close, Datagrams.reset):  # that a peer goes is no failure of a handler
        flow = await here.datagrams("there", "wait")
        end(flow)

    async def is_over() -> bool:
        return not any("_handle_flow" in repr(task) for task in there._tasks)

    await _until(is_over)
    assert [repr(error) for error in failures] == ["LookupError(b'x')"]


async def test_a_flow_that_the_program_does_not_take_is_refused(homes: Homes, here: AttachedNode) -> None:
    async with meshnode.attach(homes.there.home) as lazy:
        answers = ask(homes.there.home, Serve("lazy", ("any",), datagrams=True))
        assert await anext(answers) == {"serving": "lazy"}
        opening = asyncio.create_task(here.datagrams("there", "lazy"))
        told = await wait_for(anext(answers), DEADLINE_S)
        await answers.aclose()  # the program has gone
        with pytest.raises(ServiceUnavailable):
            await wait_for(opening, DEADLINE_S)
        late = Take(told["stream"], told["peer"], "lazy")
        with pytest.raises(NotFound):
            await lazy._flow(late)
        await lazy._handle_flow(late, never)  # which is no failure of a service


async def never(flow: Datagrams, peer: NodeId) -> None:
    raise AssertionError("there is no flow")


async def test_the_flows_of_a_program_that_ends_are_lost(homes: Homes, here: AttachedNode) -> None:
    async def wait(flow: Datagrams, peer: NodeId) -> None:
        async for data in flow:
            flow.send(data)

    async with meshnode.attach(homes.there.home) as program:
        service = program.serve_datagrams("short", wait, allow="any", limit=1)
        await service.started()
        async with await here.datagrams("there", "short"):
            pass
        flow = await here.datagrams("there", "short")  # the place of the first is free
        flow.send(b"there")
        assert await wait_for(flow.receive(), DEADLINE_S) == b"there"
    with pytest.raises(ConnectionLost):
        await wait_for(flow.receive(), DEADLINE_S)
    async with meshnode.attach(homes.there.home) as program:
        await program.serve_datagrams("short", wait, allow="any", limit=1).started()
        async with await here.datagrams("there", "short") as again:  # the one place is free
            again.send(b"again")
            assert await wait_for(again.receive(), DEADLINE_S) == b"again"
        with pytest.raises(ConfigError, match="exists already"):
            await program.serve("short", echo, allow="any").started()


async def test_datagrams_that_are_not_taken_make_room_for_newer_ones() -> None:
    ours, its = socket.socketpair()
    ours.setblocking(False)
    flow = LocalFlow(ours)
    told = {"peer": str(NodeId(bytes(32))), "service": "s"}
    held = flow.begin(told)
    for number in range(2_000):
        flow.arrived(number.to_bytes(2, "big") + bytes(1_000))
    assert held.dropped > 0
    assert flow.size <= FLOW_QUEUE
    assert await held.receive() == held.dropped.to_bytes(2, "big") + bytes(1_000)
    while held.send(bytes(1_160)):
        pass
    assert held.unsent == 1
    held.reset()
    its.close()


async def test_it_has_all_methods_of_a_node_but_those_of_one_that_runs_here(tmp_path: Path) -> None:
    public = {name for name in dir(meshnode.Node) if not name.startswith("_")}
    lacks = public - set(dir(AttachedNode))
    assert lacks == {"config", "connect", "is_closed", "rebind", "record", "roles"}
