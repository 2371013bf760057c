"""Is another relay better than the one in use? Probes on each, five times a second while data flows."""

from __future__ import annotations

from collections.abc import Mapping

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.paths.candidate import Candidate
from meshnode.paths.liveness import LATE_S

PERIOD_S = 0.2
IDLE_PERIOD_S = 1.0
LOST_AFTER_S = 0.25
LOST_RTTS = 3.0
TOO_MANY = 3  # of the last 8 probes: at 200 ms, a relay that drops half is left after about 1.3 s
MAX_OUT = 64


class Monitor:
    """Counts the fate of each probe; ``at`` is the deadline of the next step, None while not on a relay."""

    __slots__ = ("_out", "at")

    def __init__(self) -> None:
        self.at: float | None = None
        self._out: BoundedDict[bytes, tuple[Addr, float]] = BoundedDict(MAX_OUT)

    def begin(self, now: float) -> None:
        """A relay is in use."""
        if self.at is None:
            self.at = now + PERIOD_S

    def end(self) -> None:
        """No relay is in use."""
        self.at = None
        self._out.clear()

    def sent(self, tx: bytes, addr: Addr, now: float) -> None:
        """A probe went out."""
        self._out[tx] = (addr, now)

    def answered(self, tx: bytes, candidate: Candidate) -> None:
        """A probe was answered."""
        if self._out.pop(tx, None) is not None:
            candidate.fates.append(True)

    def step(self, relayed: bool, busy: bool, now: float, candidates: Mapping[Addr, Candidate]) -> None:
        """The deadline has come: note what was lost."""
        if not relayed:
            self.end()
            return
        if self.at is not None and now - self.at > LATE_S:
            self._out.clear()  # we got no CPU: the answers may be unread still
        self.at = now + (PERIOD_S if busy else IDLE_PERIOD_S)
        for tx, (addr, sent) in list(self._out.items()):
            candidate = candidates.get(addr)
            if candidate is None:
                del self._out[tx]
            elif now - sent > max(LOST_AFTER_S, LOST_RTTS * (candidate.rtt or 0.1)):
                del self._out[tx]
                candidate.fates.append(False)

    @staticmethod
    def prefers(other: Candidate, current: Candidate) -> bool:
        """True when the current relay loses or repeats too much and the other does not."""
        return current.losses >= TOO_MANY and other.losses == 0 and len(other.fates) >= 2
