"""The own record: signed again when it would say something else, not when the same is learned another way."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.nat.mapping import Mapping
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.own_record import RENEW_DELAY_S

SOON_S = 10 * RENEW_DELAY_S + 1.0


def mesh() -> tuple[World, SimNode, list[SimNode]]:
    """A node, and the peers of two other networks that it is connected with."""
    world = World(1, Weather())
    engine = pick_engine("aioquic")
    seed = SimNode(world, "10.0.0.1", engine, seed_role=True)
    node, other = SimNode(world, "10.1.0.1", engine), SimNode(world, "10.2.0.1", engine)
    for each in (node, other):
        each.join(seed)
    world.run(20.0)
    node.mesh.connect(other.id, world.now, lambda _: None)
    node.on_dirty()
    world.run(20.0)
    return world, node, [seed, other]


def test_what_others_see_and_the_record_names_already_signs_no_new_one() -> None:
    world, node, peers = mesh()
    assert node.mesh.record is not None
    before = node.mesh.record.seq
    mappings = node.mesh.context.nat.mappings
    for hosts in (frozenset[Addr](), frozenset([node.addr])):
        mappings.moved(hosts)  # forgets what was seen, as time does
    for peer in peers:
        node.mesh.own_record.seen_as(peer.id, peer.addr, node.addr, world.now)
        world.run(SOON_S)
    assert mappings.behaviour(4, world.now) is Mapping.NONE, "it has learned from them"
    assert node.mesh.record.seq == before


def test_another_outside_address_signs_a_new_one() -> None:
    world, node, peers = mesh()
    assert node.mesh.record is not None
    before = node.mesh.record.seq
    for peer in peers:
        node.mesh.own_record.seen_as(peer.id, peer.addr, Addr("203.0.113.7", 4242), world.now)
    world.run(SOON_S)
    assert node.mesh.record.seq > before
    assert Addr("203.0.113.7", 4242) in {endpoint.addr for endpoint in node.mesh.record.endpoints}
