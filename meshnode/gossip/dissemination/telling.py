"""Which offers of this node gossip tells: all while few are known, else those that it has told already. Sans I/O.

What all nodes keep and pass on bounds a mesh, so gossip has places for services and names as ``listing.py`` has for
members. An offer without a place is signed and numbered like any other, known to this node, and published elsewhere
(in the DHT); when a place is free at its next renewal it is told. Networks have equal shares (``roll.py``): a node of
one that has less than its own takes a place though all are taken. A node that joined in a crowd, when all took places,
gives its own up at a renewal where its network has more than its share, with the probability that leaves as many as
there are. An offer that was renewed when the crowd was over, or never was, is *established*, and keeps its place
whatever comes: ids are free, and those of a stranger that takes more places than there are do not ask.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import OFFERS_TOLD, SERVICE_MAX_OWN
from meshnode.gossip.dissemination.roll import Roll
from meshnode.gossip.entry import Entry

CROWDED = 1.25  # times the places: above it some are given up
CROWD_S = 60.0  # after an offer was told first: those of the crowd that it came in are known by then
LOOK_AGAIN_S = 60.0  # before the networks of hundreds of offers are counted again
ESTABLISHED = NEVER = float("-inf")

Key = tuple[int, str]


class Telling:
    """The offers of one node that gossip does not tell.

    ``known`` returns how many of a kind it tells, ``roll`` of which networks.
    ``elsewhere`` says which entries are found without gossip; none, unless a layer above publishes them.
    """

    def __init__(self, known: Callable[[int], int], roll: Callable[[int], Roll]) -> None:
        self.elsewhere: Callable[[Entry], bool] = lambda entry: False
        self._known = known
        self._roll = roll
        self._untold: dict[Key, Entry] = {}  # bounded: this node's own offers are, and so many withdrawals
        self._full_at: dict[int, float] = {}  # when no place of a kind was found
        self._since: dict[Key, float] = {}  # when those that are told were first, and for ever once established

    def tells(self, entry: Entry, told: Entry | None, now: float) -> bool:
        """Return whether an entry of this node is told; ``told`` is what gossip has under its key.

        A withdrawal is told where the offer was.
        """
        key = entry.kind, entry.name
        if self._has_place(entry, told, now):
            self._untold.pop(key, None)
            return True
        self._since.pop(key, None)
        self._untold.pop(key, None)
        self._untold[key] = entry
        over = [other for other, past in self._untold.items() if past.value is None]
        for other in over[:-SERVICE_MAX_OWN]:  # a program may offer under ever new names
            del self._untold[other]
        return False

    def _has_place(self, entry: Entry, told: Entry | None, now: float) -> bool:
        if entry.fleeting or not self.elsewhere(entry):
            return True
        if entry.value is None:
            self._since.pop((entry.kind, entry.name), None)
            return told is not None
        if told is None or told.value is None or (entry.kind, entry.name) in self._untold:
            return self._takes(entry.kind, entry.name, now)
        return self._keeps(entry.kind, entry.name, now)

    def _takes(self, kind: int, name: str, now: float) -> bool:
        if self._known(kind) >= OFFERS_TOLD:
            if now - self._full_at.get(kind, NEVER) < LOOK_AGAIN_S:
                return False
            roll = self._roll(kind)
            if not roll.is_free(OFFERS_TOLD):
                self._full_at[kind] = now
                roll.ask(now)  # those that do not answer take no place at the next renewal
                return False
        self._since[kind, name] = now
        return True

    def _keeps(self, kind: int, name: str, now: float) -> bool:
        since = self._since.setdefault((kind, name), now)
        if since == ESTABLISHED:
            return True
        if self._known(kind) > CROWDED * OFFERS_TOLD:
            return not self._roll(kind).gives_up(OFFERS_TOLD, now)
        if now - since >= CROWD_S:
            self._since[kind, name] = ESTABLISHED
        return True

    def last(self, kind: int, name: str, told: Entry | None) -> Entry | None:
        """Return the newest entry of this node under a key, told or not."""
        untold = self._untold.get((kind, name))
        return untold if untold is not None and (told is None or untold.seq > told.seq) else told

    def is_untold(self, entry: Entry) -> bool:
        """Return whether gossip does not tell this entry."""
        return self._untold.get((entry.kind, entry.name)) is entry
