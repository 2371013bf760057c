"""What one end of an idle connection holds in Python's memory: engine, connection, session and paths."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from typing import Any

import pytest

from meshnode.base.address import Addr
from meshnode.base.timers import Timers
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.paths.peer import PeerPaths
from meshnode.stack.session import Session
from tests.interop.test_engines import NAMES, NEEDS_QH3
from tests.interop.test_handshakes import _by_hand

COUNT = 6
LIMITS = {"qh3": 27_500, "aioquic": 60_000}  # bytes an end


def _session(peer: NodeId, timers: Timers) -> Session:
    rng = random.Random(1)
    paths = PeerPaths(peer, rng=rng, entropy=rng.randbytes, now=0.0)
    paths.add_candidates([(Addr("192.0.2.1", 4242), "record")], 0.0)
    return Session(peer, paths, timers, lambda session, now: None)


@pytest.mark.parametrize("name", NAMES)
def test_an_idle_connection_holds_little(name: str) -> None:
    listener, timers, held = Identity(bytes(31) + b"\2"), Timers(), list[Any]()
    for number in range(2 * COUNT):
        if number == COUNT:
            gc.collect()
            tracemalloc.start()
        here, there, wire = _by_hand((name, name), listener, listener)
        for at, _ in enumerate(wire):
            if at > 20 or here.connection.engine.handshake_confirmed:
                break
        held += [here, there, wire, _session(listener.id, timers), _session(listener.id, timers)]
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] / COUNT / 2
    tracemalloc.stop()
    print(f"{name}: {size:.0f} bytes an end")
    assert size < LIMITS[name]


@NEEDS_QH3
def test_the_fast_engine_keeps_no_room_for_attributes_that_never_come() -> None:
    listener = Identity(bytes(31) + b"\2")
    here, there, wire = _by_hand(("qh3", "qh3"), listener, listener)
    for at, _ in enumerate(wire):
        if at > 20 or here.connection.engine.handshake_confirmed:
            break
    for side in (here, there):
        assert sys.getsizeof(vars(side.connection.engine._quic)) < 1_300, "832; 1,584 as it has grown"  # type: ignore[attr-defined]
