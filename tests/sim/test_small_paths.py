"""Hosts between which small datagrams pass and those as long as a handshake's are lost: relays carry what they say."""

from __future__ import annotations

import pytest

from meshnode.base.limits import BASE_MTU
from meshnode.base.path_reason import PathReason
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

SMALL = 1_072  # what an MTU of 1,100 leaves for UDP's payload


def _mesh(seed: int = 1) -> tuple[World, SimNode, SimNode]:
    """Two nodes that know each other through two relays; the one with the smaller id first."""
    world = World(seed, Weather(delay=0.02))
    engines = pick_engine("auto")
    seeds = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=True) for i in range(2)]
    nodes = [SimNode(world, f"10.0.0.{i}", engines) for i in (11, 12)]
    for node in nodes:
        for seed_node in seeds:
            node.join(seed_node)
    world.run(3.0)
    here, there = sorted(nodes, key=lambda node: node.id)
    return world, here, there


def _kind(here: SimNode, there: SimNode) -> str:
    paths = here.mesh.sessions[there.id].paths
    return paths.book.kind(paths.active) if paths.active is not None else "none"


def _is_too_small(here: SimNode, there: SimNode) -> bool:
    book = here.mesh.sessions[there.id].paths.book
    return any(candidate.path == there.addr and candidate.is_too_small for candidate in book)


@pytest.mark.parametrize("ways", ["both", "there", "back"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_dial_succeeds_by_a_relay_where_the_direct_path_is_too_small_for_it(ways: str, swapped: bool) -> None:
    world, here, there = _mesh()
    if swapped:
        here, there = there, here
    one, other = (there, here) if ways == "back" else (here, there)
    world.narrow(one.addr.host, other.addr.host, SMALL, back=ways == "both")
    began = world.now
    connection = here.connect(there.id)
    stream, inbox = here.open(connection)
    stream.write(b"hello")
    assert world.run(2.0, lambda: bytes(inbox.data) == b"hello")
    print(f"{world.now - began:.2f} s")
    assert world.now - began < 2.5
    size = 200_000
    stream.write(bytes(size))
    assert world.run(10.0, lambda: len(inbox.data) == size + 5)
    world.run(10.0)
    assert _kind(here, there) == _kind(there, here) == "relay"


def test_a_direct_path_that_becomes_too_small_is_left_for_a_relay_and_taken_again() -> None:
    world, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    stream.write(b"hello")
    world.run(2.0)
    assert _kind(here, there) == _kind(there, here) == "direct"
    world.narrow(here.addr.host, there.addr.host, SMALL)
    size = 500_000
    began = world.now
    stream.write(bytes(size))
    assert world.run(10.0, lambda: len(inbox.data) == size + 5)
    print(f"{size} bytes over the hole in {world.now - began:.2f} s")
    assert world.now - began < 6.0
    assert _kind(here, there) == _kind(there, here) == "relay"
    world.narrow(here.addr.host, there.addr.host, 65_535)
    stream.write(bytes(size))
    assert world.run(70.0, lambda: _kind(here, there) == _kind(there, here) == "direct")
    assert world.run(10.0, lambda: len(inbox.data) == 2 * size + 5)
    reasons = [change.reason for change in here.mesh.sessions[there.id].paths.history]
    assert PathReason.TOO_SMALL in reasons or PathReason.SILENT in reasons


def test_a_path_for_just_the_first_packets_of_a_handshake_is_large_enough() -> None:
    world, here, there = _mesh()
    world.narrow(here.addr.host, there.addr.host, BASE_MTU)
    here.connect(there.id)
    world.run(2.0)
    assert _kind(here, there) == _kind(there, here) == "direct"
