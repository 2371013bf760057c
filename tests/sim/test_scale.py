"""Two hundred whole nodes on the modelled link, fifty with real QUIC, and the one measured against the other.

A node knows a third of the two hundred, and looks the others up. ``CROWD=1000 ./dev test tests/sim/test_scale.py``
takes a thousand: four minutes of a core.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from meshnode.identity.sealing import Sealer
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.quic.seam import EngineFactory
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import Inbox, SimNode, Weather, World

NODES = int(os.environ.get("CROWD", "200"))
SEEDS, PAIRS, RUNNING = 2, 20, 20
JOIN_EVERY_S = 0.005
RTT = 0.1
FAIR = Weather(delay=0.02, jitter=0.01)


def _populate(world: World, engines: EngineFactory, count: int, sealer: type[Sealer]) -> list[SimNode]:
    """Nodes that join through the first ``SEEDS`` of them, one after the other."""
    nodes = [
        SimNode(world, f"10.{i >> 8}.{i & 255}.1", engines, seed_role=i < SEEDS, sealer=sealer) for i in range(count)
    ]
    for i, node in enumerate(nodes):
        for seed in nodes[:SEEDS]:
            if seed is not node:
                world.at(i * JOIN_EVERY_S, lambda node=node, seed=seed: node.join(seed))  # type: ignore[misc]
    world.run(count * JOIN_EVERY_S + 3.0)
    return nodes


def _echoes(world: World, here: SimNode, there: SimNode, text: bytes) -> bool:
    stream, inbox = here.open(here.connect(there.id))
    stream.write(text)
    return world.run(3.0, lambda: bytes(inbox.data) == text)


class Traffic:
    """A stream that carries a number every 20 ms, there and back."""

    def __init__(self, world: World, stream: Stream, inbox: Inbox, count: int) -> None:
        self.inbox = inbox
        self._left = iter(range(count))
        self._world = world
        self._stream = stream
        self.expected = b"".join(n.to_bytes(4, "big") for n in range(count))
        self._beat()

    def _beat(self) -> None:
        number = next(self._left, None)
        if number is not None:
            self._stream.write(number.to_bytes(4, "big"))
            self._world.at(self._world.now + 0.02, self._beat)

    def done(self) -> bool:
        return bytes(self.inbox.data) == self.expected


class Crowd:
    """``NODES`` whose seeds have died."""

    def __init__(self) -> None:
        began, memory = time.process_time(), _memory()
        self.world = World(1, FAIR)
        nodes = _populate(self.world, ModelEngines(self.world.entropy), NODES, PlainSealer)
        self.spent = time.process_time() - began
        self.memory = _memory() - memory
        for seed in nodes[:SEEDS]:
            seed.kill()
        self.world.run(1.0)
        self.nodes = nodes[SEEDS:]


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    gc.disable()  # so many nodes are a million objects that live on: scanning them finds nothing
    try:
        yield Crowd()
    finally:
        gc.enable()


def test_nodes_of_a_crowd_that_never_met_find_one_another_after_their_seeds_died(crowd: Crowd) -> None:
    rng = random.Random(7)
    print(f"{NODES} nodes joined in {crowd.spent:.1f} s of CPU ({NODES / crowd.spent:.0f} nodes/s), ", end="")
    print(f"{crowd.world.sent} datagrams, {crowd.memory / NODES:.0f} kB a node")
    unknown = 0
    for number in range(PAIRS):
        here, there = rng.sample(crowd.nodes, 2)
        assert there.id not in here.mesh.sessions
        unknown += all(there.id != known for known, _ in here.mesh.dht.contacts())
        assert _echoes(crowd.world, here, there, b"pair %d" % number)
    assert unknown > PAIRS // 4, "and had to ask others for the rest"


def test_streams_go_on_while_a_third_of_a_crowd_moves_at_once(crowd: Crowd) -> None:
    world, rng = crowd.world, random.Random(8)
    chosen = rng.sample(crowd.nodes, 2 * RUNNING)
    traffic: list[Traffic] = []
    moving: list[SimNode] = []
    for i, (here, there) in enumerate(zip(chosen[::2], chosen[1::2], strict=True)):
        connection: Connection = here.connect(there.id)
        stream, inbox = here.open(connection)
        traffic.append(Traffic(world, stream, inbox, 200))
        moving += [[here], [there], [here, there]][i % 3]
    world.run(0.5)
    others = [node for node in crowd.nodes if node not in chosen]
    moving += rng.sample(others, len(crowd.nodes) * 3 // 10 - len(moving))
    for i, node in enumerate(moving):
        node.move(f"10.{100 + (i >> 8)}.{i & 255}.1")
    moved = world.now
    world.run(4.5)
    assert all(one.done() for one in traffic), "nothing lost, nothing reordered, nothing twice"
    for one in traffic:
        gap = max(b - a for a, b in pairwise(one.inbox.times) if moved - 0.1 < b < moved + 1.0)
        assert gap < 0.5
    still, gone = others[0], moving[-1]
    assert _echoes(world, still, gone, b"found where it is now")


def test_fifty_nodes_with_real_quic_do_the_same() -> None:
    world = World(2, FAIR)
    nodes = _populate(world, pick_engine("aioquic"), 50, Sealer)
    for seed in nodes[:SEEDS]:
        seed.kill()
    rng = random.Random(9)
    for number in range(5):
        here, there = rng.sample(nodes[SEEDS:], 2)
        assert _echoes(world, here, there, b"pair %d" % number)
    here, there = nodes[10], nodes[20]
    stream, inbox = here.open(here.connect(there.id))
    traffic = Traffic(world, stream, inbox, 100)
    world.run(0.5)
    there.move("10.9.9.9")
    assert world.run(5.0, traffic.done)


SCRIPT = """
import sys
from tests.sim.test_scale import FAIR, _echoes, _populate
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import Weather, World
world = World(int(sys.argv[1]), Weather(delay=0.02, jitter=0.02, loss=0.02, duplicate=0.02))
nodes = _populate(world, ModelEngines(world.entropy), 30, PlainSealer)
nodes[0].kill()
_echoes(world, nodes[4], nodes[5], b"hello")
nodes[5].move("10.0.9.9")
world.run(5.0)
assert world.bytes_repeat
print(world.digest, world.sent)
"""


def _digest(seed: int, hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_seed_names_every_byte_of_a_run_in_any_process() -> None:
    first = _digest(11, "1")
    assert first == _digest(11, "2")
    assert first.split()[0] != _digest(12, "1").split()[0]


def _gap(model: bool, mover: str, seed: int) -> float:
    """The longest silence that a reader sees around a move, among four nodes."""
    world = World(seed, Weather(delay=RTT / 2, jitter=0.002))
    engines: EngineFactory = ModelEngines(world.entropy) if model else pick_engine("aioquic")
    sealer = PlainSealer if model else Sealer
    nodes = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=sealer) for i in range(4)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(3.0)
    dialler, listener = nodes[1], nodes[2]
    stream, inbox = dialler.open(dialler.connect(listener.id))
    traffic = Traffic(world, stream, inbox, 150)
    world.run(1.0)
    moved = world.now
    if mover in ("dialler", "both"):
        dialler.move("10.0.1.1")
    if mover in ("listener", "both"):
        listener.move("10.0.2.1")
    assert world.run(8.0, traffic.done)
    return max(b - a for a, b in pairwise(inbox.times) if moved - 0.05 < b < moved + 0.6)


@pytest.mark.parametrize(
    ("mover", "bound"), [("dialler", 2 * RTT + 0.03), ("listener", 2 * RTT + 0.03), ("both", 3 * RTT + 0.05)]
)
def test_a_move_costs_the_model_what_it_costs_real_quic(mover: str, bound: float) -> None:
    model = [_gap(True, mover, seed) for seed in range(3)]
    real = [_gap(False, mover, seed) for seed in range(3)]
    assert max(model + real) <= bound, (model, real)
    assert abs(max(model) - max(real)) < RTT / 2, (model, real)
