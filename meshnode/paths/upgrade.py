"""The search for a better kind of path: hole punching, and UDP that works again.

While the active path is a detour (a relay, a WebSocket), rounds of probes go to every address of a better kind. Both
ends do so at the same time, each probe opening its own NAT for the other's (RFC 5128 section 3.3); a relay tells both
when, and each other's observed address.
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


class Upgrade:
    """The schedule of rounds. ``at`` is its deadline, None while the active path is of the best kind."""

    __slots__ = ("_book", "_introduced", "_journal", "_probes_left", "_rng", "_round", "_validation", "at")

    def __init__(self, book: CandidateBook, validation: Validation, journal: Journal, rng: random.Random) -> None:
        self.at: float | None = None
        self._book = book
        self._validation = validation
        self._journal = journal
        self._rng = rng
        self._probes_left = 0
        self._round = 0
        self._introduced = False

    def begin(self, now: float) -> None:
        """Begin the first round now: the active path has become a detour."""
        if self.at is None:
            self._restart(now)

    def join(self, at: float) -> None:
        """Begin a round at this time, as the other end does.

        ``at`` is monotonic seconds. Does nothing while the active path is of the best kind.
        """
        if self.at is not None:
            self._probes_left = ROUND_PROBES
            self._introduced = True
            self.at = at

    def again(self, now: float) -> None:
        """Begin a round now instead of later: an address or a network has changed."""
        if self.at is not None:
            self._restart(now)

    def _restart(self, now: float) -> None:
        """Begin the first round at this time."""
        self._round = self._probes_left = 0
        self.at = now

    def end(self) -> None:
        """Stop: the active path is of the best kind."""
        self.at = None

    def tick(self, current: Candidate, now: float) -> None:
        """Probe every address of a better kind than ``current``; ask for an introduction where one is due."""
        if current.rank == 0:
            self.end()
            return
        if self._step(now) and isinstance(current.path, ViaRelay):
            self._journal.emit(NeedIntroduction())
        for candidate in self._book:
            if candidate.rank < current.rank and now >= candidate.trusted_at:
                self._validation.probe(candidate, 0, now)

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
