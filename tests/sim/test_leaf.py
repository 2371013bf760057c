"""Leaves: nodes at the mesh's edge, which do nothing for others, are reached, and send next to nothing."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from meshnode.base.address import Addr
from meshnode.base.limits import KEEPALIVE_S
from meshnode.paths.liveness import RARE_S, Keepalive
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World


class Mesh:
    """Two seeds, some nodes and a leaf that knows both seeds."""

    def __init__(self, count: int = 6, seed: int = 3) -> None:
        self.world = World(seed, Weather(delay=0.06))
        self._engines = ModelEngines(self.world.entropy)
        self.seeds = [self._add(f"10.9.0.{number}", seed_role=True) for number in (1, 2)]
        self.seeds[0].join(self.seeds[1])
        self.seeds[1].join(self.seeds[0])
        self.nodes = [self._add(f"10.0.0.{number}") for number in range(1, count + 1)]
        for node in self.nodes:
            self._join(node)
        self.world.run(20.0)
        self.leaf = self._add("10.5.0.1", leaf=True)
        self._join(self.leaf)
        self.world.run(20.0)

    @property
    def others(self) -> list[SimNode]:
        return [*self.seeds, *self.nodes]

    def _add(self, host: str, **options: Any) -> SimNode:
        return SimNode(self.world, host, self._engines, gossip=True, **options)

    def _join(self, node: SimNode) -> None:
        for seed in self.seeds:
            node.join(seed)


def _gossip(node: SimNode) -> Any:
    assert node.mesh.gossip is not None
    return node.mesh.gossip.core


def _topics(node: SimNode) -> Any:
    return node.mesh.topic_link


def test_a_leaf_has_two_links_and_no_part_in_the_mesh() -> None:
    mesh = Mesh()
    leaf = mesh.leaf
    assert set(_gossip(leaf).hyparview.active) == {seed.id for seed in mesh.seeds}
    assert sum(session.connection is not None for session in leaf.mesh.sessions.values()) == 2
    for other in mesh.others:
        views = _gossip(other).hyparview.views
        assert leaf.id not in {*views.active, *views.passive, *views.lost}
        assert leaf.id not in dict(other.mesh.dht.contacts())
    assert not leaf.mesh.dht.records or len(leaf.mesh.dht.records) <= 1, "its own record"


def test_a_leaf_is_reached_by_its_key_and_calls_others() -> None:
    mesh = Mesh()
    for caller, called in ((mesh.nodes[3], mesh.leaf), (mesh.leaf, mesh.nodes[4])):
        connection = caller.connect(called.id)
        stream, inbox = caller.open(connection)
        stream.write(b"hello")
        mesh.world.run(1.0)
        assert bytes(inbox.data) == b"hello"


def test_a_stream_survives_when_the_leaf_moves_and_when_its_peer_does() -> None:
    mesh = Mesh()
    caller = mesh.nodes[2]
    stream, inbox = caller.open(caller.connect(mesh.leaf.id))
    for number, (mover, host) in enumerate([(mesh.leaf, "10.5.0.7"), (caller, "10.0.7.7")], 1):
        mover.move(host)
        stream.write(b"x")
        mesh.world.run(2.0)
        assert len(inbox.data) == number
    mesh.world.run(60.0)
    assert mesh.nodes[5].connect(mesh.leaf.id), "its record says where it is now"


def test_a_leaf_takes_the_broadcasts_of_the_mesh_and_passes_none_on() -> None:
    mesh = Mesh()
    leaf = mesh.leaf
    passed: Counter[str] = Counter()
    core = _gossip(leaf)
    take = core.take_effects

    def note() -> Any:
        effects = take()
        passed.update(type(getattr(effect, "message", None)).__name__ for effect in effects)
        return effects

    core.take_effects = note
    before = len(core.store)
    mesh.nodes[0].mesh.gossip.entries.publish(7, "thing", b"news", 600, mesh.world.now)  # type: ignore[union-attr]
    mesh.world.run(5.0)
    assert len(core.store) > before
    assert not passed["Eager"]
    assert not passed["IHave"]
    for other in mesh.others:
        tree = _gossip(other).plumtree
        assert set(tree.eager) - set(tree.edge.leaves), "no node relies on a leaf alone"


def test_a_leaf_hears_its_topics_by_one_link_and_no_member_links_to_it() -> None:
    mesh = Mesh()
    members = [mesh.leaf, mesh.seeds[0], *mesh.nodes[:4]]
    boxes = [_topics(node).topics.join("news", mesh.world.now, mesh.world.wall()) for node in members]
    for node in members:
        _topics(node).drain(mesh.world.now)
        node.on_dirty()
    mesh.world.run(30.0)
    publisher = mesh.nodes[1]
    _topics(publisher).topics.publish("news", b"hello", mesh.world.now, mesh.world.wall())
    _topics(publisher).drain(mesh.world.now)
    publisher.on_dirty()
    mesh.world.run(3.0)
    message = boxes[0].pop()
    assert message is not None
    assert message.data == b"hello"
    assert len(_topics(mesh.leaf).topics.neighbours("news")) == 1


def test_a_leaf_finds_another_neighbour_when_its_seed_dies() -> None:
    mesh = Mesh()
    for seed in mesh.seeds:
        seed.kill()
    living = {node.id for node in mesh.nodes}

    def is_linked() -> bool:
        linked = _gossip(mesh.leaf).hyparview.active
        return bool(linked) and living.issuperset(linked)

    assert mesh.world.run(900.0, is_linked)
    mesh.world.run(30.0)
    assert is_linked(), "for good"


def test_the_traffic_of_a_leaf_at_rest_is_under_20_bytes_a_second() -> None:
    found = [_sent_at_rest(seed) for seed in (3, 4, 5)]  # a connection that is idle for ten minutes may end in some
    sent, came = min(found, key=sum)
    assert sent < 10, "6: keepalives, and now and then what the seeds have"
    assert came < 10


def _sent_at_rest(seed: int) -> tuple[float, float]:
    """Bytes a second that a leaf sends and gets in its second ten minutes."""
    mesh = Mesh(seed)
    world, addr = mesh.world, mesh.leaf.addr
    world.run(600.0)
    sent: Counter[str] = Counter()
    deliver = world.deliver

    def note(source: Any, to: Any, datagram: bytes, nat: Any = None) -> None:
        if addr in (source, to):
            sent["to" if to == addr else "from"] += len(datagram)
        deliver(source, to, datagram, nat)

    world.deliver = note  # type: ignore[method-assign]
    world.run(600.0)
    return sent["from"] / 600, sent["to"] / 600


def test_the_connections_of_a_leaf_last_longer_than_the_idle_time_of_quic() -> None:
    mesh = Mesh(seed=5)  # one whose seeds have nothing to tell it for so long

    def connections() -> set[Any]:
        sessions = mesh.leaf.mesh.sessions
        return {sessions[seed.id].connection for seed in mesh.seeds}

    before = connections()
    assert None not in before
    mesh.world.run(1_000.0)
    assert connections() == before


def test_keepalives_grow_rare_until_the_nat_gives_its_mapping_up() -> None:
    here, other = Addr("45.1.1.1", 1), Addr("45.1.1.1", 2)
    keepalive = Keepalive(random.Random(1), rare=True)
    for _ in range(20):
        keepalive.answered(here)
    assert keepalive.every_s == RARE_S
    keepalive.answered(other)
    assert keepalive.every_s == RARE_S / 2
    for _ in range(20):
        keepalive.answered(other)
    assert keepalive.every_s == RARE_S / 2, "it does not try again what did not hold"
    usual = Keepalive(random.Random(1))
    for _ in range(20):
        usual.answered(here)
    assert usual.every_s == KEEPALIVE_S
