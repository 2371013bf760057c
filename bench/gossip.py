"""Gossip at scale, in virtual time: 1,000 and 10,000 cores on 50 ms links with 1 % loss."""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from meshnode.base.limits import GOSSIP_LISTED
from meshnode.gossip import Entry, Kind, Status
from meshnode.gossip.dissemination import listing
from tests.sim.gossip_sim import GossipNet, GossipNode, build

SETTLING = 3  # broadcasts before the tree counts as settled


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _payloads(net: GossipNet) -> int:
    return sum(node.metrics.counters.get("gossip_payloads", 0) for node in net.nodes)


def broadcasts(net: GossipNet, count: int, seed: int, wait: float = 6.0) -> dict[str, float]:
    """Entries from random nodes: when they came where, in seconds, and what that cost in payloads a node."""
    rng = random.Random(seed)
    delays: list[float] = []
    costs: list[float] = []
    missing = 0
    living = net.living()
    for number in range(SETTLING + count):
        net.unfollow()
        before = _payloads(net)
        entry = net.publish(rng.choice(living), f"b{number}", b"v" * 100, kind=Kind.TOPIC)
        net.run(wait)
        if number >= SETTLING:
            found = net.delays(entry)
            missing += len(living) - 1 - len(found)
            delays += found
            costs.append((_payloads(net) - before) / len(living))
    delays.sort()
    return {
        "p50": delays[len(delays) // 2],
        "p999": delays[int(0.999 * len(delays))],
        "max": delays[-1],
        "missing": missing,
        "payloads": sum(costs) / len(costs),
        "payloads_max": max(costs),
    }


def crashes(net: GossipNet, count: int, seed: int, wait: float = 9.0) -> dict[str, float]:
    """Listed nodes that vanish: when 99 % of the rest believe it, in seconds; the worst of ``count``.

    ``p50``: when half of the rest do, the median.
    """
    rng = random.Random(seed)
    halves: list[float] = []
    worst = wrong = 0.0
    for _ in range(count):
        victim = rng.choice([node for node in net.living() if node.gossip.own_entries.listing.listed])
        for node in net.nodes:
            node.statuses.clear()
        began = net.now
        net.crash(victim)
        net.run(wait)
        living = net.living()
        times = sorted(
            min((t for t, peer, s in node.statuses if peer == victim.id and s is Status.GONE), default=1e9) - began
            for node in living
        )
        worst = max(worst, times[int(0.99 * (len(times) - 1))])
        halves.append(times[len(times) // 2])
        wrong += sum(s is Status.GONE and net.by_id[peer].alive for node in living for _, peer, s in node.statuses)
    return {"p50": sorted(halves)[len(halves) // 2], "p99": worst, "wrong": wrong}


def moves(net: GossipNet, count: int, seed: int) -> dict[str, float]:
    """New member entries of random listed nodes, as after a move: when 99 % have them; the worst of ``count``."""
    rng = random.Random(seed)
    listed = [node for node in net.living() if node.gossip.own_entries.listing.listed]
    worst = 0.0
    for _ in range(count):
        net.unfollow()
        entry = net.announce(rng.choice(listed))
        net.run(4.0)
        assert entry is not None
        found = net.delays(entry)
        worst = max(worst, found[int(0.99 * (len(found) - 1))])
    return {"p99": worst}


def accusations(nodes: int, seconds: float, seed: int = 7) -> dict[str, float]:
    """A healthy mesh at 5 % loss: how many were suspected, and how many of the living taken for gone."""
    net = build(nodes, seed, announce=True, loss=0.05, every=0.01, settle=10.0)
    for node in net.nodes:
        node.statuses.clear()
    net.run(seconds)
    told = [status for node in net.nodes for _, _, status in node.statuses]
    accused = sum(node.metrics.counters.get("gossip_accusations", 0) for node in net.nodes)
    return {"confirmed": sum(s is Status.GONE for s in told), "accusations": accused}


def same_state(net: GossipNet) -> bool:
    """True when all that live store the same entries, and believe all that live to be alive."""
    living = net.living()
    first = living[0].gossip.store.buckets.prints
    if any(node.gossip.store.buckets.prints != first for node in living):
        return False
    alive = {node.id: None for node in living}
    return not any(peer in alive for node in living for peer in node.gossip.members.suspects())


def partition(nodes: int, seconds: float = 60.0, changes: int = 40, seed: int = 8) -> dict[str, float]:
    """Half of a mesh in which all nodes know each other is cut off while both halves change.

    How long after the joining all have the same state, and what that cost: payloads received a node, and accusations
    that one node stored, at most.
    """
    net = build(nodes, seed, every=0.01, settle=10.0, statuses=False)
    rng = random.Random(seed)
    net.introduce()
    for _ in range(SETTLING):
        net.publish(rng.choice(net.nodes), "tree", b"")
        net.run(2.0)
    net.unfollow()
    half = rng.sample(net.nodes, nodes // 2)
    chosen = {node.id for node in half}
    others = [node for node in net.nodes if node.id not in chosen]
    net.partition(half)
    for number in range(changes):
        for side in (half, others):
            net.publish(rng.choice(side), f"p{number}", b"changed")
            net.unfollow()
        net.run(seconds / changes)
    accused = max(sum(1 for _ in node.gossip.store.entries(Kind.ACCUSATION)) for node in net.nodes)
    before, healed = _payloads(net), net.now
    net.heal()
    done = net.run(60.0, lambda: same_state(net))
    return {
        "seconds": net.now - healed if done else 1e9,
        "payloads": (_payloads(net) - before) / nodes,
        "accusations": accused,
    }


def churn(nodes: int, rounds: int = 6, seed: int = 7, places: int = GOSSIP_LISTED) -> dict[str, Any]:
    """In each round of 2 s one node joins, two move, one restarts, one leaves and one crashes; what is believed then.

    ``wrong``: beliefs of a living node that are not so. The first are all listed, more than there are ``places``; a
    newcomer is not: its neighbours know it, and others find it in the DHT.
    """
    listing.GOSSIP_LISTED = places
    try:
        net = build(nodes, seed, every=0.005, settle=5.0, statuses=False)
        net.introduce()
        rng = random.Random(seed)
        gone = [node for _ in range(rounds) for node in _churned(net, rng)]
        net.run(12.0)
    finally:
        listing.GOSSIP_LISTED = GOSSIP_LISTED
    living, newcomers = net.living(), [node for node in net.nodes[nodes:] if node.alive]
    links = [[net.by_id[peer].gossip.hyparview.active for peer in n.gossip.hyparview.active] for n in newcomers]
    return {
        "connected": net.is_connected(),
        "newcomers_listed": sum(node.gossip.own_entries.listing.listed for node in newcomers),
        "newcomers_links": min(
            sum(node.id in active for active in near) for node, near in zip(newcomers, links, strict=True)
        ),
        "wrong": sum(_is_wrong(node, other, newcomers) for node in living for other in (*living, *gone)),
        "states": len({tuple(node.gossip.store.buckets.prints) for node in living}),
    }


def _churned(net: GossipNet, rng: random.Random) -> list[GossipNode]:
    """Let a round of churn happen; returns those that are gone."""
    *moved, restarted, left, crashed, contact = rng.sample(net.living(), 6)
    newcomer = net.add()
    net.join(newcomer, contact)
    for node in (newcomer, *moved):
        net.announce(node)
    net.run(0.5)
    net.restart(restarted, contact)
    net.announce(restarted)
    net.run(0.5)
    net.leave(left)
    net.crash(crashed)
    net.unfollow()
    net.run(1.0)
    return [left, crashed]


def _is_wrong(node: GossipNode, other: GossipNode, unlisted: list[GossipNode]) -> bool:
    status = node.gossip.status(other.id)
    if not other.alive:
        return status is Status.ALIVE
    known = other not in unlisted or other is node or other.id in node.gossip.hyparview.links
    return status is not (Status.ALIVE if known else Status.UNKNOWN)


def flat(nodes: int) -> dict[str, Any]:
    """Build a mesh that large: links, views and memory a node, and broadcasts in it. No member announces itself.

    What membership costs is in ``bench/members.py``.
    """
    began, memory = time.process_time(), _rss_mb()
    net = build(nodes, 9, every=0.004, settle=10.0, through=nodes)
    net.keep_statuses = False
    built, used = time.process_time() - began, _rss_mb() - memory
    links = sorted(len(node.links) for node in net.nodes)
    found: dict[str, Any] = broadcasts(net, 5, 9, wait=4.0)
    found |= {
        "connected": net.is_connected(),
        "links_mean": sum(links) / nodes,
        "links_max": links[-1],
        "kB": used * 1024 / nodes,
        "cpu_s": built,
    }
    return found


def burst(nodes: int) -> GossipNet:
    """Return a mesh whose nodes joined at 250 a second through the same three, as when all know the same seeds."""
    net = build(nodes, 11, every=0.004, settle=10.0, through=3)
    net.keep_statuses = False
    return net


def _apart(measure: Callable[[int], dict[str, Any]], nodes: int) -> dict[str, Any]:
    """Measure in a process of its own, whose memory has not been as large as this one's."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=gc.disable) as pool:
        return pool.apply(measure, (nodes,))


def run(short: bool = False) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the rows of ``./dev bench gossip`` as they are measured."""
    gc.disable()  # a mesh is a million objects that live on: scanning them finds nothing
    nodes = 300 if short else 1_000
    net = build(nodes, 1, announce=True, every=0.01, settle=10.0)
    told = broadcasts(net, 10 if short else 20, 1)
    name = f"{nodes:,} nodes"
    yield f"{name}: broadcast to 99.9 %, s", round(told["p999"], 3), 1.0, False
    yield f"{name}: broadcast to 100 %, s", round(told["max"], 3) if not told["missing"] else 1e9, 5.0, False
    yield f"{name}: payloads received a node", round(told["payloads"], 3), 1.3, False
    yield f"{name}: a move known to 99 %, s", round(moves(net, 5 if short else 10, 2)["p99"], 3), 1.0, False
    dead = crashes(net, 3 if short else 6, 3)
    yield f"{name}: a crash known to half, median, s", round(dead["p50"], 3), 4.0, False
    yield f"{name}: a crash known to 99 %, worst, s", round(dead["p99"], 3), 5.0, False
    del net
    gc.collect()
    seeded = broadcasts(burst(nodes), 10, 11, wait=4.0)
    crowd = f"{nodes:,} nodes joined at once through 3"
    yield f"{crowd}: broadcast to 99.9 %, s", round(seeded["p999"], 3), 1.0, False
    yield f"{crowd}: payloads received a node", round(seeded["payloads"], 3), 1.3, False
    gc.collect()
    cut = 100 if short else 1_000
    healed = partition(cut)
    print(
        f"gossip: {healed['accusations']} accusations stored at the end of the partition, "
        f"{healed['payloads']:.0f} payloads received a node after it",
        file=sys.stderr,
    )
    yield f"{cut:,} nodes: one state after a partition of 60 s, s", round(healed["seconds"], 2), 5.0, False
    gc.collect()
    changed = churn(100, places=24) if short else churn(1_000)
    yield f"{cut:,} nodes under churn: wrong beliefs, 12 s later", changed["wrong"], 0, False
    gc.collect()
    minutes = 2 if short else 10
    wrong = accusations(nodes, 60.0 * minutes)
    yield f"{name}: false deaths in {minutes} min at 5 % loss", wrong["confirmed"], 0, False
    gc.collect()
    if not short:
        small, large = _apart(flat, 1_000), _apart(flat, 10_000)
        yield "10,000 cores, no member announced: broadcast to 99.9 %, s", round(large["p999"], 3), 2.0, False
        yield "10,000 cores, no member announced: broadcast missing", large["missing"], 0, False
        yield "10,000 cores, no member announced: payloads received a node", round(large["payloads"], 3), 1.3, False
        yield "10,000 cores, no member announced: links a node, most", large["links_max"], 40, False
        yield (
            "10,000 cores, no member announced: links a node, to 1,000's",
            round(large["links_mean"] / small["links_mean"], 2),
            1.2,
            False,
        )
        yield (
            "10,000 cores, no member announced: memory a node, to 1,000's",
            round(large["kB"] / max(1.0, small["kB"]), 2),
            1.5,
            False,
        )
        print(
            f"gossip: {large['kB']:.0f} kB a node ({small['kB']:.0f} at 1,000), {large['links_mean']:.1f} links, "
            f"built in {large['cpu_s']:.0f} s of CPU",
            file=sys.stderr,
        )
    gc.enable()


def why(seed: int = 1, nodes: int = 1_000) -> str:
    """A trace of the latest arrival of one broadcast: where the time went."""
    net = build(nodes, seed, every=0.01, settle=10.0)
    entry: Entry = net.publish(net.nodes[-1], "why", b"?")
    net.run(6.0)
    last: GossipNode = max(net.nodes, key=lambda node: net.arrivals[entry.id][node.number].arrived)
    return net.why(entry, last)


if __name__ == "__main__":
    if "why" in sys.argv:  # and a seed, and how many nodes
        print(why(*map(int, sys.argv[2:])))
    else:
        for row in run("--short" in sys.argv):
            print(json.dumps(row), flush=True)
