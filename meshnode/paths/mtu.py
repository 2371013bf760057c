"""Path MTU discovery with padded probes (RFC 8899, datagram packetization layer).

A probe of the next size goes out; answered, the size is the path's; lost three times, it is too big. The search
halves what is left until steps are too small to matter, and is repeated from time to time. While much is sent, a
probe of the size in use confirms it once a second (RFC 8899 section 5.1.1): when large packets vanish (a black hole)
while small ones pass, nothing else would tell. The size then falls back to the base that every path carries.
"""

from __future__ import annotations

from meshnode.base.limits import BASE_MTU

START_S = 0.02  # after validation: behind the first data
TRIES = 3
ENOUGH = 24  # bytes: smaller gains are not worth a probe
AGAIN_S = 600.0  # RFC 8899 section 5.1.1: raise timer
CONFIRM_S = 1.0
BLACK_HOLE_S = 2.0  # before the next search


class MtuSearch:
    """The search on one path. Sizes are bytes of UDP payload; ``size`` is what is known to fit."""

    __slots__ = ("_ceiling", "_high", "_probing", "_tries", "_unconfirmed", "at", "confirm_at", "size")

    def __init__(self, ceiling: int) -> None:
        self.size = BASE_MTU
        self.at: float | None = None
        self.confirm_at: float | None = None
        self._unconfirmed = 0
        self._ceiling = ceiling
        self._high = ceiling
        self._probing = 0
        self._tries = 0

    def start(self, now: float) -> None:
        """The path is validated: search soon, unless it was searched already."""
        if self.at is None and self._ceiling > self.size:
            self.at = now + START_S

    def stop(self) -> None:
        """Another path is in use: no more probes on this one."""
        self.at = self.confirm_at = None
        self._unconfirmed = 0

    def busy(self, now: float) -> None:
        """Data is under way: confirm the size in a while."""
        if self.confirm_at is None and self.size > BASE_MTU:
            self.confirm_at = now + CONFIRM_S

    def confirm(self, rtt: float, now: float) -> bool:
        """The size in use is to be confirmed: True when a probe of it should be sent, False when it has failed."""
        if self._unconfirmed >= TRIES:
            return False
        self._unconfirmed += 1
        self.confirm_at = now + max(0.3, 3 * rtt)
        return True

    def probe(self, rtt: float, now: float) -> int | None:
        """Return the size to probe now, None when the search is over for a while."""
        if self._probing and self._tries >= TRIES:
            self._high = self._probing - 1
            self._probing = 0
        if not self._probing:
            if self._high - self.size < ENOUGH:
                self._high = self._ceiling
                self.at = now + AGAIN_S
                return None
            # the ceiling first: most paths carry it
            self._probing = self._high if self._high == self._ceiling else (self.size + self._high + 1) // 2
            self._tries = 0
        self._tries += 1
        self.at = now + max(0.3, 3 * rtt)
        return self._probing

    def answered(self, size: int, now: float) -> bool:
        """A probe of ``size`` went round trip; True when that is news."""
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

    def black_hole(self, now: float) -> None:
        """Large packets vanish: back to the base size, and search again later."""
        self.size = BASE_MTU
        self.confirm_at = None
        self._unconfirmed = 0
        self._high = self._ceiling
        self._probing = 0
        self.at = now + BLACK_HOLE_S
