"""Watches that a node holds for others, bounded by watcher and by key, and shared by source network."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.limits import DHT_MAX_WATCHES, DHT_MAX_WATCHES_PER_KEY, DHT_MAX_WATCHES_PER_SENDER
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId

Key = tuple[bytes, NodeId]  # the key that is watched, and the watcher


@state
class Watcher:
    """A node that wants newer records of a key, and its address. ``credit`` bounds what an unproven address is sent."""

    id: NodeId
    addr: Addr
    until: float
    seq: int
    proven: bool
    credit: int

    def spend(self, size: int) -> bool:
        """Return True when a body of ``size`` bytes may be sent there, and charge it.

        A proven address has no limit; another one has as many bytes as its request had.
        """
        if self.proven:
            return True
        if self.credit < size:
            return False
        self.credit -= size
        return True


class Watchers:
    """All watches that this node holds for others.

    Half of the places are for established watchers, those that ``is_established`` names; the others are shared by the
    networks, hosts and ids that watch. When all are taken, the network with most gives its newest one up, so that a
    watcher that has a place keeps it by renewing; the same holds for the places of one key.
    """

    def __init__(
        self, per_key: int = DHT_MAX_WATCHES_PER_KEY, is_established: Callable[[NodeId], bool] = lambda peer: False
    ) -> None:
        self._by_key: dict[bytes, dict[NodeId, Watcher]] = {}
        self._by_sender: dict[NodeId, OrderedDict[bytes, None]] = {}
        self._kept: FairTable[Key] = FairTable(DHT_MAX_WATCHES // 2)
        self._guests: FairTable[Key] = FairTable(DHT_MAX_WATCHES + 1, newest_goes=True)  # evicted by hand: both count
        self._per_key = per_key
        self._is_established = is_established

    def __len__(self) -> int:
        return len(self._kept) + len(self._guests)

    def add(self, key: bytes, watcher: Watcher, now: float) -> bool:
        """Register or renew a watch; return False when there is no place for it.

        A watcher has ``DHT_MAX_WATCHES_PER_SENDER``; with one more, its oldest goes. A renewal from the same address
        keeps the proof of the address, and the larger credit.
        """
        old = self.get(key, watcher.id)
        if old is not None:
            if old.addr == watcher.addr:
                watcher.proven = watcher.proven or old.proven
                watcher.credit = watcher.credit if watcher.proven else max(watcher.credit, old.credit)
            self.remove(key, watcher.id)
        mine = self._by_sender.get(watcher.id, ())
        if len(mine) >= DHT_MAX_WATCHES_PER_SENDER:
            self.remove(next(iter(mine)), watcher.id)
        self._by_key.setdefault(key, {})[watcher.id] = watcher
        self._by_sender.setdefault(watcher.id, OrderedDict())[key] = None
        self._place((key, watcher.id), watcher)
        if len(self._by_key[key]) > self._per_key:
            self.remove(key, self._first_to_go(key, now))
        while len(self) > DHT_MAX_WATCHES:
            self._forget(self._guests.evict())
        return self.get(key, watcher.id) is watcher

    def _place(self, entry: Key, watcher: Watcher) -> None:
        if not self._is_established(watcher.id):
            self._guests.add(entry, *source_shares(watcher.addr.host), watcher.id)
            return
        over = self._kept.add(entry, *source_shares(watcher.addr.host), watcher.id)
        if over is not None:  # it takes its chance among the others
            moved = self._by_key[over[0]][over[1]]
            self._guests.add(over, *source_shares(moved.addr.host), moved.id)

    def _first_to_go(self, key: bytes, now: float) -> NodeId:
        """Return the watcher of a full key that gives its place up.

        One that has run out, else the newest of the network with most that are not established; without any of these
        the newest of all.
        """
        watchers = self._by_key[key]
        over = next((w for w in watchers.values() if w.until <= now), None)
        if over is not None:
            return over.id
        network = {w.id: source_shares(w.addr.host)[0] for w in watchers.values() if (key, w.id) in self._guests}
        if not network:
            return next(reversed(watchers))
        sizes = Counter(network.values())
        most = max(sizes.values())
        return next(peer for peer in reversed(network) if sizes[network[peer]] == most)

    def get(self, key: bytes, watcher: NodeId) -> Watcher | None:
        """Return the watch of that peer on that key."""
        return self._by_key.get(key, {}).get(watcher)

    def remove(self, key: bytes, watcher: NodeId) -> None:
        """Forget a watch, if there."""
        if self.get(key, watcher) is not None:
            self._kept.discard((key, watcher))
            self._guests.discard((key, watcher))
            self._forget((key, watcher))

    def _forget(self, entry: Key) -> None:
        key, watcher = entry
        watchers, watched = self._by_key[key], self._by_sender[watcher]
        del watchers[watcher]
        del watched[key]
        if not watchers:
            del self._by_key[key]
        if not watched:
            del self._by_sender[watcher]

    def waiting(self, key: bytes, seq: int, now: float) -> list[Watcher]:
        """Return the watchers that a record with ``seq`` is news to.

        Watches that have run out, and watchers that acknowledged this seq or a newer one, are left out.
        """
        return [w for w in self._by_key.get(key, {}).values() if w.seq < seq and w.until > now]

    def cull(self, now: float) -> None:
        """Drop what has run out by ``now``."""
        gone = [(k, w.id) for k, watchers in self._by_key.items() for w in watchers.values() if w.until <= now]
        for key, watcher in gone:
            self.remove(key, watcher)
