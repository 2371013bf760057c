"""Not one byte to a stranger, whatever he sends."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from meshnode import Identity
from meshnode.clock import SystemClock
from meshnode.sealing import MeshKey, Sealer
from tests.conftest import MakeNode

SIZES = (0, 1, 60, 1200, 1472)


def _initial() -> bytes:
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
    quic.connect(("x", 0), now=0.0)
    return quic.datagrams_to_send(now=0.0)[0][0]


def _probes() -> list[bytes]:
    found = [bytes([first]) + os.urandom(size - 1) if size else b"" for first in range(256) for size in SIZES]
    initial = _initial()
    found += [initial, initial[:1] + b"\xfa\xce\xb0\x0c" + initial[5:], initial[:1] + bytes(4) + initial[5:]]
    found.append(struct.pack("!HHI", 1, 0, 0x2112A442) + os.urandom(12))  # STUN binding request
    found.append(b"\x00" + os.urandom(20) + b"\x92\xa4ping\x91\xc4\x14" + os.urandom(20))  # rpcudp
    found.append(b"d1:ad2:id20:" + os.urandom(20) + b"e1:q4:ping1:t2:aa1:y1:qe")  # BitTorrent
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_no_probe_of_a_stranger_is_answered(make_node: MakeNode, host: str) -> None:
    node = await make_node(listen=f"[{host}]:0" if ":" in host else f"{host}:0")
    port = node.record.endpoints[0].addr.port
    assert await _answers(host, port, _probes()) == 0
    counters = node.status()["counters"]
    assert counters["drop_sealed"] > 0
    assert counters["drop_no_connection"] > 0


async def test_a_knock_with_another_mesh_key_is_not_answered(make_node: MakeNode) -> None:
    node = await make_node(mesh="mine")
    stranger = _sealer("theirs")
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
