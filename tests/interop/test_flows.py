"""Datagrams of whole nodes in virtual time: beside streams that are not read, on bad paths, and through moves."""

from __future__ import annotations

import pytest

from meshnode.base.limits import DATAGRAM_COST
from meshnode.quic.connection import Connection, State
from meshnode.quic.flows import Flow
from meshnode.quic.preface import FLOW
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.unread import _held_of
from tests.interop.test_engines import Pair, _nodes, _send, every_pair


def _flow(world: World, dialler: SimNode, listener: SimNode) -> tuple[Connection, Connection, Flow, Flow]:
    """Open a flow; return both ends' connections and flows."""
    here = dialler.connect(listener.id)
    there = next(iter(listener.mesh.sessions[dialler.id].connections()))
    stream, _ = dialler.open(here, FLOW + "flow")
    world.run(0.5)
    flows = [link.streams.flows.open(stream.id) for link in (here, there)]
    assert flows[0] is not None
    assert flows[1] is not None
    return here, there, flows[0], flows[1]


@every_pair
def test_datagrams_arrive_though_streams_are_not_read_and_the_connection_lives(pair: Pair) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.001))
    listener.on_stream_opened = lambda stream: None
    here, there, mine, other = _flow(world, dialler, listener)
    for _ in range(4):
        _send(world, dialler.open(here)[0], bytes(4 << 20))
    world.run(3.0)
    assert there.engine.unread() > 3 << 20
    arrived = 0
    for number in range(8_000):  # 8 MB: more than a connection may have behind holes
        mine.send(bytes(1_000))
        if number % 50 == 49:
            world.run(0.01)
        while other.queue:
            other.take()
            arrived += 1
    assert (here.state, there.state) == (State.READY, State.READY)
    assert arrived > 7_000


def test_datagrams_that_are_not_read_count_as_unread_bytes() -> None:
    world, dialler, listener = _nodes(("aioquic", "aioquic"), Weather(delay=0.001))
    _, there, mine, other = _flow(world, dialler, listener)
    before = _held_of(there)
    for _ in range(100):
        mine.send(bytes(1_000))
    world.run(0.5)
    assert len(other.queue) == 100
    assert _held_of(there) - before == 100 * (1_000 + DATAGRAM_COST)


@every_pair
@pytest.mark.parametrize("mover", ["dialler", "listener"])
def test_a_flow_goes_on_at_once_when_an_end_moves_on_a_lossy_path(pair: Pair, mover: str) -> None:
    world, dialler, listener = _nodes(pair, Weather(delay=0.02, loss=0.02))
    _, _, mine, other = _flow(world, dialler, listener)
    times: list[float] = []
    other.on_arrival = lambda: times.append(world.now)
    moved = 0.0
    for number in range(300):
        mine.send(bytes(500))
        world.run(0.01)
        if number == 150:
            (dialler if mover == "dialler" else listener).move("10.0.5.7")
            moved = world.now
    late = [at for at in times if at > moved + 0.02]
    assert len(times) > 250
    assert late[0] - moved < 0.3
