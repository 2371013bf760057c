"""When to look for a better kind of path: hole punching, and UDP coming back.

While the active path is a detour (a relay, a WebSocket), rounds of probes go to every address of a better kind.
Both ends do so at the same time, each probe opening its own NAT for the other's (RFC 5128 section 3.3); a
relay tells both when, and as which address it sees the other.
"""

from __future__ import annotations

import random

GAP_S = 0.075  # between the probes of a round (measured: 50 to 100 ms is what punching wants)
PROBES = 24  # a round: 1.8 s, of one 129-byte probe an address
ASK_AGAIN = (5, 14)  # probes into a round: nobody has introduced us (a hello was under way, say), so ask again
PAUSES_S = (3.0, 8.0, 20.0, 60.0)  # between rounds; the last repeats


class Upgrade:
    """The schedule of rounds. ``at`` is its deadline, None while there is nothing better to look for."""

    __slots__ = ("_joined", "_left", "_rng", "_round", "at")

    def __init__(self, rng: random.Random) -> None:
        self.at: float | None = None
        self._rng = rng
        self._left = 0
        self._round = 0
        self._joined = False

    def begin(self, now: float) -> None:
        """The active path has become a detour: the first round begins now."""
        if self.at is None:
            self._round = self._left = 0
            self.at = now

    def join(self, at: float) -> None:
        """The other end begins a round at this time: so do we."""
        if self.at is not None:
            self._left = PROBES
            self._joined = True
            self.at = at

    def again(self, now: float) -> None:
        """Something has changed (an address, a network): do not wait for the next round."""
        if self.at is not None:
            self._round = self._left = 0
            self.at = now

    def end(self) -> None:
        """There is nothing better to look for."""
        self.at = None

    def step(self, now: float) -> bool:
        """The deadline has come, a probe is due: True when an introduction should be asked for."""
        fresh = self._left == 0
        if fresh:
            self._left = PROBES
            self._joined = False
        ask = fresh or (not self._joined and PROBES - self._left in ASK_AGAIN)
        self._left -= 1
        if self._left:
            self.at = now + GAP_S
        else:
            pause = PAUSES_S[min(self._round, len(PAUSES_S) - 1)]
            self._round += 1
            self.at = now + pause * self._rng.uniform(0.9, 1.1)
        return ask
