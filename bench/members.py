"""Membership as a mesh grows: cores that announce themselves as nodes do, each mesh in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench.gossip import broadcasts
from meshnode.base.limits import GOSSIP_LISTED
from meshnode.gossip import Contact, Status
from meshnode.gossip.dissemination import listing
from tests.sim.gossip_sim import GossipNet

SEEDS = 3
REST_S = 60.0  # of the window in which traffic is counted
SETTLE_S = 60.0  # from the last join to it
WHATS = {
    "links": "links_mean",
    "memory": "kB",
    "members stored by": "stored_max",
    "bytes at rest of": "bytes",
    "messages at rest of": "messages",
}
FLAT = 1.2  # of a figure of the large mesh, to that of the small one


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mesh(nodes: int, seed: int = 9, *, every: float = 0.004, settle: float = SETTLE_S) -> GossipNet:
    """A mesh whose members all know the same seeds, join at ``1 / every`` a second, and announce themselves."""
    net = GossipNet(seed)
    net.keep_statuses = False
    for number in range(nodes):
        node = net.add(listed=number < SEEDS)
        node.gossip.announce(b"", net.now)
        for known in net.nodes[: min(number, SEEDS)]:
            node.contacts.append(known)
            node.gossip.add_seed(Contact(known.id), net.now)
        net.pump(node)
        net.run(every)
    net.run(settle)
    return net


def measure(
    nodes: int,
    rest: float = REST_S,
    settle: float = SETTLE_S,
    count: int = 5,
    places: int = GOSSIP_LISTED,
    every: float = 0.004,
) -> dict[str, Any]:
    """What a mesh that large costs a node, and how a broadcast goes in it; a node joins it ``every`` so many seconds.

    ``places`` for listed members instead of ``GOSSIP_LISTED``: to build the mesh takes a broadcast for each of them.
    """
    listing.GOSSIP_LISTED = places
    try:
        return _measure(nodes, rest, settle, count, every)
    finally:
        listing.GOSSIP_LISTED = GOSSIP_LISTED


def _measure(nodes: int, rest: float, settle: float, count: int, every: float) -> dict[str, Any]:
    began, memory = time.process_time(), _rss_mb()
    net = mesh(nodes, every=every, settle=settle)
    built, used = time.process_time() - began, _rss_mb() - memory
    links = sorted(len(node.links) for node in net.nodes)
    seeds = [node.id for node in net.nodes[:SEEDS]]
    strangers = sum(
        node.gossip.status(peer) is not Status.ALIVE for node in net.nodes for peer in seeds if peer != node.id
    )
    stored = sorted(len(node.gossip.store) for node in net.nodes)
    quiet = _traffic(net, rest)
    found: dict[str, Any] = broadcasts(net, count, 9, wait=4.0)
    shape = {
        "connected": net.is_connected(),
        "links_mean": sum(links) / nodes,
        "links_max": links[-1],
        "stored_max": stored[-1],
        "kB": used * 1024 / nodes,
        "seeds_unknown": strangers,
        "listed": sum(node.gossip.own_entries.listing.listed for node in net.nodes),
        "cpu_s": built,
    }
    return found | quiet | shape


def _traffic(net: GossipNet, seconds: float) -> dict[str, float]:
    """Messages and their bytes a second and node, with nothing going on."""
    messages, probes, net.weighed = net.messages, net.probes, 0
    net.run(seconds)
    each = seconds * len(net.nodes)
    weighed, net.weighed = net.weighed, None
    return {
        "messages": (net.messages - messages) / each,
        "probes": (net.probes - probes) / each,
        "bytes": (weighed or 0) / each,
    }


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure in a process of its own, whose memory has not been as large as this one's."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=gc.disable) as pool:
        return pool.apply(work)


def rows(short: bool) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the rows: a small mesh beside a large one."""
    few, many, places = (100, 400, 24) if short else (1_000, 10_000, GOSSIP_LISTED)
    measured = partial(measure, places=places, **({"rest": 20.0, "settle": 20.0, "count": 2} if short else {}))
    small, large = (apart(partial(measured, nodes)) for nodes in (few, many))
    print(f"members: {few:,} {small}\nmembers: {many:,} {large}", file=sys.stderr)
    name = f"{many:,} members that announce themselves, {places} places"
    yield f"{name}: broadcast to 99.9 %, s", round(large["p999"], 3), 2.0, False
    yield f"{name}: broadcast missing", large["missing"], 0, False
    yield f"{name}: seeds unknown to a node", large["seeds_unknown"], 0, False
    yield f"{name}: views not connected", int(not large["connected"]), 0, False
    yield f"{name}: links a node, most", large["links_max"], 40, False
    for what, key in WHATS.items():
        ratio = large[key] / max(1e-9, small[key])
        yield f"{name}: {what} a node, to {few:,}'s", round(ratio, 2), FLAT, False
