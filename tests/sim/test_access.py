"""Which nodes may connect (``--allow``): it holds for every connection, whichever end dialled it."""

from __future__ import annotations

import pytest

from meshnode.errors import PolicyDenied
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.parties import NONE, parse_parties


def _mesh(count: int, seed: int = 1) -> tuple[World, list[SimNode]]:
    """A seed, a node that admits only some, and others; the first two do not join yet."""
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    engines = ModelEngines(world.entropy)
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=PlainSealer, gossip=True)
        for i in range(count)
    ]
    return world, nodes


def _join(world: World, seed: SimNode, *nodes: SimNode) -> None:
    for node in nodes:
        node.join(seed)
    world.run(20.0)


def _asks(world: World, caller: SimNode, connection: Connection) -> Stream:
    """Ask for a service on a connection, and let the answer come."""
    stream = connection.open("secret")
    stream.write(b"hello")
    caller.on_dirty()
    world.run(2.0)
    return stream


@pytest.mark.parametrize("seed_is_admitted", [True, False])
def test_gossip_connects_a_node_to_none_that_it_does_not_admit(seed_is_admitted: bool) -> None:
    world, (seed, closed, *others) = _mesh(7)
    closed.guard.lists.node = parse_parties([seed.id] if seed_is_admitted else [])
    _join(world, seed, closed, *others)
    assert closed.mesh.gossip is not None
    assert set(closed.mesh.gossip.members()) >= {node.id for node in others}, "it hears of all of them"
    connected = [peer for peer, session in closed.mesh.sessions.items() if session.connection is not None]
    assert connected == [seed.id], "a configured seed is connected to in any case"
    world.run(120.0)
    for node in others:
        assert closed.mesh.context.peers.connection(node.id) is None
        with pytest.raises(PolicyDenied):
            node.connect(closed.id)


def test_a_node_that_this_one_dialled_gets_no_service_when_it_is_not_admitted() -> None:
    world, (seed, closed, other) = _mesh(3)
    opened: list[Stream] = []
    closed.on_stream_opened = opened.append
    closed.guard.lists.node = NONE
    _join(world, seed, closed, other)
    used = _asks(world, closed, closed.connect(other.id))
    assert used.read() == b"hello", "its own use of the other is not limited"
    back = other.mesh.context.peers.connection(closed.id)
    assert back is not None
    refused = _asks(world, other, back)
    assert isinstance(refused.error, PolicyDenied)
    assert (opened, refused.read()) == ([], b"")
    assert closed.mesh.metrics.counters["refused_stream_policy"] == 1


def test_a_seed_that_is_not_admitted_gets_no_service_either() -> None:
    world, (seed, closed) = _mesh(2)
    closed.guard.lists.node = NONE
    _join(world, seed, closed)
    connection = seed.mesh.context.peers.connection(closed.id)
    assert connection is not None
    assert isinstance(_asks(world, seed, connection).error, PolicyDenied)


def test_a_service_that_is_offered_again_for_fewer_nodes_ends_the_streams_of_the_others() -> None:
    world, (server, one, other) = _mesh(3)
    server.guard.set_service("secret", parse_parties([one.id, other.id]))
    _join(world, server, one, other)
    streams = [_asks(world, node, node.connect(server.id)) for node in (one, other)]
    assert [stream.error for stream in streams] == [None, None]
    server.guard.set_service("secret", None)
    server.on_dirty()
    world.run(1.0)
    assert [stream.error for stream in streams] == [None, None], "those of a service that is withdrawn go on"
    server.guard.set_service("secret", parse_parties([one.id]))
    server.on_dirty()
    world.run(1.0)
    assert streams[0].error is None
    assert isinstance(streams[1].error, PolicyDenied)
