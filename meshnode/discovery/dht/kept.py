"""Values of the DHT that are no records: the sets that they are answered from and put into, and how fast they may come.

The sets are kept outside the DHT, by what verifies their statements; ``statements`` has the questions for them.
"""

from __future__ import annotations

from typing import Protocol

from meshnode.base.fair_rate import FairRate, Rate
from meshnode.base.value import value
from meshnode.discovery.dht.messages import Status
from meshnode.identity.node_id import NodeId


@value
class Source:
    """The node that a STORE is from, at a host that it has proven to be at; established as ``Shared`` has it."""

    id: NodeId
    host: str
    is_established: bool


class Kept(Protocol):
    """A set of statements of one kind. It verifies what it takes; ``rate`` is how fast others may have it do so."""

    rate: FairRate

    def is_statement(self, encoded: bytes) -> bool:
        """Return whether bytes look like a statement of this kind, and not like a record; nothing is verified."""
        ...

    def find(self, key: bytes) -> bytes:
        """Return the statement of a key; empty when there is none, or it is longer than a record may be."""
        ...

    def put(self, encoded: bytes, key: bytes) -> bool:
        """Take what an answer to a question for ``key`` has brought; False when no honest node gives that."""
        ...

    def store(self, encoded: bytes, source: Source) -> Status:
        """Take what a STORE has brought, and return the answer to it."""
        ...


class Sets:
    """The sets of statements of a node."""

    def __init__(self) -> None:
        self._all: list[Kept] = []

    def add(self, kept: Kept) -> None:
        """Answer from one more set from now on, and put into it what comes."""
        self._all.append(kept)

    def of(self, encoded: bytes) -> Kept | None:
        """Return the set that bytes are for; None when they look like a record."""
        return next((kept for kept in self._all if kept.is_statement(encoded)), None)

    def find(self, key: bytes) -> bytes:
        """Return the statement of a key; empty when there is none."""
        return next((found for kept in self._all if (found := kept.find(key))), b"")


def statement_rate(times: float = 1.0) -> FairRate:
    """Return how fast others may have statements verified, by source.

    By itself that is for those that cost up to five signatures of 43 us: 20 a second are half a percent of a core.
    """

    def rate(each_s: float, burst: float) -> Rate:
        return Rate(times * each_s, times * burst)

    return FairRate(total=rate(20, 200), network=rate(5, 100), address=rate(2, 50), little=rate(0.5, 10))
