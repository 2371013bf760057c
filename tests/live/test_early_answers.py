"""Peers that answer and read no more, and programs that go on sending: the answer arrives whole, then the refusal."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

import meshnode
from meshnode import AttachedNode, ConnectionLost, Node, NodeId
from meshnode.daemon.context import Daemon
from meshnode.daemon.server import ControlServer
from meshnode.sdk.node import runtime_of
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.expose import Expose
from meshnode.services.forward import Forward
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.proxy.listener import Proxy
from meshnode.services.proxy.overlay import OverlayNames
from meshnode.services.registry import ServiceBook
from meshnode.services.setting import Setting
from tests.conftest import MakeNode
from tests.given_time import HANG_S, wait_for, within

BODY = os.urandom(3_000_000)  # more than the buffers on its way hold
HEAD = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n" % len(BODY)
SENT = 20_000_000
POST = b"POST http://hasty.there.mesh/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SENT
GET = b"GET http://slow.there.mesh/ HTTP/1.1\r\nHost: x\r\n\r\n"
CONNECT = b"CONNECT hasty.there.mesh:1 HTTP/1.1\r\nHost: x\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def hasty(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
    """Answer what has begun, and end: a close that delivers what was written, and reads no more."""
    await reader.readexactly(10)
    writer.write(HEAD + BODY)


async def pair(make_node: MakeNode) -> tuple[Node, Node]:
    there = await make_node(name="there")
    here = await make_node(seed=there)
    there.serve("hasty", hasty, allow=["any"])
    await here.ping(there.id)
    return there, here


def send_all_then_read(client: socket.socket, ahead: bytes = b"", until: bytes = b"") -> tuple[bytes, str]:
    """Send ``SENT`` bytes, and only then read: what came, and how it ended."""
    client.settimeout(HANG_S)
    client.sendall(ahead)
    came = b""
    while not came.endswith(until):
        came += client.recv(1)
    with suppress(ConnectionError):  # it was told first; what came before can be read all the same
        client.sendall(bytes(SENT))
    parts, end = [], "eof"
    try:
        while data := client.recv(1 << 20):
            parts.append(data)
    except ConnectionResetError:
        end = "reset"
    client.close()
    return b"".join(parts), end


async def started(node: Node) -> Proxy:
    proxy = Proxy(node, OverlayNames(bytes(32)), "127.0.0.1:0")
    await proxy.start()
    return proxy


def connected(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    return socket.create_connection((host, int(port)))


async def test_by_a_forward(make_node: MakeNode) -> None:
    there, here = await pair(make_node)
    forward = Forward(here, "127.0.0.1:0", there.id, "hasty")
    client = connected(await forward.start())
    came, end = await asyncio.to_thread(send_all_then_read, client)
    assert len(came) == len(HEAD + BODY), end
    assert came == HEAD + BODY
    assert end in ("eof", "reset"), "as TCP: its end, and a reset of what was sent in vain"  # words: ok
    async with within(10):
        while forward.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await forward.close()


@pytest.mark.parametrize("ahead", [POST, CONNECT])
async def test_by_the_proxy(make_node: MakeNode, ahead: bytes) -> None:
    _, here = await pair(make_node)
    proxy = await started(here)
    until = CONNECTED if ahead == CONNECT else b""
    came, _ = await asyncio.to_thread(send_all_then_read, connected(proxy.listen), ahead, until)
    assert came.endswith(BODY)
    assert b" 413 " in came
    async with within(10):
        while proxy.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await proxy.close()


async def test_a_client_of_the_proxy_that_sends_on_behind_a_short_answer_is_not_reset(make_node: MakeNode) -> None:
    there, here = await pair(make_node)

    async def brief(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await reader.readexactly(10)
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge")

    there.serve("brief", brief, allow=["any"])
    proxy = await started(here)

    def talk() -> bytes:
        with connected(proxy.listen) as client:
            client.settimeout(HANG_S)
            client.sendall(POST.replace(b"hasty", b"brief") + bytes(100_000))
            came = client.recv(1 << 16)
            for _ in range(20):  # each would be answered by a reset
                client.sendall(bytes(10_000))
                time.sleep(0.01)
            return came + client.recv(1 << 16)

    answer = await asyncio.to_thread(talk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"large")
    await proxy.close()


async def test_by_a_socket(make_node: MakeNode) -> None:
    there, here = await pair(make_node)
    client = await here.socket(there.id, "hasty")
    came, end = await asyncio.to_thread(send_all_then_read, client)
    assert came == HEAD + BODY
    assert end == "reset"


async def test_by_a_protocol(make_node: MakeNode) -> None:
    there, here = await pair(make_node)

    class Uploads(asyncio.Protocol):
        def __init__(self) -> None:
            self.came = bytearray()
            self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
            self.may_write = asyncio.Event()
            self.may_write.set()

        def pause_writing(self) -> None:
            self.may_write.clear()

        def resume_writing(self) -> None:
            self.may_write.set()

        def data_received(self, data: bytes) -> None:
            self.came += data

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    transport, uploads = await here.create_connection(Uploads, there.id, "hasty")
    async with within(HANG_S):
        while not uploads.lost.done():
            transport.write(bytes(65_536))
            await uploads.may_write.wait()
            await asyncio.sleep(0)
    assert uploads.came == HEAD + BODY
    assert isinstance(uploads.lost.result(), ConnectionLost)


async def _half_close(node: Node, to: NodeId) -> Callable[[], int]:
    """A client of a forward that ends after the peer has: how many connections are left."""
    forward = Forward(node, "127.0.0.1:0", to, "brief")
    host, _, port = (await forward.start()).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await wait_for(reader.read(), 10) == b"bye"
    await asyncio.sleep(0.1)
    writer.close()
    return lambda: forward.connections


async def test_a_peer_that_ends_and_then_reads_no_more_leaves_no_connection_behind(make_node: MakeNode) -> None:
    there, here = await pair(make_node)

    async def brief(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        writer.write(b"bye")
        writer.write_eof()
        await writer.drain()
        await asyncio.sleep(0.05)  # the end alone is on its way; that nothing more is read follows

    there.serve("brief", brief, allow=["any"])
    left = await _half_close(here, there.id)
    async with within(10):
        while left():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    links = [link for node in (there, here) for link in runtime_of(node).stack.connections._peers.session_of]
    assert not [stream for link in links for stream in link.streams if stream.service == "brief"]


class Slow:
    """A service that answers when it may."""

    def __init__(self) -> None:
        self.asked, self.may = asyncio.Event(), asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        may = asyncio.ensure_future(self.may.wait())
        more = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((may, more), return_when=asyncio.FIRST_COMPLETED)
        may.cancel()
        if more.done():
            self.ended.set_result(type(more.exception()).__name__)
            return
        more.cancel()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")


async def test_a_client_that_has_ended_its_direction_waits_for_its_answer_however_long(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = await pair(make_node)
    slow = Slow()
    there.serve("slow", slow.serve, allow=["any"])
    proxy = await started(here)
    host, _, port = proxy.listen.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(seconds / 1000))  # an hour is seconds
    writer.write(GET)
    writer.write_eof()
    await wait_for(slow.asked.wait(), 10)
    await sleep(0.3)
    monkeypatch.undo()
    slow.may.set()
    assert (await wait_for(reader.read(), 10)).endswith(b"late")
    writer.close()
    await proxy.close()


async def test_a_client_that_has_gone_before_its_answer_is_given_up(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.splice.GONE_S", 0.05)
    monkeypatch.setattr("meshnode.services.splice.KEEP_ALIVE_S", 1)
    there, here = await pair(make_node)
    slow = Slow()
    there.serve("slow", slow.serve, allow=["any"])
    proxy = await started(here)
    client = connected(proxy.listen)
    client.sendall(GET)
    await wait_for(slow.asked.wait(), 10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # the kernel forgets it a second after its close
    client.close()
    assert await wait_for(slow.ended, 15) == "ConnectionLost"
    assert proxy.connections == 0
    await proxy.close()


# ---- a program that answers, and closes on what it has not read


TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge"
UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SENT
CLIENTS = 6


@pytest.fixture
def curt() -> Iterator[int]:
    """The port of a TCP server that answers the first bytes and closes, which resets what it has not read."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):
                client.recv(1_000)
                client.sendall(TOO_LARGE)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


async def came_of(client: socket.socket, ahead: bytes = UPLOAD, until: bytes = b"") -> bytes:
    return (await asyncio.to_thread(send_all_then_read, client, ahead, until))[0]


@pytest.mark.parametrize("way", ["tcp", "http", "CONNECT", "absolute"])
async def test_a_target_that_closes_on_unread_bytes_is_heard_by_programs(
    make_node: MakeNode, curt: int, way: str
) -> None:
    there, here = await pair(make_node)
    Expose(there, Setting("web", (f"{'http' if way == 'http' else 'tcp'}://127.0.0.1:{curt}",), ("any",)))
    forward, proxy = Forward(here, "127.0.0.1:0", there.id, "web"), await started(here)
    listen = await forward.start()
    if way == "CONNECT":
        ahead = CONNECT.replace(b"hasty", b"web")
        clients = [came_of(connected(proxy.listen), ahead, CONNECTED) for _ in range(CLIENTS)]
    elif way == "absolute":
        clients = [came_of(connected(proxy.listen), POST.replace(b"hasty", b"web")) for _ in range(CLIENTS)]
    else:
        clients = [came_of(connected(listen)) for _ in range(CLIENTS)]
    for came in await asyncio.gather(*clients):
        assert came.startswith((b"HTTP/1.1 413 ", CONNECTED))
        assert came.endswith(b"large")
    await proxy.close()
    await forward.close()


@asynccontextmanager
async def attached(node: Node) -> AsyncIterator[AttachedNode]:
    daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
    control = ControlServer(daemon, node.config.home_path, runtime_of(node).sockets.accepted)
    await control.start()
    async with meshnode.attach(node.config.home_path) as program:
        yield program
    await control.close()


class Uploading(asyncio.Protocol):
    """Sends until its connection is lost."""

    def __init__(self) -> None:
        self.came = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        for _ in range(40):
            transport.write(bytes(100_000))

    def data_received(self, data: bytes) -> None:
        self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def by_open(node: Node | AttachedNode, peer: NodeId) -> bytes:
    reader, writer = await node.open(peer, "web")
    with suppress(ConnectionLost):
        while True:
            writer.write(bytes(100_000))
            await writer.drain()
    came = await reader.readexactly(len(TOO_LARGE))
    with pytest.raises(ConnectionLost):
        await reader.read(1)
    writer.close()
    return came


async def by_protocol(node: Node | AttachedNode, peer: NodeId) -> bytes:
    _, protocol = await node.create_connection(Uploading, peer, "web")
    assert isinstance(await wait_for(protocol.lost, HANG_S), ConnectionLost)
    return protocol.came


async def by_socket(node: Node | AttachedNode, peer: NodeId) -> bytes:
    return await came_of(await node.socket(peer, "web"))


@pytest.mark.parametrize("way", [by_open, by_protocol, by_socket])
@pytest.mark.parametrize("is_attached", [False, True], ids=["node", "attached"])
async def test_a_target_that_closes_on_unread_bytes_is_heard_by_the_sdk(
    make_node: MakeNode, curt: int, way: Callable[[Node | AttachedNode, NodeId], Awaitable[bytes]], is_attached: bool
) -> None:
    there, here = await pair(make_node)
    Expose(there, Setting("web", (f"tcp://127.0.0.1:{curt}",), ("any",)))
    async with attached(here) as program:
        node = program if is_attached else here
        came = await asyncio.gather(*(way(node, there.id) for _ in range(CLIENTS)))
    assert came == [TOO_LARGE] * CLIENTS
