"""What a member with few connections can make a node keep, or keep from others: places, answers, holes."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aioquic.tls import Epoch

from attacks import Row
from attacks.foe import Foe
from attacks.lab import Member, close_all, mesh
from meshnode import Config, Node
from meshnode.identity.node_id import NodeId
from meshnode.quic.engines import pick_engine

ROWS = {
    "service": Row(
        0, "high", "member: 1,600 streams to a service that it never ends", "sdk/places.py",
        "other members of 5 that the service answers", 0, 5, more=True,
    ),
    "pings": Row(
        0, "high", "member: 67 MB of pings in a tunnel, and no pong is read", "runtime/websocket.py",
        "memory that the node grows by", 57, 20, "MB",
    ),
    "holes": Row(
        0, "high", "member: 200 first flights, each with a hole of 500 kB", "quic/engines/aioquic.py",
        "memory that the node grows by", 51, 20, "MB",
    ),
}  # fmt: skip
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HOLE = 500_000
PINGS = (b"\x89\xfd" + bytes(4) + bytes(125)) * 512


@contextmanager
def _greets() -> Iterator[str]:
    """A TCP server that says a word and keeps its connections; yields what ``expose`` takes."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=2_048) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    held.append(listener.accept()[0])
                    held[-1].sendall(b"here")

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    close_all(held)


def served(member: Member, to: str, count: int) -> int:
    """Return how many of so many connections get an answer of a service within 8 s; they are held meanwhile."""
    host, _, port = str(member.ask("forward", listen="127.0.0.1:0", to=to)["listen"]).rpartition(":")
    found, held = 0, []
    for _ in range(count):
        held.append(socket.create_connection((host, int(port)), timeout=8))
        with suppress(OSError):
            found += held[-1].recv(4) == b"here"
    close_all(held)
    return found


async def _hog(home: Path, seed: Member, member: Member) -> int:
    """Open more streams to a service of the seed than it serves, keep them, and count what another member gets."""
    config = Config(home=home, seeds=(seed.at,), listen="127.0.0.1:0", mdns=False, port_mapping=False)
    async with Node(config) as hog:
        opening = [asyncio.ensure_future(hog.open(seed.id, "busy")) for _ in range(1_600)]
        await asyncio.wait(opening, timeout=6)
        found = await asyncio.to_thread(served, member, f"{seed.id}/busy", 5)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        return found


def ping_flood(seed: Member) -> float:
    """Send pings in a tunnel, read nothing, and return how many MB the node grew by at most."""
    before = most = seed.rss_mb()
    tls = Foe().tunnel(seed.id, seed.address)
    tls.sendall(UPGRADE)
    with suppress(OSError):
        for number in range(1_000):
            tls.sendall(PINGS)
            if number % 50 == 49:
                most = max(most, seed.rss_mb())
    tls.close()
    return max(most, seed.rss_mb()) - before


def holes(seed: Member, count: int) -> float:
    """Send first flights whose TLS bytes have a hole, and return how many MB the node grew by at most."""
    before = most = seed.rss_mb()
    for number in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.{1 + number}.0.1", 0))  # a network of its own
            for datagram in _flight_with_a_hole(Foe(), seed.id):
                sock.sendto(datagram, seed.address)
        if number % 20 == 19:
            time.sleep(0.1)
            most = max(most, seed.rss_mb())
    return max(most, seed.rss_mb()) - before


def _flight_with_a_hole(foe: Foe, to: NodeId) -> list[bytes]:
    engine: Any = pick_engine("aioquic").dial(foe.identity, to, lambda odcid: foe.sealer.knock(to, odcid), 30.0, 0.0)
    sender = engine._quic._crypto_streams[Epoch.INITIAL].sender
    sender._buffer_start = sender._buffer_stop = sender._buffer_stop + HOLE  # what it writes next comes after a hole
    sender._pending.subtract(0, HOLE)
    sender._buffer.clear()
    sender.write(b"late")
    return list(engine.transmit(0.0))


def run(short: bool) -> dict[str, float]:
    """Attack a seed, with a member that uses its service."""
    figures: dict[str, float] = {}
    with mesh(1) as (root, seed, (member,)), _greets() as target:
        if not short:
            seed.ask("expose", name="busy", target=target, allow=["any"])
            figures["service"] = asyncio.run(_hog(root / "hog", seed, member))
        figures["pings"] = ping_flood(seed)
        figures["holes"] = holes(seed, 60 if short else 200)
    return figures
