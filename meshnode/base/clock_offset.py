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

RELEASED_S = 1_793_491_200.0  # 1 November 2026: no right clock says an earlier time to this version
STALE_KEPT = 16
SAMPLE_S = 120.0  # eight keepalives: an older sample says nothing of the clocks now


def date(wall: float) -> str:
    """Return Unix seconds as text, in UTC."""
    from datetime import UTC, datetime  # for a warning or a diagnosis alone

    try:
        return f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{wall:.0f} s since 1970"


class ClockOffset:
    """The newest offset of each of the last senders, for ``SAMPLE_S``. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._offsets: BoundedDict[Hashable, tuple[float, float]] = BoundedDict(MAX_CLOCKS)
        self._stale: deque[tuple[float, float]] = deque(maxlen=STALE_KEPT)

    def proven(self, sender: Hashable, offset: float, now: float) -> None:
        """Note the offset, in seconds, of an authentic datagram from ``sender``; only its newest counts.

        The offsets of the last ``MAX_CLOCKS`` senders are kept: the sender first heard goes first.
        """
        self._offsets[sender] = offset, now

    def stale(self, offset: float, now: float) -> None:
        """Note the offset of a datagram that was dropped because of its time.

        Only a member can have made it, but which one is not proven, so the last 16 are kept whatever their senders.
        """
        self._stale.append((offset, now))

    def clear(self) -> None:
        """Forget all: this node's clock was set."""
        self._offsets.clear()
        self._stale.clear()

    def to_json(self, now: float) -> dict[str, float | int | None]:
        """Return the two medians in seconds, and how many peers the first is of.

        ``offset_s`` is of authentic datagrams, ``stale_offset_s`` of those dropped for their time; each is None when
        there is nothing to compare with. A median, so that a minority of wrong clocks moves neither.
        """
        offsets = [offset for offset, at in self._offsets.values() if now - at <= SAMPLE_S]
        return {
            "offset_s": _median(offsets),
            "peers": len(offsets),
            "stale_offset_s": _median(offset for offset, at in self._stale if now - at <= SAMPLE_S),
        }


def _median(offsets: Iterable[float]) -> float | None:
    """The middle one, the lower of two (the ``statistics`` module costs 0.6 MB); None when there are none."""
    ordered = sorted(offsets)
    return round(ordered[(len(ordered) - 1) // 2], 3) if ordered else None
