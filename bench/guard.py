"""Guard of the hot path: calls on the way of every byte, exactly; CPU of a transfer beside TLS in the same run.

The baseline is ``guard.json`` beside this file. A change that costs more is seen at once; one that must cost more
writes its figure there, with the reason in its commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import calls, quic

FILE = Path(__file__).with_suffix(".json")
TRIES = 12  # on a busy machine; elsewhere the first one is enough


def baseline() -> Any:
    """Return what is allowed: ``calls`` by engine and flow, ``cpu_to_tls`` by engine."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def counted(engine: str) -> list[tuple[str, int, int]]:
    """Return flow, calls and what the baseline allows."""
    allowed = baseline()["calls"][engine]
    return [(what, count, allowed[what]) for what, count, *_ in calls.run(engine)]


def more_calls(engine: str) -> list[str]:
    """Return a line for each flow that has more calls than the baseline, and what to do.

    On a busy machine a reception takes long now and then, and its CPU is looked at: only what is there in each of
    ``TRIES`` runs is on the way of every byte.
    """
    fewest: dict[str, int] = {}
    more: list[str] = []
    for _ in range(TRIES):
        more = []
        for what, count, most in counted(engine):
            fewest[what] = min(count, fewest.get(what, count))
            if fewest[what] > most:
                more.append(
                    f"{what}, {engine}: {fewest[what]} calls, {most} allowed. `python -m bench.calls {engine}` prints "
                    f"each; what must be there goes into {FILE.name}"
                )
        if not more:
            break
    return more


def cpu(engine: str, *, short: bool) -> float:
    """Return the CPU of the busier end for a MB of a transfer, as a multiple of that of TLS in the same run."""
    sides = tuple(side for side in quic.SIDES if side.name != "aioquic")
    work = quic.Work(2 if short else 5, 32, 50, 0, 0, 0)
    return float(quic.run(work=work, engine=engine, sides=sides)["bulk_cpu_ms_per_MB"]["to_tls"])
