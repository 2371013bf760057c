"""``./dev bench [NAMES] [--short] [--json]``: measures what the README claims and holds it against the targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

Row = tuple[str, float, float, bool]  # what, measured, target, whether more is better


def _quic(short: bool, engine: str = "auto") -> list[Row]:
    from bench import quic

    found = quic.run(work=quic.SHORT if short else quic.Work(), engine=engine)
    return [
        ("bulk, one stream, ratio to aioquic.asyncio", found["bulk_MBps"]["ratio"], 1.8, True),
        ("64-byte echo p50, ratio to aioquic.asyncio", found["echo_p50_us"]["ratio"], 1.0, False),
        ("connect by key p50, ratio to aioquic.asyncio", found["connect_p50_ms"]["ratio"], 1.5, False),
    ]


def _footprint(short: bool) -> list[Row]:
    from bench import footprint

    found = footprint.run(footprint.SHORT if short else footprint.Work())
    return [
        ("import meshnode, s", found["import_s"], 0.1, False),
        ("process start to ready, s", found["start_to_ready_s"], 0.6, False),
        ("idle node, MB", found["idle_rss_MB"], 48, False),
        (f"idle CPU with {found['peers']} peers, % of a core", found["idle_cpu_percent"], 1, False),
    ]


def _namespaces(name: str, *tools: str) -> bool:
    """True when namespaces can be had; otherwise say why there are no rows."""
    from meshnode.demo.netns import missing

    reason = missing(*tools)
    if reason is not None:
        print(f"{name}: skipped, {reason}", file=sys.stderr)
    return reason is None


def _moves(short: bool) -> list[Row]:
    from bench import moves

    if not _namespaces("moves", "nft"):
        return []
    found = moves.run(4 if short else 20)
    return [
        (f"gap p95 when {mover} moves, ms", found[mover]["p95_ms"], target, False)
        for mover, target in moves.TARGETS_P95_MS.items()
    ] + [_nothing("lost or reordered in moves", sum(f["lost"] + f["reordered"] + f["errors"] for f in found.values()))]


def _nothing(what: str, count: float) -> Row:
    return (what, count, 0, False)


def _tcp(short: bool) -> list[Row]:
    from bench import moves, tcp_moves

    if not _namespaces("tcp"):
        return []
    found = tcp_moves.run(3 if short else 20)
    return [
        (f"TCP through forward, gap p95 when {mover} moves, ms", found[mover]["p95_ms"], target, False)
        for mover, target in moves.TARGETS_P95_MS.items()
    ] + [_nothing("TCP through forward, lost", sum(f["lost"] for f in found.values()))]


def _sim(short: bool) -> list[Row]:
    from bench import sim_moves

    found = sim_moves.run(6 if short else 20)
    return [
        (f"simulated, 100 ms and 1 % loss, p95 when {mover} moves, ms", f["p95_ms"], f["bound_ms"], False)
        for mover, f in found.items()
    ]


def _outages(short: bool) -> list[Row]:
    from bench import outages

    if not _namespaces("outages", "nft", "conntrack"):
        return []
    cables, rebindings = outages.cables(2 if short else 10), outages.rebindings(2 if short else 10)
    rows: list[Row] = [
        (f"link of the {mover} down 2 s, p95 beyond the outage, ms", found["p95_ms"], 150, False)
        for mover, found in cables.items()
    ]
    rows += [(f"NAT rebinding, {case}: gap p95, ms", found["p95_ms"], 300, False) for case, found in rebindings.items()]
    every = [*cables.values(), *rebindings.values()]
    return [*rows, _nothing("lost in outages and rebindings", sum(f["lost"] + f["errors"] for f in every))]


def _lan(short: bool) -> list[Row]:
    from bench import meeting

    if not _namespaces("lan"):
        return []
    times = [meeting.lan_first_ping()[0] for _ in range(2 if short else 10)]
    return [("LAN without a route, worst first ping by key, s", round(max(times), 2), 4, False)]


def _twelve(short: bool) -> list[Row]:
    from bench import meeting

    found = meeting.twelve(6 if short else meeting.NODES)
    what = {
        "with_seed": "nodes that know a seed: pings answered",
        "without_seed": "all pairs after the seed is killed",
        "restarted": "to and from a node restarted since",
    }
    return [(text, found[key][0], found[key][1], True) for key, text in what.items()]


def _slow(short: bool) -> list[Row]:
    from bench import slow_reader

    found = slow_reader.run(*((60, 20.0) if short else (500, 2.0)))
    what = f"{found['megabytes']} MB at {found['rate_MBps']} MB/s"
    return [(f"{what}: {side} grows, MB", found[f"{side}_MB"], 30, False) for side in ("sender", "reader")]


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


def _nat(short: bool) -> list[Row]:
    from bench import nat

    reason = nat.missing()
    if reason is not None:
        print(f"nat: skipped, {reason}", file=sys.stderr)
        return []
    return nat.rows(nat.run(short=short))


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

    rows: list[Row] = []
    for engine in ("aioquic",) if short else ("aioquic", "qh3"):
        found = topics.run(5.0 if short else 20.0, engine=engine)
        print(f"topics: {found}", file=sys.stderr)
        what = f"200 publishes a second of 1 kB asked for, {found['subscribers']} subscribers, {engine}"
        rows += [
            (f"{what}: a second reached", found["rate_reached"], 200, True),
            (f"{what}: of {found['published']} not received", found["missing"], 0, False),
            (f"{what}: latency p50, ms", found["p50_ms"], 250, False),
            (f"{what}: copies received a message", found["copies_per_message"], 1.3, False),
        ]
    return rows


def _calls(short: bool) -> Iterable[Row]:
    from bench import calls

    targets = {"write of 100 B, to sendto": (45, 14, 20), "datagram, to the reader, with its ACK": (70, 15, 30)}
    for what, *counted in calls.run():
        for name, count, target in zip(("calls", "files", "changes of folder"), counted, targets[what], strict=True):
            yield f"{what}: {name}", count, target, False


BENCHES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "quic": _quic,
    "footprint": _footprint,
    "moves": _moves,
    "tcp": _tcp,
    "sim": _sim,
    "outages": _outages,
    "lan": _lan,
    "twelve": _twelve,
    "slow": _slow,
    "dht": _dht,
    "nat": _nat,
    "gossip": _gossip,
    "services": _services,
    "topics": _topics,
    "calls": _calls,
}


def main() -> int:
    """Run the named benches (all by default); 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--engine", default="auto", help="the QUIC engine of `quic`: auto, aioquic or qh3")
    parser.add_argument("--nat", action="store_true", help="the same as the name `nat`")
    options = parser.parse_args()
    options.names += ["nat"] if options.nat else []
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench is called {unknown[0]}; there are {', '.join(BENCHES)}")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        print(f"load {load:.1f} on {cores} cores: times will be longer than on a quiet machine", file=sys.stderr)
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
                else f"{what:62} {measured:10} {sign} {target:<6} {'' if met else 'MISSED'}"
            )
            sys.stdout.flush()
    return 1 if missed else 0


sys.exit(main())
