"""Doubt in the clock of a node that starts with a time before one that an earlier process of it knew.

Datagrams that the earlier process accepted may be recorded, and this one has no memory of them. If the clock is behind
now, they can be fresh once more; if it was ahead then, honest peers must be heard. So at first only answers to what
this process asked are heard, for a recorded one answers nothing that it asked. The first of them shows that another
node's clock agrees with this one, and ends the doubt. So does a time that no earlier process can have seen.
"""

from __future__ import annotations

from collections.abc import Container

from meshnode.base.limits import CLOCK_DOUBT_S

NEVER = float("-inf")


class ClockDoubt:
    """Which stamps are in doubt. Times are Unix seconds, but for ``look``."""

    def __init__(self) -> None:
        self._until = NEVER  # stamps up to here may have been accepted by an earlier process
        self._look_at = 0.0
        self.answers: Container[int] = ()  # first bytes of bodies that answer something, set by the stack

    def begin(self, newest: float, now: float) -> None:
        """Doubt stamps up to ``newest``, from ``now`` (monotonic) on."""
        self._until, self._look_at = newest, now + CLOCK_DOUBT_S

    @property
    def is_there(self) -> bool:
        """True while there is doubt."""
        return self._until != NEVER

    def refuses(self, sent: float, body: bytes) -> bool:
        """True for a datagram (a knock has no body) that may have been accepted before: its stamp is in doubt."""
        return sent <= self._until and not (body and body[0] in self.answers)

    def settle(self) -> None:
        """End the doubt: something that this process asked was answered with a fresh stamp."""
        self._until = NEVER

    def look(self, now: float, contradicted: bool) -> None:
        """End the doubt where nothing answers at all, unless stamps of members say that the clock is wrong."""
        if self.is_there and now >= self._look_at:
            self._look_at = now + CLOCK_DOUBT_S
            if not contradicted:
                self.settle()
