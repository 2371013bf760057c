"""``./dev bench [NAMES] [--short] [--json]``: measures what the README claims and holds it against the targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tools.children import ended_together

Row = tuple[Any, ...]  # what, measured, target, whether more is better, and where a row has more to tell, a dict


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
        ("the first start of a home, which makes its key, s", found["first_start_s"], 2, False),
        ("idle node, MB", found["idle_rss_MB"], 48, False),
        (f"idle CPU with {found['peers']} peers, % of a core", found["idle_cpu_percent"], 1, False),
    ]


def _cold(short: bool) -> list[Row]:
    from bench import cold

    found = cold.run(7 if short else 21)
    print(f"cold: {found}", file=sys.stderr)
    return [
        ("function, process start to first byte echoed, best, ms", found["wall_ms"]["best"], 250, False),
        ("function, the same in CPU time, median, ms", found["cpu_ms"]["median"], 250, False),
    ]


def _namespaces(name: str, *tools: str) -> bool:
    """True when namespaces can be had; otherwise say why there are no rows."""
    from meshnode.demo.netns import missing

    reason = missing(*tools)
    if reason is not None:
        print(f"{name}: skipped, {reason}", file=sys.stderr)
    return reason is None


def _rest(short: bool) -> Iterable[Row]:
    from bench import rest

    return rest.rows(short)


def _scale(short: bool) -> Iterable[Row]:
    from bench import scale

    return scale.run(short)


def _moves(short: bool) -> list[Row]:
    from bench import moves

    if not _namespaces("moves", "nft"):
        return []
    found, beside = moves.run(4 if short else 20), moves.run(4 if short else 20, bulk=True)
    still = beside["none"]["p95_ms"]  # what the bulk does to it by itself
    rows: list[Row] = []
    for mover, target in moves.TARGETS_P95_MS.items():
        rows.append((f"gap p95 when {mover} moves, ms", found[mover]["p95_ms"], target, False))
        during = f"gap p95 during bulk when {mover} moves, ms"
        rows.append((during, beside[mover]["p95_ms"], round(target + still), False, {"no move": still}))
    every = [*found.values(), *beside.values()]
    return [*rows, _nothing("lost or reordered in moves", sum(f["lost"] + f["reordered"] + f["errors"] for f in every))]


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
    from bench import dht_lookup, dht_offers

    if short:
        print("dht: the short form is tests/unit/test_dht_mesh.py", file=sys.stderr)
        return []
    rows: list[Row] = []
    for condition in dht_lookup.CONDITIONS:
        found = dht_lookup.measure(condition, 1_000, 60)
        rows.append((f"1,000 nodes, {condition}: lookup p95, ms", found["p95_ms"], 500, False))
        rows.append((f"1,000 nodes, {condition}: right of 60", found["right"], 60, True))
    for condition in dht_offers.CONDITIONS:
        found = dht_offers.measure(condition)
        rows.append((f"services in 1,000 nodes, {condition}: found of 60", found["found"], 60, True))
        rows.append((f"services in 1,000 nodes, {condition}: p95, ms", found["p95_ms"], 1_000, False))
        rows.append((f"services in 1,000 nodes, {condition}: datagrams a search", found["datagrams"], 100, False))
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

    targets = {"write of 100 B, to sendto": (45, 14, 20), "datagram, to its reader": (70, 15, 30)}
    for what, *counted in calls.run():
        for name, count, target in zip(("calls", "files", "changes of folder"), counted, targets[what], strict=True):
            yield f"{what}: {name}", count, target, False


def _post_quantum(short: bool) -> Iterable[Row]:
    from bench import post_quantum

    found = post_quantum.run(60 if short else 400)
    print(f"post-quantum: {found}", file=sys.stderr)
    for engines, figures in found.items():
        yield (f"hybrid key exchange, {engines}: CPU more a handshake, ms", figures["more_ms"], 1.0, False)
        if "round_trips_more" in figures:
            yield (f"hybrid key exchange, {engines}: round trips more", figures["round_trips_more"], 0, False)


def _handshakes(short: bool) -> Iterable[Row]:
    from bench import handshakes

    targets = {"datagrams": 12, "sealed": 6, "round_trips": 2, "echo_round_trips": 2, "calls": 4_000}
    rates = {"per_s": 500, "per_s_at_once": 900}
    for engine in ("qh3",) if short else ("qh3", "aioquic"):
        found = handshakes.run(engine, 50 if short else 300)
        print(f"handshakes: {found}", file=sys.stderr)
        yield from ((f"a dial, {engine}: {name}", found[name], target, False) for name, target in targets.items())
        yield from ((f"dials, {engine}: {name}", found[name], target, True) for name, target in rates.items())
        yield f"a connection, {engine}: kB an end, engine alone", found["connection_kB"], 40, False


def _busy(short: bool) -> Iterable[Row]:
    from bench import busy

    return busy.rows(short)


def _guard(short: bool) -> Iterable[Row]:
    from bench import guard
    from meshnode.errors import ConfigError
    from meshnode.quic.engines import pick_engine

    for engine, most in guard.baseline()["cpu_to_tls"].items():
        try:
            pick_engine(engine)
        except ConfigError as error:
            print(f"guard: {error.message}", file=sys.stderr)
            continue
        for what, count, allowed in guard.counted(engine):
            yield f"{what}, {engine}: calls", count, allowed, False
        yield f"transfer, {engine}: CPU a MB, times that of TLS", guard.cpu(engine, short=short), most, False


def _fresh(short: bool) -> list[Row]:
    from bench import fresh

    reason = fresh.missing()
    if reason is not None:
        print(f"fresh: skipped, {reason}", file=sys.stderr)
        return []
    found = fresh.run()
    rows: list[Row] = [("fresh Debian, root: ./dev demo with all set-up, s", round(found.pop("seconds")), 300, False)]
    return rows + [(f"fresh Debian, {what}", held, 1, True) for what, held in found.items()]


def _cases(short: bool) -> list[Row]:
    from bench import cases

    if not _namespaces("cases", "nft", "nsenter"):
        return []
    slow, twins = cases.slow_disk(seconds=3 if short else 15), cases.cloned_machine(5 if short else 60)
    names, clock = cases.dead_name_server(), cases.clock_once_ahead()
    full, read_only = cases.full_disk(), cases.read_only_disk()
    unlike = [found["echo"] != "lan" or not found["degraded"] for found in (full, read_only)]
    return [
        ("fsync of 1.5 s: gap of a stream, ms", slow["still"]["gap_ms"], 300, False),
        ("fsync of 1.5 s: gap at a move, ms", slow["move"]["gap_ms"], 300, False),
        ("dead name server: until the other seed is met, s", names["met_s"], 3, False),
        ("dead name server: until the node has ended, s", names["ended_s"], 3, False),
        ("clock set back by a year: until a service is known, s", clock["known_s"], 10, False),
        ("two hosts with one key: connections a second at a friend", twins["connections_a_s"], 0.5, False),
        ("two hosts with one key: nodes of four that say so", len(twins["told"]), 4, True),
        _nothing("full and read-only disks: nodes not reached, or silent about it", sum(unlike)),
        *_crowds(short),
    ]


def _crowds(short: bool) -> list[Row]:
    from bench import crowds

    found = crowds.run(short)
    at_once, visitors, paused = found["at_once"], found["visitors"], found["paused"]
    rows = [
        ("1,000 connections at once through one forward, served", min(at_once["served"]), at_once["of"], True),
        ("short connections: kB that the nodes grew by", found["short_ones"]["grown_kB"], 6000, False),
        ("short connections: kB that 1,000 more of them leave", found["short_ones"]["kB_per_1000"], 250, False),
        _nothing("short connections: descriptors left", max(0, found["short_ones"]["descriptors"])),
        _nothing("short connections: streams left", max(0, found["short_ones"]["streams"])),
        ("peers that come once: kB that each of the last two thirds leaves", visitors["kB_each"], 80, False),
        _nothing("peers that come once: descriptors left", max(0, visitors["descriptors"])),
        ("a node was paused: until its stream has caught up, s", max(paused["late_s"], default=99.0), 2, False),
        _nothing("a node was paused: streams that were not whole", not paused["whole"]),
    ]
    if "redis" in found:
        served = found["redis"]["forward"]
        rows.append(("redis-benchmark -c 200 through a forward, requests a second", min(served.values()), 1000, True))
    return rows


def _ways(short: bool) -> Iterable[Row]:
    from bench import ways

    found = ways.run(ways.SHORT if short else ways.Work())
    print(f"ways: {found}", file=sys.stderr)
    for way in ways.WAYS:
        if way.least is not None:
            yield f"throughput of {way.name}, by a stream's", found[way.name]["of_stream"], way.least, True


def _programs(short: bool) -> Iterable[Row]:
    from bench import programs

    if not _namespaces("programs"):
        return
    work = programs.SHORT if short else programs.Work()
    for row in programs.run(work):
        if "missing" in row:
            print(f"programs: {row['program']} skipped, {row['missing']} not installed", file=sys.stderr)
        else:
            what = f"{row['program']}: errors, reconnects, lost, moves missing"
            yield what, programs.faults(row, work), 0, False, row


def _policy(short: bool) -> list[Row]:
    from bench import policy

    found = policy.run(2_000 if short else 20_000)
    return [
        ("decision from the cache, us of CPU", found["cached_us"], 5, False),
        (f"decision by {policy.RULES} rules, us of CPU", found["cold_us"], 50, False),
    ]


def _revocation(short: bool) -> list[Row]:
    from bench import revocation

    count = 4 if short else revocation.PROCESSES
    return [
        (f"{order}: a live stream is cut, mesh of {count} processes, s", revocation.cut_s(count, order), 1.0, False)
        for order in revocation.ORDERS
    ]


def _starved(short: bool) -> Iterable[Row]:
    from bench import starved

    return starved.rows(short)


BENCHES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "quic": _quic,
    "footprint": _footprint,
    "cold": _cold,
    "rest": _rest,
    "scale": _scale,
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
    "ways": _ways,
    "programs": _programs,
    "guard": _guard,
    "busy": _busy,
    "handshakes": _handshakes,
    "post-quantum": _post_quantum,
    "policy": _policy,
    "revocation": _revocation,
    "starved": _starved,
    "fresh": _fresh,
    "cases": _cases,
}


def _in_words(told: dict[str, Any] | None = None) -> str:
    """Return the rest of a row as text."""
    return "; ".join(f"{key} {value}" for key, value in (told or {}).items())


def main() -> int:
    """Run the named benches (all by default); 1 when a target is missed."""
    if "--peers" in sys.argv:
        from bench.peers.run import main as peers

        return peers([word for word in sys.argv[1:] if word != "--peers"])
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--engine", default="auto", help="the QUIC engine of `quic`: auto, aioquic or qh3")
    parser.add_argument("--peers", action="store_true", help="beside what others have: `--peers --help` says more")
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
        for what, measured, target, more, *told in benches[name](options.short):
            met = measured >= target if more else measured <= target
            missed += not met
            row: dict[str, Any] = {"bench": name, "what": what, "measured": measured, "target": target, "met": met}
            row |= told[0] if told else {}
            sign = ">=" if more else "<="
            print(
                json.dumps(row)
                if options.json
                else f"{what:62} {measured:10} {sign} {target:<6} {'' if met else 'MISSED'} {_in_words(*told)}"
            )
            sys.stdout.flush()
    return 1 if missed else 0


with ended_together():
    sys.exit(main())
