"""What the tunnel's TCP port costs before a knock, and after one that leads to nothing: bounded, and shared fairly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import tracemalloc
from collections.abc import Iterator

import pytest

from meshnode import Identity, Node
from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.base.fair_table import source_shares
from meshnode.base.limits import MAX_TUNNEL_PENDING, MAX_TUNNELS_OUT, MAX_TUNNELS_PER_MEMBER, TUNNEL_DIALS_PER_HOST
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaTunnel
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.runtime import acceptor, knock_listener, websocket
from meshnode.runtime.knock_listener import KnockListener
from meshnode.runtime.tunnel_tls import client_context
from meshnode.runtime.websocket import knock_name
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import HANG_S, GivenTime, wait_for, within

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
UNFINISHED = b"\x16\x03\x01\x0f\x00\x01\x00\x0e\xfc\x03\x03" + bytes(2_000)  # says 3,840 bytes, has 2,011


def counters(node: Node) -> dict[str, int]:
    return dict(runtime_of(node).metrics.counters)


class Member:
    """TLS connections with valid knocks of one throw-away id."""

    def __init__(self, relay: Node) -> None:
        self._relay = relay
        mesh = MeshKey.from_text(runtime_of(relay).config.mesh)
        self._sealer = Sealer(Identity.generate(), mesh, SystemClock(), os.urandom, born=0)
        self.context = client_context()

    def name(self) -> str:
        return knock_name(self._sealer.knock(self._relay.id, b"tunnel"))

    def connect(self) -> ssl.SSLSocket:
        host, port = runtime_of(self._relay).sockets.udp.local
        sock = socket.create_connection((host, port), timeout=HANG_S)  # the relay's own time ends what does not enter
        return self.context.wrap_socket(sock, server_hostname=self.name())


@contextlib.contextmanager
def strangers(node: Node, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    socks = []
    try:
        for _ in range(count):
            sock = socket.create_connection(runtime_of(node).sockets.udp.local, timeout=5)
            socks.append(sock)
            sock.sendall(data)
        yield socks
    finally:
        for sock in socks:
            sock.close()


async def ended(sock: socket.socket) -> bool:
    """True when the other end has closed without a byte."""
    sock.settimeout(5)
    try:
        return await asyncio.to_thread(sock.recv, 1) == b""
    except ConnectionError:
        return True


async def test_members_enter_while_silent_connections_hold_all_places(make_node: MakeNode) -> None:
    relay = await make_node(seed_role=True)
    member = Member(relay)
    with contextlib.ExitStack() as held:
        await asyncio.to_thread(held.enter_context, strangers(relay, MAX_TUNNEL_PENDING + 20))
        for _ in range(3):
            tls = await asyncio.to_thread(member.connect)
            tls.close()
    assert counters(relay)["tunnel_drop_pending"] >= 20


async def test_a_client_hello_that_never_ends_is_not_read_again_and_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = await make_node(seed_role=True)
    looks = 0
    readable = KnockListener._readable

    def counted(self: KnockListener, sock: socket.socket) -> None:
        nonlocal looks
        looks += 1
        readable(self, sock)

    monkeypatch.setattr(KnockListener, "_readable", counted)
    with strangers(relay, 16, UNFINISHED):
        await asyncio.sleep(0.5)
        assert 16 <= looks <= 32  # once for the record's header, and then not before it is whole
    assert "tunnels_accepted" not in counters(relay)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x40\x00" + bytes(100), b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\x00\x05hello"]
)
async def test_what_cannot_become_a_knock_is_closed_at_its_first_bytes(make_node: MakeNode, data: bytes) -> None:
    relay = await make_node(seed_role=True)
    with strangers(relay, 1, data) as (sock,):
        begun = GivenTime()
        assert await ended(sock)
        assert begun.seconds < 4  # before the deadline for a knock


async def test_a_silent_connection_is_closed_at_the_deadline(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knock_listener, "TUNNEL_KNOCK_S", 0.2)
    relay = await make_node(seed_role=True)
    with strangers(relay, 1) as (sock,):
        assert await ended(sock)


async def test_a_member_that_never_opens_its_web_socket_is_closed(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TUNNEL_KNOCK_S", 1.0)
    relay = await make_node(seed_role=True)
    tls = await asyncio.to_thread(Member(relay).connect)
    tls.settimeout(10)
    with pytest.raises(OSError), contextlib.closing(tls):
        if not await asyncio.to_thread(tls.recv, 1):
            raise OSError("closed")
    assert counters(relay)["tunnel_drop_silent"] == 1
    tunnels = runtime_of(relay).sockets.tunnels
    assert len(tunnels._places) == 0


@pytest.mark.parametrize(
    ("first", "frame"),
    [
        (b"", b"\x8a\x80" + bytes(4)),
        (b"", b"\x82\x80" + bytes(4)),
        (b"\x02\x81" + bytes(5), b"\x00\x80" + bytes(4)),
        (b"", b"\x89\xfd" + bytes(4) + bytes(125)),
    ],
    ids=["pongs", "empty", "parts", "pings"],
)
async def test_frames_that_bring_no_datagram_end_the_web_socket_after_a_few(
    make_node: MakeNode, first: bytes, frame: bytes
) -> None:
    relay = await make_node(seed_role=True)
    tls = await asyncio.to_thread(Member(relay).connect)
    tls.settimeout(20)

    def flood() -> None:
        with contextlib.suppress(OSError), contextlib.closing(tls):
            tls.sendall(UPGRADE)
            tls.recv(1_000)
            tls.sendall(first)
            while True:
                tls.sendall(frame * 10_000)

    await asyncio.to_thread(flood)
    assert counters(relay)["tunnel_drop_junk"] == 1
    assert len(runtime_of(relay).sockets.tunnels._places) == 0


async def test_one_member_has_few_connections_and_its_oldest_goes(make_node: MakeNode) -> None:
    relay = await make_node(seed_role=True)
    member, other = Member(relay), Member(relay)
    kept = await asyncio.to_thread(other.connect)
    many = [await asyncio.to_thread(member.connect) for _ in range(MAX_TUNNELS_PER_MEMBER + 2)]
    tunnels = runtime_of(relay).sockets.tunnels
    async with within(5):
        while len(tunnels._places) > MAX_TUNNELS_PER_MEMBER + 1:  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.01)
    kept.settimeout(0.2)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(kept.recv, 1)
    for tls in (kept, *many):
        tls.close()


async def test_a_member_that_knocks_many_times_at_once_has_no_more_connections_than_another(
    make_node: MakeNode,
) -> None:
    relay = await make_node(seed_role=True)
    sockets, member = runtime_of(relay).sockets, Identity.generate().id
    tunnels, before = sockets.tunnels, len(sockets.accepted)
    knocks = 3 * MAX_TUNNELS_PER_MEMBER
    with contextlib.ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [held.enter_context(socket.create_connection(server.getsockname())) for _ in range(knocks)]
        for client in clients:
            client.setblocking(False)
            accepted, source = server.accept()
            sock = acceptor.CountedSocket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
            sock.setblocking(False)
            assert sockets.accepted.enter(sock, source_shares(source[0]))
            tunnels._on_member(sock, member, Addr(*source))
        assert len(tunnels._places) == MAX_TUNNELS_PER_MEMBER
        ended = set[socket.socket]()
        async with within(HANG_S):
            while len(ended) < knocks - MAX_TUNNELS_PER_MEMBER:
                await asyncio.sleep(0.01)
                for client in clients:
                    with contextlib.suppress(BlockingIOError):
                        client.recv(1)  # an end, or a reset
                        ended.add(client)
        assert len(tunnels._places) == len(clients) - len(ended) == MAX_TUNNELS_PER_MEMBER
    async with within(HANG_S):
        while len(tunnels._places) or len(sockets.accepted) > before:  # noqa: ASYNC110 - a table tells of nothing
            await asyncio.sleep(0.01)


async def test_accepting_pauses_when_descriptors_run_out_and_goes_on_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.2)
    metrics = Metrics()
    accepted = acceptor.Accepted(metrics)
    listener = KnockListener(asyncio.get_running_loop(), lambda *_: None, lambda *_: None, metrics, accepted)

    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            Exhausted.tries += 1
            if Exhausted.tries <= 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(socket, "socket", Exhausted)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert listener.listen(Addr("127.0.0.1", port))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert await ended(sock)
    assert Exhausted.tries == 3  # not once a turn of the loop
    assert metrics.counters["accept_paused"] == 2
    listener.stop()


async def test_peers_that_name_ever_new_tunnels_have_few_opened_and_none_remembered(make_node: MakeNode) -> None:
    node = await make_node(seed_role=True)
    tunnels = runtime_of(node).sockets.tunnels
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
        port = deaf.getsockname()[1]
        for number in range(500):
            other = str(Identity.generate().id)
            tunnels.send(ViaTunnel(other, f"127.0.{number // 250}.{1 + number % 250}", port), [b"x"])
        running = [one for one in tunnels._outgoing.values() if one.is_running]
        assert MAX_TUNNELS_OUT - 4 <= len(running) <= len(tunnels._outgoing) <= MAX_TUNNELS_OUT
        dropped = counters(node).get("tunnel_drop_backlog", 0) + counters(node).get("tunnel_not_earned", 0)
        assert dropped >= 500 - MAX_TUNNELS_OUT
    async with within(10):
        while any(one.is_running for one in tunnels._outgoing.values()):  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.05)


async def test_a_host_that_records_name_as_a_tunnel_is_dialled_few_times_until_the_node_has_answered(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TUNNEL_RETRY_S", 0.02)
    node = await make_node(seed_role=True)
    tunnels, dialled = runtime_of(node).sockets.tunnels, 0

    async def victim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()

    server = await asyncio.start_server(victim, "127.0.0.1", 0)
    named = ViaTunnel(str(Identity.generate().id), "127.0.0.1", server.sockets[0].getsockname()[1])
    crowd = [named, *(named._replace(peer=str(Identity.generate().id)) for _ in range(20))]

    async def attempts(tunnels_named: list[ViaTunnel]) -> None:
        for _ in range(25):
            for tunnel in tunnels_named:
                tunnels.send(tunnel, [b"x"])
            await asyncio.sleep(0.04)

    await attempts(crowd)
    assert dialled == TUNNEL_DIALS_PER_HOST
    runtime_of(node).stack.context.credit.answered(named, 0.0)
    await attempts(crowd)
    assert dialled > 2 * TUNNEL_DIALS_PER_HOST
    server.close()


async def test_an_open_tunnel_has_no_read_buffer_of_an_event_loops_tls(make_node: MakeNode) -> None:
    relay = await make_node(seed_role=True)

    async def opened() -> ssl.SSLSocket:
        tls = await asyncio.to_thread(Member(relay).connect)
        await asyncio.to_thread(tls.sendall, UPGRADE)
        assert b" 101 " in await asyncio.to_thread(tls.recv, 1_000)
        return tls

    first = await opened()
    gc.collect()
    tracemalloc.start()
    try:
        tunnels = [await opened() for _ in range(8)]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 64_000 * len(tunnels), "that of a loop's alone has 262,144 bytes"
    finally:
        tracemalloc.stop()
    for tls in (first, *tunnels):
        tls.close()


async def test_a_tcp_connection_that_ends_within_its_handshake_leaves_nothing(make_node: MakeNode) -> None:
    relay = await make_node(seed_role=True)
    tunnels = runtime_of(relay).sockets.tunnels
    host, port = runtime_of(relay).sockets.udp.local
    member = Member(relay)
    read, written = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = member.context.wrap_bio(read, written, server_hostname=member.name())
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    with contextlib.closing(socket.create_connection((host, port), timeout=HANG_S)) as sock:
        sock.sendall(written.read())
        assert await asyncio.to_thread(sock.recv, 10), "its half of the handshake"
        assert len(tunnels._places) == 1
        sock.shutdown(socket.SHUT_WR)
        while await asyncio.to_thread(sock.recv, 10_000):
            pass
    async with within(HANG_S):
        while len(tunnels._places):  # noqa: ASYNC110 - a table tells of nothing
            await asyncio.sleep(0.01)


async def test_a_member_that_sends_junk_in_its_tunnel_is_closed_and_others_are_not(make_node: MakeNode) -> None:
    relay = await make_node(seed_role=True)
    bad, good = [await asyncio.to_thread(Member(relay).connect) for _ in range(2)]
    for tls in (bad, good):
        await asyncio.to_thread(tls.sendall, UPGRADE)
        assert b" 101 " in await asyncio.to_thread(tls.recv, 1_000)
    junk = b"\x82\x85" + bytes(4) + b"\x60junk"

    def flood() -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                bad.sendall(junk * 100)

    await asyncio.to_thread(flood)
    await asyncio.sleep(0.2)
    assert counters(relay)["tunnel_drop_junk"] == 1
    good.settimeout(0.2)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(good.recv, 1)
    for tls in (bad, good):
        tls.close()


@pytest.mark.parametrize("sends", ["pings", "fragments", "texts"])
async def test_a_relay_that_sends_frames_without_datagrams_is_left_after_a_few(sends: str) -> None:
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    from meshnode.runtime.tunnel_client import TunnelConnection

    sent = 0
    left = asyncio.Event()

    async def send_junk(server: ServerConnection) -> None:
        nonlocal sent
        await server.send(b"datagram")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(10_000):
                sent += 1
                if sends == "pings":
                    await server.ping()
                elif sends == "fragments":
                    await server.send([b"a", b"b"])
                else:
                    await server.send("text")
                await asyncio.sleep(0)
        left.set()

    async with (
        serve(send_junk, "127.0.0.1", 0) as server,
        connect(
            f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/",
            create_connection=TunnelConnection,
            ping_interval=None,
        ) as client,
    ):
        assert await client.recv() == b"datagram"
        with contextlib.suppress(ConnectionClosed):
            async for _ in client:
                pass
        await wait_for(left.wait(), 5)
    assert 20 < sent < 1_000
