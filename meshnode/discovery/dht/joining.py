"""What a node learns when its first contact answers: its neighbourhood, by lookups of its own key.

All lookups of one join are one walk: a node that was asked is not asked again, but for the two that hear of others
that join in the same second, a seed and the nearest one. When those name no new node any more the walk is over. Nor are
nodes pinged that a lookup heard of and did not ask: the next one asks those that matter.
"""

from __future__ import annotations

from meshnode.discovery.dht.lookup import Lookup
from meshnode.discovery.dht.lookups import Lookups
from meshnode.discovery.dht.shared import R, Shared
from meshnode.discovery.dht.table import K
from meshnode.identity.node_id import NodeId

JOIN_WIDTH = R  # of the first self-lookup, whose answers are also where the record goes
SETTLE_S, LAST_SETTLE_S = (1.0, 3.0), 15.0  # when further ones follow: others may join in the same second
FAR_S, FAR_BELOW = 1.6, 20  # after the second one; contacts above which a mesh need not be whole
WHOLE = 24  # nodes below which a mesh becomes whole: all that are heard of are pinged
ASKED_AGAIN = 2  # by each of these, a seed among them; others that were asked have said what they know


class Joining:
    """One join: the lookups that follow a first answer."""

    def __init__(self, shared: Shared, lookups: Lookups, now: float) -> None:
        self._shared = shared
        self._lookups = lookups
        self._asked: dict[NodeId, None] = {}
        self._heard: dict[NodeId, None] = {}  # of nodes that answers named
        self._is_news = True  # what the last of these lookups was told
        timers = shared.timers
        timers.at(now, lambda t: self._ask_around(JOIN_WIDTH, None, t))
        for wait in SETTLE_S:
            timers.at(now + shared.jittered(wait), self._settle)
        timers.at(now + shared.jittered(LAST_SETTLE_S), lambda t: self._settle(t) if self._is_news else None)
        timers.at(now + shared.jittered(FAR_S), self._look_far)

    def _ask_around(self, width: int, asked: dict[NodeId, None] | None, now: float) -> None:
        """Look this node's own key up, without those that were ``asked`` already."""

        def done(lookup: Lookup, now: float) -> None:
            self._asked.update(dict.fromkeys(lookup.asked))
            before = len(self._heard)
            self._heard.update(dict.fromkeys(lookup.heard))
            self._is_news = len(self._heard) > before

        self._lookups.find(self._shared.key, now, done, width=width, asked=asked, most=0 if asked is None else WHOLE)

    def _settle(self, now: float) -> None:
        """Widen the self-lookup: a small mesh becomes fully connected; in a large one a few more nodes are enough."""
        shared = self._shared
        if len(shared.table) >= 2 * K:
            return
        nearest = [contact.node_id for contact in shared.table.closest(shared.key, ASKED_AGAIN, good=True)]
        seeds = shared.rng.sample(list(shared.seeds), min(1, len(shared.seeds)))
        for peer in [*seeds, *nearest][:ASKED_AGAIN]:
            self._asked.pop(peer, None)
        self._ask_around(R if len(self._heard) < 2 * K else R // 2, dict(self._asked), now)

    def _look_far(self, now: float) -> None:
        """Learn of the nodes farthest from this one, which no answer about its own key names.

        A small mesh is whole; where fewer than ``K`` nodes were named, each answer has named all.
        """
        if len(self._heard) >= K and len(self._shared.table) < FAR_BELOW:
            far = bytes(255 - byte for byte in self._shared.key)
            self._lookups.check(far, now, lambda lookup, t: None, most=0)
