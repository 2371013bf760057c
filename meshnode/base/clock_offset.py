"""How far our clock is from our peers', from the time stamps of what they sealed. Reads no clock.

An offset is the sender's stamp minus our time on arrival, in seconds: above 0 their clock is ahead. It includes the
way here, so a few hundredths of a second mean nothing. What came too early or too late to be opened is kept apart:
its sender was not proven.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_CLOCKS

STALE_KEPT = 16


class ClockOffset:
    """The newest offset of each of the last senders."""

    def __init__(self) -> None:
        self._offsets: BoundedDict[Hashable, float] = BoundedDict(MAX_CLOCKS)
        self._stale: deque[float] = deque(maxlen=STALE_KEPT)

    def proven(self, sender: Hashable, offset: float) -> None:
        """Note the offset, in seconds, of an authentic datagram from ``sender``; only its newest counts.

        The offsets of the last ``MAX_CLOCKS`` senders are kept: the sender first heard goes first.
        """
        self._offsets[sender] = offset

    def stale(self, offset: float) -> None:
        """Note the offset of a datagram that was dropped because of its time.

        Only a member can have made it, but which one is not proven, so the last 16 are kept whatever their senders.
        """
        self._stale.append(offset)

    def to_json(self) -> dict[str, float | int | None]:
        """Return the two medians in seconds, and how many peers the first is of.

        ``offset_s`` is of authentic datagrams, ``stale_offset_s`` of those dropped for their time; each is None when
        there is nothing to compare with. A median, so that a minority of wrong clocks moves neither.
        """
        return {
            "offset_s": _median(self._offsets.values()),
            "peers": len(self._offsets),
            "stale_offset_s": _median(self._stale),
        }


def _median(offsets: Iterable[float]) -> float | None:
    """The middle one, the lower of two (the ``statistics`` module costs 0.6 MB); None when there are none."""
    ordered = sorted(offsets)
    return round(ordered[(len(ordered) - 1) // 2], 3) if ordered else None
