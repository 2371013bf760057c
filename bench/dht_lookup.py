"""Lookups in a mesh of 1,000 DHT cores in virtual time: healthy but for one trouble at a time.

Prints one JSON line a condition: how many of the lookups gave the right record, and when the first valid one came.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import Net, build

CONDITIONS: dict[str, dict[str, float]] = {
    "dead": {"dead": 0.3},
    "loss": {"loss": 0.05},
    "junk": {"junk": 0.1},
}


def measure(condition: str, nodes: int = 1_000, lookups: int = 60, seed: int = 1) -> dict[str, Any]:
    """Build a mesh, publish, break it as ``condition`` says, and look records up from random nodes."""
    trouble = CONDITIONS[condition]
    started = time.perf_counter()
    net: Net = build(nodes, seed, join_every=0.02)
    owners = net.rng.sample(net.nodes[3:], lookups)
    for owner in owners:
        net.publish(owner)
    net.run(3.0)
    rest = [n for n in net.nodes if n not in owners]
    for node in net.rng.sample(rest, int(trouble.get("dead", 0) * nodes)):
        node.alive = False
    for node in net.rng.sample(rest, int(trouble.get("junk", 0) * nodes)):
        node.junk = True
    net.loss = trouble.get("loss", 0.0)
    askers = [n for n in rest if n.alive and not n.junk]
    times: list[float] = []
    right = rpcs = hops = 0
    ends: list[float] = []
    for owner in owners:
        asker = net.rng.choice(askers)
        owner.alive = False  # its record must come from its holders, not from itself
        found, seconds, end = net.resolve(asker, owner.id)
        owner.alive = True
        assert end is not None, "a lookup must end"
        rpcs += end.stats.rpcs
        hops += end.stats.hops
        ends.append(end.stats.seconds)
        if found is not None and end.record is not None and end.record.seq == owner.seq:
            right += 1
            times.append(seconds)
    times.sort()
    ends.sort()
    return {
        "name": f"dht_lookup_{condition}",
        "nodes": nodes,
        "right": right,
        "of": lookups,
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p95_ms": round(1000 * times[int(0.95 * (len(times) - 1))], 1),
        "done_p95_ms": round(1000 * ends[int(0.95 * (len(ends) - 1))], 1),
        "rpcs_mean": round(rpcs / lookups, 1),
        "hops_mean": round(hops / lookups, 2),
        "wall_s": round(time.perf_counter() - started, 1),
    }


def run(as_json: bool = True, nodes: int = 1_000, lookups: int = 60) -> list[dict[str, Any]]:
    """Measure every condition; prints as it goes."""
    results = []
    for condition in CONDITIONS:
        result = measure(condition, nodes, lookups)
        results.append(result)
        print(json.dumps(result) if as_json else "  ".join(f"{k}={v}" for k, v in result.items()), flush=True)
    return results


if __name__ == "__main__":
    run("--json" in sys.argv, *(int(a) for a in sys.argv[1:] if a.isdigit()))
