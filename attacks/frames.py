"""Storms of one admitted member: packets full of the smallest frames, as fast as they go, over one connection.

Each frame is allowed, and a packet full of them costs its receiver 0.1 to 2 ms. What a bystander notices is compared
with a control: the same member sends the same to a socket that nothing reads. The counts are of one connection's ends
in this process: what a thousand such packets make a node keep.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

from attacks import Row
from attacks.bystanders import Bystanders, Comparison, bystanders
from attacks.foe import Address, Flood, Foe, Make, sink
from attacks.lab import mesh, settled
from attacks.raw_quic import KINDS, RawMember
from meshnode.errors import ConfigError
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.engines import ENGINES, pick_engine
from meshnode.quic.seam import Engine, Terminated

RATE = 10_000.0
WHERE = "stack/receive_pace.py"
LIVE = ("pings", "empty_streams", "acks")  # of all that do not end their connection, the dearest
HOARDS = ("stream_holes", "stream_opens", "path_challenges", "new_cids", "crypto_bytes")
FULL = "member: packets full of the smallest frames"


ROUNDS = 3


def _rows(kind: str, engine: str) -> dict[str, Row]:
    attack = f"member: 10,000 packets/s full of {kind.replace('_', ' ')}, {engine}"

    def row(measured: str, limit: float, unit: str = "x", more: bool = False) -> Row:
        return Row(0, "high", attack, WHERE, f"{measured}, of the control's", None, limit, unit, more)

    return {
        f"{kind}_{engine}_goodput": row("a member's goodput", 0.5, "", more=True),
        f"{kind}_{engine}_keepalive": row("a peer's sealed echo", 2),
        f"{kind}_{engine}_move": row("a peer's move", 2),
        f"{kind}_{engine}_newcomer": row("a newcomer's first ping", 5),
    }


ROWS = {key: row for engine in ENGINES for kind in LIVE for key, row in _rows(kind, engine).items()} | {
    "dear_aioquic": Row(
        0, "high", f"{FULL}, 25 kinds, aioquic", "quic/engines/ranges.py", "CPU of the dearest packet", 100, 10, "ms",
    ),
    "dear_qh3": Row(
        0, "high", f"{FULL}, 25 kinds, qh3", "quic/engines/qh3_connection.py", "CPU of the dearest packet", None, 10,
        "ms",
    ),
    "kept_aioquic": Row(
        0, "high", f"{FULL}, 200 of them, aioquic", "quic/engines/ranges.py",
        "memory that the node grows by, worst kind", None, 5_000, "kB",
    ),
    "kept_qh3": Row(
        0, "high", f"{FULL}, 200 of them, qh3", "quic/engines/qh3_connection.py",
        "memory that the node grows by, worst kind", 7_200, 5_000, "kB",
    ),
    "hoard": Row(
        0, "high", "member: 2.4 million bytes of a stream, each behind a hole", "stack/hoards.py",
        "memory that the node grows by", 188, 75, "MB",
    ),
}  # fmt: skip


def dialled(to: NodeId, address: Address, sock: socket.socket) -> RawMember:
    """Return a member whose connection is up."""
    foe = Foe()
    member = RawMember(foe.identity, to, lambda odcid: foe.sealer.knock(to, odcid))

    def exchange(datagrams: list[bytes]) -> list[bytes]:
        for datagram in datagrams:
            sock.send(datagram)
        found: list[bytes] = []
        while select.select([sock], [], [], 0.0 if found else 0.1)[0]:
            found.append(sock.recv(2_048))
        return found

    sock.connect(address)
    member.begin(exchange)
    return member


def storm(to: NodeId, address: Address, kind: str) -> Make:
    """Return what makes the packets of a storm, in the flood's process."""
    return lambda sockets: dialled(to, address, sockets[0]).storm(kind)


def ends(engine: str) -> tuple[RawMember, Engine]:
    """Return a member and the listening end of its connection, on this engine, without a network."""
    own, peer = Identity.generate(), Identity.generate()
    member = RawMember(own, peer.id, lambda odcid: bytes(96))
    listener = pick_engine(engine).accept(peer, member.odcid, 600.0, time.monotonic())

    def exchange(datagrams: list[bytes]) -> list[bytes]:
        for datagram in datagrams:
            listener.receive([datagram], time.monotonic())
        listener.events()
        return listener.transmit(time.monotonic())

    member.begin(exchange)
    return member, listener


def kept_of(engine: str, kind: str, count: int) -> tuple[float, bool]:
    """Return the kB by which this process grew in a storm, and whether it ended the connection."""
    member, listener = ends(engine)
    one = member.storm(kind)
    packets = [one() for _ in range(count)]
    gc.collect()
    before = rss_kb()
    for packet in packets:
        listener.receive([packet], time.monotonic())
        ended = any(isinstance(event, Terminated) for event in listener.events())
        listener.transmit(time.monotonic())
        if ended or any(isinstance(event, Terminated) for event in listener.events()):
            return rss_kb() - before, True
    return rss_kb() - before, False


def rss_kb() -> int:
    """Return the resident memory of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def hoard(packets: int) -> float:
    """Return the MB by which a live node grew by pieces of a byte, each behind a hole, over one connection."""
    with mesh(1) as (_, _, (victim,)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        one = dialled(victim.id, victim.address, sock).storm("stream_pieces")
        before = most = victim.rss_mb()
        for number in range(packets):
            with suppress(OSError):
                sock.send(one())
            if number % 16 == 15:
                time.sleep(0.002)
            if number % 500 == 499:
                most = max(most, victim.rss_mb())
        return max(most, settled(victim.rss_mb, lambda _: False, 1.0)) - before


def dear(engine: str, kind: str, count: int = 48) -> float:
    """Return the ms of CPU that a packet of a storm costs; those behind the end of the connection cost nothing."""
    member, listener = ends(engine)
    one = member.storm(kind)
    packets = [one() for _ in range(count)]
    began = time.process_time()
    for number, packet in enumerate(packets, 1):
        listener.receive([packet], time.monotonic())
        listener.events()
        if number % 8 == 0:
            listener.transmit(time.monotonic())
    return 1e3 * (time.process_time() - began) / count


def available_engines() -> list[str]:
    """Return the engines that are installed."""
    found = []
    for engine in ENGINES:
        with suppress(ConfigError):
            found.append(pick_engine(engine).name)
    return found


def _compare(around: Bystanders, kind: str) -> Comparison:
    victim = around.victim
    with (
        sink() as nowhere,
        Flood(storm(victim.id, victim.address, kind), victim.address, RATE, control=nowhere.getsockname()) as flood,
    ):
        return around.compare(lambda to: flood.aimed(attacks=to == victim.address), rounds=ROUNDS)


def run(short: bool) -> dict[str, float]:
    """Measure both engines here, and bystanders of live nodes."""
    figures = {"hoard": hoard(8_000 if short else 16_000)}
    for engine in available_engines():
        figures[f"dear_{engine}"] = max(dear(engine, kind) for kind in KINDS)
        figures[f"kept_{engine}"] = max(kept_of(engine, kind, 200)[0] for kind in HOARDS)
        for kind in () if short else LIVE:
            with bystanders(engine=engine) as around:
                found = _compare(around, kind)
            figures[f"{kind}_{engine}_goodput"] = found.goodput
            figures |= {f"{kind}_{engine}_{what}": found.times(what) for what in ("keepalive", "move", "newcomer")}
    return figures
