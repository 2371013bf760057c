"""Floods from many source networks at once: established peers do not notice them, and newcomers have their turn."""

from __future__ import annotations

import itertools
import os

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import UNCONNECTED_BURST
from meshnode.discovery.dht.messages import Ping as DhtPing
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.probe import Ping, encode_ping

DELAY = 0.02


class Around:
    """A victim, its configured seed, a contact of its table, a peer that it is connected with, and newcomers."""

    def __init__(self) -> None:
        self.world = world = World(7, Weather(delay=DELAY, jitter=0.01))
        self._engines = pick_engine("aioquic")
        self.seed, self.contact, self.victim, self.peer = (self.node(f"10.0.{n}.1") for n in range(1, 5))
        for each in (self.contact, self.victim, self.peer):
            each.mesh.relaying.hold = lambda relay, now: None  # type: ignore[method-assign]  # no connection with the seed
            each.join(self.seed)
        world.run(3.0)
        self.peer.connect(self.victim.id)
        world.run(1.0)
        assert self.victim.mesh.dht._table.get(self.contact.id) is not None
        assert not any(map(self.linked, (self.seed, self.contact)))
        mesh, clock = MeshKey.from_text("sim"), self.victim.clock
        self._foes = [Sealer(Identity.generate(), mesh, clock, os.urandom, born=0.0) for _ in range(40)]
        self._hosts = itertools.count(1)

    def node(self, host: str) -> SimNode:
        return SimNode(self.world, host, self._engines)

    def linked(self, other: SimNode) -> bool:
        session = self.victim.mesh.sessions.get(other.id)
        return session is not None and session.connection is not None

    def flood(self, networks: list[str], rate: int, seconds: float) -> None:
        """PINGs of 40 ids, each from the next of these networks."""
        turns = itertools.cycle(range(40 * len(networks)))

        def tick(begin: float) -> None:
            for _ in range(rate // 100):
                n = next(turns)
                host = networks[n % len(networks)] + str(1 + n // len(networks) % 40)
                body = encode_ping(Ping(0, os.urandom(8), bytes(8)))
                datagram = self._foes[n % 40].seal(self.victim.id, body)
                self.world.deliver(Addr(host, 1 + n % 1_000), self.victim.addr, datagram)
            if self.world.now < begin + seconds:
                self.world.at(self.world.now + 0.01, lambda: tick(begin))

        tick(self.world.now)

    def answered(self, asker: SimNode, other: SimNode) -> float:
        """Return how long a request of the DHT takes to be answered."""
        begun, done = self.world.now, []
        calls = asker.mesh.dht._shared.rpcs
        calls.call(other.id, other.addr, DhtPing, begun, lambda _, now: done.append(now), done.append)
        asker.mesh.resolution._touched()
        asker.on_dirty()
        assert self.world.run(5.0, lambda: bool(done))
        return done[0] - begun

    def newcomer(self) -> float:
        """Return how long a node of yet another network, which knows the seed, takes to connect with the victim."""
        new = self.node(f"10.9.{next(self._hosts)}.1")
        new.join(self.seed)
        self.world.run(0.5)
        begun = self.world.now
        new.mesh.connect(self.victim.id, begun, lambda _: None)
        new.on_dirty()
        assert self.world.run(10.0, lambda: self.linked(new))
        return self.world.now - begun

    def moved(self) -> float:
        """Return how long the victim takes to follow its peer to another address."""
        self.world.run(1.0)
        begun = self.world.now
        self.peer.move(f"10.8.{next(self._hosts)}.1")
        session = self.victim.mesh.sessions[self.peer.id]
        assert self.world.run(10.0, lambda: session.paths.active == self.peer.addr)
        return self.world.now - begun


BESIDE = ["10.0.1.", "10.0.2."]  # the networks of the seed and of the contact
IPV4 = BESIDE + [f"172.16.{n}." for n in range(8)]
IPV6 = BESIDE + [f"fd00:0:{n:x}:1::" for n in range(1, 301)]  # /48s of one /32, three for each share that is kept


@pytest.mark.parametrize("networks", [IPV4, IPV6], ids=["ten /24s", "300 of a /32"])
def test_a_flood_from_many_networks_delays_no_established_peer_and_newcomers_little(networks: list[str]) -> None:
    around = Around()
    victim, known = around.victim, (around.seed, around.contact)
    unloaded = (
        max(around.answered(victim, other) for _ in range(5) for other in known),
        around.moved(),
        around.newcomer(),
    )
    around.flood(networks, 5_000, 6.0)
    around.world.run(UNCONNECTED_BURST / 3_000)
    answers = [around.answered(victim, other) for _ in range(5) for other in known]
    answers += [around.answered(other, victim) for _ in range(5) for other in known]
    assert max(answers) <= 2 * unloaded[0]
    assert around.moved() <= 2 * unloaded[1]
    assert around.newcomer() <= 5 * unloaded[2]
    assert victim.mesh.context.sealer.drops["seal_rate"] > 5_000, "the flood was too much"
