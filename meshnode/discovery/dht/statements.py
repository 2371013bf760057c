"""Statements in the DHT: found under keys of their own, beside the records, and kept in a set outside (``kept``).

A node answers a GET from such a set, and puts into it what a STORE or an answer brings. Nothing is republished here:
of revocations every member gets the whole set by other ways too, and offers their own nodes publish again.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.address import Addr
from meshnode.discovery.dht.kept import Kept
from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.lookups import Lookups
from meshnode.discovery.dht.messages import Reply, Status, Store, Stored
from meshnode.discovery.dht.shared import R, Shared
from meshnode.identity.node_id import NodeId


class StatementSearch:
    """Questions for statements, and their way to the nodes nearest to their keys. It has no state of its own."""

    def __init__(self, shared: Shared, lookups: Lookups) -> None:
        self._shared = shared
        self._lookups = lookups

    def keep(self, kept: Kept) -> None:
        """Answer from this set too from now on, and put into it what comes."""
        self._shared.kept.add(kept)

    def find(self, key: bytes, now: float, done: Callable[[float], None]) -> None:
        """Look for the statement of a key; what is found goes into the set before ``done`` is told of the end."""
        self._lookups.get(key, now, lambda lookup, then: done(then))

    def publish(self, key: bytes, encoded: bytes, now: float) -> None:
        """Store a statement at the nodes nearest to its key."""
        self._lookups.find(key, now, lambda lookup, then: self._found(encoded, lookup, then))

    def _found(self, encoded: bytes, lookup: Lookup, now: float) -> None:
        for candidate in lookup.closest(R):
            self._store(candidate.id, candidate.addr, candidate.token, encoded, now, again=True)

    def _store(self, peer: NodeId, addr: Addr, token: bytes, encoded: bytes, now: float, *, again: bool) -> None:
        def answered(reply: Reply, then: float) -> None:
            if again and isinstance(reply, Stored) and reply.status is Status.NEED_TOKEN:
                self._store(peer, addr, reply.token, encoded, then, again=False)

        self._shared.rpcs.call(peer, addr, lambda tx: Store(tx, token, encoded), now, answered, lambda then: None)
