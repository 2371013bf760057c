"""Whether all that was sent of one stream has arrived, for a core that tells what is in flight of all streams alone.

Beside a transfer that number is never 0. The core lists the packets that are outstanding: what a stream had sent at a
look has arrived once none of the packets up to the newest of then is left, if no packet was lost meanwhile, for what a
lost one carried is in a newer one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.base.bounded import BoundedDict

if TYPE_CHECKING:
    from qh3._hazmat import QuicConnectionCore

MAX_MARKS = 1024  # streams; above that the oldest begins again
LOOK_S = 0.01  # between looks at the list: some 100 us for 500 packets
Mark = tuple[int, int, int | None]  # bytes written, packets lost, the newest packet of then: None until the next look


class Arrivals:
    """The streams of one connection that are asked for."""

    __slots__ = ("_core", "_looked", "_marks", "_oldest")

    def __init__(self, core: QuicConnectionCore) -> None:
        self._core = core
        self._looked = -LOOK_S
        self._oldest = 0
        self._marks: BoundedDict[int, Mark] = BoundedDict(MAX_MARKS)

    def has_all(self, stream_id: int, written: int, now: float) -> bool:
        """Return whether the peer has all ``written`` bytes of a stream, of which none is unsent now."""
        lost = self._core.loss_total
        marks = self._marks
        known = marks.get(stream_id)
        if known is None or known[:2] != (written, lost):
            marks[stream_id] = written, lost, None
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._look()
        mark = marks[stream_id][2]
        if mark is None or mark >= self._oldest:
            return False
        del marks[stream_id]
        return True

    def _look(self) -> None:
        packets = self._core.outstanding_application_packets
        if not packets:
            return
        self._oldest, newest = packets[0][0], packets[-1][0]
        for stream_id, (written, lost, mark) in list(self._marks.items()):
            if mark is None:
                self._marks[stream_id] = written, lost, newest
