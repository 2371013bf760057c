"""DHT cores whose CPU is too short for what they are asked: how much of what they could do they still do.

In virtual time: each message costs its receiver CPU, of which every node has a small share; what waits is taken in the
order of a node's driver (``stack/newest_first.py``). Lookups are begun at a multiple of the rate that the mesh bears.
Prints one JSON line a load; ``goodput`` is right lookups a second as a share of the best rate of all loads.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import Net, SimNode, build

from meshnode.discovery.dht import LookupDone

COST_S = 0.0004  # of CPU a message
SHARE = 0.01  # of a core a node: 25 messages a second
RPCS = 20  # a lookup, each of which costs CPU at both ends


def run_load(load: float, *, nodes: int = 100, seconds: float = 60.0, seed: int = 1) -> dict[str, Any]:
    """Begin lookups at ``load`` times the rate that all CPU together bears; count the right ones."""
    started = time.perf_counter()
    net: Net = build(nodes, seed)
    for node in net.nodes:
        net.publish(node)
    net.run(5.0)
    before = _counts(net)
    net.cost, net.share = COST_S, SHARE
    each = load * SHARE / COST_S / (2 * RPCS)  # lookups a second and node
    begun: list[tuple[SimNode, int, SimNode]] = []

    def begin(node: SimNode) -> None:
        target = net.rng.choice([t for t in net.nodes if t.id.dht_key not in node.dht.records])
        begun.append((node, node.dht.lookup(target.id, net.now), target))
        net.pump(node)
        net.at(net.now + net.rng.expovariate(each), lambda: begin(node))

    for node in net.nodes:
        net.at(net.now + net.rng.expovariate(each), lambda node=node: begin(node))  # type: ignore[misc]
    net.run(seconds)
    ended = {(node.id, e.lookup_id): e.record for node in net.nodes for _, e in node.log if isinstance(e, LookupDone)}
    right = sum((r := ended.get((n.id, number))) is not None and r.id == t.id for n, number, t in begun)
    counts = {name: count - before.get(name, 0) for name, count in _counts(net).items()}
    return {
        "name": "dht_overload",
        "load": load,
        "nodes": nodes,
        "lookups": len(begun),
        "right_per_s": round(right / seconds, 2),
        "rpcs": counts["dht_rpcs"],
        "timeouts": counts.get("dht_timeouts", 0),
        "late": counts.get("dht_late", 0),
        "retransmits": counts.get("dht_retransmits", 0),
        "refused": counts.get("dht_lookups_full", 0),
        "dropped": sum(node.backlog.dropped for node in net.nodes if node.backlog is not None),
        "evicted": counts.get("dht_evicted", 0),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def _counts(net: Net) -> dict[str, int]:
    totals: dict[str, int] = {}
    for node in net.nodes:
        for name, count in node.metrics.counters.items():
            totals[name] = totals.get(name, 0) + count
    return totals


LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)


def run(loads: tuple[float, ...] = LOADS, nodes: int = 100, seconds: float = 60.0) -> list[dict[str, Any]]:
    """Measure every load; prints as it goes."""
    results = [run_load(load, nodes=nodes, seconds=seconds) for load in loads]
    best = max(result["right_per_s"] for result in results)
    for result in results:
        result["goodput"] = round(result["right_per_s"] / best, 2)
        print(json.dumps(result), flush=True)
    return results


if __name__ == "__main__":
    run()
