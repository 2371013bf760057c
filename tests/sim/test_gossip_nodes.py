"""Whole nodes with gossip on: membership links are connections, and endpoint records travel over them."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench import news
from bench.news import knows_address, status
from meshnode.gossip import Kind, Message, Status
from meshnode.gossip.messages import Entries
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import Sealer
from meshnode.quic.engines import pick_engine
from meshnode.quic.seam import EngineFactory
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

FAIR = Weather(delay=0.02, jitter=0.005)


def _mesh(
    seed: int, count: int, *, real: bool = False, weather: Weather = FAIR, every: float = 0.1
) -> tuple[World, list[SimNode]]:
    world = World(seed, weather)
    engines: EngineFactory = pick_engine("aioquic") if real else ModelEngines(world.entropy)
    sealer = Sealer if real else PlainSealer
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=sealer, gossip=True) for i in range(count)
    ]
    for number, node in enumerate(nodes[1:]):
        world.at(every * number, lambda node=node: node.join(nodes[0]))  # type: ignore[misc]
    world.run(every * count + 5.0)
    return world, nodes


def _neighbours(node: SimNode) -> list[SimNode]:
    assert node.mesh.gossip is not None
    return list(node.mesh.gossip.core.hyparview.active)  # type: ignore[return-value]


@pytest.mark.parametrize("real", [False, True])
def test_nodes_that_know_a_seed_become_one_mesh_of_few_links(real: bool) -> None:
    _, nodes = _mesh(1, 16, real=real)
    assert all(2 <= len(_neighbours(node)) <= 8 for node in nodes)
    for node in nodes:
        for other in nodes:
            if other is not node:
                assert status(node, other) is Status.ALIVE


def test_a_move_reaches_all_nodes_without_the_dht() -> None:
    world, nodes = _mesh(2, 20)
    nodes[7].move("10.0.7.7")
    moved = world.now
    assert world.run(2.0, lambda: all(knows_address(node, nodes[7]) for node in nodes if node is not nodes[7]))
    assert world.now - moved < 0.5


def test_a_crash_is_noticed_everywhere_and_a_goodbye_at_once() -> None:
    world, nodes = _mesh(3, 12)
    nodes[4].kill()
    rest = [node for node in nodes if node is not nodes[4]]
    assert world.run(8.0, lambda: all(status(node, nodes[4]) is Status.GONE for node in rest))
    leaver = nodes[8]
    world.weather = replace(world.weather, jitter=0.0)  # which lets the end of a connection overtake the goodbye on it
    leaver.mesh.close(world.now)
    rest.remove(leaver)
    assert world.run(1.0, lambda: all(status(node, leaver) is Status.LEFT for node in rest))
    assert all(status(a, b) is Status.ALIVE for a in rest for b in rest if a is not b)


def test_a_seed_that_has_left_is_joined_at_once_where_it_is_configured_now() -> None:
    world, nodes = _mesh(11, 4)
    seed, node = nodes[:2]
    seed.mesh.close(world.now)
    world.run(1.0)
    seed.kill()
    assert status(node, seed) is Status.LEFT
    engines, identity = ModelEngines(world.entropy), seed.mesh.context.identity
    again = SimNode(world, "10.0.9.1", engines, seed_role=True, sealer=PlainSealer, gossip=True, identity=identity)
    node.join(again)
    assert world.run(1.0, lambda: again.id in _neighbours(node)), "also while it dials where that was"
    assert world.run(3.0, lambda: all(status(other, again) is Status.ALIVE for other in nodes[1:]))


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Dozens of nodes are a few hundred thousand objects that live on: scanning them finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_nodes_with_real_quic_all_learn_of_crashes_moves_goodbyes_and_services(no_gc: None) -> None:
    found = news.run(32, seed=7)
    assert found["strangers"] == found["wrong"] == 0
    assert found["links_least"] >= 2
    assert found["links"] <= 8
    assert found["service"] < 2.0
    assert max(found["move"], found["goodbye"]) < 1.0
    assert found["crash"] < 5.0


@pytest.mark.parametrize("seed", range(6))
def test_two_nodes_know_at_once_what_either_knew_whichever_asks_first(seed: int) -> None:
    world = World(seed, FAIR)
    one, other = (SimNode(world, f"10.0.0.{i}", ModelEngines(world.entropy), gossip=True) for i in (1, 2))
    cores = [node.mesh.gossip.core for node in (one, other) if node.mesh.gossip is not None]
    for core in cores:
        core.publish(Kind.SERVICE, core.own_entries.id.short, b"here", 600, world.now)
    other.join(one)
    assert world.run(0.5, lambda: all(len(list(core.store.entries(Kind.SERVICE))) == 2 for core in cores))


def test_a_newcomer_is_told_once_what_there_is(no_gc: None) -> None:
    world, nodes = _mesh(7, 30, every=0.05)
    late = SimNode(world, "10.0.9.9", ModelEngines(world.entropy), sealer=PlainSealer, gossip=True)
    assert late.mesh.gossip is not None
    core, heard = late.mesh.gossip.core, Counter[str]()
    take = core.on_message

    def on_message(peer: NodeId, message: Message, now: float) -> None:
        heard[type(message).__name__] += 1
        if isinstance(message, Entries):
            heard["bytes"] += sum(map(len, message.payloads))
        take(peer, message, now)

    core.on_message = on_message  # type: ignore[method-assign]
    late.join(nodes[0])
    assert world.run(2.0, lambda: len(core.store) > len(nodes))
    world.run(3.0)
    state = sum(len(entry.encoded) for entry in core.store.entries(Kind.MEMBER))
    assert heard["bytes"] < 2 * state, heard
    assert late.mesh.metrics.counters["connections"] <= 16, "the seed, eight walks of it, and a few more"
    assert max(heard["NeighbourReply"], heard["Neighbour"]) <= 8, "each is asked once"


def test_an_entry_reaches_subscribers_and_comes_late_to_a_late_one() -> None:
    world, nodes = _mesh(4, 8)
    heard: list[str] = []
    for node in nodes:
        assert node.mesh.gossip is not None
        node.mesh.gossip.entries.subscribe(Kind.SERVICE, lambda change, now: heard.append(change.entry.name))
    assert nodes[3].mesh.gossip is not None
    nodes[3].mesh.gossip.entries.publish(Kind.SERVICE, "db", b"here", 600, world.now)
    nodes[3].on_dirty()
    assert world.run(1.0, lambda: len(heard) == 8)
    late = SimNode(world, "10.0.9.9", ModelEngines(world.entropy), sealer=PlainSealer, gossip=True)
    late.join(nodes[0])
    assert late.mesh.gossip is not None
    core = late.mesh.gossip.core
    assert world.run(3.0, lambda: core.store.get((nodes[3].id, Kind.SERVICE, "db")) is not None)


@pytest.mark.parametrize("seed", [3, 5])
def test_whose_links_died_with_another_of_the_same_key_is_soon_nobodys_false_neighbour(seed: int) -> None:
    world, nodes = _mesh(seed, 15)
    node = nodes[4]
    twin = SimNode(
        world,
        "10.0.2.1",
        ModelEngines(world.entropy),
        sealer=PlainSealer,
        gossip=True,
        identity=node.mesh.context.identity,
    )
    twin.join(nodes[0])
    world.run(20.0)
    twin.kill()  # what is said to it is not heard, while probes of its key are answered

    def is_neighbour(one: SimNode, other: SimNode) -> bool:
        return one.mesh.gossip is not None and other.id in one.mesh.gossip.core.hyparview.active

    def agree() -> bool:
        return all(is_neighbour(node, other) == is_neighbour(other, node) for other in nodes if other is not node)

    assert world.run(40.0, agree)  # seen: 5 s mostly, 7 to 10 s of one seed in five


def test_links_that_neither_end_needs_are_closed() -> None:
    world, nodes = _mesh(5, 24)
    world.run(150.0)  # while a mesh is young its neighbours change every few seconds, and links linger for a while
    for node in nodes[1:]:
        live = [s for s in node.mesh.sessions.values() if s.connection is not None]
        assert len(live) <= 8 + 3, "neighbours, relays and a few that linger"
