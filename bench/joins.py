"""Nodes that join at the same moment through two seeds: how many know all others, second by second, in virtual time.

Whole nodes on the modelled link, gossip and DHT on. ``python -m bench.joins [NODES]``.
"""

from __future__ import annotations

import json
import sys
from statistics import median
from typing import Any

from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World

LIMIT_S = 10


def measure(count: int, seed: int = 1) -> dict[str, Any]:
    """Return how many of ``count`` nodes and two seeds know all after each second, and what a node's join sent."""
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    engines = ModelEngines(world.entropy)

    def add(host: str, *, seed_role: bool = False) -> SimNode:
        return SimNode(world, host, engines, seed_role=seed_role, gossip=True, sealer=PlainSealer)

    seeds = [add(f"10.9.0.{number}", seed_role=True) for number in (1, 2)]
    seeds[0].join(seeds[1])
    seeds[1].join(seeds[0])
    world.run(5.0)
    nodes = [add(f"10.0.{number >> 7}.{(number & 127) + 1}") for number in range(count)]
    for node in nodes:
        for each in seeds:
            node.join(each)
    sent, known = world.sent, [0]
    whole: list[int] = []
    while len(whole) < LIMIT_S and min(known) < count + 1:
        world.run(1.0)
        known = [len(node.mesh.gossip.members()) for node in (*seeds, *nodes) if node.mesh.gossip is not None]
        whole.append(sum(members > count for members in known))
    return {
        "name": "joins",
        "nodes": count,
        "know_all_by_second": whole,
        "known": [min(known), median(known), max(known)],
        "datagrams": round((world.sent - sent) / count),
    }


if __name__ == "__main__":
    for number in [int(arg) for arg in sys.argv[1:]] or [40, 200]:
        print(json.dumps(measure(number)), flush=True)
