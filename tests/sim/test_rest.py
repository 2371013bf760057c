"""What whole nodes send and wake for when nothing is asked of them."""

from __future__ import annotations

from bench import rest
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import Frame
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World
from tests.engines import every_engine

TICKS = {"qh3": 20, "aioquic": 55}  # 12 keepalives, and aioquic's ACKs: what was answered has no deadline


@every_engine
def test_a_node_at_rest_sends_little_and_wakes_for_nothing_in_vain(engine: str) -> None:
    found = rest.run(4, 120.0, 60.0, engine=engine)
    assert found["bytes_by_kind"]["quic"] < 70, "probes, their ACKs, now and then ids: 60; one entry more is 14"
    assert found["bytes_a_second"] < 180, "of a mesh two minutes old, joins and checks of the DHT among them: 135"
    assert found["timers_a_minute"] < 240, "189; two fifths are rounds of probes"
    assert found["timers_by_name"]["Connections._tick"] < TICKS[engine]
    assert not any(name.startswith("GossipProbes") for name in found["timers_by_name"]), (
        "an ACK ends a probe when it comes"
    )


def test_idle_streams_cost_a_node_at_rest_no_wake() -> None:
    world = World(1, Weather(delay=0.01))
    nodes = [SimNode(world, f"10.0.0.{n}", pick_engine("auto"), seed_role=n == 1, gossip=True) for n in (1, 2, 3)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(5.0)
    for node in nodes[1:]:
        stream, _ = node.open(node.connect(nodes[0].id))
        stream.write(b"hello")
    world.run(60.0)
    with rest.counted_timers() as fired:
        world.run(60.0)
    assert fired["Connections._tick"] < 150, "24 keepalives, and aioquic's ACKs; 317 with a look 80 ms after each"


def test_a_seed_that_is_no_relay_is_not_asked_for_a_place_again() -> None:
    world = World(1, Weather(delay=0.01))
    engines = ModelEngines(world.entropy)
    seed, node = (SimNode(world, f"10.0.0.{n}", engines, gossip=True) for n in (1, 2))
    node.join(seed)
    world.run(20.0)
    asked: list[object] = []
    take = seed.mesh.context.serving.on_control
    seed.mesh.context.hooks.control[Frame.RELAY_ASK] = lambda *said: (asked.append(said), take(*said))[1]
    with rest.counted_timers() as fired:
        world.run(60.0)
    assert not asked
    assert fired["RelayClient._keep"] < 20, "each looks every ten seconds"


def test_seeds_that_are_gone_are_dialled_ever_more_rarely_and_found_when_they_are_back() -> None:
    world = World(1, Weather(delay=0.01))
    engines = ModelEngines(world.entropy)
    names = [(f"10.0.0.{n}", n < 4) for n in range(1, 8)]
    seed, *gone, a, b, c, d = (SimNode(world, host, engines, seed_role=first, gossip=True) for host, first in names)
    for absent in gone:
        absent.kill()
    for node in (a, b, c, d):
        for one in (seed, *gone):
            node.join(one)
    world.run(400.0)
    before = world.sent
    world.run(300.0)
    assert (world.sent - before) / 300.0 < 35, "of five nodes: 22, and 93 when each was dialled each 20 s"
    late = SimNode(
        world, gone[0].addr.host, engines, seed_role=True, gossip=True, identity=gone[0].mesh.context.identity
    )
    assert world.run(110.0, lambda: len(late.mesh.sessions) > 1)


def test_in_a_mesh_of_ten_that_is_left_alone_no_node_dials_others_that_refuse_it() -> None:
    found = rest.run(10)
    assert found["bytes_by_kind"]["quic"] < 85, "a probe a second and no handshakes"
    assert found["bytes_a_second"] < 110, "86; a record signed again by each, or a lookup of full width, is 50 more"


def test_a_seed_that_relays_is_watched_no_longer_than_it_is_dialled() -> None:
    world = World(3, Weather(delay=0.06))
    engines = ModelEngines(world.entropy)
    seed = SimNode(world, "10.9.0.1", engines, seed_role=True, gossip=True)
    nodes = [SimNode(world, f"10.0.0.{number}", engines, gossip=True) for number in range(1, 5)]
    for node in nodes:
        node.join(seed)
    world.run(20.0)
    for node in nodes:
        assert not node.mesh.dht._watching._watched
        assert len(seed.mesh.dht._table.nearest(node.id.dht_key, 16, good=True)) == len(nodes), "none counts as silent"
