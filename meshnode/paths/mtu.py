"""The search for a path's MTU with padded probes (RFC 8899, datagram packetization layer).

A probe of the next size goes out; answered, the size is the path's; lost three times, it is too big. The search
halves what is left until steps are too small to matter, and is repeated every ten minutes. While much is sent, a
probe of the size in use confirms it once a second (RFC 8899 section 5.1.1): when large packets vanish (a black hole)
while small ones pass, nothing else would tell. The size then falls back to the base that every path carries.
"""

from __future__ import annotations

from meshnode.base.limits import BASE_MTU

START_DELAY_S = 0.02  # after validation: behind the first data
MAX_PROBES = 3  # RFC 8899 section 5.1.2: of one size, before it counts as too big
RESOLUTION = 24  # bytes: smaller gains are not worth a probe
RAISE_TIMER_S = 600.0  # RFC 8899 section 5.1.1
CONFIRM_SIZE_S = 1.0  # while data is under way
BLACK_HOLE_PAUSE_S = 2.0  # before the next search
PROBE_TIMER_MIN_S, PROBE_TIMER_RTTS = 0.3, 3  # RFC 8899 section 5.1.1: until a probe counts as lost


class MtuSearch:
    """The search on one path. Sizes are bytes of UDP payload; ``size`` is what is known to fit.

    ``at`` is when the next probe is due, ``confirm_at`` when the size in use is to be confirmed (monotonic seconds).
    With a ``ceiling`` of 0 there is no search. ``floor`` is what such a path surely carries, validated or not: more
    than the base within a host, where nothing is in between.
    """

    __slots__ = ("_ceiling", "_high", "_probing", "_tries", "_unconfirmed", "at", "confirm_at", "floor", "size")

    def __init__(self, ceiling: int, floor: int = BASE_MTU) -> None:
        self.size = self.floor = floor
        self.at: float | None = None
        self.confirm_at: float | None = None
        self._unconfirmed = 0
        self._ceiling = ceiling
        self._high = ceiling
        self._probing = 0
        self._tries = 0

    def start(self, now: float) -> None:
        """Search soon, unless that was done already: the path is validated."""
        if self.at is None and self._ceiling > self.size:
            self.at = now + START_DELAY_S

    def stop(self) -> None:
        """Send no more probes: another path is in use."""
        self.at = self.confirm_at = None
        self._unconfirmed = 0

    def confirm(self, rtt: float, now: float) -> bool:
        """Return True when a probe of the size in use should be sent to confirm it.

        False when the size has failed: ``MAX_PROBES`` in a row were not answered. ``rtt`` is seconds; the next one is
        due after three round trips, 0.3 s at least.
        """
        if self._unconfirmed >= MAX_PROBES:
            return False
        self._unconfirmed += 1
        self.confirm_at = now + max(PROBE_TIMER_MIN_S, PROBE_TIMER_RTTS * rtt)
        return True

    def next_size(self, rtt: float, now: float) -> int | None:
        """Return the size to probe now, None when the search is over until the raise timer fires.

        The ceiling is tried first, then the middle of what is left. ``rtt`` is seconds; a probe counts as lost after
        three round trips, 0.3 s at least.
        """
        if self._probing and self._tries >= MAX_PROBES:
            self._high = self._probing - 1
            self._probing = 0
        if not self._probing:
            if self._high - self.size < RESOLUTION:
                self._high = self._ceiling
                self.at = now + RAISE_TIMER_S
                return None
            # the ceiling first: most paths carry it
            self._probing = self._high if self._high == self._ceiling else (self.size + self._high + 1) // 2
            self._tries = 0
        self._tries += 1
        self.at = now + max(PROBE_TIMER_MIN_S, PROBE_TIMER_RTTS * rtt)
        return self._probing

    def answered(self, size: int, now: float) -> bool:
        """Take the answer to a probe of ``size``; True when a larger size than before fits.

        The search goes on at once then. An answer for the size in use, or a larger one, confirms it.
        """
        if size >= self.size:
            self._unconfirmed = 0
            self.confirm_at = None
        if size <= self.size:
            return False
        self.size = size
        self._probing = 0
        if self.at is not None:
            self.at = now
        return True

    def on_black_hole(self, now: float) -> None:
        """Fall back to the floor: larger packets vanish.

        The search begins again after ``BLACK_HOLE_PAUSE_S``, from the ceiling.
        """
        self.size = self.floor
        self.confirm_at = None
        self._unconfirmed = 0
        self._high = self._ceiling
        self._probing = 0
        self.at = now + BLACK_HOLE_PAUSE_S
