"""UDP services: DNS and tunnels over them, through moves; what does not fit is told, and no source takes all flows."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dnslib
import pytest

from meshnode import Node
from meshnode.base.fair_rate import Rate
from meshnode.daemon.describe import describe_exposes, describe_forwards
from meshnode.errors import ConfigError
from meshnode.services import expose, udp
from meshnode.services.ends import End
from meshnode.services.health import check_of, listens
from meshnode.services.registry import ServiceBook
from meshnode.services.setting import Setting
from tests.conftest import MakeNode
from tests.given_time import wait_for

DEADLINE_S = 10.0
Answer = Callable[[bytes], bytes | None]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Program(asyncio.DatagramProtocol):
    """A UDP server; ``met`` are the addresses that it has heard."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.met: dict[object, int] = {}
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.met[addr] = self.met.get(addr, 0) + 1
        answer = self.answer(data)
        if answer is not None and self.transport is not None:
            self.transport.sendto(answer, addr)


class Client(asyncio.DatagramProtocol):
    """A UDP client with a queue of what comes."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.came.put_nowait(data)


class Way:
    def __init__(self, there: Node, here: Node, program: Program) -> None:
        self.there, self.here, self.program = there, here, program
        self.books = ServiceBook(there), ServiceBook(here)
        self.at = ("127.0.0.1", 0)
        self._clients: list[asyncio.DatagramTransport] = []

    async def client(self, host: str = "127.0.0.1") -> tuple[asyncio.DatagramTransport, Client]:
        loop = asyncio.get_running_loop()
        made = await loop.create_datagram_endpoint(Client, (host, 0), self.at)
        self._clients.append(made[0])
        return made

    async def asked(self, data: bytes, host: str = "127.0.0.1") -> bytes:
        """Send a datagram again and again until an answer comes: UDP promises nothing."""
        transport, client = await self.client(host)
        for _ in range(20):
            transport.sendto(data)
            try:
                return await asyncio.wait_for(client.came.get(), 0.5)
            except TimeoutError:
                continue
        raise AssertionError("no answer")

    def used(self, end: int) -> dict[str, int]:
        (told,) = describe_forwards(self.books[1]) if end else describe_exposes(self.books[0])
        return told["usage"]  # type: ignore[no-any-return]


@asynccontextmanager
async def way(make_node: MakeNode, answer: Answer = lambda data: data, *rate: str) -> AsyncIterator[Way]:
    there = await make_node()
    here = await make_node(seed=there)
    loop = asyncio.get_running_loop()
    transport, program = await loop.create_datagram_endpoint(lambda: Program(answer), ("127.0.0.1", 0))
    found = Way(there, here, program)
    target = f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    assert (await found.books[0].expose("x", target, ("any",), rate=rate))["target"] == target
    listen = (await found.books[1].forward("udp://127.0.0.1:0", f"{there.id}/x"))["listen"]
    assert listen.startswith("udp://127.0.0.1:")
    found.at = "127.0.0.1", int(listen.rpartition(":")[2])
    try:
        yield found
    finally:
        for book in found.books:
            await book.close()
        for each in (*found._clients, transport):
            each.close()


def resolve(query: bytes) -> bytes:
    asked = dnslib.DNSRecord.parse(query)
    answer = asked.reply()
    for number in range(20):
        answer.add_answer(dnslib.RR(asked.q.qname, rdata=dnslib.A(f"192.0.2.{number}")))
    return bytes(answer.pack())


async def test_dns_is_answered_while_both_nodes_move(make_node: MakeNode) -> None:
    async with way(make_node, resolve) as through:
        for number in range(6):
            query = dnslib.DNSRecord.question(f"host{number}.example")
            answer = dnslib.DNSRecord.parse(await through.asked(query.pack()))
            assert (answer.header.id, len(answer.rr)) == (query.header.id, 20)
            await (through.there, through.here)[number % 2].rebind()
        assert len(through.program.met) == 6, "a source of its own for each source"


@pytest.mark.skipif(not shutil.which("dig"), reason="dig is not installed")
async def test_dig_asks_a_server_behind_a_forward(make_node: MakeNode) -> None:
    async with way(make_node, resolve) as through:
        asked = ["dig", f"@{through.at[0]}", "-p", str(through.at[1]), "+short", "+tries=5", "host.example", "A"]
        dig = await asyncio.create_subprocess_exec(*asked, stdout=asyncio.subprocess.PIPE)
        said, _ = await wait_for(dig.communicate(), 30)
        assert sorted(said.split()) == sorted(b"192.0.2.%d" % number for number in range(20))


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
async def test_a_forward_of_both_families_answers_both(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        listen = (await through.books[1].forward("udp://[::]:0", f"{through.there.id}/x"))["listen"]
        for host in ("127.0.0.1", "::1"):
            through.at = host, int(listen.rpartition(":")[2])
            assert await through.asked(host.encode(), host) == host.encode()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have one address of loopback")
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
async def test_a_client_is_answered_from_the_address_of_this_host_that_it_has_asked(
    make_node: MakeNode, wildcard: str
) -> None:
    if wildcard == "[::]" and not has_ipv6():
        pytest.skip("this host has no IPv6")
    async with way(make_node) as through:
        listen = (await through.books[1].forward(f"udp://{wildcard}:0", f"{through.there.id}/x"))["listen"]
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            through.at = host, int(listen.rpartition(":")[2])
            assert await through.asked(host.encode(), "127.0.0.9") == host.encode()


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
async def test_a_forward_at_a_name_answers_at_each_of_its_addresses(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "look_up", two_addresses)
    async with way(make_node) as through:
        listen = (await through.books[1].forward("udp://localhost:0", f"{through.there.id}/x"))["listen"]
        for host in ("127.0.0.1", "::1"):
            through.at = host, int(listen.rpartition(":")[2])
            assert await through.asked(host.encode(), host) == host.encode()


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize(("target", "at"), [("127.0.0.1", "::1"), ("localhost", "127.0.0.1"), ("localhost", "::1")])
async def test_a_target_that_listens_at_the_other_loopback_address_is_reached(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, target: str, at: str
) -> None:
    async with way(make_node) as through:
        if target == "localhost":
            monkeypatch.setattr(udp, "look_up", two_addresses)
        loop = asyncio.get_running_loop()
        other, _ = await loop.create_datagram_endpoint(lambda: Program(lambda data: b"other"), (at, 0))
        port = other.get_extra_info("sockname")[1]
        await through.books[0].expose("x", f"udp://{target}:{port}", ("any",))
        assert await through.asked(b"?") == b"other"
        other.close()


async def two_addresses(host: str) -> list[str]:
    return ["::1", "127.0.0.1"] if host == "localhost" else [host]


async def test_a_tunnel_goes_on_through_moves_on_one_flow(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        transport, client = await through.client()
        packet = os.urandom(1_100)
        for number in range(10):
            for _ in range(20):
                transport.sendto(packet + bytes([number]))
                try:
                    while (await asyncio.wait_for(client.came.get(), 0.3))[-1] != number:
                        pass
                    break
                except TimeoutError:
                    continue
            else:
                raise AssertionError("nothing comes back")
            await (through.there, through.here)[number % 2].rebind()
        assert len(through.program.met) == 1
        assert through.used(0)["opened"] == through.used(1)["opened"] == 1


async def test_what_does_not_fit_is_told_with_the_limit_and_counted(
    make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    async with way(make_node, lambda data: data * 2) as through:
        with caplog.at_level(logging.WARNING):
            assert await through.asked(b"a" * 580) == b"a" * 1160
            transport, client = await through.client()
            transport.sendto(b"b" * 1420)
            assert await through.asked(b"c" * 10) == b"c" * 20
            assert through.used(1)["too_large"] == 1
            transport.sendto(b"d" * 600)  # its answer is too large
            for _ in range(100):
                await asyncio.sleep(0.02 * (through.used(0)["too_large"] == 0))
        assert client.came.empty()
        assert through.used(0)["too_large"] == through.used(0)["dropped"] == 1
        assert through.there.status()["counters"]["services_udp_too_large"] == 1
        assert "a datagram of 1420 bytes is dropped; at most 1160 fit" in caplog.text
        assert "a datagram of 1200 bytes is dropped; at most 1160 fit" in caplog.text


async def test_a_flow_ends_when_nothing_passes_and_begins_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "IDLE_S", 0.4)
    async with way(make_node) as through:
        transport, client = await through.client()
        for _ in range(5):  # 0.75 s, with never 0.4 s of silence
            transport.sendto(b"one")
            assert await wait_for(client.came.get(), DEADLINE_S) == b"one"
            await asyncio.sleep(0.15)
        assert through.used(1)["opened"] == 1
        (forward,) = through.books[1].forwards.values()
        member = through.books[0].exposes["x"].pool.members[0]
        for _ in range(200):
            if not forward.connections and not member.users:
                break
            await asyncio.sleep(0.02)
        assert (forward.connections, member.users) == (0, 0)
        transport.sendto(b"two")
        assert await wait_for(client.came.get(), DEADLINE_S) == b"two"


async def test_a_flood_from_one_host_takes_no_flow_of_another(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "MAX_FLOWS", 20)
    async with way(make_node) as through:
        transport, client = await through.client("127.0.9.1")
        transport.sendto(b"first")
        assert await wait_for(client.came.get(), DEADLINE_S) == b"first"
        flood = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(100)]
        for each in flood:
            each.sendto(b"flood", through.at)
        await asyncio.sleep(0.5)
        (forward,) = through.books[1].forwards.values()
        assert forward.connections <= 20
        transport.sendto(b"second")
        assert await wait_for(client.came.get(), DEADLINE_S) == b"second"
        own = [count for count in through.program.met.values() if count > 1]
        assert own == [2], "on the flow that it had"
        for each in flood:
            each.close()


async def test_ever_new_sources_of_a_host_begin_few_flows_and_delay_no_other_host(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source costs its sender one datagram, which may be forged, and a flow costs both nodes half a millisecond."""
    monkeypatch.setattr(udp, "BEGIN_HOST", Rate(0.001, 5))
    async with way(make_node) as through:
        flood = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(100)]
        for each in flood:
            each.bind(("127.0.9.1", 0))
            each.sendto(b"flood", through.at)
        assert await through.asked(b"a", "127.0.8.1") == b"a"
        assert await through.asked(b"b", "127.0.9.2") == b"b"
        (forward,) = through.books[1].forwards.values()
        assert forward.connections == 5 + 2
        assert through.used(1)["dropped"] == 95
        for each in flood:
            each.close()


async def test_a_callers_datagrams_over_its_rate_are_dropped_each_way(make_node: MakeNode) -> None:
    async with way(make_node, lambda data: data * 2, "50kB") as through:
        transport, _ = await through.client()
        began = asyncio.get_running_loop().time()
        used = through.used(0)
        for _ in range(1_000):
            if used["dropped"] and min(used["bytes_in"], used["bytes_out"]) > 20_000:
                break
            for _ in range(10):  # much more than the rate, however late this process comes
                transport.sendto(bytes(500))
            await asyncio.sleep(0.001)
            used = through.used(0)
        most = 65_536 + 50_000 * (asyncio.get_running_loop().time() - began)
        assert 20_000 < used["bytes_in"] <= most
        assert 20_000 < used["bytes_out"] <= most
        assert used["dropped"] > 0


async def test_of_one_host_the_source_that_is_silent_for_longest_goes_first(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "MAX_FLOWS", 3)
    async with way(make_node) as through:
        transport, client = await through.client()
        for number in range(6):
            transport.sendto(b"%d" % number)
            assert await wait_for(client.came.get(), DEADLINE_S) == b"%d" % number
            assert await through.asked(b"other") == b"other"
        assert max(through.program.met.values()) == 6


@pytest.mark.parametrize("health", ["auto", "none"])
async def test_a_target_that_is_gone_is_announced_and_comes_back(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, health: str
) -> None:
    monkeypatch.setattr(expose, "RECOVER_S", 1.0)
    async with way(make_node) as through:
        await through.books[0].expose("x", through.books[0].exposes["x"].target, ("any",), health=health)
        assert await through.asked(b"a") == b"a"
        pool = through.books[0].exposes["x"].pool
        assert through.program.transport is not None
        name = through.program.transport.get_extra_info("sockname")
        through.program.transport.close()
        transport, _ = await through.client()
        for _ in range(200):
            if pool.healthy:
                transport.sendto(b"?")
                await asyncio.sleep(0.02)
        assert pool.error == "connection refused"
        assert await through.books[0].exposes["x"].probe() == "connection refused"
        loop = asyncio.get_running_loop()
        again, _ = await loop.create_datagram_endpoint(lambda: Program(lambda data: data), name)
        for _ in range(300):
            await asyncio.sleep(0.02 * (not pool.healthy))
        assert pool.healthy
        assert await through.asked(b"b") == b"b"
        again.close()


async def test_a_service_that_may_not_be_used_is_asked_once_a_second_and_its_error_told(make_node: MakeNode) -> None:
    async with way(make_node) as through:
        await through.books[0].expose("x", through.books[0].exposes["x"].target, (str(through.there.id),))
        transport, client = await through.client()
        for _ in range(50):
            transport.sendto(b"x")
            await asyncio.sleep(0.01)
        (told,) = describe_forwards(through.books[1])
        assert told["last_error"]["code"] == "policy_denied"
        assert told["connections"] == 1
        assert client.came.empty()


async def test_a_target_of_udp_is_looked_up_in_the_kernel() -> None:
    for at in ("127.0.0.1", "0.0.0.0", "::1"):
        family = socket.AF_INET6 if ":" in at else socket.AF_INET
        end = End("::1" if ":" in at else "127.0.0.1", 0, udp=True)
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((at, 0))
            end = End(end.host, sock.getsockname()[1], udp=True)
            assert check_of("auto", end) is listens
            assert await listens(end) == ""
        assert await listens(end) == "connection refused"


async def test_what_udp_does_not_have_is_told(make_node: MakeNode) -> None:
    node = await make_node()
    for setting in (
        Setting("a", ("udp://h:1", "h:1")),
        Setting("a", ("udp://h:1",), health="connect"),
        Setting("a", ("udp://h:1",), proxy_protocol=True),
    ):
        with pytest.raises(ConfigError, match="UDP"):
            setting.checked()
    book = ServiceBook(node)
    taken = socket.socket(type=socket.SOCK_DGRAM)
    taken.bind(("127.0.9.77", 0))  # an address of its own, or another program may have that number's TCP port
    listen = f"udp://127.0.9.77:{taken.getsockname()[1]}"
    tcp = (await book.forward(listen.removeprefix("udp://"), "one/web"))["listen"]
    with pytest.raises(OSError, match="another program"):
        await book.forward(listen, "one/dns")
    taken.close()
    await book.unforward(tcp)
    assert (await book.forward(listen, "one/dns"))["listen"] == listen
    again = ServiceBook(node)
    await book.close()
    await again.restore()
    assert list(again.forwards) == [listen]
    await again.unforward(listen)
    assert not again.forwards


async def test_callers_take_no_reserved_descriptor_and_that_is_not_held_against_the_target(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flow has a socket: a thousand of a caller's would leave none for the control socket and moves."""
    refused: list[int] = []
    async with way(make_node) as through:
        exposed = through.books[0].exposes["x"]
        monkeypatch.setattr(
            "meshnode.runtime.descriptors.is_reserved", lambda sock: bool(refused.append(sock.fileno()) or 1)
        )
        transport, client = await through.client()
        while len(refused) < 2:
            transport.sendto(b"a")
            await asyncio.sleep(0.02)
        assert client.came.empty()
        assert exposed.pool.healthy
        assert exposed.error == ""
        monkeypatch.undo()
        assert await through.asked(b"b") == b"b"
