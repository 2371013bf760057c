"""The routing table: kademlia 2.2.3's buckets and tree of ranges, with rules that hold against liars.

What comes from ``kademlia`` is the data structure (``Node``, ``KBucket``, ``RoutingTable``). What is replaced
and why: its neighbour search stops early and takes bucket order for distance, its full bucket pings its head
for ever, its bucket choice is off by one, and it reads the clock. Only peers that answered us are added.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from itertools import zip_longest

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_LIARS, DHT_MAX_PER_SUBNET
from meshnode.identity.node_id import NodeId

K = 16  # contacts in a bucket
KEY_BITS = 160
EVICT_AFTER = 3  # failures in a row; one less when a standby waits
TOKEN_LIFE_S = 240.0  # a holder honours its tokens for 300 to 600 s


class Contact(Node):  # type: ignore[misc]  # kademlia is untyped
    """A peer that answered: its id, the address where it did, and its token for this node's address."""

    def __init__(self, node_id: NodeId, addr: Addr, *, priced: bool = False) -> None:
        super().__init__(node_id.dht_key, addr.host, addr.port)
        self.priced = priced
        self.node_id = node_id
        self.addr = addr
        self.distance_key: int = self.long_id
        self.fails = 0
        self.heard_at = float("-inf")  # when it asked this node something last
        self.answered_at = float("-inf")
        self.checked_at = float("-inf")  # when it was asked whether it lives
        self.failing_since = float("inf")  # when the first request was sent of those that it has not answered
        self.token = b""
        self.token_at = float("-inf")

    def fresh_token(self, now: float) -> bytes:
        """Return the peer's token for this node's address while it is surely good, else empty.

        It is good for ``TOKEN_LIFE_S``, which is less than any holder's two epochs.
        """
        return self.token if now - self.token_at < TOKEN_LIFE_S else b""


class Bucket(KBucket):  # type: ignore[misc]  # kademlia is untyped
    """A bucket without a clock; ``refreshed_at`` is set by the code that refreshes it.

    ``lost`` counts the contacts that went since then.
    """

    nodes: dict[bytes, Contact]
    range: tuple[int, int]

    def __init__(self, lower: int, upper: int, ksize: int) -> None:
        super().__init__(lower, upper, ksize, replacementNodeFactor=1)
        self.refreshed_at = float("-inf")
        self.lost = 0

    def touch_last_updated(self) -> None:
        """Override the library's reading of the wall clock, which a core does not do."""
        self.last_updated = 0.0

    def split(self) -> tuple[Bucket, Bucket]:
        """Halve the range, each half with its contacts."""
        middle = (self.range[0] + self.range[1]) // 2
        halves = Bucket(self.range[0], middle, self.ksize), Bucket(middle + 1, self.range[1], self.ksize)
        for contact in [*self.nodes.values(), *self.replacement_nodes.values()]:
            halves[0 if contact.long_id <= middle else 1].add_node(contact)
        return halves


class Table(RoutingTable):  # type: ignore[misc]  # kademlia is untyped
    """Contacts by XOR distance from this node."""

    buckets: list[Bucket]

    def __init__(
        self, own: NodeId, ksize: int = K, *, has_price: Callable[[NodeId], bool] = lambda peer: False
    ) -> None:
        self._has_price = has_price
        self._liars: BoundedDict[bytes, float] = BoundedDict(DHT_MAX_LIARS)  # until when none of them comes in
        super().__init__(None, ksize, Node(own.dht_key))
        self.own = own
        self.version = 0  # grows whenever contacts() would differ

    def flush(self) -> None:
        """Forget all contacts."""
        self.buckets = [Bucket(0, 2**KEY_BITS - 1, self.ksize)]

    def __len__(self) -> int:
        return sum(len(bucket.nodes) for bucket in self.buckets)

    def get_bucket_for(self, node: Node) -> int:
        """Return the index of the bucket whose range covers the node (binary search)."""
        return self._index(node.long_id)

    def _index(self, key: int) -> int:
        low, high = 0, len(self.buckets) - 1
        while low < high:
            middle = (low + high) // 2
            if key <= self.buckets[middle].range[1]:
                high = middle
            else:
                low = middle + 1
        return low

    def bucket_of(self, key: bytes) -> Bucket:
        """Return the bucket whose range covers ``key``."""
        return self.buckets[self._index(int.from_bytes(key, "big"))]

    def get(self, peer: NodeId) -> Contact | None:
        """Return the contact; None when it is not in the table."""
        key = peer.dht_key
        return self.bucket_of(key).nodes.get(key)

    def is_good(self, peer: NodeId) -> bool:
        """Return whether the peer is a contact that answered the last request."""
        contact = self.get(peer)
        return contact is not None and not contact.fails

    def wants(self, peer: NodeId, addr: Addr) -> bool:
        """Return True when an answer from this peer would change the table.

        That is a new peer with room for it, or a known one at another address or with failures.
        """
        if peer == self.own or peer.dht_key in self._liars:
            return False
        bucket = self.bucket_of(peer.dht_key)
        known = bucket.nodes.get(peer.dht_key)
        if known is not None:
            return known.addr != addr or known.fails > 0
        if _crowded(bucket, addr):
            return False
        room = len(bucket.nodes) < self.ksize or bucket.has_in_range(self.node)
        return room or any(c.fails for c in bucket.nodes.values()) or self._gives_way(bucket, peer) is not None

    def answered(self, peer: NodeId, addr: Addr) -> Contact | None:
        """Add or refresh a peer that answered from ``addr``; return its contact if it is in the table.

        A full bucket is split when it covers this node's own key; else the peer replaces one that fails, or stands by.
        """
        if peer == self.own or peer.dht_key in self._liars:
            return None
        key = peer.dht_key
        bucket = self._split_for(key, addr)
        known = bucket.nodes.get(key)
        if known is not None:
            self._refresh(bucket, known, addr)
            return known
        if _crowded(bucket, addr):
            return None
        contact = Contact(peer, addr, priced=self._has_price(peer))
        if len(bucket.nodes) >= self.ksize:
            out = next((c for c in bucket.nodes.values() if c.fails), None) or self._gives_way(bucket, peer)
            if out is None:
                bucket.add_node(contact)  # the library keeps it as a standby
                return None
            del bucket.nodes[out.id]
        bucket.nodes[key] = contact
        bucket.replacement_nodes.pop(key, None)
        self.version += 1
        return contact

    def _gives_way(self, bucket: Bucket, peer: NodeId) -> Contact | None:
        """Return the contact of a full bucket that an id with a price replaces; half of the places are for these."""
        free = [c for c in bucket.nodes.values() if not c.priced]
        return free[-1] if len(free) > self.ksize // 2 and self._has_price(peer) else None

    def _split_for(self, key: bytes, addr: Addr) -> Bucket:
        """Return the bucket of ``key``, after the splits that make room for it around this node's own key."""
        while True:
            index = self._index(int.from_bytes(key, "big"))
            bucket = self.buckets[index]
            if key in bucket.nodes or len(bucket.nodes) < self.ksize or _crowded(bucket, addr):
                return bucket
            if not bucket.has_in_range(self.node) or bucket.range[0] >= bucket.range[1]:
                return bucket
            self.split_bucket(index)

    def _refresh(self, bucket: Bucket, known: Contact, addr: Addr) -> None:
        """Move the contact to the end of its bucket (the last heard), with its address and no failures."""
        del bucket.nodes[known.id]
        bucket.nodes[known.id] = known
        if known.addr != addr or known.fails:
            self.version += 1
        known.addr, known.ip, known.port, known.fails = addr, addr.host, addr.port, 0

    def failed(self, peer: NodeId, *, evict: bool) -> bool:
        """Count a request that went unanswered; return True when that removed the peer.

        That takes ``EVICT_AFTER`` failures in a row, one less when another peer stands by, and ``evict``.
        """
        bucket = self.bucket_of(peer.dht_key)
        contact = bucket.nodes.get(peer.dht_key)
        if contact is None:
            return False
        contact.fails += 1
        self.version += contact.fails == 1
        if evict and contact.fails >= EVICT_AFTER - (1 if bucket.replacement_nodes else 0):
            bucket.remove_node(contact)
            bucket.lost += 1
            return True
        return False

    def ban(self, peer: NodeId, until: float) -> None:
        """Take a peer out at once, for it lied, and let it not come back until then (``forgive``)."""
        self._liars.put(peer.dht_key, until)
        bucket = self.bucket_of(peer.dht_key)
        bucket.replacement_nodes.pop(peer.dht_key, None)
        contact = bucket.nodes.get(peer.dht_key)
        if contact is not None:
            bucket.remove_node(contact)
            bucket.lost += 1
            self.version += 1

    def forgive(self, now: float) -> None:
        """Let those come back whose time is over."""
        for key in [key for key, until in self._liars.items() if until <= now]:
            del self._liars[key]

    def closest(
        self, key: bytes, count: int, *, good: bool = False, exclude: NodeId | None = None, priced: bool = False
    ) -> list[Contact]:
        """Return the ``count`` contacts nearest to ``key`` by XOR, nearest first.

        ``good`` leaves out those that failed last time, ``exclude`` one peer, ``priced`` all ids without a price.
        """
        target = int.from_bytes(key, "big")
        without = b"" if exclude is None else exclude.dht_key
        found: list[Contact] = []
        # a bucket's range is one prefix, so the distances of two buckets' contacts never interleave
        for bucket in sorted(self.buckets, key=lambda b: b.range[0] ^ target):
            near = [c for c in bucket.nodes.values() if c.id != without and not (good and c.fails)]
            if priced:
                near = [c for c in near if c.priced]
            near.sort(key=lambda c: c.distance_key ^ target)
            found += near
            if len(found) >= count:
                break
        return found[:count]

    def nearest(self, key: bytes, count: int, *, good: bool = False, exclude: NodeId | None = None) -> list[Contact]:
        """Return the ``count`` nearest of all and the ``count`` nearest with a price, by turns; each once."""
        of_all = self.closest(key, count, good=good, exclude=exclude)
        priced = self.closest(key, count, good=good, exclude=exclude, priced=True)
        return list(dict.fromkeys(c for pair in zip_longest(of_all, priced) for c in pair if c is not None))

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Contact]:
        """Return ``closest`` under the library's name for it."""
        found = self.closest(node.id, (k or self.ksize) + 2)
        return [c for c in found if c.id != node.id and (exclude is None or c.id != exclude.id)][: k or self.ksize]

    def contacts(self) -> list[Contact]:
        """Return all contacts in the buckets' order, oldest heard first within one."""
        return [c for bucket in self.buckets for c in bucket.nodes.values()]


def _crowded(bucket: Bucket, addr: Addr) -> bool:
    """Return True when the bucket is half full and has ``DHT_MAX_PER_SUBNET`` contacts of that network."""
    if len(bucket.nodes) < bucket.ksize // 2:
        return False
    network = neighbourhood(addr.host)
    if network is None:
        return False
    return sum(neighbourhood(c.addr.host) == network for c in bucket.nodes.values()) >= DHT_MAX_PER_SUBNET


@lru_cache(maxsize=4096)
def neighbourhood(host: str) -> bytes | None:
    """Return the /24 or /48 that one party is likely to own; None for private addresses: a LAN is one network."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if ip.is_private or ip.is_link_local or ip.is_loopback:
        return None
    return ip.packed[:3] if ip.version == 4 else ip.packed[:6]
