"""The size of datagrams on the path in use: the outcome of its MTU search, and the fall back from a black hole.

And the validation of any path at the base size, before it is preferred to another that works.
"""

from __future__ import annotations

from meshnode.base.limits import BASE_MTU
from meshnode.base.path_reason import PathReason
from meshnode.paths.candidate import Candidate
from meshnode.paths.effects import EXPAND, Journal, MtuChanged, Nudge
from meshnode.paths.liveness import Watchdog
from meshnode.paths.validation import Validation

UNMEASURED_RTT_S = 0.1


class PathMtu:
    """``size`` is bytes of UDP payload; the stack is told of each change."""

    __slots__ = ("_journal", "_validation", "_watchdog", "size")

    def __init__(self, validation: Validation, watchdog: Watchdog, journal: Journal) -> None:
        self.size = BASE_MTU
        self._validation = validation
        self._watchdog = watchdog
        self._journal = journal

    def reset(self) -> None:
        """Start from the base size, as a new connection's engine does."""
        self.size = BASE_MTU

    def use(self, current: Candidate, now: float) -> None:
        """Take the size of a path that is in use from now on: its floor until it is validated."""
        self._set(current.mtu.size if current.is_valid else current.mtu.floor)
        if current.is_valid:
            current.mtu.start(now)

    def answered(self, found: Candidate, size: int, now: float, *, is_current: bool) -> None:
        """Take the answer to a padded probe of ``size``."""
        if found.mtu.answered(size, now) and is_current:
            self._set(found.mtu.size)

    def fall_back(self, current: Candidate, now: float) -> None:
        """Use the path's floor, and validate that: larger packets may be what is lost."""
        if current.mtu.size > current.mtu.floor:
            current.mtu.on_black_hole(now)
            self._set(current.mtu.floor)
        else:
            current.mtu.doubt(now)

    def validate(self, found: Candidate, now: float) -> None:
        """Send a probe of the base size by a path that answers small ones, when one is due.

        Its answer is to be as long. After one that was lost, a small one beside it tells whether only large ones are.
        """
        if found.mtu.next_base(found.rtt or UNMEASURED_RTT_S, found.answered, now):
            self._validation.probe(found, EXPAND, now, pad_to=found.mtu.floor)
            if found.mtu.base_lost:
                self._validation.probe(found, 0, now)

    def tick(self, current: Candidate, now: float) -> bool:
        """Send the probes that are due on the path in use; True when it has just been found too small, or still is.

        A size in use that is not confirmed three times falls back to the base size, with a ``Nudge`` for what is in
        flight.
        """
        mtu = current.mtu
        if mtu.confirm_at is not None and mtu.confirm_at <= now:
            self._confirm(current, now)
        if mtu.at is None or mtu.at > now:
            return False
        if mtu.needs_base:
            self.validate(current, now)
        elif (size := mtu.next_size(current.rtt or UNMEASURED_RTT_S, now)) is not None:
            self._validation.probe(current, 0, now, pad_to=size)
        return current.is_too_small

    def _confirm(self, current: Candidate, now: float) -> None:
        if not self._watchdog.in_flight:
            current.mtu.confirm_at = None
        elif current.mtu.confirm(current.rtt or UNMEASURED_RTT_S, now):
            self._validation.probe(current, 0, now, pad_to=current.mtu.size)
        elif current.mtu.size > current.mtu.floor:
            self.fall_back(current, now)
            self._journal.emit(Nudge(current.path, PathReason.BLACK_HOLE))
            self._journal.note(now, PathReason.BLACK_HOLE, current.path)
        else:
            current.mtu.doubt(now)  # the base may be too large as well; there are no smaller packets to send again

    def _set(self, size: int) -> None:
        if size != self.size:
            self.size = size
            self._journal.emit(MtuChanged(size))
