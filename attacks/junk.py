"""Junk: datagrams by strangers, 20,000 a second, against a node from which a peer downloads.

The control is the same flood to another process that reads and forgets: what is left of the goodput is then what the
node loses, not what the machine does.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from statistics import median

from attacks import Row
from attacks.foe import Address, Flood, Foe, Make, Sockets, first_flight
from attacks.lab import Member, Stream, mesh, settled
from meshnode.identity.node_id import NodeId

RATE = 20_000.0
POOL = 3_000
WHERE = "runtime/udp.py, stack/junk.py"
ROWS = {
    "goodput": Row(
        0, "medium", "stranger: 20,000 datagrams a second of six kinds", WHERE,
        "a member's goodput, of the control's", 0.45, 0.6, more=True,
    ),
    "knocks": Row(
        0, "medium", "stranger: 20,000 first flights a second, their knocks of no mesh", WHERE,
        "a member's goodput, of the control's", None, 0.8, more=True,
    ),
    "members_knocks": Row(
        0, "medium", "member: 20,000 first flights a second, of 3,000 ids by turns", "stack/half_open.py",
        "a member's goodput, of the control's", None, 0.8, more=True,
    ),
    "cpu": Row(
        0, "medium", "stranger: 20,000 datagrams a second of six kinds", WHERE,
        "CPU of the node for each", 11, 6, "us",
    ),
    "read": Row(
        0, "medium", "stranger: 20,000 datagrams as fast as they go", WHERE,
        "how many of them are looked at", 20_000, 5_000,
    ),
}  # fmt: skip
KINDS: tuple[Callable[[], bytes], ...] = (
    lambda: b"\x01" + os.urandom(128),  # sealed
    lambda: b"\x01" + os.urandom(1_400),
    lambda: b"\x41" + os.urandom(60),  # QUIC, short header
    lambda: b"\xc0\0\0\0\x01\x08" + os.urandom(8) + b"\0\x40\x60" + os.urandom(96) + b"\x44\x50" + bytes(1_100),
    lambda: b"\x02" + os.urandom(200),  # relay frame
    lambda: b"\x1f" + os.urandom(100),
)
DRAIN = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
buffer = bytearray(65_536)
while True:
    sock.recv_into(buffer)
"""


class Drain:
    """A process that reads datagrams and does nothing with them."""

    def __enter__(self) -> Address:
        self._process = subprocess.Popen([sys.executable, "-c", DRAIN], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return "127.0.0.1", int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def junk(sockets: Sockets) -> Callable[[], bytes]:
    """Return a function that gives one datagram after the other."""
    pool = [make() for make in KINDS for _ in range(POOL // len(KINDS))]
    random.shuffle(pool)
    return _by_turns(pool)


def knocks(sockets: Sockets) -> Callable[[], bytes]:
    """Return the same for Initials alone."""
    return _by_turns([KINDS[3]() for _ in range(POOL)])


def members_knocks(to: NodeId) -> Make:
    """Return a maker of first flights whose knocks are valid, the first time round."""

    def make(sockets: Sockets) -> Callable[[], bytes]:
        flight = first_flight(to)
        return _by_turns([Foe().initial(to, flight) for _ in range(POOL)])

    return make


def _by_turns(pool: list[bytes]) -> Callable[[], bytes]:
    count = 0

    def one() -> bytes:
        nonlocal count
        count += 1
        return pool[count % POOL]

    return one


def looked_at(victim: Member) -> float:
    """Return how many datagrams of strangers the node has read so far."""
    return sum(n for name, n in victim.counters().items() if name.startswith("drop_") and name != "drop_refused")


def goodput(stream: Stream, make: Make, to: Address, seconds: float) -> float:
    """Return the MB/s of a stream while a flood goes to an address."""
    with Flood(make, to, RATE):
        stream.goodput(0.5)
        return stream.goodput(seconds)


def cpu(victim: Member, seconds: float) -> float:
    """Return the CPU time in us that an idle node uses for each datagram of a flood."""
    with Flood(junk, victim.address, RATE) as flood:
        began, sent = victim.cpu_s(), flood.sent
        settled(lambda: flood.sent, lambda now: now > sent + RATE * seconds, 3 * seconds)
        return 1e6 * (victim.cpu_s() - began) / (flood.sent - sent)


def read(victim: Member) -> float:
    """Return how many of 20,000 are looked at."""
    before = looked_at(victim)
    with Flood(junk, victim.address, 4 * RATE) as flood:
        settled(lambda: flood.sent, lambda now: now >= RATE)
    return looked_at(victim) - before


def run(short: bool) -> dict[str, float]:
    """Attack a node."""
    with mesh() as (_, _, (victim, reader)):
        figures = {"read": read(victim)}
        if short:
            return figures
        figures["cpu"] = cpu(victim, 4.0)
        with Stream(victim, reader) as stream, Drain() as elsewhere:
            floods = {"goodput": junk, "knocks": knocks, "members_knocks": members_knocks(victim.id)}
            for name, make in floods.items():
                rounds = [
                    (goodput(stream, make, victim.address, 2.0), goodput(stream, make, elsewhere, 2.0))
                    for _ in range(8)
                ]
                figures[name] = median(under / control for under, control in rounds)
    return figures
