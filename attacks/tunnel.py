"""The tunnel's TCP port: it works before it knows which member calls, so what a stranger can make it do is bounded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from attacks import Row
from attacks.foe import Address, Foe
from attacks.lab import Member, Stream, close_all, mesh, settled
from meshnode.base.limits import MAX_TUNNELS_PER_MEMBER

WHERE = "runtime/knock_listener.py"
ROWS = {
    "unfinished": Row(
        1, "critical", "stranger: 16 unfinished ClientHellos on the tunnel's port", WHERE,
        "a member's goodput, of before", 0.05, 0.5, more=True,
    ),
    "unfinished_cpu": Row(
        1, "critical", "stranger: 120 unfinished ClientHellos on the tunnel's port", WHERE,
        "CPU of the node for 5 s of them", 5.0, 0.3, "s",
    ),
    "silent": Row(
        2, "high", "stranger: 150 silent TCP connections", WHERE,
        "members admitted of 10 that knock", 0.5, 10, more=True,
    ),
    "no_websocket": Row(
        10, "high", "member: 100 TLS connections that become no WebSocket", "runtime/websocket.py",
        "descriptors that they hold", 100, MAX_TUNNELS_PER_MEMBER,
    ),
}  # fmt: skip


def unfinished() -> bytes:
    """Return a ClientHello of 16 kB whose last extension says more than there is, so that all of it is walked."""
    extensions = b"\xfe\x00\x00\x00" * 4_040 + b"\xfe\x00\x00\x10"
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2, "big") + extensions
    record = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(record).to_bytes(2, "big") + record[:-100]


@contextmanager
def connections(address: Address, count: int, data: bytes = b"") -> Iterator[None]:
    """Hold TCP connections that have sent this."""
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            held.append(socket.create_connection(address, timeout=5))
            held[-1].sendall(data)
        yield
    finally:
        close_all(held)


def admitted(seed: Member, count: int) -> int:
    """Return how many TLS handshakes with a knock succeed, of throw-away members."""
    found = 0
    for _ in range(count):
        try:
            Foe().tunnel(seed.id, seed.address).close()
            found += 1
        except OSError:
            pass
    return found


def held_by_member(seed: Member, idle: int, count: int) -> float:
    """Return how many descriptors a member's TLS connections hold that never become a WebSocket."""
    foe, held = Foe(), list[socket.socket]()
    for _ in range(count):
        held.append(foe.tunnel(seed.id, seed.address))
    limit = ROWS["no_websocket"].limit
    now = settled(lambda: seed.descriptors() - idle, lambda descriptors: descriptors <= limit)
    close_all(held)
    return now


def run(short: bool) -> dict[str, float]:
    """Attack a seed while one of its members downloads from it."""
    figures: dict[str, float] = {}
    with mesh(1) as (_, seed, (member,)):
        if not short:
            with Stream(seed, member) as stream:
                stream.goodput(1.0)
                before = stream.goodput(3.0)
                with connections(seed.address, 16, unfinished()):
                    figures["unfinished"] = stream.goodput(3.0) / before
        idle, used = seed.descriptors(), seed.cpu_s()
        with connections(seed.address, 120, unfinished()), connections(seed.address, 30):
            figures["silent"] = admitted(seed, 10)
        figures["unfinished_cpu"] = seed.cpu_s() - used
        settled(seed.descriptors, lambda descriptors: descriptors <= idle)
        figures["no_websocket"] = held_by_member(seed, idle, 20 if short else 100)
    return figures
