"""Lookups of a record whose key an attacker has surrounded with ids of its own before the owner published.

In virtual time, with an owner that answers nothing itself. ``python -m bench.dht_eclipse [NODES]...`` prints one JSON
line a case: how many of 40 lookups ended with the newest record. The attacker's ids are free ones, ground to share more
bits with the key than any honest one. A mesh is built once, and each crowd comes to a copy of it (``fork``).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import Net, build
from eclipse_sim import found_newest, surround

BITS = {1_000: 12, 4_000: 14}
FOES = (8, 64, 1_000)


def measure(
    nodes: int, foes: int, *, priced: float, with_seeds: bool, lookups: int = 40, seed: int = 1
) -> dict[str, Any]:
    """Build a mesh, surround one key, publish, and look it up."""
    return _attack(build(nodes, seed, priced=priced, join_every=0.01), foes, priced, with_seeds, lookups)


def _attack(net: Net, foes: int, priced: float, with_seeds: bool, lookups: int) -> dict[str, Any]:
    started, nodes = time.perf_counter(), len(net.nodes)
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


def run(nodes: int) -> None:
    """Print what is found with seeds and no prices, and with prices and no seeds."""
    gc.disable()  # a mesh is a million objects that live on
    for priced, with_seeds in ((0.0, True), (1.0, False), (0.5, False)):
        net = build(nodes, 1, priced=priced, join_every=0.01)
        for crowd in FOES:
            copy = multiprocessing.get_context("fork").Process(target=_tell, args=(net, crowd, priced, with_seeds))
            copy.start()
            copy.join()


def _tell(net: Net, foes: int, priced: float, with_seeds: bool) -> None:
    print(json.dumps(_attack(net, foes, priced, with_seeds, 40)), flush=True)


if __name__ == "__main__":
    for count in [int(arg) for arg in sys.argv[1:]] or BITS:
        run(count)
