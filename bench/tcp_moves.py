"""The silence of a TCP connection through ``expose`` and ``forward`` when its ends move: the demo in namespaces.

Eight processes; after the first of the rounds the seed is killed with -9, so most moves are without it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bench.moves import percentile
from meshnode.demo.play import run_demo
from meshnode.demo.show import ENDS, Show


class _Quiet(Show):
    def say(self, text: str) -> None:
        """Nothing."""


def run(rounds: int = 20) -> dict[str, Any]:
    """Gaps in milliseconds and lost numbers by end moved. Raises MeshError when the connection ends."""
    moves = asyncio.run(run_demo(rounds, _Quiet(), netns=True))
    found = {}
    for end in ENDS:
        gaps = [move.gap_ms for move in moves if move.end == end]
        found[end] = {
            "runs": len(gaps),
            "p50_ms": percentile(gaps, 50),
            "p95_ms": percentile(gaps, 95),
            "max_ms": max(gaps),
            "lost": sum(move.lost for move in moves if move.end == end),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
