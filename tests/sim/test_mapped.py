"""What a mapping does to a node's record and to what it knows of its NAT, in virtual time."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.identity.record import Endpoint, EndpointKind, open_record
from meshnode.quic.engines import pick_engine
from meshnode.sim.nat import Behaviour
from meshnode.sim.world import SimNode, Weather, World

MAPPED = Addr("198.51.100.1", 4242)


def test_a_mapping_is_published_as_such_and_spoils_nothing_that_others_saw() -> None:
    world = World(1, Weather(delay=0.02))
    engines = pick_engine("auto")
    seed = SimNode(world, "203.0.113.1", engines, seed_role=True)
    nat = world.nat(Behaviour(), "198.51.100.1")
    node = SimNode(world, "10.0.0.2", engines, nat=nat)
    node.join(seed)
    world.run(3.0)
    seen = node.mesh.nat.mappings.reflexive(world.now)
    assert seen
    assert node.mesh.record is not None
    before = node.mesh.record
    own = tuple(e for e in before.endpoints if e.kind is EndpointKind.HOST)
    for mapped in (MAPPED, seen[0]):
        node.mesh.set_addresses((*own, Endpoint(mapped, EndpointKind.MAPPED)), (), world.now, moved=False)
        record = open_record(node.mesh.record.encoded, world.wall())
        assert record.seq > before.seq
        assert [e.addr for e in record.endpoints if e.kind is EndpointKind.MAPPED] == [mapped]
        assert len({e.addr for e in record.endpoints}) == len(record.endpoints), "no address twice"
        assert node.mesh.nat.mappings.reflexive(world.now) == seen
