"""Values of the DHT that are no records: the set that they are answered from and put into, and how fast they may come.

The set is kept outside the DHT, by what verifies its statements; ``statements`` has the questions for them.
"""

from __future__ import annotations

from typing import Protocol

from meshnode.base.fair_rate import FairRate, Rate

# an unknown one costs up to five signatures of 43 us: 20 a second are half a percent of a core
TOTAL, NETWORK, ADDRESS = Rate(20.0, 200.0), Rate(5.0, 100.0), Rate(2.0, 50.0)
LITTLE = Rate(0.5, 10.0)


class Kept(Protocol):
    """The set of statements of a node. It verifies what it takes."""

    def is_statement(self, encoded: bytes) -> bool:
        """Return whether bytes look like a statement, and not like a record; nothing is verified."""
        ...

    def find(self, key: bytes) -> bytes:
        """Return the statement of a key; empty when there is none, or it is longer than a record may be."""
        ...

    def put(self, encoded: bytes, key: bytes | None) -> bool:
        """Take a statement; False when it is junk, or none of ``key`` where that is given."""
        ...


class NoStatements:
    """The set of a node that keeps none."""

    def is_statement(self, encoded: bytes) -> bool:
        """Return False."""
        return False

    def find(self, key: bytes) -> bytes:
        """Return nothing."""
        return b""

    def put(self, encoded: bytes, key: bytes | None) -> bool:
        """Return False."""
        return False


def statement_rate() -> FairRate:
    """Return how fast others may have statements verified, by source."""
    return FairRate(total=TOTAL, network=NETWORK, address=ADDRESS, little=LITTLE)
