"""What whole nodes send and wake for when nothing is asked of them."""

from __future__ import annotations

from bench import rest
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World


def test_a_node_at_rest_sends_little_and_wakes_for_nothing_in_vain() -> None:
    found = rest.run(4, 120.0, 60.0)
    assert found["bytes_by_kind"]["quic"] < 60, "probes, their ACKs, now and then ids: 47; one entry more is 14"
    assert found["bytes_a_second"] < 180, "of a mesh two minutes old, joins and checks of the DHT among them: 135"
    assert found["timers_a_minute"] < 360
    assert found["timers_by_name"]["Connections._tick"] < 140, "a received PING is acknowledged, and no more"


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
