"""What is remembered of entries that are stored no more, so that none of them comes back by a neighbour. Sans I/O.

An entry that expired, or was made void, leaves its seq: nothing that old of its key counts. One that gave way to others
may come back when there is room, and only what is older may not.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import GOSSIP_MAX_FLOORS, GOSSIP_MAX_GIVEN_UP
from meshnode.gossip.entry import Entry, Key

Age = tuple[int, bytes]


def age_of(entry: Entry) -> Age:
    """Return what orders the entries of one key, of which a key that two nodes use may have two under one seq."""
    return entry.seq, entry.encoded[:8]


class Gone:
    """Seqs of entries that are gone, by key; ids, with their kinds, of those that gave way."""

    def __init__(self) -> None:
        self.floors: BoundedDict[Key, int] = BoundedDict(GOSSIP_MAX_FLOORS)
        self.lost_floors: BoundedDict[Key, Age] = BoundedDict(GOSSIP_MAX_FLOORS)
        self.given_up: BoundedDict[bytes, int] = BoundedDict(GOSSIP_MAX_GIVEN_UP)

    def is_stale(self, entry: Entry) -> bool:
        """Return whether an entry is too old to come back."""
        return entry.seq <= self.floors.get(entry.key, -1) or age_of(entry) < self.lost_floors.get(entry.key, (-1, b""))

    def on_over(self, entry: Entry) -> None:
        """Remember the seq of an entry that has expired or is void."""
        self.floors.put(entry.key, max(entry.seq, self.floors.get(entry.key, 0)))

    def on_evicted(self, entry: Entry) -> None:
        """Remember an entry that gave way to others."""
        self.lost_floors.put(entry.key, age_of(entry))  # it may come back when there is room, older ones may not
        self.given_up.put(entry.id, entry.kind)

    def forget_ahead(self, latest: float) -> None:
        """Forget the seqs after a time in Unix milliseconds."""
        for key in [key for key, seq in self.floors.items() if seq > latest]:
            del self.floors[key]
        for key in [key for key, (seq, _) in self.lost_floors.items() if seq > latest]:
            del self.lost_floors[key]
