"""Processes that get no CPU for a while: a path is not broken because no process was there to use it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from meshnode.errors import MeshError
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

BEAT_S = 0.01


def _nodes(seed: int, delay: float) -> tuple[World, list[SimNode], SimNode, SimNode]:
    """Two relays, and two nodes with a direct path, which have reservations at both."""
    world = World(seed, Weather(delay=delay, jitter=0.001))
    engines = pick_engine("auto")
    relays = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=True) for i in range(2)]
    here, there = (SimNode(world, f"10.0.0.{i}", engines) for i in (11, 12))
    for node in (here, there):
        for relay in relays:
            node.join(relay)
    world.run(3.0)
    return world, relays, here, there


class Talk:
    """A 100 Hz echo whose application stalls with its node. It begins once both ends go directly.

    ``relayed`` is seconds on a relay, the mean of both ends; ``switches`` counts changes of the kind of path at either.
    """

    def __init__(self, world: World, here: SimNode, there: SimNode, beats: int) -> None:
        self.relayed, self.switches, self.sent = 0.0, 0, 0
        self.stream, self.inbox = here.open(here.connect(there.id))
        self._world, self._here, self._beats = world, here, beats
        self._paths = [here.mesh.sessions[there.id].paths, there.mesh.sessions[here.id].paths]
        assert world.run(5.0, lambda: self._kinds() == ["direct", "direct"])
        self._before = self._kinds()
        self._beat()

    def _kinds(self) -> list[str]:
        return [p.book.kind(p.active) if p.active is not None else "none" for p in self._paths]

    def _beat(self) -> None:
        kinds, before = self._kinds(), self._before
        self.relayed += BEAT_S / 2 * kinds.count("relay")
        self.switches += sum(kind != old for kind, old in zip(kinds, before, strict=True))
        self._before = kinds
        if not self._here.stalled:
            self.stream.write(self.sent.to_bytes(8, "big"))
            self.sent += 1
        if self.sent < self._beats:
            self._world.at(self._world.now + BEAT_S, self._beat)

    def complete(self) -> bool:
        """Everything came back, in order."""
        return bytes(self.inbox.data) == b"".join(n.to_bytes(8, "big") for n in range(self._beats))


def _stall(world: World, nodes: list[SimNode], seconds: float, pause: float) -> None:
    """For that time each node stalls again and again, 0.1 to 0.3 s, at times of its own."""
    rng = random.Random(world.rng.random())
    for node in nodes:
        at = world.now + rng.uniform(0.1, pause)
        while at < world.now + seconds:
            length = rng.uniform(0.1, 0.3)
            world.at(at, lambda node=node, length=length: node.stall(length))  # type: ignore[misc]
            at += length + rng.uniform(pause / 3, pause)


@pytest.mark.parametrize("stalling", ["dialler", "listener", "both", "relays too"])
def test_nodes_that_stall_again_and_again_keep_their_direct_path(stalling: str) -> None:
    world, relays, here, there = _nodes(1, 0.002)
    talk = Talk(world, here, there, 1500)
    by_name = {"dialler": [here], "listener": [there], "both": [here, there], "relays too": [here, there, *relays]}
    _stall(world, by_name[stalling], 15.0, 0.7)
    world.run(60.0, lambda: talk.sent == 1500)
    world.run(3.0)
    assert talk.complete()
    assert talk.relayed < 0.2
    assert talk.switches <= 4


@pytest.mark.parametrize("stalling", ["dialler", "listener"])
def test_a_direct_path_that_lost_a_race_against_a_nearer_relay_is_retaken_at_once(stalling: str) -> None:
    world, _, here, there = _nodes(1, 0.002)
    world.distance(here.addr.host, there.addr.host, 0.02)
    talk = Talk(world, here, there, 2000)
    _stall(world, [here if stalling == "dialler" else there], 20.0, 4.0)
    world.run(60.0, lambda: talk.sent == 2000)
    world.run(3.0)
    assert talk.complete()
    assert talk.relayed < 1.0  # of 20 s, in about 7 stalls


@pytest.mark.parametrize("seed", range(4))
def test_a_dial_between_nodes_that_hardly_get_any_cpu_takes_long_and_succeeds(seed: int) -> None:
    world, _, here, there = _nodes(seed, 0.002)
    found: list[Connection | MeshError] = []
    here.mesh.connect(there.id, world.now, found.append)
    for _ in range(10):
        for node in (here, there):
            node.stall(1.5)
        world.run(1.502)
    assert [type(answer) for answer in found] == [Connection]


def test_switches_stay_few_when_stalls_never_end() -> None:
    world, relays, here, there = _nodes(1, 0.002)
    world.distance(here.addr.host, there.addr.host, 0.02)
    talk = Talk(world, here, there, 3000)
    began = world.now
    _stall(world, [here, there, *relays], 60.0, 0.5)
    world.run(120.0, lambda: talk.sent == 3000)
    minutes = (world.now - began) / 60
    world.run(5.0)
    assert talk.complete()
    assert talk.switches / minutes < 120  # of both ends: one in a second


@pytest.mark.parametrize(
    ("cut", "longest"), [("both ways", 0.28), ("to the dialler", 0.31), ("to the listener", 0.33)]
)  # at 40 ms a round trip, 80 by the relay
def test_a_direct_path_that_really_fails_is_left_as_fast_as_ever(cut: str, longest: float) -> None:
    world, _, here, there = _nodes(1, 0.02)
    talk = Talk(world, here, there, 500)
    world.run(1.0)
    died = world.now
    pair = (here.addr.host, there.addr.host)
    if cut != "to the dialler":
        world.partition(*pair, cut=True, back=cut == "both ways")
    else:
        world.partition(*reversed(pair), cut=True, back=False)
    world.run(8.0)
    assert talk.complete()
    assert max(b - a for a, b in pairwise(talk.inbox.times) if b > died) < longest
