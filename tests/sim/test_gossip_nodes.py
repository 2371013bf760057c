"""Whole nodes with gossip on: membership links are connections, and endpoint records travel over them."""

from __future__ import annotations

import pytest

from meshnode.gossip import Kind, Status
from meshnode.quic.engine import EngineFactory
from meshnode.quic.engines import pick_engine
from meshnode.sealing import Sealer
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

FAIR = Weather(delay=0.02, jitter=0.005)


def _mesh(seed: int, count: int, *, real: bool = False, weather: Weather = FAIR) -> tuple[World, list[SimNode]]:
    world = World(seed, weather)
    engines: EngineFactory = pick_engine("aioquic") if real else ModelEngines(world.entropy)
    sealer = Sealer if real else PlainSealer
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=sealer, gossip=True) for i in range(count)
    ]
    for number, node in enumerate(nodes[1:]):
        world.at(0.1 * number, lambda node=node: node.join(nodes[0]))  # type: ignore[misc]
    world.run(0.1 * count + 5.0)
    return world, nodes


def _neighbours(node: SimNode) -> list[SimNode]:
    assert node.mesh.gossip is not None
    return node.mesh.gossip.core.neighbours  # type: ignore[return-value]


def _status(node: SimNode, other: SimNode) -> Status:
    assert node.mesh.gossip is not None
    return node.mesh.gossip.status(other.id)


@pytest.mark.parametrize("real", [False, True])
def test_nodes_that_know_a_seed_become_one_mesh_of_few_links(real: bool) -> None:
    _, nodes = _mesh(1, 16, real=real)
    assert all(2 <= len(_neighbours(node)) <= 8 for node in nodes)
    for node in nodes:
        for other in nodes:
            if other is not node:
                assert _status(node, other) is Status.ALIVE


def test_a_move_reaches_everybody_without_the_dht() -> None:
    world, nodes = _mesh(2, 20)
    nodes[7].move("10.0.7.7")
    moved = world.now
    wall = world.wall()

    def known() -> bool:
        return all(
            (record := node.mesh._finder.resolver.get(nodes[7].id, wall)) is not None
            and str(record.endpoints[0]).startswith("10.0.7.7")
            for node in nodes
            if node is not nodes[7]
        )

    assert world.run(2.0, known)
    assert world.now - moved < 0.5


def test_a_crash_is_noticed_everywhere_and_a_goodbye_at_once() -> None:
    world, nodes = _mesh(3, 12)
    nodes[4].kill()
    rest = [node for node in nodes if node is not nodes[4]]
    assert world.run(8.0, lambda: all(_status(node, nodes[4]) is Status.GONE for node in rest))
    leaver = nodes[8]
    leaver.mesh.close(world.now)
    rest.remove(leaver)
    assert world.run(1.0, lambda: all(_status(node, leaver) is Status.LEFT for node in rest))
    assert all(_status(a, b) is Status.ALIVE for a in rest for b in rest if a is not b)


def test_an_entry_reaches_subscribers_and_comes_late_to_who_comes_late() -> None:
    world, nodes = _mesh(4, 8)
    heard: list[str] = []
    for node in nodes:
        assert node.mesh.gossip is not None
        node.mesh.gossip.subscribe(Kind.SERVICE, lambda change, now: heard.append(change.entry.name))
    assert nodes[3].mesh.gossip is not None
    nodes[3].mesh.gossip.publish(Kind.SERVICE, "db", b"here", 600, world.now)
    nodes[3].on_dirty()
    assert world.run(1.0, lambda: len(heard) == 8)
    late = SimNode(world, "10.0.9.9", ModelEngines(world.entropy), sealer=PlainSealer, gossip=True)
    late.join(nodes[0])
    assert late.mesh.gossip is not None
    core = late.mesh.gossip.core
    assert world.run(3.0, lambda: core.get((nodes[3].id, Kind.SERVICE, "db")) is not None)


def test_links_that_nobody_needs_any_longer_are_closed() -> None:
    world, nodes = _mesh(5, 40)
    world.run(60.0)
    for node in nodes[1:]:
        live = [s for s in node.mesh.sessions.values() if s.connection is not None]
        assert len(live) <= 8 + 4, "neighbours, relays and a few that linger"
    seed_links = [s for s in nodes[0].mesh.sessions.values() if s.connection is not None]
    assert len(seed_links) <= 40
