"""Silent peers are probed from this host's other addresses; what comes of it on real routes is in tests/netns."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.base.path import ViaSocket
from meshnode.identity.record import Endpoint
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

NETWORKS = (("10.78.0.2", 24), ("10.78.0.3", 24), ("10.79.0.2", 24))


class Host(SimNode):
    """A node on a host with these networks, which notes where extra sockets were opened and which are open."""

    def __init__(self, world: World, networks: tuple[tuple[str, int], ...]) -> None:
        self.opened: list[str] = []
        self.at: dict[int, str] = {}
        super().__init__(world, networks[0][0], pick_engine("auto"))
        self.has(*networks)

    def has(self, *networks: tuple[str, int]) -> None:
        """Give it these addresses."""
        endpoints = tuple(Endpoint(Addr(host, 4242)) for host, _ in networks)
        self.mesh.set_addresses(endpoints, networks, self.world.now, moved=False)

    def open_sides(self, count: int, host: str = "") -> list[int]:
        """Note where."""
        sides = super().open_sides(count, host)
        self.opened.append(host)
        self.at |= dict.fromkeys(sides, host)
        return sides

    def close_side(self, side: int) -> None:
        """Note which."""
        super().close_side(side)
        del self.at[side]


def _silent(networks: tuple[tuple[str, int], ...], peer: str = "10.0.0.1") -> tuple[World, Host, SimNode]:
    """A host whose peer has just fallen silent."""
    world = World(1, Weather(delay=0.02))
    there = SimNode(world, peer, pick_engine("auto"), seed_role=True)
    here = Host(world, networks)
    here.join(there)
    stream, _ = here.open(here.connect(there.id))
    world.run(2.0)
    world.partition(here.addr.host, peer, cut=True)
    stream.write(b"x")
    world.run(2.0)
    return world, here, there


def _ways(here: Host, there: SimNode) -> list[ViaSocket]:
    book = here.mesh.sessions[there.id].paths.book
    return [candidate.path for candidate in book if isinstance(candidate.path, ViaSocket)]


def test_a_silent_peer_is_probed_once_from_each_other_network_and_not_from_the_same() -> None:
    world, here, there = _silent(NETWORKS)
    assert here.opened == ["10.79.0.2"]
    (way,) = _ways(here, there)
    assert (way.addr, here.at[way.socket]) == (there.addr, "10.79.0.2")
    for cut in (False, True):
        world.partition(here.addr.host, there.addr.host, cut=cut)
        world.run(10.0)
    assert len(here.opened) == 1, "the socket stays"


def test_the_socket_ends_with_its_address() -> None:
    _, here, there = _silent(NETWORKS)
    here.has(*NETWORKS[:2])
    assert here.at == {}
    assert _ways(here, there) == []


def test_a_host_with_one_uplink_and_a_peer_on_its_own_network_open_none() -> None:
    assert _silent(NETWORKS[:2])[1].opened == []
    assert _silent(NETWORKS, "10.78.0.9")[1].opened == []
