"""UDP ASSOCIATE of the proxy: a client's datagrams to a service of the mesh."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

import meshnode
from meshnode.base.limits import MAX_UDP_DESTINATIONS
from meshnode.base.metrics import Metrics
from meshnode.services.proxy import socks_udp
from meshnode.services.proxy.listener import Proxy
from meshnode.services.proxy.overlay import OverlayNames
from meshnode.services.proxy.socks_udp import bound, unwrap
from tests.conftest import MakeNode
from tests.given_time import within


def header(name: bytes, port: int = 53) -> bytes:
    return b"\0\0\0\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\x01\x7f",
        header(b"a.mesh")[:-1],
        b"\0\0\x01" + header(b"a.mesh")[3:] + b"x",  # a fragment
        b"\1\0\0" + header(b"a.mesh")[3:] + b"x",
        b"\0\0\0\x02" + header(b"a.mesh")[4:] + b"x",
        header(b"") + b"x",
        header(b"a\0.mesh") + b"x",
    ],
)
def test_what_has_no_whole_header_is_dropped(data: bytes) -> None:
    assert unwrap(data) is None


def test_a_datagram_says_where_it_goes() -> None:
    assert unwrap(header(b"dns.a.mesh") + b"ask") == (header(b"dns.a.mesh"), "dns.a.mesh", 53, b"ask")
    six = b"\0\0\0" + bound("fd00::1", 53)
    assert unwrap(six) == (six, "fd00::1", 53, b"")
    assert bound("127.0.0.1", 258) == b"\x01\x7f\0\0\x01\x01\x02"


async def echo(flow: meshnode.Datagrams, peer: meshnode.NodeId) -> None:
    async for data in flow:
        flow.send(data)


class Client:
    """A client that has asked for UDP, and its socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, relay: tuple[str, int]) -> None:
        self.reader, self.writer, self.relay = reader, writer, relay
        self.sock = udp_socket()

    async def send(self, data: bytes, sock: socket.socket | None = None) -> None:
        await asyncio.get_running_loop().sock_sendto(sock or self.sock, data, self.relay)

    async def receive(self, timeout: float = 10.0) -> bytes:
        async with within(timeout):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65_536)

    def close(self) -> None:
        self.sock.close()
        self.writer.close()


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


async def until(condition: Callable[[], bool]) -> None:
    async with within(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def associate(proxy: Proxy, port: int = 0) -> Client:
    host, _, where = proxy.listen.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(where))
    writer.write(b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0" + port.to_bytes(2, "big"))
    answer = await reader.readexactly(12)
    assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
    return Client(reader, writer, (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big")))


async def start(make_node: MakeNode) -> Proxy:
    there = await make_node(name="there")
    here = await make_node(seed=there)
    there.serve_datagrams("dns", echo, allow=["any"])
    proxy = Proxy(here, OverlayNames(bytes(32)), "127.0.0.1:0")
    await proxy.start()
    return proxy


async def test_datagrams_go_to_a_service_and_come_back_with_its_name(make_node: MakeNode) -> None:
    proxy = await start(make_node)
    client = await associate(proxy)
    for to in (header(b"dns.there.mesh", 9), header(b"there.mesh")):
        await client.send(to + b"ask")
        assert await client.receive() == to + b"ask"
    longest = header(b"there.mesh") + bytes(1_160)
    await client.send(longest + b"x")  # too long for a flow: dropped whole
    await client.send(header(b"none.there.mesh") + b"x")
    await client.send(header(b"example.org") + b"x")
    await client.send(longest)
    assert await client.receive() == longest
    client.close()
    await proxy.close()


async def test_other_sources_are_not_the_client(make_node: MakeNode) -> None:
    proxy = await start(make_node)
    client, to = await associate(proxy), header(b"there.mesh")
    await client.send(to + b"first")
    assert await client.receive() == to + b"first"
    other = udp_socket()
    await client.send(to + b"forged", other)
    await client.send(to + b"second")
    assert await client.receive() == to + b"second"
    with pytest.raises(BlockingIOError):
        other.recv(10)
    said = await associate(proxy, port=other.getsockname()[1])
    await said.send(to + b"not from the port that it said")
    await said.send(to + b"from it", other)
    async with within(10):
        assert await asyncio.get_running_loop().sock_recv(other, 100) == to + b"from it"
    other.close()
    for each in (client, said):
        each.close()
    await proxy.close()


async def test_it_ends_with_the_clients_connection(make_node: MakeNode) -> None:
    proxy = await start(make_node)
    client, to = await associate(proxy), header(b"there.mesh")
    await client.send(to + b"x")
    await client.receive()
    client.writer.close()
    await until(lambda: not proxy.connections)
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.bind(client.relay)  # it is free
    probe.close()
    client.close()
    await proxy.close()


async def test_idle_and_too_many_destinations_end_and_begin_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Flow:
        max_size = 100

        def __init__(self, name: str) -> None:
            self.name, self.is_closed = name, False
            opened.append(self)

        def send(self, data: bytes) -> None:
            pass

        async def receive(self) -> bytes:
            await asyncio.Event().wait()
            return b""

        def close(self) -> None:
            self.is_closed = True

    async def open_flow(host: str, port: int) -> Flow:
        return Flow(host)

    monkeypatch.setattr(socks_udp, "UDP_IDLE_S", 0.5)
    association = socks_udp.Association("127.0.0.1", ("127.0.0.1", 0), open_flow, Metrics())  # type: ignore[arg-type]
    for number in range(MAX_UDP_DESTINATIONS + 2):
        association._send(b"%d" % number, str(number), 1, b"x")
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert [flow.name for flow in opened if flow.is_closed] == ["0", "1"]
    await until(lambda: all(flow.is_closed for flow in opened))
    association._send(b"0", "0", 1, b"x")
    await asyncio.sleep(0.05)
    assert (opened[-1].name, opened[-1].is_closed) == ("0", False)
    await association.close()
    assert opened[-1].is_closed


async def test_a_destination_that_is_refused_is_not_asked_for_each_datagram(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def refuse(host: str, port: int) -> meshnode.Datagrams:
        asked.append(host)
        raise meshnode.ServiceNotFound("no such service")

    monkeypatch.setattr(socks_udp, "RETRY_S", 0.2)
    association = socks_udp.Association("127.0.0.1", ("127.0.0.1", 0), refuse, Metrics())
    for _ in range(50):
        association._send(b"0", "refused", 1, b"x")
        await asyncio.sleep(0)
    assert asked == ["refused"]
    await until(lambda: not association._destinations)
    association._send(b"0", "refused", 1, b"x")
    await asyncio.sleep(0.01)
    assert asked == ["refused"] * 2
    await association.close()
