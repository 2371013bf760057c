"""How long a 100 Hz echo stream is silent when its ends get new addresses, over namespaces of this machine.

``python -m bench.moves [RUNS] [--bulk]``, as root; prints JSON. The targets for the 95th percentile are 60, 60 and
150 ms. With ``--bulk`` another stream of the same connection carries as many bytes as it can meanwhile, and ``none``
has the longest silence of a second in which none moves.
"""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

from tests.netns.lab import EchoMesh, Host, Lab, missing

TARGETS_P95_MS = {"dialler": 60, "listener": 60, "both": 150}


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile: always a value that was measured."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def run(runs: int = 20, *, bulk: bool = False) -> dict[str, Any]:
    """Move the dialler, the listener and both, ``runs`` times each; gaps in milliseconds, ``bulk_MB`` of one run."""
    rng = random.Random(1)
    found: dict[str, Any] = {}
    with Lab() as lab:
        mesh = EchoMesh(lab, bulk=bulk)
        movers: dict[str, list[Host]] = {
            "dialler": [mesh.dialler],
            "listener": [mesh.listener],
            "both": [mesh.dialler, mesh.listener],
        } | ({"none": []} if bulk else {})
        for mover, hosts in movers.items():
            reports = []
            for _ in range(runs):
                mesh.reset()
                if hosts:
                    mesh.move(*hosts)
                reports.append(mesh.report(settle=rng.uniform(0.8, 1.2)))  # in step with no timer of the nodes
            gaps = [report["gap_ms"] for report in reports]
            found[mover] = {
                "runs": runs,
                "p50_ms": percentile(gaps, 50),
                "p95_ms": percentile(gaps, 95),
                "max_ms": max(gaps),
                "target_p95_ms": TARGETS_P95_MS.get(mover),
                "lost": sum(report["lost"] for report in reports),
                "reordered": sum(report["reordered"] for report in reports),
                "errors": sum(report["error"] is not None for report in reports),
                "bulk_MB": percentile([report["bulk_MB"] for report in reports], 50),
            }
    return found


def main() -> None:
    """Print the result, or why there is none."""
    reason = missing()
    if reason is not None:
        raise SystemExit(f"bench.moves: {reason}")
    counts = [int(word) for word in sys.argv[1:] if word.isdigit()]
    print(json.dumps(run(*counts[:1], bulk="--bulk" in sys.argv), indent=2))


if __name__ == "__main__":
    main()
