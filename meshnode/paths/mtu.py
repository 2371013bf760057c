"""The search for a path's MTU with padded probes (RFC 8899, datagram packetization layer).

A probe of the next size goes out; answered, the size is the path's; lost three times, it is too big. The search
halves what is left until steps are too small to matter, and is repeated every ten minutes. While much is sent, a
probe of the size in use confirms it once a second (RFC 8899 section 5.1.1): when large packets vanish (a black hole)
while small ones pass, nothing else would tell. The size then falls back to the base; the base, where nothing larger is
in use, is confirmed as well.

Not even the base passes everywhere, and QUIC needs it (RFC 9000 section 14.1), while small probes are answered. So a
path is validated at that size (section 8.2.1), by a probe whose answer is as long or by a handshake. When all of
``BASE_PROBES`` are lost and small ones pass, it is too small: the error phase of RFC 8899 section 5.2.
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
BASE_PROBES, BASE_RTTS = 4, 2  # of the base; after the last the answer has two round trips
IDLE = -1  # the number of probes of the base while it is not being validated
ERROR_PAUSE_S = 3.0  # between probes of a path that is too small


class MtuSearch:
    """The search on one path. Sizes are bytes of UDP payload; ``size`` is what is known to fit.

    ``at`` is when the next probe is due, ``confirm_at`` when the size in use is to be confirmed (monotonic seconds).
    With a ``ceiling`` of 0 there is no search. ``floor`` is the smallest size that is used: more than the base within a
    host, where nothing is in between. ``carries``: whether datagrams of that size go both ways, None while that is not
    known; a path that ``always`` carries them is not probed for it.
    """

    __slots__ = (
        "_base_since",
        "_base_tries",
        "_ceiling",
        "_high",
        "_probing",
        "_search_at",
        "_tries",
        "_unconfirmed",
        "always",
        "at",
        "carries",
        "confirm_at",
        "floor",
        "size",
    )

    def __init__(self, ceiling: int, floor: int = BASE_MTU, *, always: bool = False) -> None:
        self.size = self.floor = floor
        self.at: float | None = None
        self.confirm_at: float | None = None
        self.carries: bool | None = True if always else None
        self.always = always
        self._base_tries = IDLE
        self._base_since = float("-inf")  # when the first of those was sent
        self._search_at = 0.0  # not before, after a black hole
        self._unconfirmed = 0
        self._ceiling = ceiling
        self._high = ceiling
        self._probing = 0
        self._tries = 0

    def start(self, now: float) -> None:
        """Search soon, unless that was done already: small probes pass."""
        if self.at is None and (self.needs_base or self._ceiling > self.size):
            self.at = now + START_DELAY_S

    def stop(self) -> None:
        """Send no more probes: another path is in use."""
        self.at = self.confirm_at = None
        self._unconfirmed = 0
        self._base_tries = IDLE

    @property
    def needs_base(self) -> bool:
        """True while the base is to be validated."""
        return not self.carries or self._base_tries > IDLE

    def doubt(self, now: float) -> None:
        """Validate the base again now, unless that was done within ``CONFIRM_SIZE_S``: such packets may be lost."""
        if self.always or self.carries is False or self._base_tries > 0 or now - self._base_since < CONFIRM_SIZE_S:
            return
        self._base_tries = 0
        self.at = now

    def forget(self, *, in_use: bool) -> None:
        """Take back what was found out: this node's own network has changed.

        A path in use that carried the base is validated again when a silence gives reason to.
        """
        if self.always or (self.carries and in_use):
            return
        self.carries = None
        self._base_tries = IDLE
        self.at = None

    def next_base(self, rtt: float, answered: float, now: float) -> bool:
        """Return True when a probe of the base should be sent now, False while none is due.

        ``answered`` is when the latest probe was sent that has come back, of any size: after ``BASE_PROBES`` it tells a
        path that is too small from one that carries nothing, of which no more is known then.
        """
        if self.at is not None and self.at > now:
            return False
        if self._base_tries >= BASE_PROBES:
            self._base_tries = 0
            if answered < self._base_since:
                self.at = None
                return False
            self.carries, self._base_tries = False, IDLE
        if self.carries is False:
            self.at = now + ERROR_PAUSE_S
            return True
        if self._base_tries <= 0:
            self._base_since, self._base_tries = now, 0
        self._base_tries += 1
        is_last = self._base_tries == BASE_PROBES
        self.at = now + max(PROBE_TIMER_MIN_S, BASE_RTTS * rtt if is_last else 0.0)
        return True

    @property
    def base_lost(self) -> bool:
        """True when a probe of the base was not answered in time, and it is not known yet whether any would be."""
        return self._base_tries > 1

    def confirm(self, rtt: float, now: float) -> bool:
        """Return True when a probe of the size in use should be sent to confirm it.

        False when the size has failed: ``MAX_PROBES`` in a row were not answered. ``rtt`` is seconds; the next one is
        due after three round trips, 0.3 s at least.
        """
        if self._unconfirmed >= MAX_PROBES:
            self._unconfirmed, self.confirm_at = 0, None
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

        The search goes on at once then. An answer for the size in use, or a larger one, confirms it. A handshake that
        went round trip is an answer for the ``floor``.
        """
        if size >= self.floor and self.needs_base:
            self.carries, self._base_tries = True, IDLE
            if self.at is not None:
                self.at = max(now, self._search_at) if self._ceiling > self.size else None
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
        """Fall back to the floor, which is validated: larger packets vanish.

        The search begins again after ``BLACK_HOLE_PAUSE_S``, from the ceiling.
        """
        self.size = self.floor
        self.confirm_at = None
        self._unconfirmed = 0
        self._high = self._ceiling
        self._probing = 0
        self._search_at = now + BLACK_HOLE_PAUSE_S
        self.doubt(now)
        if not self.needs_base:
            self.at = self._search_at
