"""Services in a mesh of 1,000 DHT cores in virtual time: what a search costs, and how much it finds.

Each core holds offers as a node does (``directory/offer_store.py``); there is no gossip, which tells nothing here.
Sixty services with one instance, one with 20 and one with 200 are stored by their own nodes, then a share of all nodes
dies and others ask. A crowd of 500 free ids in one network may have stored offers of some names beside.

``python -m bench.dht_offers [NODES]`` prints one JSON line a condition.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from meshnode.base.limits import DHT_MAX_OFFERS
from meshnode.directory.announcement import Offer
from meshnode.directory.bundle import dht_key_of, is_bundle, make_bundle, open_bundle
from meshnode.directory.offer_store import OfferStore, Put, Storer
from meshnode.discovery.dht.kept import Source, statement_rate
from meshnode.discovery.dht.messages import Status
from meshnode.gossip.entry import Entry, Kind, open_entry, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from tests.unit.dht_sim import Net, SimNode, build

PRICED = 0.9  # of the ids: those of new homes are
SINGLES, SOME, MANY = 60, 20, 200
CROWD = 500
CONDITIONS: dict[str, dict[str, float]] = {
    "healthy": {},
    "a quarter dead": {"dead": 0.25},
    "crowd": {"crowd": CROWD},
}


class Holding:
    """The offers that one core holds, and those that answers to its searches have brought."""

    def __init__(self, net: Net, number: int) -> None:
        self.rate = statement_rate(5.0)
        self.held = OfferStore(DHT_MAX_OFFERS, random.Random(number))
        self.found: dict[NodeId, float] = {}  # and when
        self._net = net

    def is_statement(self, encoded: bytes) -> bool:
        """As ``stack/dht_offers.py``."""
        return is_bundle(encoded)

    def find(self, key: bytes) -> bytes:
        """As ``stack/dht_offers.py``."""
        return self.held.bundle(key, self._net.wall())

    def put(self, encoded: bytes, key: bytes) -> bool:
        """Note the origins of an answer."""
        for each in open_bundle(encoded):
            entry = open_entry(each, self._net.wall())
            if isinstance(entry, Entry):
                self.found.setdefault(entry.origin, self._net.now)
        return True

    def store(self, encoded: bytes, source: Source) -> Status:
        """As ``stack/dht_offers.py``."""
        entry = open_entry(open_bundle(encoded)[0], self._net.wall())
        assert isinstance(entry, Entry)
        storer = Storer(source.host, source.is_established or source.id in self._net.priced)
        return Status.OK if self.held.put(entry, storer, self._net.wall()) is Put.TAKEN else Status.FULL


def _sign(net: Net, identity: Identity, name: str) -> Entry:
    ms = int(net.wall() * 1000)
    value = Offer().encoded()
    return sign_entry(identity, kind=Kind.SERVICE, name=name, seq=ms, issued_ms=ms, ttl=3600, value=value)


def _publish(net: Net, node: SimNode, name: str) -> None:
    entry = _sign(net, node.identity, name)
    node.dht.statements.publish(dht_key_of(Kind.SERVICE, name), make_bundle([entry.encoded]), net.now)
    net.pump(node)
    net.run(0.05)


def _search(net: Net, node: SimNode, holding: Holding, name: str) -> tuple[set[NodeId], float, float, int]:
    """Return what one search finds, the seconds until the first is found and until it ends, and the datagrams of it."""
    holding.found.clear()
    ended: list[float] = []
    began, rpcs = net.now, node.metrics.counters["dht_rpcs"]
    node.dht.statements.find(dht_key_of(Kind.SERVICE, name), net.now, ended.append)
    net.pump(node)
    net.run_until(lambda: bool(ended), 15.0)
    first = min(holding.found.values(), default=net.now) - began
    return set(holding.found), first, net.now - began, 2 * (node.metrics.counters["dht_rpcs"] - rpcs)


def _crowd(net: Net, holdings: dict[NodeId, Holding], names: list[str], size: int) -> None:
    """Have free ids of one network offer each name at every holder, as if each had come slowly enough."""
    for number in range(size):
        identity = Identity(net.rng.randbytes(32))
        storer = Storer(f"198.51.100.{number % 256}", is_strong=False)
        for name in names:
            entry = _sign(net, identity, name)
            for holding in holdings.values():
                if dht_key_of(Kind.SERVICE, name) in holding.held._keys:
                    holding.held.put(entry, storer, net.wall())


def measure(condition: str, nodes: int = 1_000, seed: int = 1) -> dict[str, Any]:
    """Build a mesh, publish, break it as ``condition`` says, and search from other nodes."""
    trouble = CONDITIONS[condition]
    net = build(nodes, seed, priced=PRICED)
    holdings = {node.id: Holding(net, number) for number, node in enumerate(net.nodes)}
    for node in net.nodes:
        node.dht.statements.keep(holdings[node.id])
    owners = net.rng.sample(net.nodes[3:], SINGLES + min(MANY, nodes // 3))
    sets = {f"s{number}": [owner] for number, owner in enumerate(owners[:SINGLES])}
    sets |= {"some": owners[SINGLES : SINGLES + SOME], "many": owners[SINGLES:]}
    before, stored = net.packets, 0
    for name, offering in sets.items():
        for owner in offering:
            _publish(net, owner, name)
            stored += 1
    net.run(3.0)
    published = (net.packets - before) / stored
    rest = [node for node in net.nodes if node not in owners]
    for node in net.rng.sample(rest[3:], int(trouble.get("dead", 0) * nodes)):
        node.alive = False
    _crowd(net, holdings, ["s0", "s1", "s2", "some"], int(trouble.get("crowd", 0)))
    askers = [node for node in rest if node.alive]
    right, firsts, times, datagrams = 0, [], [], []
    shares: dict[str, float] = {}
    for name, offering in sets.items():
        asker = net.rng.choice(askers)
        found, first, seconds, sent = _search(net, asker, holdings[asker.id], name)
        wanted = {owner.id for owner in offering}
        if len(offering) == 1:
            right += wanted <= found
            firsts.append(first)
            times.append(seconds)
            datagrams.append(sent)
        else:
            shares[name] = len(wanted & found) / len(wanted)
    times.sort()
    firsts.sort()
    return {
        "name": f"dht_offers, {condition}",
        "nodes": nodes,
        "found": right,
        "of": SINGLES,
        "first_p50_ms": round(1000 * firsts[len(firsts) // 2]),
        "first_p95_ms": round(1000 * firsts[int(0.95 * (len(firsts) - 1))]),
        "p50_ms": round(1000 * times[len(times) // 2]),
        "p95_ms": round(1000 * times[int(0.95 * (len(times) - 1))]),
        "datagrams": round(sum(datagrams) / len(datagrams), 1),
        "of_20_found": round(shares["some"], 2),
        "of_many_found": round(shares["many"], 2),
        "datagrams_of_a_publication": round(published),
        "held_most": max(len(holding.held) for holding in holdings.values()),
    }


if __name__ == "__main__":
    for condition in CONDITIONS:
        print(json.dumps(measure(condition, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)), flush=True)
