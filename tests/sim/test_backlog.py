"""Holes in streams: an attacker's are bounded, and those of bad networks end no connection."""

from __future__ import annotations

import pytest

from attacks.raw_quic import RawMember
from meshnode.base.limits import MAX_BACKLOG
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.hoards import HOARDS

pytest.importorskip("qh3")


@pytest.mark.parametrize(
    ("weather", "engine"),
    [
        (Weather(0.02, loss=0.02), "aioquic"),
        (Weather(0.02, jitter=0.03), "qh3"),
        (Weather(0.03, jitter=0.02, duplicate=0.5), "qh3"),
        (Weather(0.01, jitter=0.02, loss=0.2, duplicate=0.1), "qh3"),
        (Weather(0.01, jitter=0.02, loss=0.2), "aioquic"),
        (Weather(0.2, loss=0.001), "qh3"),
    ],
    ids=str,
)
def test_a_bad_network_leaves_little_behind_holes_and_ends_no_connection(weather: Weather, engine: str) -> None:
    world = World(7, Weather(delay=0.001))
    server, client = SimNode(world, "10.0.0.1", pick_engine("qh3")), SimNode(world, "10.0.1.1", pick_engine(engine))
    client.join(server)
    world.run(2.0)
    stream, echoed = client.open(client.connect(server.id))
    world.weather = weather
    connections = [one for node in (server, client) for one in node.mesh.context.peers.session_of]
    most = 0

    def behind() -> int:
        return max(one.engine.backlog for one in connections)

    stream.write(bytes(1_000_000))
    for _ in range(600):
        most = max(most, behind())
        if world.run(0.1, lambda: len(echoed.data) >= 1_000_000):
            break
    assert all(one.state is State.READY for one in connections)
    assert most < MAX_BACKLOG / 4


def _attacked(world: World) -> tuple[SimNode, SimNode, RawMember, Connection]:
    victim, foe = SimNode(world, "10.0.0.1", pick_engine("qh3")), SimNode(world, "10.0.1.1", pick_engine("aioquic"))
    foe.join(victim)
    world.run(2.0)
    link = foe.connect(victim.id)
    (there,) = (one for one in victim.mesh.context.peers.session_of if one.peer == foe.id)
    return victim, foe, RawMember.over(link.engine), there


@pytest.mark.parametrize("beside", [[], [b"@"], [b"@" + bytes(1_000)]], ids=["", "junk", "long junk"])
def test_pieces_behind_holes_without_end_end_the_connection_within_the_bound(beside: list[bytes]) -> None:
    world = World(1, Weather(delay=0.001))
    victim, foe, raw, there = _attacked(world)
    one = raw.storm("stream_pieces")
    sent = 0
    while there.state is State.READY and sent < 2 * MAX_BACKLOG:
        batch = [one() for _ in range(32)]
        sent += sum(map(len, batch))
        junk = [batch[0][:9] + data for data in beside]
        victim.mesh.receive([(data, foe.addr) for data in (*batch, *junk)], world.now)
    assert there.state is State.CLOSED
    assert "too much behind holes" in str(there.error)
    assert sent < 1.2 * MAX_BACKLOG
    assert victim.mesh.metrics.counters[HOARDS] == 1


def test_neither_junk_nor_replays_add_to_what_a_peer_has_behind_holes() -> None:
    world = World(1, Weather(delay=0.001))
    victim, foe, raw, there = _attacked(world)
    one = raw.storm("tiny")
    for _ in range(300):
        packet = raw.packet(b"\x01" + bytes(1_000))
        junk = packet[:-1] + bytes([packet[-1] ^ 1])
        batch = [one(), *[packet] * 32, *[junk] * 32]
        victim.mesh.receive([(data, foe.addr) for data in batch], world.now)
    assert there.state is State.READY
    assert there.engine.backlog < 300 * 1_100  # each packet once
