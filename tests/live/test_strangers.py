"""Not one byte to a stranger, whatever it sends."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion

from meshnode import Identity
from meshnode.base.address import Addr
from meshnode.base.clock import SystemClock
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import within

SIZES = (0, 1, 60, 1200, 1472)


def _initial(version: int = QuicProtocolVersion.VERSION_1, token: bytes = b"") -> bytes:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="example.org")
    configuration.original_version = version
    configuration.supported_versions = [version]
    quic = QuicConnection(configuration=configuration)
    quic._peer_token = token
    quic.connect(("x", 0), now=0.0)
    return quic.datagrams_to_send(now=0.0)[0][0]


def _with_version(initial: bytes, version: bytes) -> bytes:
    return initial[:1] + version + initial[5:]


def _first_bytes() -> list[bytes]:
    return [bytes([first]) + os.urandom(size - 1) if size else b"" for first in range(256) for size in SIZES]


def _quic() -> list[bytes]:
    initial = _initial()
    return [
        initial,
        initial[:1] + initial[1:] * 2,  # larger than a path carries
        initial[:1199],  # smaller than an Initial may be
        _initial(token=os.urandom(96)),  # a knock's size
        _initial(QuicProtocolVersion.VERSION_2),
        *(_with_version(initial, version) for version in (b"\xfa\xce\xb0\x0c", bytes(4), b"\xff\x00\x00\x1d")),
        _with_version(initial, b"\x1a\x2a\x3a\x4a"),  # reserved to force a version negotiation
        bytes([0x40]) + initial[6:14] + os.urandom(1180),  # a short header: asks for a stateless reset
        bytes([0xF0]) + initial[1:],  # Retry
        bytes([0xE0]) + initial[1:],  # Handshake
        bytes([0xD0]) + initial[1:],  # 0-RTT
    ]


def _other_protocols() -> list[bytes]:
    stun = [struct.pack("!HHI", kind, 0, 0x2112A442) + os.urandom(12) for kind in (0x0001, 0x0003, 0x0101)]
    key = b"\xc4\x14" + os.urandom(20)
    rpcudp = [
        kind + os.urandom(20) + call
        for kind in (b"\x00", b"\x01")
        for call in (
            b"\x92\xa4ping\x91" + key,
            b"\x92\xa9find_node\x92" + key + key,
            b"\x92\xa5store\x93" + key * 2 + b"\xa1x",
        )
    ]
    me = b"d2:id20:" + os.urandom(20)
    bittorrent = [
        b"d1:a" + me + b"e1:q4:ping1:t2:aa1:y1:qe",
        b"d1:a" + me + b"6:target20:" + os.urandom(20) + b"e1:q9:find_node1:t2:aa1:y1:qe",
        b"d1:a" + me + b"9:info_hash20:" + os.urandom(20) + b"e1:q9:get_peers1:t2:aa1:y1:qe",
        b"d1:a" + me + b"6:target20:" + os.urandom(20) + b"e1:q3:get1:t2:aa1:y1:qe",
    ]
    others = [
        b"\xaa\xaa\x01\x00\x00\x01" + bytes(6) + b"\x07version\x04bind\x00\x00\x10\x00\x03",  # DNS
        b"\x1b" + bytes(47),  # NTP
        b"\x01\x00\x00\x00" + os.urandom(144),  # WireGuard
        b"\x16\xfe\xff" + bytes(9) + os.urandom(100),  # DTLS
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"OPTIONS sip:x SIP/2.0\r\n\r\n",
    ]
    return stun + rpcudp + bittorrent + others


@pytest.mark.parametrize("seed_role", [False, True], ids=["node", "seed"])
@pytest.mark.parametrize(
    ("listen", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")]
)
async def test_no_probe_of_a_stranger_is_answered(make_node: MakeNode, listen: str, host: str, seed_role: bool) -> None:
    node = await make_node(listen=listen, seed_role=seed_role)
    port = node.record.endpoints[0].addr.port
    named = _quic() + _other_protocols()
    probes = _first_bytes() + named * 3
    assert await _answers(host, port, probes) == 0
    counters = node.status()["counters"]
    assert counters["drop_sealed"] > 0
    assert counters["drop_no_connection"] > 0
    dropped = sum(counters.get(name, 0) for name in counters if name.startswith("drop_"))
    assert dropped > 0.9 * (len(probes) - 256), counters  # 256 are empty; all but what the kernel lost were counted


async def test_a_flood_is_dropped_unread_while_peers_and_newcomers_of_its_host_are_served(make_node: MakeNode) -> None:
    node = await make_node()
    peer = await make_node(seed=node)
    assert (await peer.ping(node.id)).rtt is not None
    port = node.record.endpoints[0].addr.port
    junk = [bytes([1]) + os.urandom(128) for _ in range(500)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        counted = node.status()["counters"]
        for number in range(12_000):
            sock.send(junk[number % len(junk)])
            if number % 64 == 0:
                await asyncio.sleep(0.001)
            if number == 8_000:
                counted = node.status()["counters"]
                assert (await peer.ping(node.id)).rtt is not None
                newcomer = await make_node(seed=node)
                assert (await newcomer.ping(node.id)).rtt is not None
    assert counted["drop_refused"] > 0
    assert counted["drop_sealed"] < 4_000, "of 8,000"


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x1f" + bytes(50),
        b"\x01" + bytes(50),
        b"\x01" + bytes(200),
        b"\x02" + bytes(50),
        b"\x02" + bytes(200),
        b"\x40" + bytes(60),
        b"\x41",
        _initial(),
        _initial(token=bytes(96)),
        _initial(QuicProtocolVersion.VERSION_2),
    ],
)
async def test_every_kind_of_junk_ends_in_its_source_being_refused(make_node: MakeNode, junk: bytes) -> None:
    stack = runtime_of(await make_node()).stack
    source = Addr("198.51.100.7", 4242)
    now = time.monotonic()
    for _ in range(2_100):
        stack.take([([junk], source)], now)
    assert set(stack.refused) == {source}


async def test_a_knock_with_another_mesh_key_is_not_answered(make_node: MakeNode) -> None:
    node = await make_node(mesh="mine")
    stranger = _sealer("another")
    assert await _answers("127.0.0.1", node.record.endpoints[0].addr.port, [stranger.seal(node.id, bytes(40))]) == 0
    assert node.status()["counters"]["seal_box"] == 1


async def test_a_replayed_knock_is_not_answered_not_even_after_a_restart(make_node: MakeNode, tmp_path) -> None:  # type: ignore[no-untyped-def]
    node = await make_node(home=tmp_path / "n")
    member = _sealer("open")
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["meshnode/1"]))
    quic._peer_token = member.knock(node.id, quic.original_destination_connection_id)
    quic.connect(("x", 0), now=0.0)
    first = quic.datagrams_to_send(now=0.0)[0][0]
    port = node.record.endpoints[0].addr.port
    assert await _answers("127.0.0.1", port, [first]) > 0, "the first time it is a valid knock"
    await node.close()
    again = await make_node(home=tmp_path / "n", listen=f"127.0.0.1:{port}")
    assert await _answers("127.0.0.1", port, [first]) == 0
    assert again.status()["counters"]["knock_stale"] == 1


async def test_after_a_start_with_a_clock_that_was_set_back_no_request_is_answered_until_a_node_has_answered(
    make_node: MakeNode, tmp_path: Path
) -> None:
    first = await make_node(home=tmp_path / "n")
    await first.close()
    (tmp_path / "n" / "seq").write_text(str(int((SystemClock().wall() + 100) * 1000)))  # it ran at that time
    member, body = _sealer("open"), b"\x01\x00" + bytes(30)
    alone = await make_node(home=tmp_path / "n")
    port = alone.record.endpoints[0].addr.port
    assert await _answers("127.0.0.1", port, [member.seal(alone.id, body)]) == 0
    assert alone.status()["counters"]["seal_doubt"] == 1
    await alone.close()
    (tmp_path / "n" / "seq").write_text(str(int((SystemClock().wall() + 100) * 1000)))
    other = await make_node()
    node = await make_node(home=tmp_path / "n", seed=other)
    async with within(10):
        while runtime_of(node).sealer.doubt.is_there:  # noqa: ASYNC110 - it is not announced
            await asyncio.sleep(0.02)
    port = node.record.endpoints[0].addr.port
    assert await _answers("127.0.0.1", port, [member.seal(node.id, body)]) > 0


async def test_a_replayed_ping_is_answered_once(make_node: MakeNode) -> None:
    node = await make_node()
    member = _sealer("open")
    datagram = member.seal(node.id, b"\x01\x00" + bytes(30))
    port = node.record.endpoints[0].addr.port
    answered = await _answers("127.0.0.1", port, [datagram])
    assert 0 < answered <= len(datagram), "a reply is never longer than its request"
    assert await _answers("127.0.0.1", port, [datagram]) == 0
    assert node.status()["counters"]["seal_replay"] == 1


def _sealer(mesh: str) -> Sealer:
    clock = SystemClock()
    return Sealer(Identity.generate(), MeshKey.from_text(mesh), clock, os.urandom, born=clock.wall() - 60)


async def _answers(host: str, port: int, datagrams: list[bytes]) -> int:
    """Send and return how many bytes came back within half a second."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((host, port))
        received = 0
        for number, datagram in enumerate(datagrams):
            await loop.sock_sendall(sock, datagram) if datagram else sock.send(b"")
            if number % 32 == 0:
                await asyncio.sleep(0.001)
        try:
            async with asyncio.timeout(0.5):
                while True:
                    received += len(await loop.sock_recv(sock, 65_536))
        except TimeoutError:
            return received
