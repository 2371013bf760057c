"""Which members all others are told of: all of a small mesh, some hundred of a large one. Sans I/O.

What every node keeps and passes on for each member is what bounds a mesh. So a member entry is published only by a
node that all have to know (a seed, one that offers something, one that no DHT finds), and by others while fewer than
``GOSSIP_LISTED`` members are, of which networks have equal shares (roll.py); in a network first come, first served, for
any rank that an id has can be ground. A node that is not listed is known to its neighbours, and found by its record in
the DHT. A place that gets free is taken by whichever node looks first; looks are spread, so that few take one place.
Above that number a listed node gives its place up when its entry would be renewed, until there are about as many as
there should be.

In a crowd that joins a node knows for a while none of those that take a place beside it. So where most that it has met
are not listed it takes one by lot only, at the odds of free places to nodes that look for one. How many do it cannot
know: four times as many as there are places, it takes, and at each look half as many, for those that found one before
are known by then. So the odds fall while places are taken. Ids that it has met and that are never listed make it wait
for a dozen looks at most.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.limits import GOSSIP_LISTED
from meshnode.base.timers import Timer, Timers
from meshnode.gossip.dissemination.roll import Roll

FEW = 1 / 4  # of the places taken: up to here a node takes one as soon as it knows the others
SPREAD_S = 5.0  # in which nodes that joined together decide, so that each hears of those before it
LOOK_S = 1.0  # between the looks of a node in a crowd: what others did at the last one is known, as a rule after 0.5 s
CROWD = 4  # times the places: so many nodes that look for one are taken for there at the first look
AGAIN_S, MAX_AGAIN_S = 600.0, 9_600.0  # between looks for a free place, twice as long each time: 10,000 nodes look
# once a second, and each look asks four of those that are listed
ANSWERED_S = 2.0  # after which those that were asked at such a look have answered, or will not
RENEWED_S = 1800.0  # age of an entry from which on a new record replaces it because of that
CROWDED = 1.25  # times the places: above it some are given up


class Listing:
    """Whether this node is listed. ``roll`` has the members that are; ``put_out`` publishes this node's entry.

    ``always``: it has to be, however many are; ``never``: only when it must. ``met`` returns how many nodes this one
    has met that may look for a place, and how many of them are listed.
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
        met: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.listed = always
        self._always = always
        self._never = never
        self._rng = rng
        self._timers = timers
        self._roll = roll
        self._put_out = put_out
        self._met = met
        self._announced = False
        self._look: Timer | None = None
        self._again = AGAIN_S
        self._crowd = 0.0  # nodes that look for a place, as far as this one can tell

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
        """Decide, now that this node has what a neighbour has: at once while few are listed, else a little later.

        In a crowd later, too: a neighbour that has just joined knows of few.
        """
        if self.listed or self._never or not self._announced or self._look is not None:
            return
        known = self._roll.taken()
        if known >= FEW * GOSSIP_LISTED:
            wait = SPREAD_S * min(1.0, known / GOSSIP_LISTED) * self._rng.random()
        elif self._is_crowd(known):
            wait = LOOK_S * self._rng.uniform(0.5, 0.8)
        else:
            self._list(now)
            return
        self._crowd = float(CROWD * GOSSIP_LISTED)
        self._look = self._timers.at(now + wait, self._draw)

    def _draw(self, now: float) -> None:
        """Take a free place; in a crowd at the odds of free places to nodes that look for one, or look again soon."""
        known = self._roll.taken()
        free = GOSSIP_LISTED - known
        if free > 0 and self._is_crowd(known) and self._rng.random() * self._crowd >= free:
            self._crowd /= 2
            self._look = self._timers.at(now + LOOK_S * self._rng.uniform(0.8, 1.2), self._draw)
        else:
            self._take_place(now)

    def _is_crowd(self, known: float) -> bool:
        """Return whether more nodes may look for a place than find one.

        Not where most that were met are listed and places are plenty, nor where their part of those met is larger than
        that of the places which are taken: then there are fewer nodes than places.
        """
        met, listed = self._met()
        if not met or (known < FEW * GOSSIP_LISTED and 2 * listed >= met):
            return False
        return (listed - 1) * GOSSIP_LISTED < known * met

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
