"""Lookups and joins in a DHT of 100,000 nodes, of which only those that are asked something become whole.

All ids exist, in order of their keys. A node gets its core when the first datagram reaches it, with the routing table
that Kademlia gives it (Maymounkov and Mazieres 2002, section 2.2): of each range beside its own key as many random
nodes as a bucket holds. From then on it is a real core in virtual time: it publishes, stores, answers, asks. At 1,000
nodes ``dht_lookup`` and ``dht_join`` measure whole meshes, whose tables came by joins: compare before you believe.

``python -m bench.dht_sampled [NODES ...]`` prints one JSON line a size and condition.
"""

from __future__ import annotations

import json
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from dht_sim import SimNode

from bench.dht_join import Counted
from meshnode.base.address import Addr
from meshnode.discovery.dht import SendSealed
from meshnode.discovery.dht.table import KEY_BITS, K
from meshnode.identity.node_id import NodeId

LOOKUPS = 60
SETTLE_S = 3.0  # from the publications to the lookups


class Sampled(Counted):
    """A network of ``count`` ids; the nodes that something was sent to, and the publishers, are whole.

    A table has ``known`` contacts of each range: as many as there is room for, or fewer, as in a young mesh.
    """

    def __init__(self, count: int, seed: int, *, known: int = K) -> None:
        super().__init__(seed)
        self._known = known
        rng = self.rng
        self.dead: set[NodeId] = set()
        self.ids = ids = [NodeId(rng.randbytes(32)) for _ in range(count)]
        hosts = rng.sample(range(11 << 24, 99 << 24), count)
        self._addrs = {node: _address(host) for node, host in zip(ids, hosts, strict=True)}
        self._by_addr = {addr: node for node, addr in self._addrs.items()}
        self._order = sorted((int.from_bytes(node.dht_key, "big"), node) for node in ids)
        self._keys = [key for key, _ in self._order]

    def kill_some(self, share: float, spared: Iterable[SimNode]) -> None:
        """Let a share of all ids stop answering, whole or not, but those ``spared``."""
        self.dead.update(self.rng.sample(self.ids, int(share * len(self.ids))))
        for node in self.nodes:
            if node.id in self.dead and node not in spared:
                node.alive = False

    def node_of(self, node_id: NodeId) -> SimNode:
        """Make a node whole that was only an id."""
        node = self.add(addr=self._addrs[node_id], own_id=node_id)
        self._fill(node)
        return node

    def owner(self) -> SimNode:
        """Add a node that can sign, with the table of one that joined long ago."""
        node = self.add()
        self._fill(node)
        return node

    def _fill(self, node: SimNode) -> None:
        table = node.dht._table
        for contact in self._near_and_far(node.id):
            entered = table.answered(contact, self._addrs[contact])
            if entered is not None:
                entered.answered_at = self.now
        node.dht._contacts._joined = True

    def _near_and_far(self, own: NodeId) -> Iterator[NodeId]:
        """Yield random nodes of each range that shares 0, 1, 2 ... first bits with the key, farthest first."""
        key = int.from_bytes(own.dht_key, "big")
        for bits in range(KEY_BITS):
            size = 1 << (KEY_BITS - 1 - bits)
            low = (key ^ size) & ~(size - 1)
            begin, end = bisect_left(self._keys, low), bisect_left(self._keys, low + size)
            for place in self.rng.sample(range(begin, end), min(self._known, end - begin)):
                yield self._order[place][1]
            if bisect_left(self._keys, key | (size - 1)) == bisect_left(self._keys, key & ~(size - 1)):
                return  # no other node shares more

    def _send(self, node: SimNode, effect: SendSealed) -> None:
        target = self._by_addr.get(effect.addr)
        if target is not None and target not in self.dead and effect.addr not in self.by_addr:
            self.node_of(target)
        super()._send(node, effect)


def _address(host: int) -> Addr:
    return Addr(f"{host >> 24}.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}", 4242)


def lookups(nodes: int, *, dead: float = 0.0, known: int = K, count: int = LOOKUPS, seed: int = 1) -> dict[str, Any]:
    """Let ``count`` owners publish, then look each up from another node; a share of all others is dead by then."""
    started = time.process_time()
    net = Sampled(nodes, seed, known=known)
    owners = [net.owner() for _ in range(count)]
    for owner in owners:
        net.publish(owner)
    net.run(SETTLE_S)
    stored = net.packets / count
    net.kill_some(dead, spared=owners)
    times: list[float] = []
    requests = hops = right = 0
    for owner in owners:
        asker = net.owner()
        owner.alive = False  # its record must come from its holders, not from itself
        found, seconds, end = net.resolve(asker, owner.id)
        owner.alive = True
        assert end is not None, "a lookup must end"
        requests += end.stats.rpcs
        hops += end.stats.hops
        if found is not None and end.record is not None and end.record.seq == owner.seq:
            right += 1
            times.append(seconds)
    times.sort()
    return {
        "name": "dht_sampled_lookups",
        "nodes": nodes,
        "known": known,
        "dead": dead,
        "right": right,
        "of": count,
        "p50_ms": round(1_000 * times[len(times) // 2], 1),
        "p95_ms": round(1_000 * times[int(0.95 * (len(times) - 1))], 1),
        "requests_mean": round(requests / count, 1),
        "hops_mean": round(hops / count, 2),
        "publication_datagrams": round(stored, 1),
        "contacts_mean": round(sum(len(node.dht._table) for node in owners) / count, 1),
        "whole": len(net.nodes),
        "cpu_s": round(time.process_time() - started, 1),
    }


def join(nodes: int, seed: int = 1) -> dict[str, Any]:
    """Let one more node join and publish; what goes to and from it in 30 s. No other record is stored anywhere."""
    net = Sampled(nodes, seed)
    net.node = late = net.add()
    net.join(late, [net.node_of(net.ids[0])])
    net.publish(late)
    net.run(30.0)
    return {
        "name": "dht_sampled_join",
        "nodes": nodes,
        "datagrams": net.count,
        "bytes": net.size,
        "contacts": len(late.dht.contacts()),
        "whole": len(net.nodes),
    }


if __name__ == "__main__":
    for size in [int(arg) for arg in sys.argv[1:]] or [1_000, 10_000, 100_000]:
        for places, share in ((K, 0.0), (K, 0.3), (4, 0.3)):
            print(json.dumps(lookups(size, dead=share, known=places)), flush=True)
        print(json.dumps(join(size)), flush=True)
