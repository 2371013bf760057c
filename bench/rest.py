"""Traffic and timers of a node at rest: whole nodes in virtual time, all connected to what they want, and left alone.

The engine is qh3's, as in a real node; bytes are those of UDP payloads that a node sends. ``python -m bench.rest
[NODES]`` prints what goes by kind and which timers fire. A leaf has a row of its own: what it sends, and what comes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meshnode.base.timers import Timer
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

SETTLE_S, WINDOW_S = 1_500.0, 300.0  # at rest is what has stopped looking for better neighbours


@contextmanager
def counted_timers() -> Iterator[Counter[str]]:
    """Count the timers that fire, by the name of what they do."""
    fired: Counter[str] = Counter()
    fire = Timer.fire

    def noted(timer: Timer, now: float) -> None:
        action: Any = timer._action
        fired[getattr(getattr(action, "func", action), "__qualname__", "?")] += 1
        fire(timer, now)

    Timer.fire = noted  # type: ignore[method-assign]
    try:
        yield fired
    finally:
        Timer.fire = fire  # type: ignore[method-assign]


def run(nodes: int = 10, settle: float = SETTLE_S, window: float = WINDOW_S, *, engine: str = "auto") -> dict[str, Any]:
    """Return bytes and datagrams a second and timers a minute of a node, each also by kind."""
    world = World(1, Weather(delay=0.01))
    seed = SimNode(world, "10.0.0.1", pick_engine(engine), seed_role=True, gossip=True)
    for number in range(2, nodes + 1):
        node = SimNode(world, f"10.0.{number // 250}.{number % 250 + 1}", pick_engine(engine), gossip=True)
        node.join(seed)
        world.run(0.1)
    world.run(settle)
    size: Counter[str] = Counter()
    count: Counter[str] = Counter()
    deliver = world.deliver

    def note(source: Any, to: Any, datagram: bytes, nat: Any = None) -> None:
        kind = "quic" if datagram[0] & 0x40 else "sealed"
        size[kind] += len(datagram)
        count[kind] += 1
        deliver(source, to, datagram, nat)

    world.deliver = note  # type: ignore[method-assign]
    with counted_timers() as fired:
        world.run(window)
    each = window * nodes
    return {
        "bytes_a_second": round(size.total() / each, 1),
        "datagrams_a_second": round(count.total() / each, 2),
        "timers_a_minute": round(60 * fired.total() / each),
        "bytes_by_kind": {kind: round(value / each, 1) for kind, value in size.items()},
        "timers_by_name": {name: round(60 * value / each, 1) for name, value in fired.most_common(20)},
    }


def run_leaf(nodes: int = 6, settle: float = SETTLE_S, window: float = WINDOW_S) -> dict[str, Any]:
    """Return the bytes a second that a leaf sends and is sent, which knows two seeds of a mesh with more nodes."""
    world = World(1, Weather(delay=0.01))

    def add(host: str, *seeds: SimNode, **role: bool) -> SimNode:
        node = SimNode(world, host, pick_engine("auto"), gossip=True, **role)
        for seed in seeds:
            node.join(seed)
        world.run(0.1)
        return node

    first = add("10.9.0.1", seed_role=True)
    seeds = first, add("10.9.0.2", first, seed_role=True)
    for number in range(1, nodes - 1):
        add(f"10.0.0.{number}", *seeds)
    leaf = add("10.5.0.1", *seeds, leaf=True)
    world.run(settle)
    size: Counter[str] = Counter()
    deliver = world.deliver

    def note(source: Any, to: Any, datagram: bytes, nat: Any = None) -> None:
        if leaf.addr in (source, to):
            size["sent" if source == leaf.addr else "received"] += len(datagram)
        deliver(source, to, datagram, nat)

    world.deliver = note  # type: ignore[method-assign]
    world.run(window)
    return {f"{way}_a_second": round(size[way] / window, 1) for way in ("sent", "received")}


def rows(short: bool) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the rows of meshes of several sizes: what a node sends must not grow with them."""
    for nodes in (10,) if short else (10, 40):
        found = run(nodes, *((60.0, 60.0) if short else ()))
        print(f"rest: {found}", file=sys.stderr)
        yield f"{nodes} nodes at rest: bytes sent a second, each", found["bytes_a_second"], 150, False
        yield f"{nodes} nodes at rest: timers a minute, each", found["timers_a_minute"], 600, False
    found = run_leaf(6, *((60.0, 60.0) if short else ()))
    print(f"rest, leaf: {found}", file=sys.stderr)
    both = found["sent_a_second"] + found["received_a_second"]
    yield "a leaf at rest: bytes a second, sent and received", both, 20, False


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:2])), indent=1))
