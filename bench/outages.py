"""A pulled cable and an unannounced NAT rebinding: how long the numbers of a 100 Hz stream do not come, in namespaces.

Neither end is told of them. A rebinding is a conntrack flush and new outside ports (a forwarded one too), as when
a home router restarts. It is measured with the NAT in front of the dialler, in front of a listener that is reached by
a punched hole, and in front of one whose router forwards a port; and for numbers that flow there and back, only to
the listener (up) and only from it (down).
"""

from __future__ import annotations

import json
import random
import time
from itertools import product
from typing import Any

from bench.moves import percentile
from tests.netns.lab import EchoMesh, Lab

OUTAGE_S = 2.0
CASES = list(product(("dialler", "listener", "mapped listener"), ("echo", "up", "down")))


def _summary(values: list[float], reports: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "runs": len(values),
        "p50_ms": round(percentile(values, 50), 1),
        "p95_ms": round(percentile(values, 95), 1),
        "max_ms": round(max(values), 1),
        "lost": sum(report["lost"] + report["reordered"] for report in reports),
        "errors": sum(report["error"] is not None for report in reports),
    }


def cables(runs: int) -> dict[str, Any]:
    """Pull the cable of one end for 2 s and plug it in under a new address; the silence beyond the outage, by end."""
    rng = random.Random(1)
    found = {}
    with Lab() as lab:
        mesh = EchoMesh(lab)
        for end, host in (("dialler", mesh.dialler), ("listener", mesh.listener)):
            reports, beyond = [], []
            for _ in range(runs):
                mesh.reset()
                began = time.monotonic()
                host.link_down()
                time.sleep(OUTAGE_S + rng.uniform(0, 0.1))  # in step with no timer of the nodes
                host.link_up(mesh.fresh())
                outage = (time.monotonic() - began) * 1000
                reports.append(mesh.report(settle=0.6))
                beyond.append(reports[-1]["gap_ms"] - outage)
            found[end] = _summary(beyond, reports)
    return found


def rebindings(runs: int) -> dict[str, Any]:
    """Rebind the NAT in front of one end; the silence, by ``end, flow``."""
    rng = random.Random(2)
    found = {}
    for natted, flow in CASES:
        with Lab() as lab:
            mesh = EchoMesh(lab, nat=natted.split()[-1], mapped=natted == "mapped listener", flow=flow)
            assert mesh.router is not None
            reports = []
            for _ in range(runs):
                mesh.reset()
                mesh.router.rebind()
                reports.append(mesh.report(settle=rng.uniform(0.8, 1.2)))
            found[f"{natted}, {flow}"] = _summary([report["gap_ms"] for report in reports], reports)
    return found


if __name__ == "__main__":
    print(json.dumps({"cables": cables(3), "rebindings": rebindings(5)}, indent=2))
