"""The kernel drops what comes from the sources of a filter, and from no others."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaRelay
from meshnode.runtime import socket_filter
from meshnode.runtime.socket_filter import FLOOD, MAX_FAVOURED, _attach, attach, crowded, detach
from meshnode.runtime.udp import UdpSocket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters of sockets are Linux's")


def listener(family: socket.AddressFamily) -> socket.socket:
    """A UDP socket as nodes have: of both families with AF_INET6."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::" if family == socket.AF_INET6 else "127.0.0.1", 0))
    made.setblocking(False)
    return made


def heard(sock: socket.socket) -> set[bytes]:
    """Everything that has arrived."""
    found = set()
    while True:
        try:
            found.add(sock.recv(2_000))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_only_the_sources_of_the_filter_are_dropped_and_only_while_it_is_there(family: socket.AddressFamily) -> None:
    with (
        listener(family) as node,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beside,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as flooder6,
    ):
        flooder6.bind(("::1", 0))
        flooder.bind(("127.0.0.1", 0))
        beside.bind(("127.0.0.1", 0))
        elsewhere.bind(("127.0.0.2", flooder.getsockname()[1]))
        port = node.getsockname()[1]

        def send() -> set[bytes]:
            for sock, data in ((flooder, b"flood"), (beside, b"another port"), (elsewhere, b"another host")):
                sock.sendto(data, ("127.0.0.1", port))
            if family == socket.AF_INET6:
                six.sendto(b"another family", ("::1", port))
                flooder6.sendto(b"flood by IPv6", ("::1", port))
            return heard(node)

        others = {b"another port", b"another host"} | ({b"another family"} if family == socket.AF_INET6 else set())
        floods = {b"flood"} | ({b"flood by IPv6"} if family == socket.AF_INET6 else set())
        assert send() == others | floods
        many = [Addr("192.0.2.1", number) for number in range(1, 60)]
        both = Addr(*flooder.getsockname()), Addr("::1", flooder6.getsockname()[1])
        assert attach(node, [ViaRelay("x"), Addr("2001:db8::1", 5), *many, *both])
        assert send() == others
        assert attach(node, [Addr("192.0.2.1", 5)]), "another one takes its place"
        assert send() == others | floods
        detach(node)
        detach(node)
        assert send() == others | floods


def test_there_is_no_filter_without_sources_that_it_can_name() -> None:
    with listener(socket.AF_INET) as node:
        assert not attach(node, [])
        assert not attach(node, [ViaRelay("x")])
    assert not attach(node, [Addr("192.0.2.1", 5)]), "the socket is closed"
    detach(node)


async def test_a_socket_that_has_just_been_bound_has_a_filter_as_soon_as_a_flood_reaches_it() -> None:
    metrics = Metrics()
    node = UdpSocket(asyncio.get_running_loop(), lambda runs: None, metrics)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
            flooder.bind(("127.0.0.1", 0))
            node.refused = [Addr("127.0.0.1", flooder.getsockname()[1])]
            for filters in (1, 2):  # the second while the first one is still there
                node.bind(Addr("127.0.0.1", 0))
                for _ in range(100):
                    for _ in range(FLOOD // 10):
                        flooder.sendto(b"flood", ("127.0.0.1", node.local.port))
                    await asyncio.sleep(0)
                    if metrics.counters.get("udp_filtered", 0) == filters:
                        break
                assert metrics.counters.get("udp_filtered", 0) == filters
    finally:
        node.close()


def test_all_peers_of_a_full_node_are_favoured_at_once_and_the_kernel_takes_that() -> None:
    """Also with 20 kB for a socket's options, as kernels before 6.8 have."""
    four = [Addr(f"10.{number // 250}.{number % 250}.1", 1 + number) for number in range(MAX_FAVOURED // 2)]
    six = [Addr(f"2001:db8:{number:x}::1%eth0", 1 + number) for number in range(MAX_FAVOURED // 2 - 2)]
    with (
        listener(socket.AF_INET6) as node,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other6,
    ):
        peer.bind(("127.0.0.1", 0))
        peer6.bind(("::1", 0))
        last = [Addr(*peer.getsockname()), Addr(*peer6.getsockname()[:2])]
        code = crowded([*four, *six, *last], 1 << 20)
        assert len(code) < 14_000
        assert _attach(node, code)
        for _ in range(20):
            for sock, data in ((peer, b"peer"), (other, b"other")):
                sock.sendto(data, ("127.0.0.1", node.getsockname()[1]))
            for sock, data in ((peer6, b"peer6"), (other6, b"other6")):
                sock.sendto(data, ("::1", node.getsockname()[1]))
        found = [node.recv(100) for _ in range(40)]
        assert sorted(found) == [b"peer"] * 20 + [b"peer6"] * 20
        assert not heard(node), "one in a million of the others"


@pytest.mark.parametrize("at", [("127.0.0.1", "127.0.0.3"), ("::1", "::1")], ids=["IPv4", "IPv6"])
async def test_a_flood_that_fills_the_buffer_leaves_room_for_those_that_have_connections(
    monkeypatch: pytest.MonkeyPatch, at: tuple[str, str]
) -> None:
    monkeypatch.setattr(socket_filter, "FILTER_S", 300.0)  # a busy host takes longer than a second for a flood
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    heard: list[bytes] = []
    metrics = Metrics()
    node = UdpSocket(asyncio.get_running_loop(), lambda runs: heard.extend(d for run in runs for d in run[0]), metrics)
    node.bind(Addr("::", 0))
    with (
        socket.socket(family, socket.SOCK_DGRAM) as peer,
        socket.socket(family, socket.SOCK_DGRAM) as flooder,
    ):
        peer.bind((at[0], 0))
        flooder.bind((at[1], 0))
        to = (at[0], node.local.port)
        node.favour(lambda: [Addr(*peer.getsockname()[:2])])

        def flood() -> None:
            for _ in range(9_000):  # more than any buffer of a node holds
                flooder.sendto(b"\x01" * 600, to)

        async def read() -> int:
            heard.clear()
            quiet = 0
            while quiet < 20:  # nothing came for so many turns of the loop
                before = len(heard)
                await asyncio.sleep(0.001)
                quiet = 0 if len(heard) > before else quiet + 1
            return heard.count(b"peer")

        flood()
        peer.sendto(b"peer", to)
        await read()
        assert metrics.counters["udp_crowded"] >= 1
        for _ in range(3):  # one flood after the other: fewer and fewer of it get in
            flood()
            await read()
        flood()
        for _ in range(20):
            peer.sendto(b"peer", to)
        assert await read() == 20
        assert 0 < len(heard) < 9_000
    node.close()
