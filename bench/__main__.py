"""``./dev bench [NAMES] [--short] [--json]``: measures what the README claims and holds it against the targets."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import Any

Row = tuple[str, float, float, bool]  # what, measured, target, whether more is better


def _quic(short: bool, engine: str = "auto") -> list[Row]:
    from bench import quic

    found = quic.run(short=short, engine=engine)
    return [
        ("bulk, one stream, ratio to aioquic.asyncio", found["bulk_MBps"]["ratio"], 1.8, True),
        ("64-byte echo p50, ratio to aioquic.asyncio", found["echo_p50_us"]["ratio"], 1.0, False),
        ("connect by key p50, ratio to aioquic.asyncio", found["connect_p50_ms"]["ratio"], 1.5, False),
    ]


def _footprint(short: bool) -> list[Row]:
    from bench import footprint

    found = footprint.run(short=short)
    return [
        ("import meshnode, s", found["import_s"], 0.1, False),
        ("process start to ready, s", found["start_to_ready_s"], 0.6, False),
        ("idle node, MB", found["idle_rss_MB"], 48, False),
        (f"idle CPU with {found['peers']} peers, % of a core", found["idle_cpu_percent"], 1, False),
    ]


def _moves(short: bool) -> list[Row]:
    from bench import moves

    if os.geteuid() != 0 or not shutil.which("ip"):
        print("moves: skipped, network namespaces need root and iproute2", file=sys.stderr)
        return []
    found = moves.run(4 if short else 20)
    targets = {"dialler": 60, "listener": 60, "both": 150}
    return [(f"gap p95 when {who} moves, ms", found[who]["p95_ms"], target, False) for who, target in targets.items()]


def _dht(short: bool) -> list[Row]:
    from bench import dht_lookup

    if short:
        print("dht: the short form is tests/unit/test_dht_mesh.py", file=sys.stderr)
        return []
    rows: list[Row] = []
    for condition in dht_lookup.CONDITIONS:
        found = dht_lookup.measure(condition, 1_000, 60)
        rows.append((f"1,000 nodes, {condition}: lookup p95, ms", found["p95_ms"], 500, False))
        rows.append((f"1,000 nodes, {condition}: right of 60", found["right"], 60, True))
    return rows


def _services(short: bool) -> list[Row]:
    from bench import services

    found = services.run(3 if short else 10)
    rows: list[Row] = []
    for how, gaps in found.items():
        rows.append((f"instance killed, {how}: longest silence p50, ms", gaps["p50_ms"], 300, False))
        rows.append((f"instance killed, {how}: longest silence max, ms", gaps["max_ms"], 1_000, False))
    return rows


def _gossip(short: bool) -> Iterable[Row]:
    from bench import gossip

    return gossip.run(short)


def _topics(short: bool) -> list[Row]:
    from bench import topics

    found = topics.run(5.0 if short else 20.0)
    print(f"topics: {found}", file=sys.stderr)
    what = f"{found['published']} publishes, 200 a second of 1 kB, to {found['subscribers']} subscribers"
    return [
        (f"{what}: not received", found["missing"], 0, False),
        (f"{what}: latency p50, ms", found["p50_ms"], 250, False),
        (f"{what}: copies received a message", found["copies_per_message"], 1.3, False),
    ]


BENCHES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "quic": _quic,
    "footprint": _footprint,
    "moves": _moves,
    "dht": _dht,
    "gossip": _gossip,
    "services": _services,
    "topics": _topics,
}


def main() -> int:
    """Run the named benches (all by default); 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--engine", default="auto", help="the QUIC engine of `quic`: auto, aioquic or qh3")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench is called {unknown[0]}; there are {', '.join(BENCHES)}")
    benches = BENCHES | {"quic": lambda short: _quic(short, options.engine)}
    missed = 0
    for name in options.names or BENCHES:
        for what, measured, target, more in benches[name](options.short):
            met = measured >= target if more else measured <= target
            missed += not met
            row: dict[str, Any] = {"bench": name, "what": what, "measured": measured, "target": target, "met": met}
            sign = ">=" if more else "<="
            print(
                json.dumps(row)
                if options.json
                else f"{what:58} {measured:10} {sign} {target:<6} {'' if met else 'MISSED'}"
            )
            sys.stdout.flush()
    return 1 if missed else 0


sys.exit(main())
