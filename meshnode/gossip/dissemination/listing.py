"""Which members all others are told of: all of a small mesh, some hundred of a large one. Sans I/O.

What every node keeps and passes on for each member is what bounds a mesh. So a member entry is published only by a
node that all have to know (a seed, one that offers something, one that no DHT finds), and by others while fewer than
``GOSSIP_LISTED`` members are, of which networks have equal shares (roll.py); in a network first come, first served, for
any rank that an id has can be ground. A node that is not listed is known to its neighbours, and found by its record in
the DHT. A place that gets free is taken by whichever node looks first; looks are spread, so that few take one place.
Above that number a listed node gives its place up when its entry would be renewed, until there are about as many as
there should be.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import GOSSIP_LISTED
from meshnode.base.timers import Timer, Timers
from meshnode.gossip.dissemination.roll import Roll

FEW = 1 / 4  # of the places taken: up to here a node takes one as soon as it knows the others
SPREAD_S = 5.0  # in which nodes that joined together decide, so that each hears of those before it
AGAIN_S, MAX_AGAIN_S = 600.0, 9_600.0  # between looks for a free place, twice as long each time: 10,000 nodes look
# once a second, and each look asks four of those that are listed
ANSWERED_S = 2.0  # after which those that were asked at such a look have answered, or will not
RENEWED_S = 1800.0  # age of an entry from which on a new record replaces it because of that
CROWDED = 1.25  # times the places: above it some are given up


class Listing:
    """Whether this node is listed. ``roll`` has the members that are; ``put_out`` publishes this node's entry.

    ``always``: it has to be, however many are; ``never``: only when it must.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        roll: Roll,
        put_out: Callable[[float], object],
        *,
        always: bool = False,
        never: bool = False,
    ) -> None:
        self.listed = always
        self._always = always
        self._never = never
        self._rng = rng
        self._timers = timers
        self._roll = roll
        self._put_out = put_out
        self._announced = False
        self._look: Timer | None = None
        self._again = AGAIN_S

    def announces(self, now: float, age: float | None = None) -> bool:
        """Return whether a new record of this node is to be published; gives the place up where there are too many.

        ``age`` is that in seconds of the member entry that others have, None when they have none: a place is given up
        only when it is about to be renewed, so that a node that moves leaves no wrong address behind. A node that is
        not listed decides when it first knows which members are (``on_reconciled``).
        """
        self._announced = True
        if self.listed and not self._always and age is not None and age > RENEWED_S:
            crowded = self._roll.taken() > CROWDED * GOSSIP_LISTED
            self.listed = not crowded or not self._roll.gives_up(GOSSIP_LISTED, now)
            if not self.listed:
                self._look_again(now)
        return self.listed

    def on_published(self) -> None:
        """Note that this node's member entry went out, for whatever reason: others have to have the newest."""
        self.listed = True

    def must(self, now: float) -> None:
        """List this node from now on, for others have to know it."""
        self._always = True
        if not self.listed:
            self._list(now)

    def on_reconciled(self, now: float) -> None:
        """Decide, now that this node has what a neighbour has: at once while few are listed, else a little later."""
        if self.listed or self._never or not self._announced or self._look is not None:
            return
        known = self._roll.taken()
        if known < FEW * GOSSIP_LISTED:
            self._list(now)
        else:
            wait = SPREAD_S * min(1.0, known / GOSSIP_LISTED) * self._rng.random()
            self._look = self._timers.at(now + wait, self._take_place)

    def _take_place(self, now: float) -> None:
        if self._roll.is_free(GOSSIP_LISTED):
            self._list(now)
        elif self._roll.ask(now):
            self._look = self._timers.at(now + ANSWERED_S, self._look_at_answers)
        else:
            self._look_again(now)

    def _look_at_answers(self, now: float) -> None:
        if self._roll.is_free(GOSSIP_LISTED):
            self._list(now)
        else:
            self._look_again(now)

    def _look_again(self, now: float) -> None:
        self._look = self._timers.at(now + self._again * self._rng.uniform(0.5, 1.5), self._take_place)
        self._again = min(2 * self._again, MAX_AGAIN_S)

    def _list(self, now: float) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._again = AGAIN_S
        self.listed = True
        if self._announced:
            self._put_out(now)
