"""A DHT whose nodes come and go: half of them are replaced in ten minutes, for an hour, in virtual time.

Prints one JSON line: how many of 60 lookups found the newest record at the end, what share of all contacts is dead, and
what the upkeep costs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import Net, build

HALF_LIFE_S = 600.0


def dead_share(net: Net) -> float:
    """Return the share of all contacts of living nodes that are dead."""
    alive = {node.id for node in net.nodes if node.alive}
    known = [peer in alive for node in net.nodes if node.alive for peer, _ in node.dht.contacts()]
    return 1 - sum(known) / len(known)


def replace(net: Net) -> None:
    """Let the oldest of all but the first three nodes die, or one by lot, and another one join."""
    gone = net.rng.choice(net.nodes[3:])
    net.kill(gone)
    net.nodes.remove(gone)
    del net.by_addr[gone.addr]
    fresh = net.add()
    net.join(fresh, [net.nodes[net.rng.randrange(3)]])
    net.publish(fresh)


def measure(nodes: int = 1_000, seconds: float = 3_600.0, lookups: int = 60, seed: int = 1) -> dict[str, Any]:
    """Let nodes come and go, and look records up at the end."""
    started = time.perf_counter()
    net = build(nodes, seed)
    for node in net.nodes:
        net.publish(node)
    net.run(30.0)
    before, share = net.sent_bytes, 0.0
    pause = HALF_LIFE_S / (nodes / 2)
    for _ in range(int(seconds / pause)):
        replace(net)
        net.run(pause)
        share = dead_share(net) if _ % 200 == 0 else share
        if _ % 200 == 0:
            print(f"{_ * pause:.0f} s: {share:.3f} dead", file=sys.stderr)
    sent = (net.sent_bytes - before) / nodes / seconds
    right = 0
    owners = net.rng.sample(net.nodes[3:], lookups)
    for owner in owners:
        owner.alive = False
        _, _, end = net.resolve(net.rng.choice([n for n in net.nodes if n.alive]), owner.id)
        right += end is not None and end.record is not None and end.record.seq == owner.seq
        owner.alive = True
    return {
        "name": "dht_churn",
        "nodes": nodes,
        "seconds": seconds,
        "right": right,
        "of": lookups,
        "dead_share": round(dead_share(net), 3),
        "bytes_per_s": round(sent, 1),
        "wall_s": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(*(int(a) for a in sys.argv[1:]))), flush=True)
