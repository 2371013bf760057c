"""When HyParView looks for neighbours, shuffles, changes a neighbour and retries gone nodes. Sans I/O."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.base.timers import Timer, Timers
from meshnode.identity.node_id import NodeId

SHUFFLE_S, MAX_SHUFFLE_S = 10.0, 1_280.0  # between shuffles: twice as long each time that the neighbours are the same
CHANGED_S = 60.0  # the wait at most where they are not
ROTATE_S, MAX_ROTATE_S = 10.0, 3_600.0  # between walks for another neighbour: as long as this node has been here
FILL_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # between attempts to find a neighbour while they fail
FILL_GROWS, MAX_FILL_S = 1.5, 1_280.0  # and on from there, unless neighbours are so few that it is urgent
LOST_S, MAX_LOST_S = 2.0, 60.0  # between attempts to reach a gone node; grows with the time that it is gone

Action = Callable[[float], None]


class Upkeep:
    """Timers of one node's views, spread at random. Nothing fires after ``stop``.

    ``fill`` looks for neighbours; ``lacks`` tells whether there are too few. ``retry`` tries a gone node, and returns
    the seconds until the next, None when there is none.
    """

    def __init__(
        self,
        rng: random.Random,
        timers: Timers,
        fill: Action,
        lacks: Callable[[], bool],
        retry: Callable[[float], float | None],
        now: float,
    ) -> None:
        self.stopped = False
        self._rng = rng
        self._timers = timers
        self._fill = fill
        self._lacks = lacks
        self._retry = retry
        self._filling: Timer | None = None
        self._retrying: Timer | None = None
        self._failures = 0
        self._since = now
        self._shuffled = (now, SHUFFLE_S / 2)  # when, and for how long none is due if the neighbours stay
        self._neighbours: tuple[NodeId, ...] = ()

    def every(self, first: float, action: Callable[[float], float], spread: float, now: float) -> None:
        """Call ``action`` after ``first`` seconds, and again after as many as it returns, give or take ``spread``."""

        def run(now: float) -> None:
            if not self.stopped:
                wait = action(now)
                self._timers.at(now + wait * self._rng.uniform(1 - spread, 1 + spread), run)

        self._timers.at(now + first, run)

    def at(self, when: float, action: Action) -> Timer:
        """Call ``action`` once, at the monotonic time ``when``, even after ``stop`` unless it is cancelled."""
        return self._timers.at(when, action)

    def retry_soon(self, now: float) -> None:
        """Try a gone node within ``LOST_S``."""
        if self._retrying is None or self._retrying.when > now + LOST_S:
            self._arm_retry(now + LOST_S * self._rng.uniform(0.5, 1.0))

    def _arm_retry(self, when: float) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
        self._retrying = self._timers.at(when, self._retried)

    def _retried(self, now: float) -> None:
        wait = None if self.stopped else self._retry(now)
        if wait is not None:
            self._arm_retry(now + wait * self._rng.uniform(0.75, 1.25))

    def stop(self) -> None:
        """End all upkeep."""
        self.stopped = True

    def is_young(self, now: float) -> bool:
        """Return whether this node has been here for less than 1.5 ``ROTATE_S``.

        Its first neighbours are then of the nodes that joined together with it.
        """
        return now - self._since < 1.5 * ROTATE_S

    def rotate_wait(self, now: float) -> float:
        """Return the seconds until the next walk for another neighbour: this node's age, 10 s to an hour."""
        return min(MAX_ROTATE_S, max(ROTATE_S, now - self._since))

    def shuffle_due(self, neighbours: tuple[NodeId, ...], now: float, *, urgent: bool = False) -> bool:
        """Return whether to shuffle now; asked each ``SHUFFLE_S``, give or take.

        With the neighbours of before, the next one is due after twice the time, at most ``MAX_SHUFFLE_S``; with others
        in ``CHANGED_S``, or sooner where the time is shorter: at once where it is ``urgent`` to know others.
        """
        at, wait = self._shuffled
        if neighbours != self._neighbours:
            wait = min(wait, SHUFFLE_S if urgent else CHANGED_S)
        if now - at < wait:
            return False
        self._neighbours, self._shuffled = neighbours, (now, min(MAX_SHUFFLE_S, 2 * wait))
        return True

    def fill_soon(self, now: float, wait: float) -> None:
        """Look for neighbours after ``wait`` seconds, or when that is due already.

        Nothing happens while there are enough.
        """
        if self.stopped or not self._lacks():
            return
        if self._filling is not None and self._filling.live:
            if self._filling.when <= now + wait:
                return
            self._filling.cancel()
        self._filling = self._timers.at(now + wait, self._fill)

    def succeeded(self) -> None:
        """Note that a neighbour was found: after the next failure the wait is the shortest again."""
        self._failures = 0

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to find a neighbour failed."""
        return self._failures > 0

    def failed(self, now: float, *, urgent: bool) -> None:
        """Note that an attempt failed, and make the next one later.

        The waits are those of ``FILL_S``, times a random 0.7 to 1.3; then they grow on, unless it is ``urgent``.
        """
        last = len(FILL_S) - 1
        wait = FILL_S[min(self._failures, last)]
        if not urgent:
            wait = min(MAX_FILL_S, wait * FILL_GROWS ** min(max(0, self._failures - last), 20))
        self._failures += 1
        self.fill_soon(now, wait * self._rng.uniform(0.7, 1.3))
