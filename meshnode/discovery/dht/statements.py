"""Statements in the DHT: found under keys of their own, beside the records, and kept in a set outside (``kept``).

A node answers a GET from such a set, and puts into it what a STORE or an answer brings. Nothing is republished here:
of revocations every member gets the whole set by other ways too, and offers their own nodes publish again.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.base.value import state
from meshnode.discovery.dht.kept import Kept
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.lookups import Lookups
from meshnode.discovery.dht.messages import Reply, Status, Store, Stored
from meshnode.discovery.dht.shared import R, Shared
from meshnode.identity.node_id import NodeId

OnStored = Callable[[int, int, float], None]  # how many have taken it, of how many that were asked; when


def ignore_stored(taken: int, asked: int, now: float) -> None:
    """Do nothing with the outcome."""


@state
class _Stores:
    """STOREs of one statement that are under way."""

    asked: int
    left: int
    done: OnStored
    taken: int = 0

    def on_end(self, taken: bool, now: float) -> None:
        self.taken += taken
        self.left -= 1
        if not self.left:
            self.done(self.taken, self.asked, now)


class StatementSearch:
    """Questions for statements, and their way to the nodes nearest to their keys. It has no state of its own."""

    def __init__(self, shared: Shared, lookups: Lookups) -> None:
        self._shared = shared
        self._lookups = lookups

    def keep(self, kept: Kept) -> None:
        """Answer from this set too from now on, and put into it what comes."""
        self._shared.kept.add(kept)

    @property
    def has_room(self) -> bool:
        """Whether a question would be asked now; one that is not ends at once, and nothing was found."""
        return self._lookups.has_room

    def find(self, key: bytes, now: float, done: Callable[[float], None]) -> None:
        """Look for the statement of a key; what is found goes into the set before ``done`` is told of the end."""
        self._lookups.get(key, now, lambda lookup, then: done(then))

    def publish(self, key: bytes, encoded: bytes, now: float, done: OnStored = ignore_stored) -> None:
        """Store a statement at the nodes nearest to its key and the seeds; ``done`` is told how many have taken it."""
        self._lookups.find(key, now, lambda lookup, then: self._found(encoded, lookup, done, then))

    def _found(self, encoded: bytes, lookup: Lookup, done: OnStored, now: float) -> None:
        shared = self._shared
        holders = {candidate.id: (candidate.addr, candidate.token) for candidate in lookup.closest(R)}
        for seed, addr in shared.seeds.items():
            holders.setdefault(seed, (addr, shared.token_of(seed, now)))
        if not holders:
            done(0, 0, now)
        stores = _Stores(len(holders), len(holders), done)
        for peer, (addr, token) in holders.items():
            self._store(peer, addr, Store(b"", token, encoded), stores, now, again=True)

    def _store(self, peer: NodeId, addr: Addr, store: Store, stores: _Stores, now: float, *, again: bool) -> None:
        def answered(reply: Reply, then: float) -> None:
            status = reply.status if isinstance(reply, Stored) else Status.INVALID
            if again and isinstance(reply, Stored) and status is Status.NEED_TOKEN:
                self._store(peer, addr, Store(b"", reply.token, encoded), stores, then, again=False)
            else:
                stores.on_end(status is Status.OK, then)

        encoded = store.record
        self._shared.rpcs.call(
            peer,
            addr,
            lambda tx: Store(tx, store.token, encoded),
            now,
            answered,
            lambda then: stores.on_end(False, then),
        )
