"""Where UDP is blocked: the WebSocket tunnel, its proxy, and its silence towards strangers."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path

import pytest
import uvloop

from meshnode import Identity, Node
from meshnode.base.path import ViaTunnel
from meshnode.runtime import knock_listener
from meshnode.runtime import websocket as tunnel
from meshnode.runtime.acceptor import CountedSocket, listen_tcp
from meshnode.runtime.tunnel_client import UNACKED_S
from meshnode.runtime.tunnel_tls import server_context
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode, several_nodes
from tests.given_time import HANG_S, wait_for, within
from tests.live.test_node import echo


def _block_udp(node: Node) -> None:
    """Nothing leaves or reaches this node by UDP."""
    runtime_of(node).sockets.udp.send = lambda addr, datagrams: True  # type: ignore[method-assign]
    runtime_of(node).sockets.udp._on_batch = lambda batch: None


async def _all_reach_all(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    free = await make_node(seed=seed)
    blocked = await make_node(seed=seed)
    _block_udp(blocked)
    for node in (free, blocked):
        node.serve("echo", echo, allow=["any"])
    for here, there in ((blocked, free), (free, blocked)):
        reader, writer = await wait_for(here.open(there.id, "echo"), 10)
        writer.write(b"x" * 100_000)
        assert await wait_for(reader.readexactly(100_000), 10) == b"x" * 100_000
    assert runtime_of(seed).metrics.counters["tunnels_accepted"] >= 1


async def test_a_node_without_udp_is_reached_and_reaches_others(make_node: MakeNode) -> None:
    await _all_reach_all(make_node)


def test_it_is_on_uvloop_too(tmp_path: Path) -> None:
    async def on_uvloop() -> None:
        async with several_nodes(tmp_path) as make_node:
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
            await _all_reach_all(make_node)

    uvloop.run(on_uvloop())


async def test_a_port_that_another_program_has_for_tcp_is_not_kept(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def listen(host: str, port: int, backlog: int, *, both: bool) -> socket.socket:
        if not refused:
            refused.append(port)
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return listen_tcp(host, port, backlog, both=both)

    monkeypatch.setattr(knock_listener, "listen_tcp", listen)
    seed = await make_node(seed_role=True)
    local = runtime_of(seed).sockets.udp.local
    assert [local.port] != refused
    assert seed.record.endpoints[0].addr.port == local.port
    with socket.create_connection(local, timeout=HANG_S):
        pass


async def test_a_kernel_that_sets_no_option_of_a_connection_costs_nothing(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sock: socket.socket, *option: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(CountedSocket, "setsockopt", refuse)
    seed = await make_node(seed_role=True)
    with socket.create_connection(("127.0.0.1", runtime_of(seed).sockets.local.port)) as client:
        client.settimeout(HANG_S)
        client.sendall(bytes(5))  # no hello of TLS
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(client.recv, 1)
    assert len(runtime_of(seed).sockets.accepted) == 0


async def test_strangers_get_no_byte_from_the_tunnel(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    host, port = runtime_of(seed).sockets.udp.local

    def plain(data: bytes) -> bytes:
        with socket.create_connection((host, port), timeout=1) as sock:
            sock.sendall(data)
            sock.settimeout(1)
            try:
                return sock.recv(100)
            except (TimeoutError, ConnectionError):
                return b""

    def tls(name: str) -> str:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with socket.create_connection((host, port), timeout=3) as sock:
            try:
                context.wrap_socket(sock, server_hostname=name)
            except (ConnectionError, ssl.SSLError) as error:
                return type(error).__name__
        return "a handshake"

    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(600), b"\x16" * 40):
        assert await asyncio.to_thread(plain, data) == b""
    for name in ("example.com", "a" * 63 + ".mesh"):
        assert await asyncio.to_thread(tls, name) != "a handshake"
    assert runtime_of(seed).metrics.counters["tunnel_drop_knock"] >= 5
    assert "tunnels_accepted" not in runtime_of(seed).metrics.counters


@pytest.mark.parametrize("credentials", ["", "user:secret@"])
async def test_the_tunnel_goes_through_an_https_proxy(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, credentials: str
) -> None:
    asked: list[bytes] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        upstream = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pipe(reader, upstream[1]), pipe(upstream[0], writer))

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://{credentials}127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    seed = await make_node(seed_role=True)
    blocked = await make_node(seed=seed)
    _block_udp(blocked)
    outcome = await wait_for(blocked.ping(seed.id), 10)
    assert outcome.rtt is not None
    assert asked
    assert (b"Proxy-Authorization: Basic" in asked[0]) == bool(credentials)
    server.close()


async def test_a_tunnel_that_is_not_needed_any_more_is_given_up(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "TUNNEL_IDLE_S", 0.3)
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    assert (await node.ping(seed.id)).path == "lan"
    by_tunnel = ViaTunnel(str(seed.id), "127.0.0.1", seed.record.endpoints[0].addr.port)
    runtime_of(node).sockets.tunnels.send(by_tunnel, [b"\x00 a probe"])
    async with within(5):
        for some in (1, 0):
            while len(runtime_of(seed).sockets.tunnels._incoming) != some:  # noqa: ASYNC110 - it is not announced
                await asyncio.sleep(0.01)
    assert (await node.ping(seed.id)).rtt is not None


async def test_a_tunnel_from_an_address_that_is_gone_is_given_up_for_a_new_one(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    blocked = await make_node(seed=seed)
    _block_udp(blocked)
    assert (await wait_for(blocked.ping(seed.id), 10)).rtt is not None
    accepted = runtime_of(seed).metrics.counters
    opened = accepted["tunnels_accepted"]
    runtime_of(blocked).sockets.on_addresses((("192.0.2.1", 24),))
    async with within(10):
        while accepted["tunnels_accepted"] == opened:
            await blocked.ping(seed.id)
    assert (await wait_for(blocked.ping(seed.id), 10)).rtt is not None


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
async def test_a_tunnel_on_which_nothing_is_acknowledged_is_not_tried_for_a_quarter_of_an_hour(
    make_node: MakeNode,
) -> None:
    seed = await make_node(seed_role=True)
    blocked = await make_node(seed=seed)
    _block_udp(blocked)
    assert (await wait_for(blocked.ping(seed.id), 10)).rtt is not None
    (websocket,) = [one._websocket for one in runtime_of(blocked).sockets.tunnels._outgoing.values() if one._websocket]
    sock = websocket.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1_000 * UNACKED_S


async def test_a_relay_leads_a_node_whose_environment_names_proxies_to_no_other_host(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, said in (("HTTPS_PROXY", "http://127.0.0.1:9"), ("no_proxy", "*")):
        monkeypatch.setenv(name, said)
    called: list[str] = []

    async def victim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append("victim")
        writer.close()

    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append("relay")
        await reader.readuntil(b"\r\n\r\n")
        port = other.sockets[0].getsockname()[1]
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: wss://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % port)
        writer.close()

    node = await make_node()
    other = await asyncio.start_server(victim, "127.0.0.1", 0)
    relay = await asyncio.start_server(liar, "127.0.0.1", 0, ssl=server_context(tmp_path / "relay.pem"))
    path = ViaTunnel(str(Identity.generate().id), "127.0.0.1", relay.sockets[0].getsockname()[1])
    runtime_of(node).sockets.tunnels.send(path, [b"x"])
    async with within(10):
        while "tunnel_failures" not in runtime_of(node).metrics.counters:  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.01)
    assert called == ["relay"]
    for server in (other, relay):
        server.close()


async def test_a_proxy_that_needs_a_missing_package_is_named_in_the_log(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("https_proxy", "socks5h://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    node = await make_node()
    runtime_of(node).sockets.tunnels.send(ViaTunnel(str(Identity.generate().id), "192.0.2.1", 443), [b"x"])
    async with within(10):
        while "tunnel_failures" not in runtime_of(node).metrics.counters:  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.01)
    assert "SOCKS" in caplog.text
