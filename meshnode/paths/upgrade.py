"""The search for a better kind of path: hole punching, and UDP that works again.

While the active path is a detour (a relay, a WebSocket), rounds of probes go to every address of a better kind. Both
ends do so at the same time, each probe opening its own NAT for the other's (RFC 5128 section 3.3); a relay tells both
when, and each other's observed address. While it is direct and leads out of this node's networks, addresses on them get
a few probes more: the first may have been lost, or late in a busy host.
"""

from __future__ import annotations

import random

from meshnode.base.path import ViaRelay
from meshnode.paths.candidate import Candidate, CandidateBook
from meshnode.paths.effects import Journal, NeedIntroduction
from meshnode.paths.validation import Validation

PROBE_GAP_S = 0.075  # measured: hole punching works best with 50 to 100 ms
ROUND_PROBES = 24  # a round: 1.8 s, of one 129-byte probe an address
ASK_AGAIN = (5, 14)  # probes into a round without an introduction (a handshake was under way, say): ask once more
PAUSES_S = (3.0, 8.0, 20.0, 60.0)  # between rounds; the last repeats
NEAR_GAPS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # before each probe of an address on our networks; none comes after


class Upgrade:
    """The schedule of rounds. ``at`` is its deadline, None while there is no better path to look for."""

    __slots__ = ("_book", "_introduced", "_journal", "_near", "_probes_left", "_rng", "_round", "_validation", "at")

    def __init__(self, book: CandidateBook, validation: Validation, journal: Journal, rng: random.Random) -> None:
        self.at: float | None = None
        self._book = book
        self._validation = validation
        self._journal = journal
        self._rng = rng
        self._probes_left = 0
        self._round = 0
        self._near = 0
        self._introduced = False

    def begin(self, current: Candidate, now: float) -> None:
        """Begin the first round now: the active path has become ``current``, a detour; does nothing in a round."""
        if self.at is None or self._near:
            self._restart(current, now)

    def join(self, at: float) -> None:
        """Begin a round at this time, as the other end does.

        ``at`` is monotonic seconds. Does nothing while the active path is of the best kind.
        """
        if self.at is not None and not self._near:
            self._probes_left = ROUND_PROBES
            self._introduced = True
            self.at = at

    def again(self, current: Candidate | None, now: float) -> None:
        """Begin a round now instead of later: an address, a network or the active path has changed."""
        if current is not None:
            self._restart(current, now)

    def _restart(self, current: Candidate, now: float) -> None:
        """Begin the first round at this time, where there is something to look for."""
        self._round = self._probes_left = self._near = 0
        self.at = now
        if current.rank == 0:
            self._step_near(current, now)

    def tick(self, current: Candidate, now: float) -> None:
        """Probe every address that is better than ``current``; ask for an introduction where one is due."""
        if current.rank == 0:
            self._step_near(current, now)
        elif self._step(now) and isinstance(current.path, ViaRelay):
            self._journal.emit(NeedIntroduction())
        for candidate in self._better(current):
            if now >= candidate.trusted_at:
                self._validation.probe(candidate, 0, now)

    def _better(self, current: Candidate) -> list[Candidate]:
        return [candidate for candidate in self._book if self._book.is_better(candidate, current)]

    def _step_near(self, current: Candidate, now: float) -> None:
        """Set the next deadline beside a direct path."""
        if self._near == len(NEAR_GAPS_S) or not self._better(current):
            self.at = None
        else:
            self.at = now + NEAR_GAPS_S[self._near]
            self._near += 1

    def _step(self, now: float) -> bool:
        """Set the next deadline; True when an introduction should be asked for."""
        is_new_round = self._probes_left == 0
        if is_new_round:
            self._probes_left = ROUND_PROBES
            self._introduced = False
        ask = is_new_round or (not self._introduced and ROUND_PROBES - self._probes_left in ASK_AGAIN)
        self._probes_left -= 1
        if self._probes_left:
            self.at = now + PROBE_GAP_S
        else:
            pause = PAUSES_S[min(self._round, len(PAUSES_S) - 1)]
            self._round += 1
            self.at = now + pause * self._rng.uniform(0.9, 1.1)
        return ask
