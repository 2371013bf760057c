"""Moves of whole nodes with real QUIC in virtual time: 100 ms round trips, 1 % loss; the silence of a 100 Hz stream.

The mesh and the stream are those of tests/sim/test_whole_nodes.py, which checks that every byte came, in order.
"""

from __future__ import annotations

import json
from typing import Any

from bench.moves import percentile
from tests.sim.test_whole_nodes import BOUNDS, RTT, _gap

LOSS = 0.01


def run(seeds: int = 20) -> dict[str, Any]:
    """Gaps in milliseconds over ``seeds`` runs of each kind of move, and the bound; raises AssertionError on a loss."""
    found = {}
    for mover, bound in BOUNDS:
        gaps = [_gap(seed, mover, LOSS) * 1000 for seed in range(seeds)]
        found[mover] = {
            "runs": seeds,
            "rtt_ms": RTT * 1000,
            "p50_ms": round(percentile(gaps, 50), 1),
            "p95_ms": round(percentile(gaps, 95), 1),
            "max_ms": round(max(gaps), 1),
            "bound_ms": round(bound * 1000, 1),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
