"""Port mapping on the real sockets of loopback: default routes, bounded HTTP, and silence where there is no router."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.base.limits import MAX_UPNP_REPLY, PORTMAP_WITHDRAW_S
from meshnode.base.metrics import Metrics
from meshnode.nat.portmap.vocabulary import Fetch, Route
from meshnode.runtime import port_mapping as portmaps
from meshnode.runtime import routes
from meshnode.runtime.port_mapping import PortMapping
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import GivenTime, within
from tests.unit.portmap_bench import Router

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ROUTE4 = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t0200000A\t0002\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
short
"""
NONE, ANY = "0" * 32, "00"
ROUTE6 = f"""{NONE} {ANY} {NONE} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0
{NONE} {ANY} {NONE} 00 20010db8000000000000000000000001 00000100 00000001 00000000 00000003 eth1
20010db8000000000000000000000000 40 {NONE} 00 {NONE} 00000100 00000001 00000000 00000001 eth0
{NONE} {ANY} {NONE} 00 {NONE} ffffffff 00000001 00000000 00200200 lo
"""
INET6 = """20010db8000000000000000000000017 02 40 00 80 eth1
20010db8000000000000000000000018 02 40 00 a0 eth1
20010db8000000000000000000000019 02 40 00 40 eth1
fd000000000000000000000000000017 02 40 00 80 eth1
fe800000000000000000000000000017 02 40 20 80 eth1
20010db8000000000000000000000020 03 40 00 80 eth0
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's tables of a host with two ways out, as files."""
    (tmp_path / "route").write_text(ROUTE4)
    (tmp_path / "ipv6_route").write_text(ROUTE6)
    (tmp_path / "if_inet6").write_text(INET6)
    monkeypatch.setattr(routes, "PROC", tmp_path)
    monkeypatch.setattr(routes, "_LITTLE", True)
    return tmp_path


def test_the_default_routes_are_those_with_a_gateway_that_are_up_the_preferred_first(tables: Path) -> None:
    assert routes.gateways4() == [("10.0.0.1", "eth0"), ("192.168.1.1", "wlan0")]
    assert routes.gateways6() == [("2001:db8::1", "eth1"), ("fe80::1%eth0", "eth0")]


def test_each_usable_ipv6_address_of_the_way_out_gets_a_route(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"10.0.0.1": "10.0.0.7", "192.168.1.1": "192.168.1.7", routes.DOCUMENTATION4: "10.0.0.7"}
    monkeypatch.setattr(routes, "source_towards", sources.get)
    assert routes.default_routes(Addr("::", 1)) == [
        Route("10.0.0.1", "10.0.0.7"),
        Route("2001:db8::1", "2001:db8::17"),
    ]
    assert routes.default_routes(Addr("0.0.0.0", 1)) == [Route("10.0.0.1", "10.0.0.7")]
    assert routes.default_routes(Addr("2001:db8::17", 1)) == [Route("2001:db8::1", "2001:db8::17")]
    assert routes.default_routes(Addr("2001:db8::99", 1)) == []
    monkeypatch.setattr(routes, "_addresses4", {"wlan0": ["192.168.1.7"], "eth0": ["10.0.0.7"]}.get)
    del sources[routes.DOCUMENTATION4]  # bound to one address, another way out says nothing
    assert routes.default_routes(Addr("192.168.1.7", 1)) == [Route("192.168.1.1", "192.168.1.7")]
    sources |= {routes.DOCUMENTATION4: "10.99.0.1", routes.DOCUMENTATION6: "fd00::9"}  # a VPN
    assert routes.default_routes(Addr("::", 1)) == []
    assert routes.default_routes(Addr("172.16.0.1", 1)) == []


def test_a_public_address_needs_no_mapping(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "source_towards", lambda host: "8.8.4.4")
    assert routes.default_routes(Addr("0.0.0.0", 1)) == []


def test_loopback_and_hosts_without_tables_have_no_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PROC", tmp_path / "none")
    for bound in ("::", "0.0.0.0", "127.0.0.1", "::1"):
        assert routes.default_routes(Addr(bound, 1)) == []


async def test_a_node_on_loopback_makes_no_mapping_client_at_all(make_node: MakeNode) -> None:
    node = await make_node()
    await asyncio.sleep(0.05)
    assert runtime_of(node).addresses.port_maps is None
    assert node.status()["nat"]["mappings"] == []
    await node.rebind("127.0.0.2:0")
    assert runtime_of(node).addresses.port_maps is None


# ---- HTTP with the router


def client(on_change: Callable[[], None] = lambda: None) -> PortMapping:
    return PortMapping(
        asyncio.get_running_loop(), SystemClock(), bytes(32), os.urandom, on_change, Metrics(), upnp=True
    )


async def fetch(serve: Serve, monkeypatch: pytest.MonkeyPatch, patience: float = 0.4) -> tuple[int | None, bytes]:
    """Fetch from a server on loopback; what the core would be told."""
    monkeypatch.setattr(portmaps, "UPNP_EXCHANGE_S", patience)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    maps = client()
    told: list[tuple[int | None, bytes]] = []
    monkeypatch.setattr(maps._core, "on_http", lambda number, status, body, now: told.append((status, body)))
    await maps._fetch(Fetch(1, "127.0.0.1", Addr("127.0.0.1", port), b"GET / HTTP/1.1\r\n\r\n"))
    server.close()
    await maps.close()
    assert len(told) == 1
    return told[0]


def says(*pieces: bytes, then: float = 0.0) -> Serve:
    """A server that reads the request, sends the pieces, waits and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
        try:
            await writer.drain()
            await asyncio.sleep(then)
        except (ConnectionError, asyncio.CancelledError):
            pass
        writer.close()

    return serve


async def test_an_answer_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await fetch(says(b"HTTP/1.0 200 OK\r\n\r\n<a/>"), monkeypatch) == (200, b"<a/>")
    chunked = b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<a/>\r\n0\r\n\r\n"
    assert await fetch(says(chunked), monkeypatch) == (500, b"<a/>")


async def test_chunks_on_a_connection_that_stays_open_are_read_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<a/>\r\n0\r\n\r\n"
    assert await fetch(says(chunked, then=5.0), monkeypatch) == (200, b"<a/>")


async def test_a_router_that_keeps_the_connection_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    began = GivenTime()
    whole = says(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"<a/>", then=5.0)
    assert await fetch(whole, monkeypatch, patience=3.0) == (200, b"<a/>")
    assert began.seconds < 2


@pytest.mark.parametrize(
    "serve",
    [
        says(),
        says(b"junk"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n<a/>"),
        says(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_UPNP_REPLY + 1)),
        says(b"HTTP/1.1 200 OK\r\n", then=5.0),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n"),
        says(b"HTTP/1.1 abc\r\n\r\n"),
    ],
)
async def test_a_broken_endless_or_slow_answer_is_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    began = GivenTime()
    assert await fetch(serve, monkeypatch) == (None, b"")
    assert began.seconds < 2


async def test_a_refused_connection_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = client()
    told: list[int | None] = []
    monkeypatch.setattr(maps._core, "on_http", lambda number, status, body, now: told.append(status))
    await maps._fetch(Fetch(1, "127.0.0.1", Addr("127.0.0.1", 1), b"GET / HTTP/1.1\r\n\r\n"))
    assert told == [None]
    await maps.close()


# ---- a router on loopback


class LoopbackRouter(asyncio.DatagramProtocol):
    """The router of the unit tests behind a real socket; mute when told so."""

    def __init__(self) -> None:
        self.router = Router(pcp=True)
        self.mute = False
        self.asked_from: set[str] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked_from.add(addr[0])
        answer = self.router.datagram(data, addr[0], time.monotonic())
        if answer is not None and not self.mute:
            self.transport.sendto(answer, addr)


@pytest.fixture
async def loopback_router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopbackRouter]:
    """A router at 127.53.51.1, which the default route is said to lead through."""
    loop = asyncio.get_running_loop()
    transport, router = await loop.create_datagram_endpoint(LoopbackRouter, local_addr=("127.53.51.1", 5351))
    monkeypatch.setattr(portmaps, "default_routes", lambda bound: [Route("127.53.51.1", bound.host)])
    yield router
    transport.close()


async def settle(condition: Callable[[], object]) -> None:
    async with within(3):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_mapping_is_got_moved_and_given_back_on_real_sockets(loopback_router: LoopbackRouter) -> None:
    changes: list[int] = []
    maps = client(lambda: changes.append(len(maps.mappings())))
    maps.update(Addr("127.0.0.3", 4242))
    await settle(maps.mappings)
    assert loopback_router.router.ports == {4242: ("127.0.0.3", 4242)}
    maps.update(Addr("127.0.0.3", 5555))
    await settle(lambda: loopback_router.router.ports == {5555: ("127.0.0.3", 5555)})
    assert [m.external.port for m in maps.mappings()] == [5555]
    assert changes == [1, 0, 1]
    await maps.close()
    assert changes == [1, 0, 1], "a node that ends publishes nothing more"
    assert loopback_router.router.ports == {}
    assert loopback_router.asked_from == {"127.0.0.3"}
    maps.update(Addr("127.0.0.3", 6666))  # an interface event that came too late
    await asyncio.sleep(0.05)
    assert loopback_router.router.ports == {}


async def test_a_mute_router_holds_up_the_end_of_a_node_for_half_a_second(loopback_router: LoopbackRouter) -> None:
    maps = client()
    maps.update(Addr("127.0.0.3", 4242))
    await settle(maps.mappings)
    loopback_router.mute = True
    began, clock = time.monotonic(), GivenTime()
    await maps.close()
    assert time.monotonic() - began > PORTMAP_WITHDRAW_S - 0.05
    assert clock.seconds < PORTMAP_WITHDRAW_S + 0.4
