"""Clocks that are wrong and are set: within seconds the node is a member as before, and so are its services."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshnode.directory.announcement import Offer
from meshnode.gossip import Kind
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World

YEAR_S = 365 * 86_400.0
SOON_S = 30.0  # gossip and the DHT retry a seed within that


def _mesh(*errors: float, seed: int = 5) -> tuple[World, list[SimNode]]:
    """A seed, and nodes that join it, each with its clock's error; the first is the seed's."""
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    engines = ModelEngines(world.entropy)
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, gossip=True, clock_error=error)
        for i, error in enumerate(errors)
    ]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(10.0)
    return world, nodes


def _serve(node: SimNode) -> None:
    registry = node.mesh.registry
    assert registry is not None
    registry.directory.announce("db", Offer(), node.world.now)
    registry.drain(node.world.now)
    node._arm()


def _knows(node: SimNode, other: SimNode) -> Callable[[], bool]:
    """Whether ``node`` knows the service and the present address of ``other``."""

    def knows() -> bool:
        registry = node.mesh.registry
        assert registry is not None
        record = node.mesh.resolution.cached(other.id)
        serves = [instance.node for instance in registry.instances("db", node.world.now)] == [other.id]
        return serves and record is not None and record.endpoints[0].addr == other.addr

    return knows


@pytest.mark.parametrize("error", [-3 * YEAR_S, -3_600.0, -120.0, 120.0, 3_600.0, YEAR_S])
def test_a_node_is_known_soon_after_its_clock_is_set(error: float) -> None:
    world, (_, other, late) = _mesh(0.0, 0.0, error)
    _serve(late)
    assert not world.run(20.0, _knows(other, late)), "nothing that is dated so far off counts"
    late.clock.error = 0.0
    assert world.run(SOON_S, _knows(other, late))
    late.move("10.0.0.77")
    assert world.run(10.0, _knows(other, late)), "and where it goes"


@pytest.mark.parametrize("error", [-YEAR_S, YEAR_S])
def test_a_mesh_whose_clocks_are_all_wrong_outlives_their_setting_one_by_one(error: float) -> None:
    world, nodes = _mesh(error, error, error, seed=6)
    _, other, server = nodes
    _serve(server)
    assert world.run(20.0, _knows(other, server))
    for node in nodes:
        node.clock.error = 0.0
        world.run(5.0)
    world.run(SOON_S)
    assert _knows(other, server)()
    server.move("10.0.0.77")
    assert world.run(SOON_S, _knows(other, server))


def test_a_small_step_is_none_and_a_step_is_counted() -> None:
    world, (_, node) = _mesh(0.0, 0.0)
    before = node.mesh.record
    for _ in range(20):
        node.clock.error += 0.5  # a clock that is slewed, faster than any is
        world.run(1.0)
    node.clock.error = 0.0
    assert node.mesh.record is before
    world.run(20.0)
    assert node.mesh.metrics.counters["clock_steps"] == 1
    assert node.mesh.record is not None
    assert before is not None
    assert node.mesh.record.seq > before.seq


def test_what_was_dated_by_a_clock_ahead_is_kept_by_none() -> None:
    world, (hub, node) = _mesh(YEAR_S, YEAR_S)
    _serve(node)
    world.run(5.0)
    for each in (hub, node):
        each.clock.error = 0.0
    world.run(SOON_S)
    limit = (world.wall() + 300) * 1000
    for each in (hub, node):
        assert each.mesh.gossip is not None
        store = each.mesh.gossip.core.store
        assert all(entry.seq < limit for kind in (Kind.MEMBER, Kind.SERVICE) for entry in store.entries(kind))
        assert each.mesh.gossip.core.own_entries.seq < limit


class _Reader:
    """A node in one topic."""

    def __init__(self, node: SimNode) -> None:
        assert node.mesh.topic_link is not None
        self._node, self._link = node, node.mesh.topic_link
        self.join()

    def join(self) -> None:
        self._inbox = self._link.join("news", self._node.world.now)
        self._drain()

    def leave(self) -> None:
        self._link.topics.leave("news", self._node.world.now)
        self._drain()

    def publish(self, data: bytes) -> None:
        self._link.topics.publish("news", data, self._node.world.now, self._node.clock.wall())
        self._drain()

    def heard(self) -> list[bytes]:
        found = []
        while (message := self._inbox.pop()) is not None:
            found.append(message.data)
        return found

    def _drain(self) -> None:
        self._link.drain(self._node.world.now)
        self._node.on_dirty()
        self._node.world.run(3.0)


@pytest.mark.parametrize("error", [20.0, YEAR_S])
@pytest.mark.parametrize("again", [True, False])
def test_what_a_node_publishes_is_heard_after_clocks_that_were_ahead_are_set(error: float, again: bool) -> None:
    world, nodes = _mesh(error, error, error, seed=7)
    listener, publisher = _Reader(nodes[1]), _Reader(nodes[2])
    world.run(5.0)
    publisher.publish(b"one")
    assert listener.heard() == [b"one"]
    for node in nodes:
        node.clock.error = 0.0
        world.run(1.0)
    if again:
        publisher.leave()
        publisher.join()
    world.run(5.0 if error < YEAR_S else SOON_S)
    publisher.publish(b"two")
    assert listener.heard() == [b"two"]
