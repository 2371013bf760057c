"""Nodes behind every pair of simulated NATs: which meet directly, and what a search for a port costs."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import pytest

from meshnode.base.limits import SEARCH_PROBES, SEARCH_SIDES
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream
from meshnode.sim.nat import PRESETS, SYMMETRIC, Behaviour, Dependence, Ports
from meshnode.sim.world import Inbox, SimNode, Weather, World

CONES = ("open", "full_cone", "address_restricted", "port_restricted")
COUNTING = Behaviour(mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT, ports=Ports.SEQUENTIAL)
TRIES = 6


class Pair:
    """Two seeds, and two nodes behind NATs whose insides have the same numbers."""

    def __init__(self, left: Behaviour, right: Behaviour, seed: int = 1, seeds: int = 2) -> None:
        self.world = World(seed, Weather(delay=0.02))
        engines = pick_engine("auto")
        self.seeds = [SimNode(self.world, f"198.51.100.{n + 1}", engines, seed_role=True) for n in range(seeds)]
        self.nodes = []
        for number, behaviour in enumerate((left, right)):
            if behaviour.open:
                nat, host = None, f"198.51.100.{20 + number}"
            else:
                nat, host = self.world.nat(behaviour, f"198.51.100.{10 + number}"), "10.0.0.2"
            self.nodes.append(SimNode(self.world, host, engines, nat=nat))
        for node in self.nodes:
            for seed_node in self.seeds:
                node.join(seed_node)
        self.world.run(3.0)
        self.here, self.there = self.nodes

    def open(self) -> tuple[Stream, Inbox]:
        self.opened = self.world.now
        stream, inbox = self.here.open(self.here.connect(self.there.id))
        return stream, inbox

    def kind(self, node: SimNode) -> str:
        other = self.there if node is self.here else self.here
        paths = node.mesh.sessions[other.id].paths
        assert paths.active is not None
        return paths.book.kind(paths.active)

    @property
    def direct(self) -> bool:
        return "relay" not in (self.kind(self.here), self.kind(self.there))

    def total(self, counter: str) -> int:
        return sum(node.mesh.metrics.counters.get(counter, 0) for node in self.nodes)


def _count(world: World, stream: Stream, beats: int) -> None:
    """Write numbers at 100 Hz."""
    for beat in range(beats):
        world.at(world.now + beat * 0.01, lambda n=beat: stream.write(n.to_bytes(8, "big")))  # type: ignore[misc]


def _complete(inbox: Inbox, beats: int) -> bool:
    return bytes(inbox.data) == b"".join(n.to_bytes(8, "big") for n in range(beats))


@pytest.mark.parametrize(("left", "right"), [*combinations_with_replacement(CONES, 2), ("symmetric", "full_cone")])
def test_nodes_that_only_know_a_seed_meet_directly_and_the_stream_does_not_notice(left: str, right: str) -> None:
    pair = Pair(PRESETS[left], PRESETS[right], seeds=1)
    stream, inbox = pair.open()
    _count(pair.world, stream, 400)
    assert pair.world.run(1.0, lambda: bool(inbox.data)), "the first byte within a second"
    assert pair.world.now - pair.opened < 1.0
    assert pair.world.run(3.0, lambda: pair.direct)
    pair.world.run(8.0)
    assert _complete(inbox, 400)
    assert max(b - a for a, b in pairwise(inbox.times)) < 0.05
    assert pair.total("port_search_probes") == 0 or "symmetric" in (left, right)


@pytest.mark.parametrize("kind", ["random ports", "ports in sequence"])
def test_a_port_restricted_nat_and_a_symmetric_one_meet_by_searching_a_port(kind: str) -> None:
    symmetric = SYMMETRIC if kind == "random ports" else COUNTING
    met, waits = 0, []
    for number in range(TRIES):
        ends = (PRESETS["port_restricted"], symmetric)
        pair = Pair(*(ends if number % 2 else reversed(ends)), seed=number)
        stream, inbox = pair.open()
        _count(pair.world, stream, 300)
        met += pair.world.run(12.0, lambda pair=pair: pair.direct)  # type: ignore[misc]
        waits.append(round(pair.world.now - pair.opened, 2))
        pair.world.run(10.0)
        assert _complete(inbox, 300)
        searches = pair.total("port_searches_sprayed")
        assert pair.total("port_search_probes") <= searches * (SEARCH_PROBES + SEARCH_SIDES)
        assert sum(len(node._sides) for node in pair.nodes) <= 1, "all sockets but the one that won are closed"
    print(kind, waits)
    assert met >= TRIES - 1
    if kind == "ports in sequence":
        assert max(waits) < 1.0, "a NAT that counts needs no luck"


def test_two_symmetric_nats_stay_relayed_and_search_nothing() -> None:
    pair = Pair(SYMMETRIC, SYMMETRIC)
    stream, inbox = pair.open()
    _count(pair.world, stream, 300)
    assert not pair.world.run(12.0, lambda: pair.direct)
    assert _complete(inbox, 300)
    assert pair.total("port_search_probes") == 0


def test_both_ends_move_to_other_nats_at_once_and_the_stream_goes_on() -> None:
    gaps = []
    for seed in range(TRIES):
        pair = Pair(PRESETS["port_restricted"], PRESETS["port_restricted"], seed=seed)
        stream, inbox = pair.open()
        _count(pair.world, stream, 1_000)
        pair.world.run(4.0)
        moved = pair.world.now
        for number, node in enumerate(pair.nodes):
            nat = pair.world.nat(PRESETS["port_restricted"], f"198.51.100.{30 + number}", inside="10.0.1.0/24")
            node.move("10.0.1.2", nat)
        pair.world.run(12.0)
        assert _complete(inbox, 1_000)
        gaps.append(max(b - a for a, b in pairwise(inbox.times) if b > moved))
    print("both move", [round(gap, 3) for gap in gaps])
    assert max(gaps) < 1.5
