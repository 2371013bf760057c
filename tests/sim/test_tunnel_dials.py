"""Records that name a victim as their tunnel: how often a node without UDP dials it."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.base.limits import TUNNEL_DIALS_PER_HOST, TUNNEL_DIALS_PER_HOST_S
from meshnode.base.path import Hop, ViaTunnel
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, sign_record
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

VICTIM = "192.0.2.1"


class Dialler(SimNode):
    """A node whose UDP leads nowhere, and whose tunnels fail at once, as at a host where there is no node."""

    attempts = 0
    dials = 0

    def send(self, path: Hop, datagrams: list[bytes]) -> bool:
        if isinstance(path, ViaTunnel):
            self.attempts += 1
            self.dials += self.mesh.may_dial(path)
        return True


def test_a_victim_that_records_of_many_ids_name_is_dialled_a_few_times_a_minute() -> None:
    world = World(3, Weather(delay=0.01))
    node = Dialler(world, "10.0.0.1", pick_engine("aioquic"))
    for number in range(20):
        wall = int(world.wall() * 1000)
        liar = Identity(bytes([number + 1]) * 32)
        victim = Endpoint(Addr(VICTIM, 443 + number))
        record = sign_record(liar, seq=wall, issued_ms=wall, ttl=3_600, endpoints=(victim,), capabilities=("wss",))
        assert node.mesh.offer_record(record.encoded, "test", world.now) is not None
    ids = [Identity(bytes([number + 1]) * 32).id for number in range(20)]
    for _ in range(12):  # two minutes, in which the application calls them again and again
        for peer in ids:
            node.mesh.connect(peer, world.now, lambda _: None)
        node.on_dirty()
        world.run(10.0)
    assert node.attempts > 500
    assert node.dials <= TUNNEL_DIALS_PER_HOST + 120 * TUNNEL_DIALS_PER_HOST_S


def test_a_configured_tunnel_is_dialled_whenever_it_is_needed() -> None:
    world = World(3, Weather(delay=0.01))
    node, seed = Dialler(world, "10.0.0.1", pick_engine("aioquic")), Identity(bytes([1]) * 32).id
    tunnel = ViaTunnel(str(seed), "relay.example", 443)
    node.mesh.add_seed(seed, [tunnel], world.now)
    world.run(30.0)
    assert node.dials == node.attempts > TUNNEL_DIALS_PER_HOST
    assert not all(node.mesh.may_dial(tunnel._replace(port=1)) for _ in range(10))
