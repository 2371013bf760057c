"""A service as a socket of the operating system: what TCP promises, on a pair of Unix sockets."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.client
import itertools
import os
import socket
import threading
from collections.abc import Callable

import pytest

from meshnode import MeshSocket, MeshWriter, Node
from meshnode.errors import PolicyDenied, ServiceNotFound
from meshnode.sdk.pump import ToSocket
from meshnode.sdk.sockets import _send_at_once
from tests.conftest import MakeNode, echo
from tests.engines import every_engine
from tests.given_time import HANG_S, wait_for, within

PLACES = itertools.count(2)


class Peer:
    """A service whose one stream a test holds."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.done = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: object) -> None:
        self.came.put_nowait((reader, writer))
        await self.done.wait()


async def _pair(make_node: MakeNode, **settings: str) -> tuple[Node, Node]:
    listener = await make_node(**settings)
    return listener, await make_node(seed=listener, **settings)


async def _held(make_node: MakeNode) -> tuple[MeshSocket, asyncio.StreamReader, asyncio.StreamWriter, Peer]:
    listener, dialler = await _pair(make_node)
    peer = Peer()
    listener.serve("held", peer.handle, allow=["any"])
    sock = await dialler.socket(listener.id, "held")
    sock.settimeout(HANG_S)
    return sock, *await wait_for(peer.came.get(), 5), peer


async def _recv(sock: socket.socket, size: int = 1 << 16) -> bytes:
    return await wait_for(asyncio.to_thread(sock.recv, size), 10)


async def _all(sock: socket.socket) -> bytes:
    parts = []
    while data := await _recv(sock):
        parts.append(data)
    return b"".join(parts)


async def test_it_is_a_socket_that_blocks_sends_and_receives(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve("echo", echo, allow=["any"])
    with await dialler.socket(listener.id, "echo") as sock:
        assert isinstance(sock, socket.socket)
        assert isinstance(sock, MeshSocket)
        assert (sock.peer, sock.service, sock.getblocking()) == (listener.id, "echo", True)
        assert os.fstat(sock.fileno())
        await asyncio.to_thread(sock.sendall, b"hello")
        assert await _recv(sock) == b"hello"
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"again")
        assert await loop.sock_recv(sock, 100) == b"again"
    with pytest.raises(ServiceNotFound):
        await dialler.socket(listener.id, "none")
    listener.serve("closed", echo)
    with pytest.raises(PolicyDenied):
        await dialler.socket(listener.id, "closed")


async def test_half_close_goes_both_ways_and_both_ends_are_clean(make_node: MakeNode) -> None:
    sock, reader, writer, peer = await _held(make_node)
    await asyncio.to_thread(sock.sendall, b"all that I say" * 10_000)
    sock.shutdown(socket.SHUT_WR)
    assert await wait_for(reader.read(), 5) == b"all that I say" * 10_000
    writer.write(b"and I hear on")
    assert await _recv(sock) == b"and I hear on"
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    writer.write(b"to the end")
    writer.write_eof()
    assert await _all(sock) == b"to the end"
    await wait_for(writer.wait_closed(), 5)
    await wait_for(sock._bridge.ended.wait(), 5)  # both directions are over: nothing is held for it
    peer.done.set()
    sock.close()


async def test_half_close_while_the_peer_is_behind_loses_nothing(make_node: MakeNode) -> None:
    """All is read of the program, and more than the mark waits for the peer, when the direction ends."""
    sock, reader, writer, peer = await _held(make_node)
    size = (3 << 20) + 100_000  # a window of 2 MiB is taken, 1 MiB is the mark
    await asyncio.to_thread(sock.sendall, bytes(size))
    await asyncio.sleep(0.3)
    sock.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.1)
    assert sock._bridge._stream.queued > 1 << 19
    assert len(await wait_for(reader.read(), 10)) == size
    writer.write(b"answer")
    assert await _recv(sock) == b"answer"
    writer.write_eof()
    assert await _recv(sock) == b""
    sock.close()
    peer.done.set()


async def test_the_peer_ends_first_and_the_program_goes_on(make_node: MakeNode) -> None:
    sock, reader, writer, peer = await _held(make_node)
    writer.write_eof()
    assert await _recv(sock) == b""
    await asyncio.to_thread(sock.sendall, b"still here")
    assert await wait_for(reader.readexactly(10), 5) == b"still here"
    sock.shutdown(socket.SHUT_WR)
    assert await wait_for(reader.read(), 5) == b""
    await wait_for(sock._bridge.ended.wait(), 5)
    sock.close()
    peer.done.set()


@pytest.mark.parametrize("state", ["silent", "has sent", "has ended its direction", "sends more than is read"])
async def test_a_reset_is_econnreset_and_never_an_end(make_node: MakeNode, state: str) -> None:
    sock, reader, writer, _ = await _held(make_node)
    if state != "silent":
        await asyncio.to_thread(sock.sendall, b"x")
        await reader.readexactly(1)
    if state == "has ended its direction":
        sock.shutdown(socket.SHUT_WR)
        assert await wait_for(reader.read(), 5) == b""
    if state == "sends more than is read":
        sock.setblocking(False)
        sent = 0
        for _ in range(200):
            try:
                while sent < 20 << 20:
                    sent += sock.send(bytes(1 << 16))
            except BlockingIOError:
                await asyncio.sleep(0.005)
        assert sent < 6 << 20, "a window, the mark, and what the pair of sockets holds"
        sock.settimeout(HANG_S)
    writer.transport.abort()
    with pytest.raises(ConnectionResetError):
        await _all(sock)
    sock.close()


@pytest.mark.parametrize("state", ["open", "ended"])
async def test_a_duplicate_is_a_socket_like_the_first(make_node: MakeNode, state: str) -> None:
    first, reader, writer, peer = await _held(make_node)
    sock = first.dup()
    assert (sock.peer, sock.service) == (first.peer, first.service)
    first.close()
    await asyncio.to_thread(sock.sendall, b"said")
    if state == "ended":
        sock.shutdown(socket.SHUT_WR)
        assert await wait_for(reader.read(), 5) == b"said"
    writer.transport.abort()
    with pytest.raises(ConnectionResetError):
        await _recv(sock)
    sock.close()
    peer.done.set()


async def test_the_end_of_a_node_is_a_reset(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    listener.serve("echo", echo, allow=["any"])
    sock, other = [await dialler.socket(listener.id, "echo") for _ in range(2)]
    await asyncio.to_thread(other.sendall, b"x")
    assert await _recv(other) == b"x"
    await dialler.close()
    for one in (sock, other):
        with pytest.raises(ConnectionResetError):
            await _recv(one)
        one.close()


async def test_closing_with_something_unread_is_a_reset_for_the_peer(make_node: MakeNode) -> None:
    sock, reader, writer, _ = await _held(make_node)
    writer.write(b"unread")
    assert await asyncio.to_thread(sock.recv, 100, socket.MSG_PEEK) == b"unread"
    sock.close()
    with pytest.raises(ConnectionResetError):
        await wait_for(reader.read(), 5)


async def test_closing_delivers_what_was_sent_and_the_peer_writes_no_more(make_node: MakeNode) -> None:
    sock, reader, writer, peer = await _held(make_node)
    await asyncio.to_thread(sock.sendall, b"last words" * 10_000)
    sock.close()
    assert await wait_for(reader.read(), 5) == b"last words" * 10_000
    assert isinstance(writer, MeshWriter)
    for _ in range(200):  # unasked: a peer that has nothing to say holds no stream
        if writer._stream.write_end:
            break
        await asyncio.sleep(0.01)
    assert writer._stream.write_end == "the peer closed the stream"
    with pytest.raises(ConnectionError):
        async with within(10):
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)
    peer.done.set()


async def test_one_that_ended_its_direction_and_was_closed_since_holds_no_stream(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.sdk.sockets.LOOK_S", 0.1)
    sock, reader, writer, peer = await _held(make_node)
    await asyncio.to_thread(sock.sendall, b"all that I say")
    sock.shutdown(socket.SHUT_WR)
    assert await wait_for(reader.read(), 5) == b"all that I say"
    await asyncio.sleep(0.5)
    writer.write(b"late")
    assert await _recv(sock) == b"late", "one that waits stays"
    bridge = sock._bridge
    sock.close()  # and the peer neither says nor ends anything
    await wait_for(bridge.ended.wait(), 5)
    assert isinstance(writer, MeshWriter)
    await _until(lambda: writer._stream.write_end == "the peer closed the stream")
    peer.done.set()


async def test_what_came_before_the_peer_read_no_more_is_read_before_the_reset(make_node: MakeNode) -> None:
    sock, _, writer, peer = await _held(make_node)
    assert isinstance(writer, MeshWriter)
    sent = os.urandom(1_900_000)  # more than a pair of sockets holds, and less than a window
    writer.write(sent)
    bridge = sock._bridge
    await _until(lambda: writer._stream.queued == 0 and bridge._stream.unread.size > 0)
    writer.close()
    await _until(lambda: bridge._stream.write_end == "the peer closed the stream")
    assert await _recv(sock, 1) == sent[:1], "that the peer reads no more is no end"
    assert not bridge.ended.is_set()
    await asyncio.to_thread(sock.sendall, b"refused")
    await _until(lambda: bridge.refused is not None)
    assert bridge._stream.unread.size > 0
    got = b""
    while len(got) < len(sent) - 1:
        got += await _recv(sock)
    assert got == sent[1:]
    with pytest.raises(ConnectionResetError):
        await _recv(sock)
    assert bridge.ended.is_set()
    sock.close()
    peer.done.set()


async def test_an_answer_that_has_come_whole_is_read_though_its_connection_is_lost(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)
    peer = Peer()
    listener.serve("held", peer.handle, allow=["any"])
    sock = await dialler.socket(listener.id, "held")
    sock.settimeout(HANG_S)
    _, writer = await wait_for(peer.came.get(), 5)
    sent = os.urandom(1_900_000)  # more than a pair of sockets holds, and less than a window
    writer.write(sent)
    writer.write_eof()
    stream = sock._bridge._stream
    await _until(lambda: stream.fin_received and stream.unread.size > 0)
    (await listener.connect(dialler.id)).close()
    await _until(lambda: stream.error is not None)
    await asyncio.to_thread(sock.sendall, b"nothing takes this")
    await asyncio.sleep(0.1)
    got = b""
    while len(got) < len(sent):
        got += await _recv(sock)
    assert got == sent
    with pytest.raises(ConnectionResetError):
        await _recv(sock)
    sock.close()
    peer.done.set()


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to hold")


async def test_one_that_is_dropped_is_closed_and_leaves_no_descriptor(make_node: MakeNode) -> None:
    sock, reader, _, peer = await _held(make_node)
    before = len(os.listdir("/proc/self/fd"))
    forget = [sock]
    del sock
    with pytest.warns(ResourceWarning, match="unclosed"):
        forget.clear()
    assert await wait_for(reader.read(), 5) == b""
    peer.done.set()
    gc.collect()
    for _ in range(200):
        if len(os.listdir("/proc/self/fd")) <= before - 2:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the pair is still open")


async def test_a_program_that_does_not_read_holds_the_peer_back(make_node: MakeNode) -> None:
    sock, _, writer, peer = await _held(make_node)
    written = 0
    for _ in range(300):
        if writer.transport.get_write_buffer_size() <= 1 << 20:
            writer.write(bytes(1 << 16))
            written += 1 << 16
        await asyncio.sleep(0.003)
    assert written < 6 << 20, "the stream's window and mark, and what the pair of sockets holds"
    writer.write_eof()
    assert len(await _all(sock)) == written
    sock.close()
    peer.done.set()


@every_engine
async def test_a_thread_carries_megabytes_both_ways_while_both_nodes_move(make_node: MakeNode, engine: str) -> None:
    seed = await make_node(seed_role=True, engine=engine)
    listener, dialler = await make_node(seed=seed, engine=engine), await make_node(seed=seed, engine=engine)
    listener.serve("echo", echo, allow=["any"])
    sock = await dialler.socket(listener.id, "echo")
    sock.settimeout(HANG_S)
    payload = os.urandom(1 << 20)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        for _ in range(20):
            sent.update(payload)
            sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)

    def receive() -> None:
        while data := sock.recv(1 << 16):
            got.update(data)

    threads = [threading.Thread(target=target) for target in (send, receive)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        await asyncio.sleep(0.2)
        await asyncio.gather(*(node.rebind(f"127.0.6.{next(PLACES)}:0") for node in (listener, dialler)))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert got.hexdigest() == sent.hexdigest()
    sock.close()


async def test_pythons_own_http_client_runs_on_it(make_node: MakeNode) -> None:
    listener, dialler = await _pair(make_node)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: object) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + head.split()[1])

    listener.serve("web", answer, allow=["any"])
    client = http.client.HTTPConnection("web.mesh")
    client.sock = await dialler.socket(listener.id, "web")

    def ask() -> bytes:
        client.request("GET", "/path")
        return client.getresponse().read()

    assert await wait_for(asyncio.to_thread(ask), 10) == b"/path"
    client.close()


async def test_what_came_in_several_pieces_is_one_write(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    sock, _, _, peer = await _held(make_node)
    written: list[int] = []
    send = ToSocket._send

    def counted(self: ToSocket, pieces: list[bytes | memoryview], size: int) -> int:
        written.append(size)
        return send(self, pieces, size)

    monkeypatch.setattr(ToSocket, "_send", counted)
    for _ in range(10):
        sock._bridge._stream.feed(bytes(1_000), False)
    await asyncio.sleep(0)
    assert len(await _recv(sock)) == 10_000
    assert written == [10_000]
    sock.close()
    peer.done.set()


@pytest.mark.parametrize("timeout", [None, 0.0, HANG_S])
def test_the_byte_before_a_reset_waits_for_nobody(timeout: float | None) -> None:
    """It is sent by the node's loop, and a thread of the program may have filled the socket since it had room."""
    inner, outer = socket.socketpair()
    with inner, outer:
        outer.settimeout(timeout)
        _send_at_once(outer, b"x")
        assert inner.recv(2) == b"x"
        with pytest.raises(BlockingIOError):
            for _ in range(1_000):
                _send_at_once(outer, bytes(1 << 16))
        assert outer.gettimeout() == timeout
        assert os.get_blocking(outer.fileno()) == (timeout is None)
