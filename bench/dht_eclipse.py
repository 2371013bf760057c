"""Lookups of a record whose key an attacker has surrounded with ids of its own before the owner published.

In virtual time, with an owner that answers nothing itself. Prints one JSON line a case: how many of 40 lookups ended
with the newest record. The attacker's ids are free ones, ground to share more bits with the key than any honest one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import build
from eclipse_sim import found_newest, surround

BITS = {1_000: 12, 4_000: 14}


def measure(
    nodes: int, foes: int, *, priced: float, with_seeds: bool, lookups: int = 40, seed: int = 1
) -> dict[str, Any]:
    """Build a mesh, surround one key, publish, and look it up."""
    started = time.perf_counter()
    net = build(nodes, seed, priced=priced, join_every=0.01)
    owner = net.nodes[nodes // 2]
    old = net.record(owner)
    attackers = surround(net, owner.id.dht_key, foes, BITS.get(nodes, 12), old)
    seeds = {node.id: node.addr for node in net.nodes[:3]} if with_seeds else {}
    for node in net.nodes:
        node.dht._shared.seeds = seeds
    return {
        "name": "dht_eclipse",
        "nodes": nodes,
        "ground_ids": foes,
        "priced": priced,
        "seeds": with_seeds,
        "newest": found_newest(net, owner, attackers, lookups),
        "of": lookups,
        "wall_s": round(time.perf_counter() - started, 1),
    }


def run(nodes: tuple[int, ...] = (1_000,), foes: tuple[int, ...] = (8, 64, 1_000)) -> list[dict[str, Any]]:
    """Measure with seeds and no prices, and with prices and no seeds; prints as it goes."""
    results = []
    for count in nodes:
        for crowd in foes:
            for priced, with_seeds in ((0.0, True), (1.0, False), (0.5, False)):
                results.append(measure(count, crowd, priced=priced, with_seeds=with_seeds))
                print(json.dumps(results[-1]), flush=True)
    return results


if __name__ == "__main__":
    run(tuple(int(a) for a in sys.argv[1:]) or (1_000,))
