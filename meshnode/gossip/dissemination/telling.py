"""Which offers of this node gossip tells: all while few are known, else those that it has told already. Sans I/O.

What all nodes keep and pass on bounds a mesh, so gossip has places for services and names as ``listing.py`` has for
members. An offer without a place is signed and numbered like any other, known to this node, and published elsewhere
(in the DHT); when a place is free at its next renewal it is told. A node that joined in a crowd, when all took places,
gives its own up at a renewal, with the probability that leaves as many as there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import OFFERS_TOLD
from meshnode.gossip.entry import Entry

CROWDED = 1.25  # times the places: above it some are given up

Key = tuple[int, str]


class Telling:
    """The offers of one node that gossip does not tell. ``known`` returns how many of a kind it tells.

    ``elsewhere`` says which entries are found without gossip; none, unless a layer above publishes them.
    """

    def __init__(self, rng: random.Random, known: Callable[[int], int]) -> None:
        self.elsewhere: Callable[[Entry], bool] = lambda entry: False
        self._rng = rng
        self._known = known
        self._untold: dict[Key, Entry] = {}  # bounded: this node's own offers are

    def tells(self, entry: Entry, told: Entry | None) -> bool:
        """Return whether an entry of this node is told; ``told`` is what gossip has under its key.

        A withdrawal is told where the offer was.
        """
        key = entry.kind, entry.name
        if self._has_place(entry, told):
            self._untold.pop(key, None)
            return True
        self._untold[key] = entry
        return False

    def _has_place(self, entry: Entry, told: Entry | None) -> bool:
        if entry.fleeting or not self.elsewhere(entry):
            return True
        if entry.value is None:
            return told is not None
        known = self._known(entry.kind)
        if told is None or (entry.kind, entry.name) in self._untold:
            return known < OFFERS_TOLD
        return known <= CROWDED * OFFERS_TOLD or self._rng.random() < OFFERS_TOLD / known

    def last(self, kind: int, name: str, told: Entry | None) -> Entry | None:
        """Return the newest entry of this node under a key, told or not."""
        untold = self._untold.get((kind, name))
        return untold if untold is not None and (told is None or untold.seq > told.seq) else told

    def is_untold(self, entry: Entry) -> bool:
        """Return whether gossip does not tell this entry."""
        return self._untold.get((entry.kind, entry.name)) is entry
