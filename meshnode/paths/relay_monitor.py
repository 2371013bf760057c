"""Loss measurement of the relay in use beside others: probes on each, five times a second while data flows.

A relay that drops, delays or repeats datagrams can so be told from one that does not; ``selection`` decides.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.path import Path, ViaRelay
from meshnode.paths.candidate import Candidate, CandidateBook
from meshnode.paths.liveness import TIMER_SLACK_S
from meshnode.paths.validation import Validation

PERIOD_S = 0.2
IDLE_PERIOD_S = 1.0
LOST_AFTER_S = 0.25
LOST_RTTS = 3.0
MAX_PROBES = 64
COMPARED_RELAYS = 2


class RelayMonitor:
    """Records the outcome of each probe; ``at`` is the deadline of the next step, None while no relay is in use."""

    __slots__ = ("_book", "_probes", "_validation", "at")

    def __init__(self, book: CandidateBook, validation: Validation) -> None:
        self.at: float | None = None
        self._book = book
        self._validation = validation
        self._probes: BoundedDict[bytes, tuple[Path, float]] = BoundedDict(MAX_PROBES)

    def begin(self, now: float) -> None:
        """Start measuring: a relay is in use."""
        if self.at is None:
            self.at = now + PERIOD_S

    def end(self) -> None:
        """Stop measuring: no relay is in use."""
        self.at = None
        self._probes.clear()

    def probe(self, current: Candidate, others: list[Candidate], now: float) -> None:
        """Probe the relay in use and the first two others."""
        for candidate in (current, *others[:COMPARED_RELAYS]):
            self._probes[self._validation.probe(candidate, 0, now)] = (candidate.path, now)

    def answered(self, tx: bytes, candidate: Candidate) -> None:
        """Record the answer to a probe, if it was one of these."""
        if self._probes.pop(tx, None) is not None:
            candidate.note(answered=True)

    def tick(self, current: Candidate, busy: bool, now: float) -> None:
        """Record which probes are lost, and set the next deadline.

        Lost is what is not answered within three round trips, 0.25 s at least. When this step is late, this process got
        no CPU, and the probes under way are not counted. ``busy``: data flows, so the next step comes in 0.2 s, else in
        1 s.
        """
        if not isinstance(current.path, ViaRelay):
            self.end()
            return
        if self.at is not None and now - self.at > TIMER_SLACK_S:
            self._probes.clear()  # this process got no CPU: the answers may be unread still
        self.at = now + (PERIOD_S if busy else IDLE_PERIOD_S)
        for tx, (path, sent) in list(self._probes.items()):
            candidate = self._book.get(path)
            if candidate is None:
                del self._probes[tx]
            elif now - sent > max(LOST_AFTER_S, LOST_RTTS * (candidate.rtt or 0.1)):
                del self._probes[tx]
                candidate.note(answered=False)
