"""What a stream keeps while four busy processes are beside it, and what ``aioquic.asyncio`` keeps in the same run.

The busy processes compute and never wait, so on two cores each process of a stream has about a third of one. Rounds
with them and without are by turns. ``python -m bench.busy [ROUNDS] [ENGINE]`` prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import quic

BUSY = 4
WORK = quic.Work(1, 16, 500, 0, 0, 0)
SIDES = tuple(side for side in quic.SIDES if side.name != "tls")
NAMES = tuple(side.name for side in SIDES)
FIGURES = {"bulk_MBps": True, "echo_p50_us": False}  # whether more is better

Rounds = list[dict[str, Any]]


@contextmanager
def busy(count: int = BUSY) -> Iterator[None]:
    """Have so many processes compute meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def compare(alone: Rounds, beside: Rounds) -> dict[str, dict[str, float]]:
    """Return the medians of each side, which share of the first it keeps, and ours as a multiple of aioquic's."""
    found = {}
    for figure, more in FIGURES.items():
        row: dict[str, float] = {}
        for name in NAMES:
            first, then = (statistics.median(round_[figure][name] for round_ in rounds) for rounds in (alone, beside))
            row |= {name: round(first, 1), f"{name}_busy": round(then, 1)}
            row[f"{name}_keeps"] = round(then / first if more else first / then, 3)
        row["ratio"] = round(row["meshnode_keeps"] / row["aioquic_keeps"], 2)
        found[figure] = row
    return found


def run(rounds: int = 5, engine: str = "auto") -> dict[str, dict[str, float]]:
    """Measure both sides, by turns alone and beside ``BUSY`` processes."""
    alone: Rounds = []
    beside: Rounds = []
    for _ in range(rounds):
        alone.append(quic.run(work=WORK, engine=engine, sides=SIDES))
        with busy():
            beside.append(quic.run(work=WORK, engine=engine, sides=SIDES))
    return compare(alone, beside)


def rows(short: bool) -> Iterator[tuple[str, float, float, bool, dict[str, float]]]:
    """Yield what a stream keeps, as a multiple of what aioquic.asyncio keeps."""
    found = run(2 if short else 5)
    for figure, what in (("bulk_MBps", "bulk"), ("echo_p50_us", "64-byte echo p50")):
        yield f"{what} beside four busy processes, kept, by aioquic's", found[figure]["ratio"], 0.5, True, found[figure]


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(run(int(words[0]) if words else 5, *words[1:2]), indent=1))
