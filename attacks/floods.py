"""Floods of throw-away ids through one door after the other, and what bystanders notice.

What must hold: an established peer's move and keepalive within twice the control's, a newcomer's first ping within five
times, half of the control's goodput, and memory within the figures of ``limits.py``. In the control the same process
sends the same to a socket that nothing reads. The floods of 10,000 ids come from 500 ports of one host, so that the
share of a network is what holds and not that of an address, and newcomers are in another network; those of "wide" are
in 16 networks. The others are those that once broke a node: one socket, and newcomers beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from attacks import Row
from attacks.bystanders import ROUNDS, Bystanders, Comparison, bystanders
from attacks.doors import Tunnels, knocks, noise, pings, stores, watches
from attacks.foe import Flood, Make, sink
from attacks.lab import keepalive_time, mesh, newcomer_time
from meshnode.base.limits import ACCEPTS_PER_ADDRESS_BURST, ACCEPTS_PER_ADDRESS_PER_S
from meshnode.identity.node_id import NodeId

BESIDE, ELSEWHERE = "127.0.0.1:0", "127.9.9.1:0"  # where newcomers listen: in the attacker's network, or in another


@dataclass(frozen=True, slots=True)
class Door:
    """One flood.

    Attributes:
        number: The row of the audit's table.
        what: What the attacker does.
        where: What withstands it.
        make: Makes the datagrams.
        ids, rate, ports: Ids of the flood, its datagrams a second, and the sockets that they come from.
        before: The figures once: goodput of the control's, and seconds of a move.
        grows: MB of memory that the bounds of this door add up to.
        networks: Source networks (/24) that the sockets are in; 1 is the victim's own.
        cpu: Of a core that it may take: from many networks, what is spare.
    """

    number: int
    what: str
    where: str
    make: Callable[[NodeId, int], Make] | None
    ids: int = 10_000
    rate: float = 10_000
    ports: int = 500
    before: tuple[float | None, float | None] = (None, None)
    grows: float = 60.0
    networks: int = 1
    cpu: float = 0.5


DOORS = {
    "guard": Door(4, "8 ids: 8,000 PINGs/s", "identity/replay.py", pings, 8, 8_000, 1, (None, 8.0), 30),
    "sessions": Door(5, "2,500 ids: 531 first flights/s", "stack/half_open.py", knocks, 2_500, 531, 1, (None, 1.8), 60),
    "unproven": Door(
        18,
        "15,000/s that open the box and prove nothing",
        "identity/sealing.py",
        noise,
        8_000,
        15_000,
        1,
        (0.26, 2.2),
        10,
    ),
    "pings": Door(4, "10,000 ids: PINGs", "identity/sealing.py", pings, grows=40),
    "knocks": Door(5, "10,000 ids: first flights", "stack/half_open.py", knocks, before=(0.01, None)),
    "noise": Door(18, "10,000 ids: no proof", "identity/sealing.py", noise, grows=20),
    "stores": Door(14, "10,000 ids: STOREs", "identity/sealing.py", stores, before=(0.0, 16.7)),
    "watches": Door(14, "10,000 ids: WATCHes", "identity/sealing.py", watches, before=(0.0, None)),
    "wide": Door(4, "10,000 ids in 16 networks: STOREs", "identity/senders.py", stores, networks=16, cpu=0.9),
    "tunnels": Door(10, "one id each: TLS connections", "runtime/websocket.py", None, grows=190),
}
GRADES = {4: "high", 5: "high", 10: "high", 14: "medium", 18: "medium"}


def _rows(name: str, door: Door) -> dict[str, Row]:
    def row(measured: str, before: float | None, limit: float, unit: str = "", more: bool = False) -> Row:
        return Row(door.number, GRADES[door.number], door.what, door.where, measured, before, limit, unit, more)

    return {
        f"{name}_goodput": row("a member's goodput, of the control's", door.before[0], 0.5, more=True),
        f"{name}_move": row("a peer's move, of the control's", door.before[1] and door.before[1] / 0.2, 2.0, "x"),
        f"{name}_keepalive": row("a peer's sealed echo, of the control's", None, 2.0, "x"),
        f"{name}_newcomer": row("a newcomer's first ping, of the control's", None, 5.0, "x"),
        f"{name}_cpu": row("of a core that it takes from the node", None, door.cpu),
        f"{name}_memory": row("memory that the node grows by", 379 if door.number == 5 else None, door.grows, "MB"),
    }


ROWS = {key: row for name, door in DOORS.items() for key, row in _rows(name, door).items()} | {
    "short_lost": Row(5, "high", "10,000 ids: PINGs, then first flights", "base/fair_rate.py",
                      "echoes lost of 18, by an established peer", None, 0),
    "short_newcomers": Row(5, "high", "10,000 ids: PINGs, then first flights", "base/fair_rate.py",
                           "newcomers of 2 whose ping is answered", 0, 2, more=True),
    "short_handshakes": Row(5, "high", "10,000 ids: first flights, one socket", "stack/half_open.py",
                            "handshakes begun, of those that the rate allows", None, 1),
}  # fmt: skip


def compare(door: Door, rounds: int = ROUNDS) -> Comparison:
    """Return what bystanders felt of one flood."""
    tunnels = door.make is None  # a member that is no relay has no TCP port
    with bystanders(BESIDE if door.ports == 1 and not tunnels else ELSEWHERE, at_seed=tunnels) as around:
        return _compare(door, around, rounds)


def _compare(door: Door, around: Bystanders, rounds: int) -> Comparison:
    victim = around.victim
    if door.make is None:
        return around.compare(lambda to: Tunnels(victim.id, to, control=to != victim.address), rounds=rounds)
    make = door.make(victim.id, door.ids)
    with (
        sink() as nowhere,
        Flood(make, victim.address, door.rate, door.ports, door.networks, nowhere.getsockname()) as flood,
    ):
        return around.compare(lambda to: flood.aimed(attacks=to == victim.address), rounds=rounds)


def figures_of(name: str, found: Comparison) -> dict[str, float]:
    """Return the figures of a door's rows."""
    times = {f"{name}_{what}": found.times(what) for what in ("move", "keepalive", "newcomer")}
    return {f"{name}_goodput": found.goodput, **times, f"{name}_cpu": found.cpu, f"{name}_memory": found.memory}


def _counts() -> dict[str, float]:
    """Flood a node for a few seconds through two doors; how fast it answers is not measured."""
    lost = newcomers = 0
    with mesh(2) as (root, seed, (victim, peer)):
        keepalive_time(peer, victim, 1)
        for make in (pings, knocks):
            before, began = victim.counters().get("accepts", 0), time.monotonic()
            with Flood(make(victim.id, 10_000), victim.address, 5_000):
                lost += sum(keepalive_time(peer, victim, 1) >= 5.0 for _ in range(9))
                newcomers += newcomer_time(root, victim, "--seed", seed.at) < 15.0
        begun = victim.counters().get("accepts", 0) - before
        allowed = ACCEPTS_PER_ADDRESS_BURST + ACCEPTS_PER_ADDRESS_PER_S * (time.monotonic() - began)
    return {"short_lost": lost, "short_newcomers": newcomers, "short_handshakes": begun / allowed}


def run(short: bool) -> dict[str, float]:
    """Flood one door after the other."""
    figures = _counts()
    if not short:
        for name, door in DOORS.items():
            figures |= figures_of(name, compare(door))
    return figures
