"""Clients of the proxy that are slow or many, in one process with the node."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from meshnode.services.proxy import dns_server, listener
from meshnode.services.proxy.dns_server import DnsServer
from meshnode.services.proxy.listener import Proxy
from meshnode.services.proxy.overlay import OverlayNames
from tests.conftest import MakeNode, echo
from tests.given_time import within

CONNECT = b"CONNECT echo.there.mesh:1 HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.listen.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def start(make_node: MakeNode) -> Proxy:
    there = await make_node(name="there")
    here = await make_node(seed=there)
    there.serve("echo", echo, allow=["any"])
    proxy = Proxy(here, OverlayNames(bytes(32)), "127.0.0.1:0")
    await proxy.start()
    return proxy


async def test_a_client_that_says_slowly_what_it_wants_is_cut_off_in_time_and_one_that_was_connected_is_not(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PROXY_REQUEST_S", 1.0)
    proxy = await start(make_node)
    reader, writer = await connect(proxy)
    writer.write(CONNECT)
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    slow, feed = await connect(proxy)

    async def drip() -> None:
        with suppress(ConnectionError):
            for byte in CONNECT * 100:
                feed.write(bytes([byte]))
                await asyncio.sleep(0.2)

    dripping = asyncio.ensure_future(drip())
    async with within(8):
        with suppress(ConnectionResetError):
            assert await slow.read() == b""
    dripping.cancel()
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    for each in (writer, feed):
        each.close()
    await proxy.close()


async def test_a_client_over_the_limit_waits_and_closing_resets_all(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_PROXY_CLIENTS", 1)
    proxy = await start(make_node)
    reader, writer = await connect(proxy)
    writer.write(CONNECT)
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    second, more = await connect(proxy)
    more.write(CONNECT)
    await asyncio.sleep(0.1)
    assert proxy.connections == 2
    third, _ = await connect(proxy)
    assert await third.read() == b"", "beyond twice the limit a client is closed at once"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert await second.readexactly(len(ANSWER)) == ANSWER, "the place was free"
    await proxy.close()
    with pytest.raises(ConnectionResetError):
        await second.read()
    assert proxy.connections == 0
    more.close()


async def test_dns_at_a_name_is_answered_at_each_of_its_addresses(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two_addresses(host: str) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"]

    monkeypatch.setattr(dns_server, "look_up", two_addresses)
    node = await make_node()
    server = DnsServer(node, "localhost:0", OverlayNames(bytes(32)))
    await server.start()
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x00\x00\x01\x00\x01"
    loop = asyncio.get_running_loop()
    for host in ("127.0.0.1", "127.0.0.2"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            client.connect((host, int(server.listen.rpartition(":")[2])))
            client.send(query)
            async with within(8):
                assert (await loop.sock_recv(client, 512)).startswith(b"\x12\x34")
    await server.close()
