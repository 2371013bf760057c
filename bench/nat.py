"""Anywhere to anywhere: real nodes behind the NATs of tests/netns/natlab.py, held against the targets.

``python -m bench.nat [--short]``, as root; prints JSON. The long form takes about half an hour.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations_with_replacement
from typing import Any

from bench.moves import percentile
from tests.netns import lab as lab_module
from tests.netns import scenarios
from tests.netns.natlab import NatLab
from tests.netns.natmesh import NatMesh

Row = tuple[str, float, float, bool]
CONES = ("open", "full_cone", "address_restricted", "port_restricted")
PAIRS = [*combinations_with_replacement(CONES, 2), *((cone, "symmetric") for cone in CONES)]
SLOW_PATH = 1_500_000  # bytes/s that the proxy passes
PULL = 4_000_000


def missing() -> str | None:
    """Why this bench cannot run here, or None."""
    reason = lab_module.missing("conntrack")
    if reason is None:
        try:
            os.close(os.open("/dev/net/tun", os.O_RDWR))
        except OSError as error:
            reason = f"there is no TUN device: {error}"
    return reason


def _say(what: str, found: object) -> None:
    print(f"nat: {what}: {json.dumps(found)}", file=sys.stderr, flush=True)


def _meetings(short: bool) -> dict[str, Any]:
    """How often each pair meets directly; first bytes, waits and gaps of all."""
    met: dict[str, list[bool]] = {}
    first, waits, gaps = [], [], []
    with NatLab() as lab:
        mesh = NatMesh(lab)
        for left, right in [*PAIRS, ("symmetric", "symmetric")]:
            hard = (left, right) in (("port_restricted", "symmetric"), ("symmetric", "symmetric"))
            for turn in range((4 if hard else 1) if short else 20):
                ends = (left, right) if turn % 2 == 0 else (right, left)
                found = scenarios.meet(mesh, *ends, seconds=4.0 if left == right == "symmetric" else 12.0)
                met.setdefault(f"{left} x {right}", []).append(found["met"])
                first.append(found["first_byte_ms"])
                if found["met"]:
                    waits.append(found["direct_after_ms"])
                    gaps.append(found["switch_gap_ms"])
            _say(f"{left} x {right}", met[f"{left} x {right}"])
    return {"met": {pair: sum(tries) / len(tries) for pair, tries in met.items()}} | {
        "first_byte_ms": first,
        "direct_after_ms": waits,
        "switch_gap_ms": gaps,
    }


def _only_a_seed(runs: int) -> list[float]:
    """First bytes of nodes that know a single seed."""
    with NatLab() as lab:
        mesh = NatMesh(lab, 1)
        found = [scenarios.meet(mesh, "port_restricted", "symmetric", 0.1) for _ in range(runs)]
        return [each["first_byte_ms"] for each in found]


def _again(runs: int, scenario: Callable[[NatLab], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for _ in range(runs):
        with NatLab() as lab:
            yield scenario(lab)


def _moves(runs: int) -> list[dict[str, Any]]:
    with NatLab() as lab:
        movers = scenarios.Movers(NatMesh(lab))
        return [movers.move() for _ in range(runs)]


def run(*, short: bool = False) -> dict[str, Any]:
    """Run everything; what fails is reported as None."""
    parts: dict[str, Callable[[], Any]] = {
        "meetings": lambda: _meetings(short),
        "only_a_seed_ms": lambda: _only_a_seed(2 if short else 10),
        "relay_killed": lambda: list(_again(1 if short else 10, scenarios.relay_killed)),
        "direct_dies": lambda: list(_again(1 if short else 10, lambda lab: scenarios.direct_dies(NatMesh(lab)))),
        "both_move": lambda: _moves(4 if short else 20),
        "udp_blocked_one": lambda: next(_again(1, lambda lab: scenarios.udp_blocked(NatMesh(lab), 1, PULL))),
        "udp_blocked_both": lambda: next(_again(1, lambda lab: scenarios.udp_blocked(NatMesh(lab), 2, PULL))),
        "proxy": lambda: next(_again(1, lambda lab: scenarios.behind_a_proxy(NatMesh(lab), SLOW_PATH, PULL))),
        "udp_back": lambda: next(_again(1, lambda lab: scenarios.udp_comes_back(NatMesh(lab)))),
        "crowd": lambda: next(_again(1, lambda lab: scenarios.crowd(lab, 200 if short else 1_000))),
        "relay_load": lambda: next(_again(1, lambda lab: scenarios.relay_load(lab, 100, 20_000_000))),
        "over_limit": lambda: next(_again(1, lambda lab: scenarios.relay_load(lab, 1, PULL))),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found[name] = None
        try:
            found[name] = part()
        except (RuntimeError, KeyError) as error:  # a scenario that fell over is a target missed, not a bench lost
            _say(f"{name} FAILED", str(error)[-600:])
        if name != "meetings":
            _say(name, found[name])
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """What was measured beside what was aimed at."""
    made: list[Row] = []
    meetings = found["meetings"]
    if meetings is not None:
        for pair, share in meetings["met"].items():
            target = {"port_restricted x symmetric": 90, "symmetric x symmetric": 0}.get(pair, 100)
            made.append((f"direct, {pair}, % of tries", round(100 * share), target, True))
        made.append(("direct path after, p95, ms", percentile(meetings["direct_after_ms"], 95), 3_000, False))
        made.append(("gap at the switch, p50, ms", percentile(meetings["switch_gap_ms"], 50), 50, False))
        made.append(("gap at the switch, p95, ms", percentile(meetings["switch_gap_ms"], 95), 50, False))
    if found["only_a_seed_ms"]:
        worst = max(found["only_a_seed_ms"])
        made.append(("first byte, knowing one seed, worst, ms", worst, 1_000, False))
    for name, what, target in (
        ("relay_killed", "relay killed", 500),
        ("direct_dies", "direct path dies", 500),
        ("both_move", "both ends move to other NATs", 1_500),
    ):
        runs = found[name]
        if runs:
            made.append(
                (f"{what}: gap p95 of {len(runs)}, ms", percentile([r["gap_ms"] for r in runs], 95), target, False)
            )
            bad = sum(r["lost"] + r["reordered"] + bool(r["error"]) + (r["in_flight"] > 10) for r in runs)
            made.append((f"{what}: lost, reordered or stuck", bad, 0, False))
    for name, what in (("udp_blocked_one", "at one side"), ("udp_blocked_both", "at both sides")):
        if found[name]:
            made.append((f"UDP dropped {what}: first byte, ms", found[name]["first_byte_ms"], 1_000, False))
            made.append((f"UDP dropped {what}: goodput, MB/s", found[name]["MBps"], 1, True))
    if found["proxy"]:
        ratio = found["proxy"]["MBps"] / found["proxy"]["plain_MBps"]
        made.append(("HTTPS proxy between: goodput, ratio to WebSocket", round(ratio, 2), 0.5, True))
    if found["udp_back"]:
        made.append(("UDP comes back: off the tunnel after, s", found["udp_back"]["udp_after_s"], 66, False))
    if found["crowd"]:
        clients, grown = found["crowd"]["clients"], found["crowd"]["grown_MB"]
        made.append((f"relay: memory of {clients} idle reservations, MB", grown, max(25, 0.1 * clients), False))
    if found["relay_load"]:
        made.append(("relay: carried, MB a second of one core", found["relay_load"]["relay_MB_per_cpu_s"], 20, True))
    if found["over_limit"]:
        made.append(("relay: carried with a limit of 1 MB/s, MB/s", found["over_limit"]["carried_MBps"], 1.3, False))
        made.append(("relay: frames refused over the limit", found["over_limit"]["refused"], 1, True))
    failed = sum(part is None for part in found.values())
    made.append(("scenarios that fell over", failed, 0, False))
    return made


if __name__ == "__main__":
    reason = missing()
    if reason is not None:
        raise SystemExit(f"bench.nat: {reason}")
    with suppress(KeyboardInterrupt):
        print(json.dumps(run(short="--short" in sys.argv), indent=2))
