"""The kernel drops what comes from the sources of a filter, and from no others."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.path import ViaRelay
from meshnode.runtime.socket_filter import FLOOD, attach, detach
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
    ):
        flooder.bind(("127.0.0.1", 0))
        beside.bind(("127.0.0.1", 0))
        elsewhere.bind(("127.0.0.2", flooder.getsockname()[1]))
        port = node.getsockname()[1]

        def send() -> set[bytes]:
            for sock, data in ((flooder, b"flood"), (beside, b"another port"), (elsewhere, b"another host")):
                sock.sendto(data, ("127.0.0.1", port))
            if family == socket.AF_INET6:
                six.sendto(b"another family", ("::1", port))
            return heard(node)

        others = {b"another port", b"another host"} | ({b"another family"} if family == socket.AF_INET6 else set())
        assert send() == others | {b"flood"}
        many = [Addr("192.0.2.1", number) for number in range(1, 60)]
        assert attach(node, [ViaRelay("x"), Addr("2001:db8::1", 5), *many, Addr(*flooder.getsockname())])
        assert send() == others
        assert attach(node, [Addr("192.0.2.1", 5)]), "another one takes its place"
        assert send() == others | {b"flood"}
        detach(node)
        detach(node)
        assert send() == others | {b"flood"}


def test_there_is_no_filter_without_sources_that_it_can_name() -> None:
    with listener(socket.AF_INET) as node:
        assert not attach(node, [])
        assert not attach(node, [Addr("2001:db8::1", 5), ViaRelay("x")])
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


async def test_a_flood_that_fills_the_buffer_leaves_room_for_those_that_have_connections() -> None:
    heard: list[bytes] = []
    metrics = Metrics()
    node = UdpSocket(asyncio.get_running_loop(), lambda runs: heard.extend(d for run in runs for d in run[0]), metrics)
    node.bind(Addr("::", 0))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder,
    ):
        peer.bind(("127.0.0.1", 0))
        flooder.bind(("127.0.0.3", 0))
        to = ("127.0.0.1", node.local.port)
        node.favour(lambda: [Addr(*peer.getsockname())])

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
