"""Revocations in the DHT: a node answers questions for them from its set, and takes those that it is given."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import MAX_RECORD
from meshnode.discovery.dht.kept import Source, statement_rate
from meshnode.discovery.dht.messages import Status
from meshnode.trust.revocation import (
    Revocation,
    RevocationError,
    RevocationReject,
    dht_key_of,
    is_revocation,
    name_of,
)
from meshnode.trust.revocations import Revocations


class RevocationsInDht:
    """The DHT's view of a set of revocations. ``opened`` verifies one, ``take`` has what follows from it done."""

    def __init__(
        self, held: Revocations, opened: Callable[[bytes], Revocation], take: Callable[[Revocation], object]
    ) -> None:
        self.rate = statement_rate()
        self._held = held
        self._opened = opened
        self._take = take

    def is_statement(self, encoded: bytes) -> bool:
        """Return whether bytes are laid out like a revocation."""
        return is_revocation(encoded)

    def find(self, key: bytes) -> bytes:
        """Return the revocation of what has this key, if there is one that fits a record."""
        found = self._held.of_target(key, MAX_RECORD)
        return found.encoded if found is not None else b""

    def store(self, encoded: bytes, source: Source) -> Status:
        """Take a revocation, from any node."""
        return Status.OK if self.put(encoded, None) else Status.INVALID

    def put(self, encoded: bytes, key: bytes | None) -> bool:
        """Take a revocation; False when it is none, or none of ``key``."""
        known = self._held.named(name_of(encoded))
        try:
            found = known or self._opened(encoded)
        except RevocationError as error:
            return error.reason is RevocationReject.FUTURE  # this node's own clock may be behind
        if key is not None and dht_key_of(found.target) != key:
            return False
        if known is None:
            self._take(found)
        return True
